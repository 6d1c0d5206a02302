export type { PurchaseDetails } from './columns.ts';
export { dimBranch } from './dim_branch.ts';
export { dimUser } from './dim_user.ts';
export { fctCreditPackPurchases } from './fct_credit_pack_purchases.ts';
export { fctMembershipPurchases } from './fct_membership_purchases.ts';
