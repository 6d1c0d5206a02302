import { sql } from 'drizzle-orm';
import { expect, expectTypeOf, test } from 'vitest';
import * as schema from '../schema/index.ts';
import type { ClientConversionEvent, LeadConversion } from '../views/index.ts';
import * as views from '../views/index.ts';
import { useDatabase } from './support/database.ts';

// What others depend on. A change here is one for them: "Releases" in the README
// says what it takes.

const database = useDatabase();

/** As `\d` shows them: information_schema leaves materialized views out. */
async function columns(view: string): Promise<string[]> {
  const rows = await database.db
    .select({ column: sql<string>`attname || ' ' || format_type(atttypid, atttypmod)` })
    .from(sql`pg_attribute`)
    .where(sql`attrelid = ${view}::regclass and attnum > 0 and not attisdropped`)
    .orderBy(sql`attnum`);
  return rows.map(({ column }) => column);
}

test('fct_client_conversion_events has the columns of figure 1.4.1', async () => {
  expect(await columns('fct_client_conversion_events')).toEqual([
    'user_id character varying',
    'branch_id character varying',
    'local_user_created_at timestamp without time zone',
    'lead_status character varying',
    'client_conversion_event_type character varying',
    'client_conversion_event_id character varying',
    'client_conversion_event_local_created_at timestamp without time zone',
    'client_conversion_event_name character varying',
    'client_conversion_event_source character varying',
    'first_user_membership_id character varying',
    'first_local_membership_purchased_at timestamp without time zone',
    'first_membership_name character varying',
    'first_membership_source character varying',
    'first_credit_pack_id character varying',
    'first_local_credit_pack_purchase_at timestamp without time zone',
    'first_credit_pack_name character varying',
    'first_credit_pack_source character varying',
  ]);
});

test('fct_lead_conversions has the columns of figure 1.4.2', async () => {
  expect(await columns('fct_lead_conversions')).toEqual([
    'user_id character varying',
    'branch_id character varying',
    'local_user_created_at timestamp without time zone',
    'lead_status character varying',
    'client_conversion_event_type character varying',
    'client_conversion_event_id character varying',
    'client_conversion_event_local_created_at timestamp without time zone',
    'client_conversion_event_name character varying',
    'client_conversion_event_source character varying',
    'client_conversion_event_filter character varying',
  ]);
});

/** The columns that both views have. */
interface Conversion {
  userId: string;
  branchId: string | null;
  localUserCreatedAt: string | null;
  leadStatus: 'LEAD' | 'CLIENT';
  clientConversionEventType: 'MEMBERSHIP' | 'USER_CREDIT' | null;
  clientConversionEventId: string | null;
  clientConversionEventLocalCreatedAt: string | null;
  clientConversionEventName: string | null;
  clientConversionEventSource: string | null;
}

test('the rows have these types in TypeScript', () => {
  expectTypeOf<ClientConversionEvent>().branded.toEqualTypeOf<
    Conversion & {
      firstUserMembershipId: string | null;
      firstLocalMembershipPurchasedAt: string | null;
      firstMembershipName: string | null;
      firstMembershipSource: string | null;
      firstCreditPackId: string | null;
      firstLocalCreditPackPurchaseAt: string | null;
      firstCreditPackName: string | null;
      firstCreditPackSource: string | null;
    }
  >();
  expectTypeOf<LeadConversion>().branded.toEqualTypeOf<
    Conversion & { clientConversionEventFilter: 'MEMBERSHIP' | 'USER_CREDIT' | 'ALL' }
  >();
});

test('the entries of the package export these values', () => {
  expect(Object.keys(schema).sort()).toEqual([
    'dimBranch',
    'dimUser',
    'fctCreditPackPurchases',
    'fctMembershipPurchases',
  ]);
  expect(Object.keys(views).sort()).toEqual([
    'conversionEventFilters',
    'conversionEventTypes',
    'fctClientConversionEvents',
    'fctLeadConversions',
    'leadStatuses',
    'readerRole',
    'refreshDefaults',
    'refreshModes',
    'refreshViews',
    'viewRefreshes',
  ]);
});
