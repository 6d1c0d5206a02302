import { isDeepStrictEqual } from 'node:util';
import { getTableName, getViewName, type SQL, sql } from 'drizzle-orm';
import { getMaterializedViewConfig, getTableConfig, type PgTable } from 'drizzle-orm/pg-core';
import { inputLoads } from '../../schema/index.ts';
import { inputTables } from '../../schema/input_tables.ts';
import { missing, readLockHolders, relationOf } from '../../views/catalog.ts';
import { citusTables } from '../../views/citus.ts';
import { viewsInOrder } from '../../views/refresh.ts';
import { takeLock } from '../../views/refresh_lock.ts';
import {
  causeOf,
  endWhenGone,
  hasCitus,
  LOCK_NOT_AVAILABLE,
  once,
  pinned,
  readCommitted,
  type Session,
  setLocally,
} from '../../views/session.ts';
import { viewRefreshes } from '../../views/view_refreshes.ts';
import { rowsOf } from '../definitions.ts';
import { type Relation, readRelations } from '../relations.ts';

/** Where the rows of a table are. */
export interface Distributed {
  /** The table's name. */
  table: string;
  rows: number;
  /**
   * The column by whose values the rows are split, or null for a table that every server has whole.
   */
  distributedBy: string | null;
  /** The number of parts that its rows are in. */
  shards: number;
}

interface Options {
  /** How long to wait for a lock that another session holds, in Postgres' own notation. */
  lockTimeout: string;
  /** How long one statement may take. */
  statementTimeout: string;
  signal?: AbortSignal;
  /** Called with what is being done. */
  onStep?: (step: string) => void;
}

const nameOf = (table: PgTable) => getTableName(table);

/**
 * The input tables, each with the column by which its rows are split. Every server has all rows of
 * a table without such a column.
 */
const wanted = inputTables.map((table) => ({
  ...{ table, name: nameOf(table) },
  column: 'userId' in table ? table.userId.name : undefined,
}));
const first = wanted.find(({ column }) => column !== undefined);

const inputs: SQL = sql`(${sql.join(
  wanted.map(({ name }) => relationOf(name)),
  sql`, `,
)})`;

/**
 * Distributes the input tables in one transaction, unless they are distributed already. Meanwhile
 * nobody can read or write them, but the views can be read as always. Afterwards only the place of
 * the rows is different. The rows themselves, the constraints, and the views with their indexes,
 * comments and grants are as before.
 *
 * Returns a `reason` if nothing was done because a refresh or a migration is running. Throws an
 * Error that says what to do if the database cannot be distributed.
 */
export async function distributeTables(
  session: Session,
  { lockTimeout, statementTimeout, signal, onStep }: Options,
): Promise<{ reason: string | null; isNew: boolean; tables: Distributed[] }> {
  const work = async (tx: Session) => {
    await tx.execute(
      setLocally({
        ...{ lock_timeout: lockTimeout, ...endWhenGone, row_security: 'off' },
        // Citus cannot distribute tables that refer to each other over parallel connections.
        'citus.multi_shard_modify_mode': 'sequential',
        // Whatever is added to a table is added to its shards, too. There is one copy of each
        // shard.
        'citus.enable_ddl_propagation': 'on',
        'citus.shard_replication_factor': '1',
      }),
    );
    await refuseOtherDatabases(tx);
    if (await areDistributed(tx)) {
      return { reason: null, isNew: false, tables: await readShards(tx) };
    }
    const [setting] = await tx
      .select({ ms: sql`setting`.mapWith(Number) })
      .from(sql`pg_settings`)
      .where(sql`name = 'lock_timeout'`);
    const reason = await takeLock(tx, setting?.ms ?? 0);
    if (reason) {
      return { reason, isNew: false, tables: [] };
    }
    onStep?.('waiting for writers');
    await tx.execute(sql`lock table ${inputLoads} in share update exclusive mode`);
    await tx.execute(sql`lock table ${sql.join(inputTables, sql`, `)} in access exclusive mode`);
    if (await areDistributed(tx)) {
      return { reason: null, isNew: false, tables: await readShards(tx) };
    }
    onStep?.('reading');
    const before = await readState(tx);
    await moveRows(tx, onStep, signal);
    onStep?.('comparing');
    refuseChanges(before, await readState(tx));
    return { reason: null, isNew: true, tables: await readShards(tx) };
  };
  try {
    return await pinned(session, statementTimeout, work, readCommitted, signal);
  } catch (error) {
    const cause = causeOf(error);
    if (cause.code !== LOCK_NOT_AVAILABLE) {
      throw error;
    }
    const holders = await pinned(session, statementTimeout, (tx) =>
      readLockHolders(
        tx,
        sql`pg_locks.relation in (select oid from pg_class where oid in ${inputs} or oid = ${relationOf(nameOf(inputLoads))})`,
      ),
    );
    throw new Error(
      `Nothing was distributed, because these tables were locked for longer than ${lockTimeout}: ${holders.join(', ') || 'another session held the lock until now'}.`,
      { cause },
    );
  }
}

