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

/** One row per membership that a user bought. */
export const fctMembershipPurchases = pgTable(
  'fct_membership_purchases',
  {
    userId: identifier('user_id')
      .notNull()
      .references(() => dimUser.userId),
    /** The branch that sold it, not always the user's own. */
    branchId: identifier('branch_id').references(() => dimBranch.branchId),
    userMembershipId: identifier('user_membership_id').notNull(),
    membershipPurchasedAt: instant('membership_purchased_at'),
    createdAt: instant('created_at'),
    membershipPurchaseDetails: jsonb('membership_purchase_details').$type<PurchaseDetails>(),
  },
  (table) => [
    primaryKey({ columns: [table.userId, table.userMembershipId] }),
    // A user's first purchase, read from the index alone.
    index('fct_membership_purchases_first').on(
      table.userId,
      table.membershipPurchasedAt,
      table.userMembershipId,
    ),
    check(
      'fct_membership_purchases_membership_purchased_at_check',
      inCalendarRange(table.membershipPurchasedAt),
    ),
    check('fct_membership_purchases_created_at_check', inCalendarRange(table.createdAt)),
    check(
      'fct_membership_purchases_membership_purchase_details_check',
      isObjectOrNull(table.membershipPurchaseDetails),
    ),
  ],
);
