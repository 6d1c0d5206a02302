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
      branchId: 'Branch that sold the membership. It can differ from the branch of the user.',
      userMembershipId: 'Identifier of the purchased membership within its user.',
      membershipPurchasedAt:
        'Instant at which the membership was purchased. NULL counts as later than any time.',
      createdAt: 'Instant at which the membership was created.',
      membershipPurchaseDetails:
        'Details of the purchase from upstream: a JSON object with the name of the membership and the source of the purchase, each of at most 1,000 bytes, or JSON null.',
      membershipName:
        'Name of the membership. Derived from the key "name" of membership_purchase_details, and NULL if the details have none. Write the details, not this column.',
      membershipSource:
        'Source of the purchase. Derived from the key "source" of membership_purchase_details, and NULL if the details have none. Write the details, not this column.',
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
        'The purchases of a user, ordered so the first purchase comes first, with all columns that the views show of it. The first purchase is read from the index alone.',
    },
  },
);

/** A row of `fct_membership_purchases`. */
export type MembershipPurchase = typeof fctMembershipPurchases.$inferSelect;
