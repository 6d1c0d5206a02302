import { setTimeout as sleep } from 'node:timers/promises';
import {
  DrizzleQueryError,
  desc,
  type ExtractTablesWithRelations,
  eq,
  getTableName,
  is,
  sql,
} from 'drizzle-orm';
import {
  type PgDatabase,
  type PgMaterializedView,
  type PgQueryResultHKT,
  PgTransaction,
  type PgTransactionConfig,
} from 'drizzle-orm/pg-core';
import packageJson from 'lead-conversions/package.json' with { type: 'json' };
import { pinSearchPath } from '../schema/columns.ts';
import {
  type CatalogedView,
  catalogView,
  lockHoldersInTheWay,
  notMigrated,
  relationOf,
} from './catalog.ts';
import { fctClientConversionEvents } from './fct_client_conversion_events.ts';
import { fctLeadConversions } from './fct_lead_conversions.ts';
import type { RefreshMode } from './values.ts';
import { viewRefreshes } from './view_refreshes.ts';

/** The bounds of a refresh. Durations and sizes are in Postgres' own notation. */
export interface RefreshOptions {
  /** How long to wait for a lock that another session holds. `0` waits for ever. */
  lockTimeout?: string;
  /** How long the refresh of one view may take. `0` sets no limit. */
  statementTimeout?: string;
  /** Memory for each sort and hash table of a refresh; what needs more goes to disk. */
  workMem?: string;
  /**
   * Cancels the refresh, which then changes nothing. The statement that runs is
   * cancelled on a second connection of `db`; without one, it first comes to its end.
   */
  signal?: AbortSignal;
  /** Told when a step on a view begins. */
  onStep?: (step: RefreshStep) => void;
}

export const refreshDefaults = {
  lockTimeout: '10s',
  statementTimeout: '30min',
  workMem: '256MB',
} satisfies RefreshOptions;

/** What a refresh is doing. */
export interface RefreshStep {
  /** The view's name. */
  view: string;
  step: 'refresh' | 'vacuum';
}

/** What the refresh of one view did. */
export interface ViewRefresh {
  /** The view's name. */
  view: string;
  mode: RefreshMode;
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
  /** `skipped`, with nothing changed, if another refresh or a migration of the views was running. */
  outcome: 'refreshed' | 'skipped';
  /** Why it was skipped, in a sentence; null if it was not. */
  reason: string | null;
  /** One entry per view, in the order in which they were refreshed. */
  views: ViewRefresh[];
  /** What went wrong once the views were refreshed, in sentences. */
  warnings: string[];
  /** How long it took in all, in whole milliseconds. */
  durationMs: number;
}

type Session = PgDatabase<PgQueryResultHKT>;

/** Works in a transaction in which no name means what others have created under it. */
const pinned = <Result>(
  session: Session,
  work: (tx: Session) => PromiseLike<Result>,
  config?: PgTransactionConfig,
): Promise<Result> =>
  session.transaction(async (tx) => {
    await tx.execute(pinSearchPath);
    return await work(tx);
  }, config);

/** What to select from, to have values computed once. */
const once = sql`(values (1)) as once`;

/** The views, each after those that it reads. */
export const viewsInOrder: PgMaterializedView[] = [fctClientConversionEvents, fctLeadConversions];

/** https://www.postgresql.org/docs/16/errcodes-appendix.html */
const LOCK_NOT_AVAILABLE = '55P03';
const QUERY_CANCELED = '57014';

/**
 * Refreshes all views in one transaction: readers never wait, see all views
 * before or all after, and the views always agree. Writes `view_refreshes` in
 * the same transaction, and vacuums the views that changed after it.
 *
 * Each view is refreshed with REFRESH MATERIALIZED VIEW CONCURRENTLY, but with a
 * plain REFRESH if it is not populated, and not at all if nothing that it reads
 * has changed: see `mode` in the report. Does nothing while another refresh
 * or a migration of the views is running: see `outcome`.
 * https://www.postgresql.org/docs/16/sql-refreshmaterializedview.html
 *
 * Throws, and leaves the views as they were: an Error that says what to do when
 * the database is not ready for it (not migrated, the wrong role, no unique
 * index), or when a timeout strikes, then with the sessions that are in the way;
 * the signal's reason; and Drizzle's DrizzleQueryError for whatever else
 * Postgres refuses.
 */
