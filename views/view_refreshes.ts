import { bigint, numeric, primaryKey, varchar } from 'drizzle-orm/pg-core';
import { instant, publicTable } from '../schema/columns.ts';
import { readerRole, withProperties } from '../schema/properties.ts';
import { refreshModes } from './values.ts';

/** One row per view and refresh: how fresh each view is, and what the refreshes did. */
export const viewRefreshes = withProperties(
  publicTable(
    'view_refreshes',
    {
      view: varchar('view').notNull(),
      startedAt: instant('started_at').notNull(),
      finishedAt: instant('finished_at').notNull(),
      mode: varchar('mode', { enum: refreshModes }).notNull(),
      rows: bigint('rows', { mode: 'number' }).notNull(),
      inserted: bigint('inserted', { mode: 'number' }).notNull(),
      deleted: bigint('deleted', { mode: 'number' }).notNull(),
      durationMs: bigint('duration_ms', { mode: 'number' }).notNull(),
      packageVersion: varchar('package_version').notNull(),
      fingerprint: numeric('fingerprint').notNull(),
    },
    (table) => [primaryKey({ columns: [table.view, table.startedAt] })],
  ),
  {
    comment:
      'One row per view and refresh, written in the transaction of the refresh: how fresh each view is, and what the refreshes did. A refresh reads the latest row of each view; older ones may be deleted.',
    columns: {
      view: 'Name of the view.',
      startedAt:
        'Instant at which the refresh began, the same for all views of one refresh. The view holds all that was committed by then.',
      finishedAt:
        'Instant at which the view was up to date. Readers saw it with the commit, once all views were.',
      mode: 'How the view was brought up to date: concurrently, by changing the rows that differed; populate, by a plain REFRESH of a view that was not populated; unchanged, by nothing, because nothing that it reads had changed.',
      rows: 'Rows in the view after the refresh.',
      inserted: 'Rows that the refresh inserted. A changed row is one deleted and one inserted.',
      deleted: 'Rows that the refresh deleted.',
      durationMs: 'How long the refresh of this view took, in milliseconds.',
      packageVersion: 'Version of lead-conversions that refreshed the view.',
      fingerprint:
        'Sum of the ids of the transactions that wrote the rows of the view (xmin). Tells the next refresh whether anybody has changed the view since.',
    },
    grants: { [readerRole]: { select: 'all' } },
  },
);

/** A row of `view_refreshes`. */
export type RecordedRefresh = typeof viewRefreshes.$inferSelect;
