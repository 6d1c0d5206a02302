import {
  and,
  desc,
  type ExtractTablesWithRelations,
  eq,
  getTableName,
  getViewName,
  is,
  type SQL,
  sql,
} from 'drizzle-orm';
import {
  type PgDatabase,
  type PgMaterializedView,
  type PgQueryResultHKT,
  PgTransaction,
} from 'drizzle-orm/pg-core';
import packageJson from 'lead-conversions/package.json' with { type: 'json' };
import { dimBranch, inputLoads } from '../schema/index.ts';
import {
  type Basis,
  branchesOfUnknownZones,
  hashClocks,
  identify,
  isComputedFrom,
  type Look,
  lookAt,
  lookAtInputs,
  snapshotOf,
} from './basis.ts';
import {
  type CatalogedView,
  catalogView,
  declaredInputs,
  findRefreshBlockers,
  missing,
  relationOf,
} from './catalog.ts';
import { untilSettled } from './citus.ts';
import { fctClientConversionEvents } from './fct_client_conversion_events.ts';
import { fctLeadConversions } from './fct_lead_conversions.ts';
import { purchaseKinds } from './purchase_kinds.ts';
import { takeLock } from './refresh_lock.ts';
import {
  causeOf,
  endWhenGone,
  INSUFFICIENT_PRIVILEGE,
  INVALID_PARAMETER_VALUE,
  LOCK_NOT_AVAILABLE,
  once,
  pinned,
  QUERY_CANCELED,
  readCommitted,
  type Session,
  setLocally,
} from './session.ts';
import { vacuum } from './vacuum.ts';
import type { RefreshMode } from './values.ts';
import { viewRefreshes } from './view_refreshes.ts';

/**
 * The bounds of a refresh. Durations and sizes are in Postgres' own notation. An option that is
 * undefined counts as not given.
 */
export interface RefreshOptions {
  /** How long to wait for a lock that another session holds. `0` waits forever. */
  lockTimeout?: string | undefined;
  /** How long the refresh of one view may take. `0` sets no limit. */
  statementTimeout?: string | undefined;
  /** Memory for each sort and hash table of a refresh. Whatever needs more goes to disk. */
  workMem?: string | undefined;
  /**
   * The largest share of the users, and of the clients, that the first view may lose in a refresh,
   * such as `20%`. `100%` sets no limit.
   */
  maxLoss?: string | undefined;
  /** Recomputes views that are known to be up to date, too. */
  force?: boolean | undefined;
  /**
   * Cancels the refresh, which then changes nothing. The running statement is cancelled on a second
   * connection of `db`. Without a second connection, that statement runs to its end first.
   */
  signal?: AbortSignal | undefined;
  /** Called when a step on a view begins. */
  onStep?: ((step: RefreshStep) => void) | undefined;
  /**
   * Called with what was done to the views as soon as it is committed, before they are vacuumed.
   */
  onCommit?: ((views: ViewRefresh[]) => void) | undefined;
}

export const refreshDefaults = {
  lockTimeout: '10s',
  statementTimeout: '30min',
  workMem: '256MB',
  maxLoss: '20%',
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
  /**
   * Whether it reads tables whose rows Citus keeps on other servers. Such a view is recomputed
   * every time, because it cannot be known whether those rows have changed.
   */
  readsDistributed: boolean;
  /** Rows in the view after the refresh. */
  rows: number;
  /** Rows that the refresh inserted. A changed row counts as one deleted and one inserted. */
  inserted: number;
  /** Rows that the refresh deleted. */
  deleted: number;
  /** How long the refresh took, in whole milliseconds. */
  durationMs: number;
}

/** What a refresh of all views did. */
export interface RefreshReport {
  /**
   * `skipped`, with nothing changed, if another refresh or a migration of the views was running, or
   * somebody was holding off refreshes.
   */
  outcome: 'refreshed' | 'skipped';
  /** Why it was skipped, in a sentence; null if it was not. */
  reason: string | null;
  /** One entry per view, in the order in which they were refreshed. */
  views: ViewRefresh[];
  /** What went wrong after the views were refreshed, in sentences. */
  warnings: string[];
  /** How long everything took, in whole milliseconds. */
  durationMs: number;
}

/** The views. Each comes after the views that it reads. */
export const viewsInOrder: PgMaterializedView[] = [fctClientConversionEvents, fctLeadConversions];

