import { getTableName, type SQL, sql } from 'drizzle-orm';
import type { PgTable } from 'drizzle-orm/pg-core';
import { inputLoads } from '../../schema/index.ts';
import { inputTables } from '../../schema/input_tables.ts';
import { missing, readLockHolders, relationOf } from '../../views/catalog.ts';
import { citusTables } from '../../views/citus.ts';
import {
  causeOf,
  endWhenGone,
  hasCitus,
  INSUFFICIENT_PRIVILEGE,
  LOCK_NOT_AVAILABLE,
  pinned,
  QUERY_CANCELED,
  type Session,
  setLocally,
} from '../../views/session.ts';
import type { LoadTransaction } from './tables.ts';

/** The bounds of a load. Durations and sizes are in Postgres' own notation. */
export interface LoadBounds {
  /** How long to wait for a lock that another session holds. */
  lockTimeout: string;
  /** How long one statement may take. */
  statementTimeout: string;
  /** Memory for each sort and hash table. */
  workMem: string;
}

/** What a load may be waiting for, by what it is doing. */
type Step = 'locks out other loads' | 'locks the tables' | 'writes';

/** How far a load has come. */
export interface LoadState {
  step?: Step;
  /**
   * Whether the written rows may be changed unnoticed: by triggers or rules of others, or, if the
   * tables are distributed, by transactions of other servers.
   */
  isMeddledWith?: boolean;
}

/**
 * Prepares the transaction of a load: sets its bounds, gives times in the files the same meaning in
 * every session, and takes the locks of a load.
 *
 * Throws an Error that says what to do if a table does not exist or is of another kind, or if this
 * role lacks a privilege for the load.
 */
export async function begin(
  transaction: LoadTransaction,
  tables: PgTable[],
  isSnapshot: boolean,
  bounds: LoadBounds,
  state: LoadState,
): Promise<void> {
  await transaction.query(
    setLocally({
      lock_timeout: bounds.lockTimeout,
      statement_timeout: bounds.statementTimeout,
      work_mem: bounds.workMem,
      ...endWhenGone,
      // Makes Postgres raise an error if a policy hides rows, which would then seem to be new.
      row_security: 'off',
      // Citus cannot write a reference table after parallel reads of distributed tables.
      'citus.multi_shard_modify_mode': 'sequential',
      timezone: 'UTC',
      datestyle: 'ISO, YMD',
    }),
  );
  await refuseOutsiders(transaction);
  await refuseUnmigrated(transaction);
  await refuseOtherKinds(transaction, tables);
  await refuseUnprivileged(transaction, tables, isSnapshot);
  state.step = 'locks out other loads';
  await transaction.query(sql`lock table ${inputLoads} in share update exclusive mode`);
  state.step = 'locks the tables';
  await transaction.query(sql`lock table ${sql.join(tables, sql`, `)} in row exclusive mode`);
  state.step = 'writes';
  state.isMeddledWith = await areMeddledWith(transaction, tables);
}

const oidsOf = (tables: PgTable[]): SQL =>
  sql.join(
    tables.map((table) => relationOf(getTableName(table))),
    sql`, `,
  );

/**
 * Throws an Error if a relation is not a table, or has inheriting tables. Queries on a table also
 * read the rows of inheriting tables, but ON CONFLICT does not see them.
 */
async function refuseOtherKinds(transaction: LoadTransaction, tables: PgTable[]): Promise<void> {
  const [strange] = await transaction.query(sql`
    select relname as name, relkind in ('r', 'p') as is_table
    from pg_class
    where oid in (${oidsOf(tables)})
      and (
        relkind not in ('r', 'p')
        or relkind = 'r' and exists (select from pg_inherits where inhparent = pg_class.oid)
      )`);
  if (strange) {
    throw new Error(
      strange.is_table
        ? `${strange.name} has inheriting tables, and a load cannot tell their rows from those of the table. Move their rows into it, and remove the inheritance: "alter table … no inherit ${strange.name}".`
        : `${strange.name} is not a table in this database.`,
    );
  }
}

/** Returns whether one of the tables has triggers or rules, or is distributed. */
async function areMeddledWith(transaction: LoadTransaction, tables: PgTable[]): Promise<boolean> {
  const [found] = await transaction.query(sql`
    select
      exists (
        select from pg_trigger where tgrelid in (${oidsOf(tables)}) and not tgisinternal
      )
      or exists (select from pg_rewrite where ev_class in (${oidsOf(tables)})) as any,
      ${hasCitus} as has_citus`);
  const [distributed] = found?.has_citus
    ? await transaction.query(
        sql`select from (${citusTables}) as tables where oid in (${oidsOf(tables)})`,
      )
    : [];
  return found?.any === true || distributed !== undefined;
}

/**
 * Throws an Error that names the privilege that this role lacks to use our schema or to create
 * temporary tables.
 */