/**
 * Throws an Error that says what to do if this role cannot distribute the tables of this database.
 */
async function refuseOtherDatabases(tx: Session): Promise<void> {
  const [found] = await tx
    .select({
      hasCitus,
      database: sql<string>`current_database()`,
      role: sql<string>`current_user`,
      absent: sql<string | null>`(
        select min(name)
        from json_array_elements_text(${JSON.stringify([...wanted.map(({ name }) => name), ...[inputLoads, viewRefreshes].map(nameOf), ...viewsInOrder.map(getViewName)])}::json) as names (name)
        where to_regclass(format('public.%I', name)) is null
      )`,
      owner: sql<string | null>`(
        select min(pg_get_userbyid(relowner)) from pg_class
        where oid in ${inputs} and not pg_has_role(relowner, 'usage')
      )`,
      unsupported: sql<string[]>`(
        select coalesce(json_agg(what order by what), '[]') from (
          select format('the foreign key %s of %s', conname, conrelid::regclass) as what
          from pg_constraint
          where contype = 'f'
            and ((conrelid in ${inputs}) <> (confrelid in ${inputs}) or (conrelid in ${inputs} and conrelid = confrelid))
          union all
          select format('the trigger %s on %s', tgname, tgrelid::regclass)
          from pg_trigger
          where not tgisinternal and tgrelid in ${inputs}
          union all
          select format('the rule %s on %s', rulename, ev_class::regclass)
          from pg_rewrite
          where ev_class in ${inputs}
          union all
          select format('the inheritance of %s from %s', inhrelid::regclass, inhparent::regclass)
          from pg_inherits
          where inhrelid in ${inputs} or inhparent in ${inputs}
          union all
          select format('the unique index %s on %s, which lacks the column user_id', indexrelid::regclass, indrelid::regclass)
          from pg_index
          inner join pg_attribute on attrelid = indrelid and attname = 'user_id'
          where indisunique and indrelid in ${inputs} and attnum <> all (indkey::smallint[])
          union all
          select format('the exclusion constraint %s on %s', conname, conrelid::regclass)
          from pg_constraint
          where contype = 'x' and conrelid in ${inputs}
        ) as objects
      )`,
    })
    .from(once);
  if (!found?.hasCitus) {
    throw new Error(
      `The database ${found?.database} does not have the extension Citus. Install it on all servers of the cluster, run "create extension citus" in the database on each, and add the workers: https://docs.citusdata.com/en/stable/installation/multi_node.html`,
    );
  }
  const [cluster] = await rowsOf<{ is_coordinator: boolean; has_workers: boolean }>(
    tx,
    sql`
      select
        citus_is_coordinator() as is_coordinator,
        exists (
          select from pg_dist_node
          where groupid <> 0 and isactive and shouldhaveshards and noderole = 'primary'
        ) as has_workers`,
  );
  if (!cluster?.is_coordinator) {
    throw new Error(
      'DATABASE_URL names a worker of the Citus cluster. Set it to the URL of the coordinator.',
    );
  }
  if (found.absent !== null) {
    throw missing(found.absent, undefined);
  }
  if (!cluster.has_workers) {
    throw new Error(
      'The Citus cluster has no worker that takes shards, so all rows would stay on this server. Add a worker: "select citus_add_node(\'HOST\', 5432)".',
    );
  }
  if (found.owner !== null) {
    throw new Error(
      `The role ${found.role} may not distribute the tables: their owner is ${found.owner}. Connect as ${found.owner} or a member of that role.`,
    );
  }
  if (found.unsupported.length > 0) {
    throw new Error(
      `Nothing was distributed. Citus does not support these on distributed tables: ${found.unsupported.join('; ')}. Drop them first.`,
    );
  }
}