/**
 * Refreshes all views in one transaction. Readers never wait, they see all views either before or
 * after the refresh, and the views always agree. Writes `view_refreshes` in the same transaction.
 * Vacuums the changed views afterwards.
 *
 * A populated view is refreshed with REFRESH MATERIALIZED VIEW CONCURRENTLY, any other with a plain
 * REFRESH. A view is left alone if it, and everything that it reads, is known to be unchanged since
 * it was last computed (see `mode` in the report). Nothing is done while another refresh or a
 * migration of the views is running (see `outcome`).
 * https://www.postgresql.org/docs/16/sql-refreshmaterializedview.html
 *
 * If it throws, the views are as they were, unless the connection was lost during the commit: the
 * Error then says that this is unknown. It throws:
 * - an Error that says what to do if the database is not ready (not migrated, the wrong role, no
 *   unique index, a table swapped by renaming), or if the input cannot be trusted (row-level
 *   security hides rows, a time zone is unknown, more is missing than `maxLoss` allows);
 * - an Error that names the sessions in the way if a timeout was reached;
 * - the signal's reason if that was aborted;
 * - Drizzle's DrizzleQueryError for anything else that Postgres refuses.
 */
export async function refreshViews<Schema extends Record<string, unknown>>(
  db: PgDatabase<PgQueryResultHKT, Schema, ExtractTablesWithRelations<Schema>>,
  options: RefreshOptions = {},
): Promise<RefreshReport> {
  if (is(db, PgTransaction)) {
    throw new Error(
      'refreshViews cannot run in a transaction, because it starts its own. Call it on the database.',
    );
  }
  const session = db as unknown as Session;
  const { signal, onStep } = options;
  const started = performance.now();
  const bounds: Bounds = {
    lockTimeout: options.lockTimeout ?? refreshDefaults.lockTimeout,
    statementTimeout: options.statementTimeout ?? refreshDefaults.statementTimeout,
    workMem: options.workMem ?? refreshDefaults.workMem,
    maxLoss: options.maxLoss ?? refreshDefaults.maxLoss,
    force: options.force ?? false,
    signal,
    onStep,
  };
  const { result, transaction } = await refreshInTransaction(session, bounds);
  options.onCommit?.(result.views);
  const warnings: string[] = [];
  for (const { view, inserted, deleted } of result.views) {
    if (inserted + deleted > 0) {
      onStep?.({ view, step: 'vacuum' });
      const { statementTimeout } = bounds;
      warnings.push(
        ...(await vacuum(session, view, 'refreshed', {
          statementTimeout,
          signal,
          deletedBy: transaction,
        })),
      );
    }
  }
  return { ...result, warnings, durationMs: millisecondsSince(started) };
}

/** What the transaction of a refresh did. */
interface Outcome extends Facts {
  result: Omit<RefreshReport, 'warnings' | 'durationMs'>;
}

type Bounds = RefreshOptions & typeof refreshDefaults & { force: boolean };

/**
 * Refreshes the views in a READ COMMITTED transaction. In REPEATABLE READ the views could come to
 * disagree: after waiting for somebody's manual REFRESH, this refresh would still see the first
 * view as it was before that, and would compute the second view from rows that are gone. In READ
 * COMMITTED each view is computed from the current rows of the view before it, which nobody else
 * can change until the commit.
 * https://www.postgresql.org/docs/16/transaction-iso.html
 */
async function refreshInTransaction(session: Session, bounds: Bounds): Promise<Outcome> {
  const { statementTimeout, signal, onStep } = bounds;
  const maxLoss = percentOf(bounds.maxLoss);
  let viewAtWork: CatalogedView | undefined;
  const work = async (tx: Session): Promise<Outcome> => {
    const facts = await setBounds(tx, bounds);
    const found = await preflight(tx);
    viewAtWork = found[0];
    const reason = await takeLock(tx, facts.lockTimeoutMs);
    if (reason) {
      return { ...facts, result: { outcome: 'skipped', reason, views: [] } };
    }
    if (found.some(isOfSeveralServers)) {
      await keepOutLoads(tx, signal);
    }
    await lockTables(tx, found);
    for (const view of found) {
      viewAtWork = view;
      await lockView(tx, view);
    }
    // Checked again, because a session that held the locks may have replaced or renamed something.
    const catalog = await preflight(tx);
    const circumstances: Circumstances = {
      ...(await identify(tx)),
      clocks: await readClocks(tx, catalog),
      leftAlone: [],
      isForced: bounds.force || !catalog.every(({ isOwned }) => isOwned),
      maxLoss,
    };
    const views: ViewRefresh[] = [];
    for (const view of catalog) {
      signal?.throwIfAborted();
      viewAtWork = view;
      onStep?.({ view: view.name, step: 'refresh' });
      views.push(await refreshView(tx, view, circumstances));
    }
    signal?.throwIfAborted();
    // Flushes our counts first, so the vacuum, which counts dead rows anew, comes after them.
    await tx.select({ flushed: sql`pg_stat_force_next_flush()` }).from(once);
    return { ...facts, result: { outcome: 'refreshed', reason: null, views } };
  };
  try {
    return await pinned(session, statementTimeout, work, readCommitted, signal);
  } catch (error) {
    throw await explainFailure(session, error, viewAtWork, bounds);
  }
}