export async function refreshViews<Schema extends Record<string, unknown>>(
  db: PgDatabase<PgQueryResultHKT, Schema, ExtractTablesWithRelations<Schema>>,
  options: RefreshOptions = {},
): Promise<RefreshReport> {
  if (is(db, PgTransaction)) {
    throw new Error(
      'refreshViews makes a transaction of its own, and cannot run in another. Call it on the database.',
    );
  }
  const session = db as unknown as Session;
  const { signal, onStep } = options;
  const started = performance.now();
  const result = await refreshInTransaction(session, {
    lockTimeout: options.lockTimeout ?? refreshDefaults.lockTimeout,
    statementTimeout: options.statementTimeout ?? refreshDefaults.statementTimeout,
    workMem: options.workMem ?? refreshDefaults.workMem,
    signal,
    onStep,
  });
  const warnings: string[] = [];
  for (const { view, inserted, deleted } of result.views) {
    if (inserted + deleted > 0) {
      onStep?.({ view, step: 'vacuum' });
      warnings.push(...(await vacuum(session, view, signal)));
    }
  }
  return { ...result, warnings, durationMs: millisecondsSince(started) };
}

type Result = Omit<RefreshReport, 'warnings' | 'durationMs'>;

type Bounds = RefreshOptions & typeof refreshDefaults;

/**
 * The transaction is READ COMMITTED. In REPEATABLE READ the views could come to
 * disagree: having waited for somebody's REFRESH by hand, the refresh would see
 * the first view as it was before that, and compute the second from rows that
 * are gone. Like this each view is computed from what is in the one before it,
 * which nobody else can change until the commit.
 * https://www.postgresql.org/docs/16/transaction-iso.html
 */
async function refreshInTransaction(session: Session, bounds: Bounds): Promise<Result> {
  const { signal, onStep } = bounds;
  let pid = 0;
  let viewAtWork: string | undefined;
  const work = async (tx: Session): Promise<Result> => {
    pid = await setBounds(tx, bounds);
    let catalog = await preflight(tx);
    viewAtWork = catalog[0]?.name;
    const reason = await takeLock(tx, signal);
    if (reason) {
      return { outcome: 'skipped', reason, views: [] };
    }
    // Again, because whoever had the lock before may have replaced the views.
    catalog = await preflight(tx);
    const unchanged = new Set<number>();
    const views: ViewRefresh[] = [];
    for (const view of catalog) {
      signal?.throwIfAborted();
      viewAtWork = view.name;
      onStep?.({ view: view.name, step: 'refresh' });
      views.push(await refreshView(tx, view, unchanged));
    }
    signal?.throwIfAborted();
    return { outcome: 'refreshed', reason: null, views };
  };
  const cancel = () =>
    pinned(session, (other) =>
      other
        .select({ cancelled: sql`pg_cancel_backend(pid)` })
        .from(sql`pg_locks`)
        // Not whoever has that connection from the pool once this is over.
        .where(sql`pid = ${pid} and ${isRefreshLock}`),
    );
  try {
    return await cancellable(
      () => pinned(session, work, { isolationLevel: 'read committed', accessMode: 'read write' }),
      cancel,
      signal,
    );
  } catch (error) {
    throw await explainTimeout(session, error, viewAtWork, bounds);
  }
}

/**
 * Bounds a transaction, and what it leaves behind when this process, its machine
 * or the network between is gone: Postgres then ends it within seconds, and
 * every lock with it. Returns the id of the server process.
 * https://www.postgresql.org/docs/16/runtime-config-connection.html#RUNTIME-CONFIG-TCP-SETTINGS
 */
