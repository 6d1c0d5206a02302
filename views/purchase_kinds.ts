import type { PgColumn, PgTable } from 'drizzle-orm/pg-core';
import { fctCreditPackPurchases, fctMembershipPurchases } from '../schema/index.ts';
import { fctClientConversionEvents } from './fct_client_conversion_events.ts';
import type { ConversionEventType } from './values.ts';

interface PurchaseKind {
  /** What messages and the report call it, in the singular and in the plural. */
  name: string;
  plural: string;
  table: PgTable;
  /** The column of the table that identifies a purchase within its user. */
  key: PgColumn;
  /** The column of the first view that has the key of the user's first purchase of this kind. */
  first: PgColumn;
}

/** The kinds of purchase that convert a lead into a client. */
export const purchaseKinds: Record<ConversionEventType, PurchaseKind> = {
  MEMBERSHIP: {
    name: 'membership',
    plural: 'memberships',
    table: fctMembershipPurchases,
    key: fctMembershipPurchases.userMembershipId,
    first: fctClientConversionEvents.firstUserMembershipId,
  },
  USER_CREDIT: {
    name: 'credit pack',
    plural: 'credit packs',
    table: fctCreditPackPurchases,
    key: fctCreditPackPurchases.creditPackId,
    first: fctClientConversionEvents.firstCreditPackId,
  },
};