/** Returns a share in percent. Throws an Error that quotes the text if it is not a percentage. */
export function percentOf(text: string): number {
  const [, number = ''] = /^(\d+(?:\.\d+)?) ?%$/.exec(text) ?? [];
  if (number === '' || Number(number) > 100) {
    throw new Error(
      `The allowed loss (--max-loss) must be a percentage from 0% to 100%, not ${JSON.stringify(text)}.`,
    );
  }
  return Number(number);
}

/** Returns how many percent are lost if that is more than is allowed, otherwise undefined. */
export function percentLost(of: number, lost: number, maxLoss: number): number | undefined {
  // The margin covers the rounding error of multiplying decimal fractions.
  const isTooMuch = lost * 100 > of * maxLoss + 1e-6;
  return isTooMuch ? Math.ceil((10_000 * lost) / of) / 100 : undefined;
}

/** What the server reports about a transaction. */
interface Facts {
  /** The id of the transaction. */
  transaction: string;
  lockTimeoutMs: number;
}

/**
 * Sets the bounds of a transaction, and makes it end when its client is gone. Returns its id and
 * its lock timeout.
 */
async function setBounds(tx: Session, bounds: Bounds): Promise<Facts> {
  await tx.execute(
    setLocally({
      lock_timeout: bounds.lockTimeout,
      work_mem: bounds.workMem,
      ...endWhenGone,
      // REFRESH … CONCURRENTLY analyzes its copy of the new rows, which it then reads as a whole. A
      // small sample is enough for that, and quicker.
      default_statistics_target: '10',
      // Makes REFRESH fail, for owners too, if a policy would hide rows from it.
      row_security: 'off',
    }),
  );
  const [facts] = (await tx
    .select({
      transaction: sql<string>`pg_current_xact_id()::text`,
      lockTimeoutMs: sql`(select setting from pg_settings where name = 'lock_timeout')`.mapWith(
        Number,
      ),
    })
    .from(once)) as [Facts];
  return facts;
}

