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
      membershipName: detail('membership_name', 'membership_purchase_details', 'name'),
      membershipSource: detail('membership_source', 'membership_purchase_details', 'source'),
    },
    (table) => [
      primaryKey({ columns: [table.userId, table.userMembershipId] }),
      index('fct_membership_purchases_first').on(
        table.userId,
        table.membershipPurchasedAt,
        table.userMembershipId,
        table.membershipName,
        table.membershipSource,
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
      check(
        'fct_membership_purchases_details_check',
        hasShortDetails(table.membershipPurchaseDetails),
      ),
      check('fct_membership_purchases_user_id_check', isShort(table.userId)),
      check('fct_membership_purchases_branch_id_check', isShort(table.branchId)),
      check('fct_membership_purchases_user_membership_id_check', isShort(table.userMembershipId)),
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
        'What upstream says of the purchase, a JSON object, or JSON null: name of the membership, and source of the purchase, of at most 1,000 bytes each.',
      membershipName:
        'Name of the membership. Derived: the key name of membership_purchase_details, which is what is written. NULL where that has none.',
      membershipSource:
        'Source of the purchase. Derived: the key source of membership_purchase_details, which is what is written. NULL where that has none.',
    },
    checks: {
      fct_membership_purchases_membership_purchased_at_check: calendarRangeRule,
      fct_membership_purchases_created_at_check: calendarRangeRule,
      fct_membership_purchases_membership_purchase_details_check: objectOrNullRule,
      fct_membership_purchases_details_check: shortDetailsRule,
      fct_membership_purchases_user_id_check: shortRule,
      fct_membership_purchases_branch_id_check: shortRule,
      fct_membership_purchases_user_membership_id_check: shortRule,
    },
    indexes: {
      fct_membership_purchases_first:
        'The purchases of a user in the order in which the first is found, with all that the reports show of it, so that the first one is read from the index alone.',
    },
  },
);

/** A row of `fct_membership_purchases`. */
export type MembershipPurchase = typeof fctMembershipPurchases.$inferSelect;
