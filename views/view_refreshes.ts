import { bigint, jsonb, varchar } from 'drizzle-orm/pg-core';
import { instant, publicTable } from '../schema/columns.ts';
import { readerRole, withProperties } from '../schema/properties.ts';
import type { Basis } from './basis.ts';
import { refreshModes } from './values.ts';

/** One row per view and refresh: how fresh each view is, and what the refreshes did. */
export const viewRefreshes = withProperties(
  publicTable('view_refreshes', {
    id: bigint('id', { mode: 'number' }).primaryKey().generatedAlwaysAsIdentity(),
    view: varchar('view').notNull(),
    startedAt: instant('started_at').notNull(),
    finishedAt: instant('finished_at').notNull(),
    mode: varchar('mode', { enum: refreshModes }).notNull(),
    rows: bigint('rows', { mode: 'number' }).notNull(),
    inserted: bigint('inserted', { mode: 'number' }).notNull(),
    deleted: bigint('deleted', { mode: 'number' }).notNull(),
    durationMs: bigint('duration_ms', { mode: 'number' }).notNull(),
    packageVersion: varchar('package_version').notNull(),
    server: varchar('server').notNull(),
    basis: jsonb('basis').$type<Basis>(),
  }),
  {
    comment:
      'One row per view and refresh, written in the transaction of the refresh. It shows how fresh each view is and what the refreshes did. The latest row of a view is the one with the highest id for this server. The next refresh needs it. Older rows may be deleted.',
    columns: {
      id: 'Number of the row. A later refresh has a higher one.',
      view: 'Name of the view.',
      startedAt:
        'Instant at which the refresh began, the same for all views of one refresh. The view shows everything that was committed by then.',
      finishedAt:
        'Instant at which this view had been brought up to date. Readers see the result after the commit, once all views are up to date.',
      mode: 'How the view was brought up to date. concurrently: the rows that differed were changed. populate: a plain REFRESH filled a view that was not populated. unchanged: nothing was done, because nothing that the view reads had changed.',
      rows: 'Rows in the view after the refresh.',
      inserted: 'Rows that the refresh inserted. A changed row is one deleted and one inserted.',
      deleted: 'Rows that the refresh deleted.',
      durationMs: 'How long the refresh of this view took, in milliseconds.',
      packageVersion: 'Version of lead-conversions that refreshed the view.',
      server:
        'Server on which the refresh ran: system_identifier of pg_control_system(). Rows of another server came here with a copy of the data, and say nothing about the views here.',
      basis:
        'What the refresh saw of the view and of everything that the view reads. The next refresh compares it with what it sees, to know whether anything has changed. NULL if the refresh could not see everything: the next one then recomputes the view.',
    },
    grants: { [readerRole]: { select: 'all' } },
  },
);

/** A row of `view_refreshes`. */
export type RecordedRefresh = typeof viewRefreshes.$inferSelect;
