import { check, varchar } from 'drizzle-orm/pg-core';
import {
  calendarRangeRule,
  identifier,
  inCalendarRange,
  instant,
  isShort,
  publicTable,
  shortRule,
} from './columns.ts';
import { dimBranch } from './dim_branch.ts';
import { withProperties } from './properties.ts';

/** One row per user, lead or client. */
export const dimUser = withProperties(
  publicTable(
    'dim_user',
    {
      userId: identifier('user_id').primaryKey(),
      branchId: identifier('branch_id').references(() => dimBranch.branchId),
      name: varchar('name'),
      email: varchar('email'),
      createdAt: instant('created_at'),
    },
    (table) => [
      check('dim_user_created_at_check', inCalendarRange(table.createdAt)),
      check('dim_user_user_id_check', isShort(table.userId)),
      check('dim_user_branch_id_check', isShort(table.branchId)),
    ],
  ),
  {
    comment:
      'One row per user of a gym, who is a lead until the first purchase of a membership or credit pack.',
    columns: {
      userId: 'Identifier of the user.',
      branchId:
        'Branch that the user belongs to. All local times of the user are in its time zone.',
      name: 'Name of the user.',
      email: 'E-mail address of the user.',
      createdAt: 'Instant at which the user was created.',
    },
    checks: {
      dim_user_created_at_check: calendarRangeRule,
      dim_user_user_id_check: shortRule,
      dim_user_branch_id_check: shortRule,
    },
  },
);

/** A row of `dim_user`. */
export type User = typeof dimUser.$inferSelect;
