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
} from 'drizzle-orm/pg-core';
import packageJson from 'lead-conversions/package.json' with { type: 'json' };
import { type CatalogedView, catalogView, lockHolders, notMigrated } from './catalog.ts';
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

/** What to select from, to have values computed once. */
const once = sql`(values (1)) as once`;

/** The views, each after those that it reads. */
export const viewsInOrder: PgMaterializedView[] = [fctClientConversionEvents, fctLeadConversions];

/** https://www.postgresql.org/docs/16/errcodes-appendix.html */
const LOCK_NOT_AVAILABLE = '55P03';
const QUERY_CANCELED = '57014';

/** Held by the one refresh that runs in this database, and by nobody once it has ended. */
export const refreshLock = sql`hashtextextended('lead-conversions refresh', 0)`;

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
    await setBounds(tx, bounds);
    const lock = await takeLock(tx);
    if (lock.reason) {
      return { outcome: 'skipped', reason: lock.reason, views: [] };
    }
    pid = lock.pid;
    const catalog = await preflight(tx);
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
    session
      .select({ cancelled: sql`pg_cancel_backend(pid)` })
      .from(sql`(${lockHolder}) as holder`)
      // Not whoever has that connection from the pool once this is over.
      .where(sql`pid = ${pid}`);
  try {
    return await cancellable(
      () =>
        session.transaction(work, { isolationLevel: 'read committed', accessMode: 'read write' }),
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
 * every lock with it.
 * https://www.postgresql.org/docs/16/runtime-config-connection.html#RUNTIME-CONFIG-TCP-SETTINGS
 */
async function setBounds(tx: Session, bounds: Bounds): Promise<void> {
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
  await tx
    .select({ value: sql`set_config(name, value, true)` })
    .from(sql`(values ${sql.join(values, sql`, `)}) as settings (name, value)`)
    // Which a server on Windows refuses.
    .where(sql`name <> 'client_connection_check_interval' or version() !~* 'visual c|mingw'`);
}

/** Who holds the lock of a refresh in this database. */
const lockHolder = sql`
  select pid
  from pg_locks
  where locktype = 'advisory'
    and granted
    and database = (select oid from pg_database where datname = current_database())
    and classid::bigint << 32 | objid::bigint = ${refreshLock}
    and objsubid = 1`;

/** Takes the lock of a refresh for the process `pid` of this session, or says who has it. */
async function takeLock(tx: Session): Promise<{ pid: number; reason?: string }> {
  const [lock] = await tx
    .select({
      isOurs: sql<boolean>`pg_try_advisory_xact_lock(${refreshLock})`,
      pid: sql`pg_backend_pid()`.mapWith(Number),
    })
    .from(once);
  if (lock?.isOurs) {
    return lock;
  }
  const [holder] = await tx
    .select({
      pid: sql`pid`.mapWith(Number),
      // Hidden if it belongs to a role that this one is no member of.
      since: sql<
        string | null
      >`to_char(xact_start at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')`,
    })
    .from(sql`(${lockHolder}) as holder left join pg_stat_activity using (pid)`);
  if (!holder) {
    return takeLock(tx); // it has just ended
  }
  const since = holder.since ? `, since ${holder.since}` : '';
  return {
    ...holder,
    reason: `a refresh or a migration is already running (pid ${holder.pid}${since})`,
  };
}

/** Looks up the views, and throws an Error that says what to do where a refresh would fail. */
async function preflight(tx: Session): Promise<CatalogedView[]> {
  const history = getTableName(viewRefreshes);
  const [facts] = await tx
    .select({
      role: sql<string>`current_user`,
      hasHistory: sql<boolean>`to_regclass(${history}) is not null`,
      mayWrite: sql<boolean>`
        has_table_privilege(to_regclass(${history}), 'select')
        and has_table_privilege(to_regclass(${history}), 'insert')`,
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
      `The role ${facts.role} may not write ${history}, where each refresh is recorded. Grant it select and insert on that table.`,
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
  const statement = `vacuum (analyze, truncate false, skip_locked) "${view}"`;
  const lastVacuum = async () => {
    const [last] = await session
      .select({ at: sql<string | null>`pg_stat_get_last_vacuum_time(to_regclass(${view}))::text` })
      .from(once);
    return last?.at;
  };
  const cancel = () =>
    session
      .select({ cancelled: sql`pg_cancel_backend(pid)` })
      .from(sql`pg_stat_activity`)
      .where(sql`usename = current_user and state = 'active' and query = ${statement}`);
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
  const holders = await lockHolders(session, view, getTableName(viewRefreshes));
  const holding = holders.join(', ') || 'the session that held it has ended since';
  return new Error(
    `${view} was not refreshed, for want of a lock within ${lockTimeout}: ${holding}.`,
    {
      cause: error,
    },
  );
}

const millisecondsSince = (started: number) => Math.round(performance.now() - started);
