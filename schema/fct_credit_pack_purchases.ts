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
      branchId: 'Branch that sold the credit pack, not always that of the user.',
      creditPackId: 'Identifier of the purchased credit pack within its user.',
      creditPackPurchasedAt:
        'Instant at which the credit pack was purchased. NULL counts as later than every other.',
      createdAt: 'Instant at which the credit pack was created.',
      creditPackPurchaseDetails:
        'What upstream says of the purchase, a JSON object, or JSON null: name of the credit pack, and source of the purchase, of at most 1,000 bytes each.',
      creditPackName:
        'Name of the credit pack. Derived: the key name of credit_pack_purchase_details, which is what is written. NULL where that has none.',
      creditPackSource:
        'Source of the purchase. Derived: the key source of credit_pack_purchase_details, which is what is written. NULL where that has none.',
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
        'The purchases of a user in the order in which the first is found, with all that the reports show of it, so that the first one is read from the index alone.',
    },
  },
);

/** A row of `fct_credit_pack_purchases`. */
export type CreditPackPurchase = typeof fctCreditPackPurchases.$inferSelect;
