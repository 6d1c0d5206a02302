import { check, index, jsonb, pgTable, primaryKey } from 'drizzle-orm/pg-core';
import {
  identifier,
  inCalendarRange,
  instant,
  isObjectOrNull,
  type PurchaseDetails,
} from './columns.ts';
import { dimBranch } from './dim_branch.ts';
import { dimUser } from './dim_user.ts';

/** One row per credit pack that a user bought. */
export const fctCreditPackPurchases = pgTable(
  'fct_credit_pack_purchases',
  {
    userId: identifier('user_id')
      .notNull()
      .references(() => dimUser.userId),
    /** The branch that sold it, not always the user's own. */
    branchId: identifier('branch_id').references(() => dimBranch.branchId),
    creditPackId: identifier('credit_pack_id').notNull(),
    creditPackPurchasedAt: instant('credit_pack_purchased_at'),
    createdAt: instant('created_at'),
    creditPackPurchaseDetails: jsonb('credit_pack_purchase_details').$type<PurchaseDetails>(),
  },
  (table) => [
    primaryKey({ columns: [table.userId, table.creditPackId] }),
    // A user's first purchase, read from the index alone.
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
);
