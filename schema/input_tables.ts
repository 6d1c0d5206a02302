import { dimBranch } from './dim_branch.ts';
import { dimUser } from './dim_user.ts';
import { fctCreditPackPurchases } from './fct_credit_pack_purchases.ts';
import { fctMembershipPurchases } from './fct_membership_purchases.ts';

/** The input tables, each after the tables that it refers to. */
export const inputTables = [dimBranch, dimUser, fctCreditPackPurchases, fctMembershipPurchases];
