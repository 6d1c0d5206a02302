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

/** One row per membership that a user bought. */
export const fctMembershipPurchases = withProperties(
  publicTable(
    'fct_membership_purchases',
    {
      userId: identifier('user_id')
        .notNull()
        .references(() => dimUser.userId),
      branchId: identifier('branch_id').references(() => dimBranch.branchId),
      userMembershipId: identifier('user_membership_id').notNull(),
      membershipPurchasedAt: instant('membership_purchased_at'),
      createdAt: instant('created_at'),
      membershipPurchaseDetails: jsonb('membership_purchase_details').$type<PurchaseDetails>(),
    },
    (table) => [
      primaryKey({ columns: [table.userId, table.userMembershipId] }),
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
  ),
  {
    comment: 'One row per membership that a user bought.',
    columns: {
      userId: 'User who bought the membership.',
      branchId: 'Branch that sold the membership, not always that of the user.',
      userMembershipId: 'Identifier of the purchased membership within its user.',
      membershipPurchasedAt:
        'Instant at which the membership was purchased. NULL counts as later than every other.',
      createdAt: 'Instant at which the membership was created.',
      membershipPurchaseDetails:
        'What upstream says of the purchase, a JSON object: name of the membership, and source of the purchase.',
    },
    checks: {
      fct_membership_purchases_membership_purchased_at_check: calendarRangeRule,
      fct_membership_purchases_created_at_check: calendarRangeRule,
      fct_membership_purchases_membership_purchase_details_check: objectOrNullRule,
    },
    indexes: {
      fct_membership_purchases_first:
        'The purchases of a user in the order in which the first is found, which is read from the index alone.',
    },
  },
);

/** A row of `fct_membership_purchases`. */
export type MembershipPurchase = typeof fctMembershipPurchases.$inferSelect;