/**
 * Returns whether the input tables are distributed as they should be. Throws an Error if some are
 * distributed in another way.
 */
async function areDistributed(tx: Session): Promise<boolean> {
  const strange = await strangelyDistributed(tx);
  if (strange && strange.length > 0) {
    throw new Error(
      `Nothing was changed, because Citus already manages some of these tables differently: ${strange.join(', ')}. Load the rows into a new database, and distribute that one.`,
    );
  }
  return strange !== undefined;
}

/**
 * Returns, in words, how the distribution of the input tables differs from what it should be, or
 * undefined if none of them is distributed. Only for a database that has Citus.
 */
export async function strangelyDistributed(tx: Session): Promise<string[] | undefined> {
  const found = await rowsOf<{
    name: string;
    column: string | null;
    is_distributed: boolean;
    is_reference: boolean;
    colocation: number;
  }>(tx, sql`select * from (${citusTables}) as tables where oid in ${inputs}`);
  const group = found.find(({ name }) => name === first?.name)?.colocation;
  const isAsWanted = (name: string, column: string | undefined) =>
    found.some(
      (table) =>
        table.name === name &&
        (column === undefined
          ? table.is_reference
          : table.is_distributed && table.column === column && table.colocation === group),
    );
  return found.length === 0
    ? undefined
    : wanted
        .filter(({ name, column }) => !isAsWanted(name, column))
        .map(({ name, column }) =>
          column === undefined
            ? `${name} is not a reference table`
            : `${name} is not distributed by ${column}${name === first?.name ? '' : `, colocated with ${first?.name}`}`,
        );
}

/** Moves the rows to the workers. Meanwhile the tables have no foreign keys. */
async function moveRows(tx: Session, onStep: Options['onStep'], signal?: AbortSignal) {
  const keys = await rowsOf<{ drop: string; add: string; comment: string | null }>(
    tx,
    sql`
      select
        format('alter table %s drop constraint %I', table_name, conname) as drop,
        format('alter table %s add constraint %I %s', table_name, conname, definition) as add,
        case
          when comment is not null
            then format('comment on constraint %I on %s is %L', conname, table_name, comment)
        end as comment
      from (
        select
          conname,
          format('public.%I', relname) as table_name,
          pg_get_constraintdef(pg_constraint.oid) as definition,
          obj_description(pg_constraint.oid, 'pg_constraint') as comment
        from pg_constraint
        inner join pg_class on conrelid = pg_class.oid
        where contype = 'f' and conrelid in ${inputs}
      ) as foreign_keys
      order by conname`,
  );
  for (const { drop } of keys) {
    await tx.execute(sql.raw(drop));
  }
  for (const { name, column } of wanted) {
    signal?.throwIfAborted();
    onStep?.(`${name}: copying`);
    const table = `public.${name}`;
    const beside = name === first?.name ? 'none' : `public.${first?.name}`;
    await tx.execute(
      column === undefined
        ? sql`select create_reference_table(${table}::regclass)`
        : sql`select create_distributed_table(${table}::regclass, ${column}, colocate_with => ${beside})`,
    );
  }
  for (const { add, comment } of keys) {
    onStep?.('adding the foreign keys');
    await tx.execute(sql.raw(add));
    if (comment !== null) {
      await tx.execute(sql.raw(comment));
    }
  }
  // This server still has the rows that were copied. A table and those that refer to it are emptied
  // together.
  for (const { name } of wanted.toReversed()) {
    await tx.execute(
      sql`select truncate_local_data_after_distributing_table(${`public.${name}`}::regclass)`,
    );
  }
}

