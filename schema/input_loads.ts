import { bigint, boolean, varchar } from 'drizzle-orm/pg-core';
import { instant, publicTable } from './columns.ts';
import { withProperties } from './properties.ts';

/**
 * One row per file that was loaded into an input table. A load locks this table, so only one load
 * runs at a time. A lock on the input tables would not do: every mode that keeps out a second load
 * also keeps out VACUUM and CREATE INDEX CONCURRENTLY.
 * https://www.postgresql.org/docs/16/explicit-locking.html#LOCKING-TABLES
 */
export const inputLoads = withProperties(
  publicTable('input_loads', {
    id: bigint('id', { mode: 'number' }).primaryKey().generatedAlwaysAsIdentity(),
    inputTable: varchar('input_table').notNull(),
    startedAt: instant('started_at').notNull(),
    finishedAt: instant('finished_at').notNull(),
    isSnapshot: boolean('is_snapshot').notNull(),
    rows: bigint('rows', { mode: 'number' }).notNull(),
    inserted: bigint('inserted', { mode: 'number' }).notNull(),
    updated: bigint('updated', { mode: 'number' }).notNull(),
    deleted: bigint('deleted', { mode: 'number' }).notNull(),
    packageVersion: varchar('package_version').notNull(),
  }),
  {
    comment:
      'One row per file that was loaded into an input table, written in the transaction of the load. It shows how old the input is and what the loads did. A load locks this table, so only one load runs at a time. Old rows may be deleted.',
    columns: {
      id: 'Number of the row. A later load has a higher one.',
      inputTable: 'Name of the input table.',
      startedAt: 'Instant at which the load began, the same for all files of one load.',
      finishedAt: 'Instant at which the rows of the file were stored.',
      isSnapshot:
        'Whether the file was a snapshot of the whole table. Then rows that were not in the file were deleted.',
      rows: 'Records in the file.',
      inserted: 'Rows that were new to the table.',
      updated: 'Rows whose key was in the table with different values.',
      deleted: 'Rows that were in the table but not in the file. 0 if the file was not a snapshot.',
      packageVersion: 'Version of lead-conversions that loaded the file.',
    },
  },
);

/** A row of `input_loads`. */
export type InputLoad = typeof inputLoads.$inferSelect;