/** Looks up the views. Throws an Error that says what to do if a refresh would fail. */
async function preflight(tx: Session): Promise<CatalogedView[]> {
  const history = getTableName(viewRefreshes);
  await refuseIncomplete(tx, history);
  const [facts] = await tx
    .select({
      role: sql<string>`current_user`,
      // The lock of a refresh needs one of update, delete and truncate.
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
  if (!facts?.mayWrite) {
    throw new Error(
      `The role ${facts?.role} may not write ${history}. A refresh locks this table and records itself in it. Grant the role select, insert and update on it.`,
    );
  }
  if (!facts.countsTuples) {
    throw new Error(
      'track_counts is off in this database, so a refresh cannot count the rows that it changes. Turn it on. Autovacuum needs it too.',
    );
  }
  return catalog;
}

/** Throws an Error if the role may not use the schema, or if a relation does not exist. */
async function refuseIncomplete(tx: Session, history: string): Promise<void> {
  const [schema] = await tx
    .select({
      role: sql<string>`current_user`,
      mayUse: sql<boolean>`coalesce(has_schema_privilege(to_regnamespace('public'), 'usage'), true)`,
    })
    .from(once);
  if (!schema?.mayUse) {
    throw new Error(
      `The role ${schema?.role} may not use the schema public, where the views are. Grant the role usage on that schema.`,
    );
  }
  const names = [...new Set([...viewsInOrder.flatMap(namesOf), history])];
  const relations = await tx
    .select({
      name: sql<string>`name`,
      isThere: sql<boolean>`to_regclass(format('public.%I', name)) is not null`,
    })
    .from(sql`json_array_elements_text(${JSON.stringify(names)}::json) as names (name)`);
  const absent = relations.find(({ isThere }) => !isThere);
  if (absent) {
    throw missing(absent.name, relations.find(({ isThere }) => isThere)?.name);
  }
}

/** Returns the names of a view and of what it is declared to read. */
const namesOf = (view: PgMaterializedView): string[] => [
  getViewName(view),
  ...declaredInputs(view),
];

/**
 * Keeps the tables from being renamed, altered or truncated before the views are computed, so the
 * rows that are read are the rows that were looked at. If the REFRESH itself waited for the lock,
 * it would read with the snapshot from before its wait, and would find a table empty that was
 * truncated and filled again meanwhile.
 * https://www.postgresql.org/docs/16/mvcc-caveats.html
 */
async function lockTables(tx: Session, catalog: CatalogedView[]): Promise<void> {
  const tables = catalog
    .flatMap(({ inputs }) => inputs)
    .filter(({ isTable }) => isTable)
    .map(({ schema, name }) => sql`${sql.identifier(schema ?? '')}.${sql.identifier(name ?? '')}`);
  if (tables.length > 0) {
    await tx.execute(sql`lock table ${sql.join(tables, sql`, `)} in access share mode`);
  }
}

/** Returns whether a view reads tables whose rows are on other servers. */
const isOfSeveralServers = ({ inputs }: CatalogedView): boolean =>
  inputs.some(({ isDistributed }) => isDistributed);

/**
 * Keeps loads from committing while distributed tables are read, and waits until the last load is
 * visible everywhere: each server commits on its own, and each is read at another moment. Throws an
 * Error if the servers have different copies of a table that each of them has.
 */
async function keepOutLoads(tx: Session, signal: AbortSignal | undefined): Promise<void> {
  await tx.execute(sql`lock table ${inputLoads} in share update exclusive mode`);
  await untilSettled(tx, signal);
}

/**
 * Keeps others from refreshing a view, even one that is left alone. LOCK TABLE does not accept
 * materialized views. This statement takes SHARE UPDATE EXCLUSIVE on the view, and changes nothing,
 * because no index of the view is marked for CLUSTER. Only owners may run it. If the role is not
 * the owner, the views are recomputed every time.
 */
async function lockView(tx: Session, { view, isOwned }: CatalogedView): Promise<void> {
  if (isOwned) {
    await tx.execute(sql`alter materialized view ${view} set without cluster`);
  }
}

/**
 * Returns a hash of the clocks of all time zones in use, or undefined if this role may not read all
 * branches.
 */
async function readClocks(tx: Session, catalog: CatalogedView[]): Promise<string | undefined> {
  const branches = catalog
    .flatMap(({ inputs }) => inputs)
    .find(({ schema, name }) => schema === 'public' && name === getTableName(dimBranch));
  const isWhole = branches?.isExact || branches?.isDistributed;
  return branches?.isReadable && isWhole ? await hashClocks(tx) : undefined;
}

/** What is the same for all views of one refresh. */
interface Circumstances {
  /** See `server` of view_refreshes. */
  server: string;
  /** See `Basis`. Undefined if this role cannot read the time zones. */
  database: number;
  clocks: string | undefined;
  /** Whether to recompute views that may be up to date. */
  isForced: boolean;
  /**
   * The views that were left alone so far, which are locked: the look in the basis of each, and the
   * look at it now.
   */
  leftAlone: { before: Look; look: Look }[];
  /** In percent. */
  maxLoss: number;
}

/**
 * Brings one view up to date, unless it is known to be, and records that.
 *
 * The inputs are looked at before the view is computed. So rows that are committed in between count
 * as a change next time, although the view may have them already.
 */
async function refreshView(
  tx: Session,
  cataloged: CatalogedView,
  { server, database, clocks, isForced, leftAlone, maxLoss }: Circumstances,
): Promise<ViewRefresh> {
  const { view, name, oid, populated, inputs } = cataloged;
  const started = performance.now();
  const self = { oid, schema: 'public', name };
  const snapshot = await snapshotOf(tx);
  const last = await lastBasis(tx, name, server);
  const comparable = last?.database === database && last.zones === clocks ? last : undefined;
  const looks = await lookAtInputs(tx, inputs, comparable?.inputs, leftAlone);
  const mayBeUnchanged = populated && !isForced && comparable && looks?.isSame;
  const found = mayBeUnchanged ? await lookAt(tx, self, comparable.view) : undefined;
  const mode = !populated ? 'populate' : found?.isSame ? 'unchanged' : 'concurrently';

  if (found?.isSame && comparable) {
    leftAlone.push({ before: comparable.view, look: found.look });
  }

  const before = await changesInTransaction(tx, oid);
  if (mode === 'populate') {
    await tx.refreshMaterializedView(view);
  } else if (mode === 'concurrently') {
    await guardingAgainstLoss(tx, view, maxLoss, async () => {
      await tx.refreshMaterializedView(view).concurrently();
    });
  }
  const after = await changesInTransaction(tx, oid);
  const { look } = found?.isSame ? found : await lookAt(tx, self);
  const isKnown =
    found?.isSame ||
    snapshot === (await snapshotOf(tx)) ||
    (looks && (await isComputed(tx, cataloged, look, looks.looks)));
  const refresh: ViewRefresh = {
    view: name,
    mode,
    readsDistributed: isOfSeveralServers(cataloged),
    rows: look.rows,
    inserted: mode === 'populate' ? look.rows : after.inserted - before.inserted,
    deleted: after.deleted - before.deleted,
    durationMs: millisecondsSince(started),
  };
  await tx.insert(viewRefreshes).values({
    ...refresh,
    startedAt: sql`now()`, // of the transaction, before the first view is computed
    finishedAt: sql`clock_timestamp()`,
    packageVersion: packageJson.version,
    server,
    basis:
      isKnown && looks && clocks !== undefined
        ? { database, zones: clocks, inputs: looks.looks, view: look }
        : null,
  });
  return refresh;
}

/**
 * Returns whether a view that was just refreshed is known to be computed from what the looks at its
 * inputs saw.
 */
async function isComputed(
  tx: Session,
  { view, inputs }: CatalogedView,
  { rows }: Look,
  looks: Look[],
): Promise<boolean> {
  if (view === fctClientConversionEvents) {
    const lookOf = (name: string) => {
      const input = inputs.find((it) => it.name === name);
      return looks.find(({ relation }) => relation === input?.oid);
    };
    return await isComputedFrom(tx, rows, lookOf);
  }
  // The views that it reads are locked, so nobody else can have changed them.
  return inputs.every(({ name }) => viewsInOrder.some((other) => getViewName(other) === name));
}

/** Returns the basis on which a view was last up to date, or undefined if it is not known. */
async function lastBasis(tx: Session, view: string, server: string): Promise<Basis | undefined> {
  const [last] = await tx
    .select({ basis: viewRefreshes.basis, writtenBy: sql<string>`xmin::text` })
    .from(viewRefreshes)
    .where(and(eq(viewRefreshes.view, view), eq(viewRefreshes.server, server)))
    .orderBy(desc(viewRefreshes.id))
    .limit(1);
  if (!last?.basis) {
    return undefined;
  }
  // If another transaction wrote the row than the one that looked, it was restored from a dump.
  const looked = BigInt(last.basis.view.transaction) % 2n ** 32n;
  return last.writtenBy === String(looked) ? last.basis : undefined;
}

/** What the first view must not suddenly lose: users, clients, and clients by kind of purchase. */
const guarded: Record<string, SQL> = {
  users: sql`true`,
  clients: sql`${fctClientConversionEvents.leadStatus} = 'CLIENT'`,
  ...Object.fromEntries(
    Object.values(purchaseKinds).map(({ name, first }) => [
      `clients by ${name}`,
      sql`${first} is not null`,
    ]),
  ),
};

/**
 * Runs a refresh. Throws if it takes away from the first view a larger share of anything guarded
 * than is allowed.
 */
async function guardingAgainstLoss(
  tx: Session,
  view: PgMaterializedView,
  maxLoss: number,
  refresh: () => Promise<void>,
): Promise<void> {
  if (view !== fctClientConversionEvents) {
    await refresh();
    return;
  }
  const count = async () => {
    const counts = Object.entries(guarded).map(
      ([of, condition]) => [of, sql`count(*) filter (where ${condition})`.mapWith(Number)] as const,
    );
    const [row = {}] = await tx.select(Object.fromEntries(counts)).from(fctClientConversionEvents);
    return row as Record<string, number>;
  };
  const before = await count();
  await refresh();
  const after = await count();
  for (const of of Object.keys(guarded)) {
    const [was, is] = [before[of] ?? 0, after[of] ?? 0];
    const percent = percentLost(was, was - is, maxLoss);
    if (percent !== undefined) {
      throw new Error(
        `Nothing was refreshed, because ${getViewName(view)} would have ${is} ${of} instead of ${was}, a loss of ${percent} %. Check that the input tables are complete. If they are, allow the loss with --max-loss 100% (it is ${maxLoss}% now).`,
      );
    }
  }
}

interface Changes {
  inserted: number;
  deleted: number;
}

/** Returns how many rows of a view this transaction has inserted and deleted so far. */
async function changesInTransaction(tx: Session, view: number): Promise<Changes> {
  const [changes] = (await tx
    .select({
      inserted: sql`pg_stat_get_xact_tuples_inserted(${view})`.mapWith(Number),
      deleted: sql`pg_stat_get_xact_tuples_deleted(${view})`.mapWith(Number),
    })
    .from(once)) as [Changes];
  return changes;
}

/**
 * Returns the error to throw. Where Postgres' message alone is not enough, the error says which
 * view was not refreshed, and what to do.
 */
async function explainFailure(
  session: Session,
  error: unknown,
  view: CatalogedView | undefined,
  { lockTimeout, statementTimeout }: Bounds,
): Promise<unknown> {
  const cause = causeOf(error);
  if (view === undefined) {
    return error;
  }
  const ask = <Answer>(question: (tx: Session) => PromiseLike<Answer>) =>
    pinned(session, statementTimeout, question);
  const holdersInTheWay = () =>
    ask((tx) =>
      findRefreshBlockers(tx, view.name, [
        getTableName(viewRefreshes),
        ...(isOfSeveralServers(view) ? [getTableName(inputLoads)] : []),
      ]),
    );
  if (cause.code === QUERY_CANCELED) {
    const holders = await holdersInTheWay();
    const waiting =
      holders.length > 0 ? ` These sessions may have blocked it: ${holders.join(', ')}.` : '';
    return new Error(
      `${view.name} was not refreshed: ${cause.message}. The statement timeout was ${statementTimeout}.${waiting}`,
      { cause },
    );
  }
  if (cause.code === LOCK_NOT_AVAILABLE) {
    const holders = await holdersInTheWay();
    const holding = holders.join(', ') || 'another session held it until now';
    return new Error(
      `${view.name} was not refreshed: it got no lock within ${lockTimeout}, because ${holding}.`,
      { cause },
    );
  }
  if (cause.code === INVALID_PARAMETER_VALUE) {
    const zones = await ask(branchesOfUnknownZones).catch(() => []);
    return zones.length === 0 ? error : new Error(describeZones(zones), { cause });
  }
  if (cause.code === INSUFFICIENT_PRIVILEGE) {
    const secured = await ask((tx) => tablesWithPolicies(tx, view));
    const reason =
      secured.length > 0
        ? `row-level security may hide rows of ${secured.join(' and ')} from ${view.owner}, the owner of the view. A refresh needs all rows. Exempt that role: "alter role ${view.owner} bypassrls", or "alter table … no force row level security" if it owns the table.`
        : `${cause.message}. Postgres computes a view with the privileges of its owner: grant select on what it reads to ${view.owner}.`;
    return new Error(`${view.name} was not refreshed, because ${reason}`, { cause });
  }
  return error;
}

function describeZones(unknown: Awaited<ReturnType<typeof branchesOfUnknownZones>>): string {
  const zones = unknown.map(({ zone, branches, some }) => {
    const others = branches > some.length ? ` and ${branches - some.length} more` : '';
    return `${zone} (branch ${some.join(', ')}${others})`;
  });
  return `Nothing was refreshed, because the server no longer knows the time zones of some branches: ${zones.join('; ')}. Either write the current name of each zone to dim_branch.timezone_id (America/New_York for US/Eastern), or install the legacy names on the server (the package tzdata-legacy on Debian and Ubuntu).`;
}

/** Returns the tables that a view reads and whose row-level security applies to its owner. */
async function tablesWithPolicies(
  tx: Session,
  { inputs, owner }: CatalogedView,
): Promise<string[]> {
  const oids = JSON.stringify(inputs.map(({ oid }) => oid));
  const tables = await tx
    .select({ name: sql<string>`relname` })
    .from(sql`pg_class`)
    .where(sql`relrowsecurity
      and (relforcerowsecurity or not pg_has_role(${owner}::name, relowner, 'usage'))
      and oid::bigint in (
        select oid::bigint from json_array_elements_text(${oids}::json) as inputs (oid)
      )`)
    .orderBy(sql`relname`);
  return tables.map(({ name }) => name);
}

const millisecondsSince = (started: number) => Math.round(performance.now() - started);