/** The properties of a table or view, and a summary of its rows. */
interface State extends Relation {
  oid: number;
  owner: string;
  options: string[] | null;
  /** Only for a view. */
  definition: string | null;
  constraints: string[];
  rows: number;
  /** The sum of the hashes of all rows. */
  hash: string | null;
}

/** Returns the present state of the input tables and the views. */
async function readState(tx: Session): Promise<State[]> {
  const relations = await readRelations(tx);
  const states: State[] = [];
  for (const { name, columns } of [
    ...inputTables.map((table) => getTableConfig(table)),
    ...viewsInOrder.map((view) => {
      const { name, selectedFields } = getMaterializedViewConfig(view);
      return { name, columns: Object.values(selectedFields) as { name: string }[] };
    }),
  ]) {
    const relation = relations.find((relation) => relation.name === name);
    const [catalog] = await tx
      .select({
        oid: sql`oid`.mapWith(Number),
        owner: sql<string>`relowner::regrole::text`,
        options: sql<string[] | null>`to_json(reloptions)`,
        isPopulated: sql<boolean>`relispopulated`,
        definition: sql<string | null>`case relkind when 'm' then pg_get_viewdef(oid) end`,
        constraints: sql<string[]>`(
          select coalesce(json_agg(
            concat_ws(' ', conname, pg_get_constraintdef(oid), obj_description(oid, 'pg_constraint'))
            order by conname
          ), '[]')
          from pg_constraint where conrelid = pg_class.oid
        )`,
      })
      .from(sql`pg_class`)
      .where(sql`oid = ${relationOf(name)}`);
    if (!relation || !catalog) {
      throw missing(name, undefined);
    }
    const { isPopulated, ...described } = catalog;
    const row = sql.join(
      columns.map((column) => sql.identifier(column.name)),
      sql`, `,
    );
    const [content] = isPopulated
      ? await tx
          .select({
            rows: sql`count(*)`.mapWith(Number),
            hash: sql<string | null>`sum(hash_record_extended(row(${row}), 0)::numeric)::text`,
          })
          .from(sql`public.${sql.identifier(name)}`)
      : [];
    states.push({
      ...relation,
      ...described,
      rows: content?.rows ?? 0,
      hash: content?.hash ?? null,
    });
  }
  return states;
}

/** Throws an Error if anything has changed. The Error names it. */
function refuseChanges(before: State[], after: State[]): void {
  for (const [index, state] of before.entries()) {
    const now = after[index];
    const aspect = (Object.keys(state) as (keyof State)[]).find(
      (aspect) => !isDeepStrictEqual(state[aspect], now?.[aspect]),
    );
    if (aspect) {
      throw new Error(
        `Nothing was distributed, because ${state.name} would change: its ${aspect} would be ${JSON.stringify(now?.[aspect])} instead of ${JSON.stringify(state[aspect])}.`,
      );
    }
  }
}

/** Returns where the rows of the distributed input tables are. */
async function readShards(tx: Session): Promise<Distributed[]> {
  const tables: Distributed[] = [];
  for (const { table, name, column } of wanted) {
    const [shards] = await tx
      .select({ count: sql`count(*)`.mapWith(Number) })
      .from(sql`pg_dist_shard`)
      .where(sql`logicalrelid = ${relationOf(name)}`);
    const [rows] = await tx.select({ count: sql`count(*)`.mapWith(Number) }).from(table);
    tables.push({
      table: name,
      rows: rows?.count ?? 0,
      distributedBy: column ?? null,
      shards: shards?.count ?? 0,
    });
  }
  return tables;
}
