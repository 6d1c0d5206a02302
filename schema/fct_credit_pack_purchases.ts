import { check, index, jsonb, primaryKey } from 'drizzle-orm/pg-core';
import {
  calendarRangeRule,
  detail,
  hasShortDetails,
  identifier,
  inCalendarRange,
  instant,
  isObjectOrNull,
  isShort,
  objectOrNullRule,
  type PurchaseDetails,
  publicTable,
  shortDetailsRule,
  shortRule,
} from './columns.ts';
import { dimBranch } from './dim_branch.ts';
import { dimUser } from './dim_user.ts';
import { withProperties } from './properties.ts';

/** One row per credit pack that a user bought. */
export const fctCreditPackPurchases = withProperties(
  publicTable(
    'fct_credit_pack_purchases',
    {
      userId: identifier('user_id')
        .notNull()
        .references(() => dimUser.userId),
      branchId: identifier('branch_id').references(() => dimBranch.branchId),
      creditPackId: identifier('credit_pack_id').notNull(),
      creditPackPurchasedAt: instant('credit_pack_purchased_at'),
      createdAt: instant('created_at'),
      creditPackPurchaseDetails: jsonb('credit_pack_purchase_details').$type<PurchaseDetails>(),
      creditPackName: detail('credit_pack_name', 'credit_pack_purchase_details', 'name'),
      creditPackSource: detail('credit_pack_source', 'credit_pack_purchase_details', 'source'),
    },
    (table) => [
      primaryKey({ columns: [table.userId, table.creditPackId] }),
      index('fct_credit_pack_purchases_first').on(
        table.userId,
        table.creditPackPurchasedAt,
        table.creditPackId,
        table.creditPackName,
        table.creditPackSource,
      ),
      check(
        'fct_credit_pack_purchases_credit_pack_purchased_at_check',
        inCalendarRange(table.creditPackPurchasedAt),
      ),
      check('fct_credit_pack_purchases_created_at_check', inCalendarRange(table.createdAt)),
      check(
        'fct_credit_pack_purchases_credit_pack_purchase_details_check',
        isObjectOrNull(table.creditPackPurchaseDetails),
      ),
      check(
        'fct_credit_pack_purchases_details_check',
        hasShortDetails(table.creditPackPurchaseDetails),
      ),
      check('fct_credit_pack_purchases_user_id_check', isShort(table.userId)),
      check('fct_credit_pack_purchases_branch_id_check', isShort(table.branchId)),
      check('fct_credit_pack_purchases_credit_pack_id_check', isShort(table.creditPackId)),
    ],
  ),
  {
    comment: 'One row per credit pack that a user bought.',
    columns: {
      userId: 'User who bought the credit pack.',
      branchId: 'Branch that sold the credit pack. It can differ from the branch of the user.',
      creditPackId: 'Identifier of the purchased credit pack within its user.',
      creditPackPurchasedAt:
        'Instant at which the credit pack was purchased. NULL counts as later than any time.',
      createdAt: 'Instant at which the credit pack was created.',
      creditPackPurchaseDetails:
        'Details of the purchase from upstream: a JSON object with the name of the credit pack and the source of the purchase, each of at most 1,000 bytes, or JSON null.',
      creditPackName:
        'Name of the credit pack. Derived from the key "name" of credit_pack_purchase_details, and NULL if the details have none. Write the details, not this column.',
      creditPackSource:
        'Source of the purchase. Derived from the key "source" of credit_pack_purchase_details, and NULL if the details have none. Write the details, not this column.',
    },
    checks: {
      fct_credit_pack_purchases_credit_pack_purchased_at_check: calendarRangeRule,
      fct_credit_pack_purchases_created_at_check: calendarRangeRule,
      fct_credit_pack_purchases_credit_pack_purchase_details_check: objectOrNullRule,
      fct_credit_pack_purchases_details_check: shortDetailsRule,
      fct_credit_pack_purchases_user_id_check: shortRule,
      fct_credit_pack_purchases_branch_id_check: shortRule,
      fct_credit_pack_purchases_credit_pack_id_check: shortRule,
    },
    indexes: {
      fct_credit_pack_purchases_first:
        'The purchases of a user, ordered so the first purchase comes first, with all columns that the views show of it. The first purchase is read from the index alone.',
    },
  },
);

/** A row of `fct_credit_pack_purchases`. */
export type CreditPackPurchase = typeof fctCreditPackPurchases.$inferSelect;
