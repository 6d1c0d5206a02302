import { check, pgTable, varchar } from 'drizzle-orm/pg-core';
import { identifier, inCalendarRange, instant } from './columns.ts';
import { dimBranch } from './dim_branch.ts';

/** One row per user, lead or client. */
export const dimUser = pgTable(
  'dim_user',
  {
    userId: identifier('user_id').primaryKey(),
    /** The branch whose clock all local times of this user follow. */
    branchId: identifier('branch_id').references(() => dimBranch.branchId),
    name: varchar('name'),
    email: varchar('email'),
    createdAt: instant('created_at'),
  },
  (table) => [check('dim_user_created_at_check', inCalendarRange(table.createdAt))],
);
