import { check, index, jsonb, primaryKey } from 'drizzle-orm/pg-core';
import {
  calendarRangeRule,
  identifier,
  inCalendarRange,
  instant,
  isObjectOrNull,
  objectOrNullRule,
  type PurchaseDetails,
  publicTable,
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
    },
    (table) => [
      primaryKey({ columns: [table.userId, table.creditPackId] }),
      index('fct_credit_pack_purchases_first').on(
        table.userId,
        table.creditPackPurchasedAt,
        table.creditPackId,
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
        'What upstream says of the purchase, a JSON object: name of the credit pack, and source of the purchase.',
    },
    checks: {
      fct_credit_pack_purchases_credit_pack_purchased_at_check: calendarRangeRule,
      fct_credit_pack_purchases_created_at_check: calendarRangeRule,
      fct_credit_pack_purchases_credit_pack_purchase_details_check: objectOrNullRule,
    },
    indexes: {
      fct_credit_pack_purchases_first:
        'The purchases of a user in the order in which the first is found, which is read from the index alone.',
    },
  },
);

/** A row of `fct_credit_pack_purchases`. */
export type CreditPackPurchase = typeof fctCreditPackPurchases.$inferSelect;