async function refuseOutsiders(transaction: LoadTransaction): Promise<void> {
  const [role] = await transaction.query(sql`
    select
      current_user as name,
      coalesce(has_schema_privilege(to_regnamespace('public'), 'usage'), true) as may_use,
      has_database_privilege(current_database(), 'temporary') as may_create,
      quote_ident(current_database()) as database`);
  if (!role?.may_use || !role.may_create) {
    const privilege = role?.may_use
      ? `temporary on database ${role.database}`
      : 'usage on schema public';
    throw new Error(`The role ${role?.name} may not load this. Grant ${privilege} to it.`);
  }
}

/** Throws an Error if a table does not exist. */
async function refuseUnmigrated(transaction: LoadTransaction): Promise<void> {
  const names = [...inputTables, inputLoads].map((table) => getTableName(table));
  const relations = await transaction.query(sql`
    select name, to_regclass(format('public.%I', name)) is not null as is_there
    from json_array_elements_text(${JSON.stringify(names)}::json) as names (name)`);
  const absent = relations.find((relation) => !relation.is_there);
  if (absent) {
    const there = relations.find((relation) => relation.is_there);
    throw missing(String(absent.name), there && String(there.name));
  }
}

/** Throws an Error that names the privileges on tables that this role lacks. */
async function refuseUnprivileged(
  transaction: LoadTransaction,
  tables: PgTable[],
  isSnapshot: boolean,
): Promise<void> {
  const needed: { relation: string; privilege: string }[] = inputTables.flatMap((table) => {
    const written = ['insert', 'update', ...(isSnapshot ? ['delete'] : [])];
    return ['select', ...(tables.includes(table) ? written : [])].map((privilege) => ({
      relation: getTableName(table),
      privilege,
    }));
  });
  for (const privilege of ['select', 'insert', 'update']) {
    needed.push({ relation: getTableName(inputLoads), privilege });
  }
  const [lacking] = await transaction.query(sql`
    select
      current_user as role,
      string_agg(format('%s on %s', privileges, relation), ', ' order by place) as privileges
    from (
      select relation, string_agg(privilege, ', ') as privileges, min(place) as place
      from rows from (
        json_to_recordset(${JSON.stringify(needed)}::json) as (relation text, privilege text)
      ) with ordinality as needed (relation, privilege, place)
      where not has_table_privilege(format('public.%I', relation), privilege)
      group by relation
    ) as lacking`);
  if (lacking?.privileges) {
    throw new Error(
      `The role ${lacking.role} lacks privileges for this load. Grant ${lacking.privileges} to it.`,
    );
  }
}

/**
 * Returns the error to throw for a failed load. It explains Postgres' error, and names the sessions
 * in the way.
 */
export async function explainFailure(
  session: Session,
  error: unknown,
  { step }: LoadState,
  { lockTimeout, statementTimeout }: LoadBounds,
): Promise<unknown> {
  const cause = causeOf(error);
  const holders = async () =>
    step === undefined ? [] : await pinned(session, '10s', (tx) => findLoadBlockers(tx, step));
  if (cause.code === LOCK_NOT_AVAILABLE) {
    const holding = (await holders()).join(', ') || 'another session held it until now';
    return new Error(
      `Nothing was loaded: it got no lock within ${lockTimeout}, because ${holding}.`,
      {
        cause,
      },
    );
  }
  if (cause.code === QUERY_CANCELED) {
    const waiting = await holders();
    const inTheWay =
      waiting.length > 0 ? ` These sessions may have blocked it: ${waiting.join(', ')}.` : '';
    return new Error(
      `Nothing was loaded: ${cause.message}. The statement timeout was ${statementTimeout}.${inTheWay}`,
      { cause },
    );
  }
  if (cause.code === INSUFFICIENT_PRIVILEGE && cause.message.includes('row-level security')) {
    return new Error(
      `Nothing was loaded: ${cause.message}. A load must see all rows. Load as the owner of the tables, or exempt the role: "alter role … bypassrls".`,
      { cause },
    );
  }
  if (cause.code === FOREIGN_KEY_VIOLATION) {
    return new Error(
      `Nothing was loaded: ${[cause.message, cause.detail].filter(Boolean).join('. ')} Either a table outside this package refers to rows that --snapshot would delete, or another session wrote to these tables at the same time. In the first case, delete the rows that refer to them. Then load again.`,
      { cause },
    );
  }
  return error;
}

/** https://www.postgresql.org/docs/16/errcodes-appendix.html */
const FOREIGN_KEY_VIOLATION = '23503';

/** Returns, in words, which sessions and prepared transactions hold locks that a load needs. */
async function findLoadBlockers(tx: Session, step: Step): Promise<string[]> {
  const conditions: Record<Step, SQL> = {
    'locks out other loads': sql`
      pg_locks.relation = ${relationOf(getTableName(inputLoads))}
      and pg_locks.mode !~ '^(Access|Row)Share|^RowExclusive'`,
    'locks the tables': sql`
      pg_locks.relation in (${inputRelations})
      and pg_locks.mode !~ '^(Access|Row)Share|^RowExclusive|^ShareUpdate'`,
    // Rows are locked by sessions that write to their table, or that select for update.
    writes: sql`
      pg_locks.relation in (${inputRelations})
      and pg_locks.mode !~ '^AccessShare|^ShareUpdate'`,
  };
  return await readLockHolders(tx, conditions[step]);
}

const inputRelations = oidsOf(inputTables);
