import { type ExtractTablesWithRelations, sql } from 'drizzle-orm';
import {
  getMaterializedViewConfig,
  type PgDatabase,
  type PgMaterializedView,
  type PgQueryResultHKT,
} from 'drizzle-orm/pg-core';
import { fctClientConversionEvents } from './fct_client_conversion_events.ts';
import { fctLeadConversions } from './fct_lead_conversions.ts';

/** What the refresh of one view did. */
export interface ViewRefresh {
  /** The view's name. */
  view: string;
  /** Rows in the view after the refresh. */
  rows: number;
  /** Rows that the refresh inserted; a changed row is one deleted and one inserted. */
  inserted: number;
  /** Rows that the refresh deleted. */
  deleted: number;
  /** How long the refresh took, in whole milliseconds. */
  durationMs: number;
}

/** What a refresh of all views did. */
export interface RefreshReport {
  /** One entry per view, in the order in which they were refreshed. */
  views: ViewRefresh[];
  /** How long it took in all, in whole milliseconds. */
  durationMs: number;
}

/** The views, each after those that it reads. */
const viewsInOrder: PgMaterializedView[] = [fctClientConversionEvents, fctLeadConversions];

/**
 * Refreshes all views in one transaction, each with REFRESH MATERIALIZED VIEW
 * CONCURRENTLY: readers never wait, and see all views before or all after.
 * The caller must own the views.
 * https://www.postgresql.org/docs/16/sql-refreshmaterializedview.html
 *
 * Throws an Error that says what to do when the database has not been migrated,
 * and Drizzle's DrizzleQueryError for whatever Postgres refuses. Either way the
 * views stay as they were.
 */
export async function refreshViews<Schema extends Record<string, unknown>>(
  db: PgDatabase<PgQueryResultHKT, Schema, ExtractTablesWithRelations<Schema>>,
): Promise<RefreshReport> {
  const started = performance.now();
  const views = await db.transaction(async (tx) => {
    const refreshes: ViewRefresh[] = [];
    for (const view of viewsInOrder) {
      refreshes.push(await refreshView(tx, view));
    }
    return refreshes;
  });
  return { views, durationMs: millisecondsSince(started) };
}

async function refreshView<Schema extends Record<string, unknown>>(
  db: PgDatabase<PgQueryResultHKT, Schema, ExtractTablesWithRelations<Schema>>,
  view: PgMaterializedView,
): Promise<ViewRefresh> {
  const started = performance.now();
  const { name } = getMaterializedViewConfig(view);
  const before = await changesInTransaction(db, name);
  await db.refreshMaterializedView(view).concurrently();
  const after = await changesInTransaction(db, name);
  return {
    view: name,
    rows: await db.$count(view),
    inserted: after.inserted - before.inserted,
    deleted: after.deleted - before.deleted,
    durationMs: millisecondsSince(started),
  };
}

/** Rows of a view that this transaction has inserted and deleted so far. */
async function changesInTransaction<Schema extends Record<string, unknown>>(
  db: PgDatabase<PgQueryResultHKT, Schema, ExtractTablesWithRelations<Schema>>,
  view: string,
): Promise<{ inserted: number; deleted: number }> {
  const [changes] = await db
    .select({
      oid: sql<string | null>`oid`,
      inserted: sql`pg_stat_get_xact_tuples_inserted(oid)`.mapWith(Number),
      deleted: sql`pg_stat_get_xact_tuples_deleted(oid)`.mapWith(Number),
    })
    .from(sql`(select to_regclass(${view}) as oid) as relation`);
  if (!changes?.oid) {
    throw new Error(
      `The database has no ${view}: it has not been migrated. Run "npx drizzle-kit migrate" first.`,
    );
  }
  return changes;
}

const millisecondsSince = (started: number) => Math.round(performance.now() - started);