async function setBounds(tx: Session, bounds: Bounds): Promise<number> {
  const settings = Object.entries({
    lock_timeout: bounds.lockTimeout,
    statement_timeout: bounds.statementTimeout,
    work_mem: bounds.workMem,
    idle_in_transaction_session_timeout: '15s',
    tcp_keepalives_idle: '10s',
    tcp_keepalives_interval: '5s',
    tcp_keepalives_count: '3',
    client_connection_check_interval: '2s',
    // REFRESH … CONCURRENTLY analyzes its copy of the new rows, which it then
    // reads as a whole: a small sample tells enough, and is quicker.
    default_statistics_target: '10',
  });
  const values = settings.map(([name, value]) => sql`(${name}, ${value})`);
  const [set] = await tx
    .select({
      value: sql`set_config(name, value, true)`,
      pid: sql`pg_backend_pid()`.mapWith(Number),
    })
    .from(sql`(values ${sql.join(values, sql`, `)}) as settings (name, value)`)
    // Which a server on Windows refuses.
    .where(sql`name <> 'client_connection_check_interval' or version() !~* 'visual c|mingw'`);
  return set?.pid ?? 0;
}

/**
 * The lock of a refresh, in pg_locks: SHARE UPDATE EXCLUSIVE on the history, which
 * one session can have at a time, and only one that may write there.
 */
const isRefreshLock = sql`
  locktype = 'relation'
  and relation = ${relationOf(getTableName(viewRefreshes))}
  and database = (select oid from pg_database where datname = current_database())
  and mode = 'ShareUpdateExclusiveLock'`;

/**
 * Takes the lock of a refresh, or says why that is not to be: another refresh or a
 * migration is running, or somebody holds the lock to keep refreshes off. Waits
 * for whatever else has locked the history, such as a VACUUM, as long as
 * lock_timeout allows, and throws LOCK_NOT_AVAILABLE after that.
 */
async function takeLock(tx: Session, signal?: AbortSignal): Promise<string | undefined> {
  let failure = await lockHistory(tx, 'nowait');
  for (let look = 1; failure; look += 1) {
    const holder = await lockHolder(tx);
    if (!holder || holder.isMaintenance) {
      break;
    }
    // A VACUUM is not seen at work in the moment after it has taken the lock.
    if (holder.isRefresh || look === 5) {
      return describeHolder(holder);
    }
    await sleep(100, undefined, { signal });
    failure = await lockHistory(tx, 'nowait');
  }
  failure &&= await lockHistory(tx, 'wait');
  if (failure) {
    const holder = await lockHolder(tx);
    if (!holder || holder.isMaintenance) {
      throw failure;
    }
    return describeHolder(holder);
  }
}

/** Locks the history, or returns why that was not possible. */
async function lockHistory(tx: Session, wait: 'wait' | 'nowait'): Promise<unknown> {
  const nowait = wait === 'nowait' ? sql` nowait` : sql``;
  try {
    await tx.transaction(async (savepoint) => {
      // The first one tells a refresh from a VACUUM, which has the second alone.
      await savepoint.execute(sql`lock table ${viewRefreshes} in access share mode${nowait}`);
      await savepoint.execute(
        sql`lock table ${viewRefreshes} in share update exclusive mode${nowait}`,
      );
    });
  } catch (error) {
    if (causeOf(error).code === LOCK_NOT_AVAILABLE) {
      return error;
    }
    throw error;
  }
}

/** Another session that has the lock of a refresh. */
interface LockHolder {
  pid: number;
  /** When its transaction began. Null if this role may not know. */
  since: string | null;
  /** Whether it is known to be a refresh or a migration. */
  isRefresh: boolean;
  /** Whether it vacuums, analyzes or indexes the history. */
  isMaintenance: boolean;
}

async function lockHolder(tx: Session): Promise<LockHolder | undefined> {
  const isRefresh = sql<boolean>`exists (
    select from pg_locks as read_locks
    where read_locks.pid = pg_locks.pid
      and read_locks.relation = pg_locks.relation
      and read_locks.mode = 'AccessShareLock'
  )`;
  const [holder] = await tx
    .select({
      pid: sql`pg_locks.pid`.mapWith(Number),
      since: sql<
        string | null
      >`to_char(xact_start at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')`,
      isRefresh,
      isMaintenance: sql<boolean>`not ${isRefresh} and pg_locks.pid in (
        select pid from pg_stat_progress_vacuum
        union all select pid from pg_stat_progress_analyze
        union all select pid from pg_stat_progress_create_index
      )`,
    })
    .from(sql`pg_locks left join pg_stat_activity on pg_locks.pid = pg_stat_activity.pid`)
    .where(sql`${isRefreshLock} and granted and pg_locks.pid <> pg_backend_pid()`);
  return holder;
}

