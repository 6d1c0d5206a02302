import { bigint, numeric, pgTable, primaryKey, varchar } from 'drizzle-orm/pg-core';
import { instant } from '../schema/columns.ts';
import { refreshModes } from './values.ts';

/**
 * One row per view and refresh, written in the transaction of that refresh: how
 * fresh each view is, and what the refreshes did. A refresh reads the latest row
 * of each view; older ones may be deleted.
 */
export const viewRefreshes = pgTable(
  'view_refreshes',
  {
    view: varchar('view').notNull(),
    /** The view holds all that was committed by then. */
    startedAt: instant('started_at').notNull(),
    finishedAt: instant('finished_at').notNull(),
    mode: varchar('mode', { enum: refreshModes }).notNull(),
    rows: bigint('rows', { mode: 'number' }).notNull(),
    inserted: bigint('inserted', { mode: 'number' }).notNull(),
    deleted: bigint('deleted', { mode: 'number' }).notNull(),
    durationMs: bigint('duration_ms', { mode: 'number' }).notNull(),
    packageVersion: varchar('package_version').notNull(),
    /** Tells the next refresh whether anybody has changed the view's rows since. */
    fingerprint: numeric('fingerprint').notNull(),
  },
  (table) => [primaryKey({ columns: [table.view, table.startedAt] })],
);
