export type { PurchaseDetails } from './columns.ts';
export { type Branch, dimBranch } from './dim_branch.ts';
export { dimUser, type User } from './dim_user.ts';
export { type CreditPackPurchase, fctCreditPackPurchases } from './fct_credit_pack_purchases.ts';
export { fctMembershipPurchases, type MembershipPurchase } from './fct_membership_purchases.ts';
export { type InputLoad, inputLoads } from './input_loads.ts';