const describeHolder = ({ pid, since }: LockHolder) =>
  `a refresh or a migration is already running (pid ${pid}${since ? `, since ${since}` : ''})`;

/** Looks up the views, and throws an Error that says what to do where a refresh would fail. */
async function preflight(tx: Session): Promise<CatalogedView[]> {
  const history = getTableName(viewRefreshes);
  const [facts] = await tx
    .select({
      role: sql<string>`current_user`,
      hasHistory: sql<boolean>`${relationOf(history)} is not null`,
      // The lock of a refresh needs one of those behind select and insert.
      mayWrite: sql<boolean>`
        has_table_privilege(${relationOf(history)}, 'select')
        and has_table_privilege(${relationOf(history)}, 'insert')
        and has_table_privilege(${relationOf(history)}, 'update, delete, truncate')`,
      countsTuples: sql<boolean>`current_setting('track_counts')::boolean`,
    })
    .from(once);
  const catalog: CatalogedView[] = [];
  for (const view of viewsInOrder) {
    catalog.push(await catalogView(tx, view));
  }
  if (!facts?.hasHistory) {
    throw notMigrated(history);
  }
  if (!facts.mayWrite) {
    throw new Error(
      `The role ${facts.role} may not write ${history}, where each refresh is recorded and locks out others. Grant it select, insert and update on that table.`,
    );
  }
  if (!facts.countsTuples) {
    throw new Error(
      'track_counts is off in this database, so that a refresh cannot count the rows that it changes. Turn it on; autovacuum needs it too.',
    );
  }
  return catalog;
}

/**
 * Brings one view up to date, unless all that it reads is among the `unchanged`,
 * and records it. Adds the view to the unchanged if its rows are those that the
 * last refresh on record has left, whoever may have refreshed it since.
 */
async function refreshView(
  tx: Session,
  { view, name, oid, populated, reads }: CatalogedView,
  unchanged: Set<number>,
): Promise<ViewRefresh> {
  const started = performance.now();
  const [last] = await tx
    .select({ rows: viewRefreshes.rows, fingerprint: viewRefreshes.fingerprint })
    .from(viewRefreshes)
    .where(eq(viewRefreshes.view, name))
    .orderBy(desc(viewRefreshes.startedAt))
    .limit(1);

  const isUpToDate = last !== undefined && reads.every((relation) => unchanged.has(relation));
  const mode = !populated ? 'populate' : isUpToDate ? 'unchanged' : 'concurrently';
  const before = await changesInTransaction(tx, oid);
  if (mode === 'populate') {
    await tx.refreshMaterializedView(view);
  } else if (mode === 'concurrently') {
    await tx.refreshMaterializedView(view).concurrently();
  }
  const after = await changesInTransaction(tx, oid);
  const { rows, fingerprint } = last && mode === 'unchanged' ? last : await contentsOf(tx, view);
  if (fingerprint === last?.fingerprint) {
    unchanged.add(oid);
  }
  const refresh: ViewRefresh = {
    view: name,
    mode,
    rows,
    inserted: mode === 'populate' ? rows : after.inserted - before.inserted,
    deleted: after.deleted - before.deleted,
    durationMs: millisecondsSince(started),
  };
  await tx.insert(viewRefreshes).values({
    ...refresh,
    fingerprint,
    startedAt: sql`now()`, // of the transaction, before the first view is computed
    finishedAt: sql`clock_timestamp()`,
    packageVersion: packageJson.version,
  });
  return refresh;
}

interface Changes {
  inserted: number;
  deleted: number;
}

/** Rows of a view that this transaction has inserted and deleted so far. */
async function changesInTransaction(tx: Session, view: number): Promise<Changes> {
  const [changes] = (await tx
    .select({
      inserted: sql`pg_stat_get_xact_tuples_inserted(${view})`.mapWith(Number),
      deleted: sql`pg_stat_get_xact_tuples_deleted(${view})`.mapWith(Number),
    })
    .from(once)) as [Changes];
  return changes;
}

interface Contents {
  rows: number;
  fingerprint: string;
}

/**
 * How many rows a view has, and a fingerprint of them: the sum of the ids of the
 * transactions that wrote them, which is another one after every change.
 */
async function contentsOf(tx: Session, view: PgMaterializedView): Promise<Contents> {
  const [contents] = (await tx
    .select({
      rows: sql`count(*)`.mapWith(Number),
      fingerprint: sql<string>`coalesce(sum(xmin::text::bigint), 0)::text`,
    })
    .from(view)) as [Contents];
  return contents;
}

/**
 * Removes the row versions that a refresh has deleted, so that the view does not
 * grow from night to night. Returns a warning if that was not possible. Readers
 * do not wait: the one lock that would keep them out is for giving space at the
 * end of the file back to the system (TRUNCATE).
 * https://www.postgresql.org/docs/16/sql-vacuum.html
 */
async function vacuum(session: Session, view: string, signal?: AbortSignal): Promise<string[]> {
  const statement = `vacuum (analyze, truncate false, skip_locked) "public"."${view}"`;
  const lastVacuum = async () => {
    const at = sql<string | null>`pg_stat_get_last_vacuum_time(${relationOf(view)})::text`;
    const [last] = await pinned(session, (tx) => tx.select({ at }).from(once));
    return last?.at;
  };
  const cancel = () =>
    pinned(session, (tx) =>
      tx
        .select({ cancelled: sql`pg_cancel_backend(pid)` })
        .from(sql`pg_stat_activity`)
        .where(sql`usename = current_user and state = 'active' and query = ${statement}`),
    );
  try {
    const before = await lastVacuum();
    await cancellable(() => session.execute(sql.raw(statement)), cancel, signal);
    if ((await lastVacuum()) !== before) {
      return [];
    }
    return [`${view} was refreshed, but not vacuumed: another session has locked it.`];
  } catch (error) {
    const { message } = causeOf(error);
    return [`${view} was refreshed, but not vacuumed: ${message}.`];
  }
}

/**
 * Does work until it is done or the signal is aborted, which cancels on the
 * server what the work waits for. Throws the signal's reason then.
 */
async function cancellable<Result>(
  work: () => Promise<Result>,
  cancel: () => PromiseLike<unknown>,
  signal: AbortSignal | undefined,
): Promise<Result> {
  signal?.throwIfAborted();
  // Where the server cannot be asked to, the work ends by itself.
  const onAbort = () => cancel().then(undefined, () => {});
  signal?.addEventListener('abort', onAbort);
  try {
    return await work();
  } catch (error) {
    signal?.throwIfAborted();
    throw error;
  } finally {
    signal?.removeEventListener('abort', onAbort);
  }
}

/** What the driver has thrown, which Drizzle puts behind the statement that failed. */
const causeOf = (error: unknown): Error & { code?: string } =>
  error instanceof DrizzleQueryError && error.cause ? error.cause : (error as Error);

/** Says which view's refresh a timeout has ended, and which sessions were in its way. */
async function explainTimeout(
  session: Session,
  error: unknown,
  view: string | undefined,
  { lockTimeout, statementTimeout }: Bounds,
): Promise<unknown> {
  const { code, message } = causeOf(error);
  if (view === undefined || (code !== LOCK_NOT_AVAILABLE && code !== QUERY_CANCELED)) {
    return error;
  }
  if (code === QUERY_CANCELED) {
    const timeout = `The statement timeout was ${statementTimeout}.`;
    return new Error(`${view} was not refreshed: ${message}. ${timeout}`, { cause: error });
  }
  const holders = await pinned(session, (tx) =>
    lockHoldersInTheWay(tx, view, getTableName(viewRefreshes)),
  );
  const holding = holders.join(', ') || 'the session that held it has ended since';
  return new Error(
    `${view} was not refreshed, for want of a lock within ${lockTimeout}: ${holding}.`,
    {
      cause: error,
    },
  );
}

const millisecondsSince = (started: number) => Math.round(performance.now() - started);
