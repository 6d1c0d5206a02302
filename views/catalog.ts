import { getTableName, getViewName, is, type SQL, sql } from 'drizzle-orm';
import {
  getMaterializedViewConfig,
  type PgColumn,
  type PgDatabase,
  type PgMaterializedView,
  type PgQueryResultHKT,
  PgTable,
} from 'drizzle-orm/pg-core';
import { propertiesOf } from '../schema/properties.ts';
import { readDistributed } from './citus.ts';

/** What a refresh needs to know about a view. It is read from the database itself. */
export interface CatalogedView {
  view: PgMaterializedView;
  name: string;
  oid: number;
  /** False for a view that was created or refreshed WITH NO DATA. */
  populated: boolean;
  /** The role with whose privileges Postgres computes the view. */
  owner: string;
  /** Whether the current role is the owner, or a member of it. */
  isOwned: boolean;
  /** What the definition of the view refers to, except what belongs to Postgres itself. */
  inputs: Input[];
}

/** A table, view or function that a view reads. */
export interface Input {
  oid: number;
  /** Null for a function. */
  schema: string | null;
  name: string | null;
  isTable: boolean;
  isReadable: boolean;
  /** Whether Citus keeps its rows on other servers. */
  isDistributed: boolean;
  /**
   * Whether it can be known if the rows have changed. This is so for an ordinary table or
   * materialized view of this server that has no children and no policy that hides rows. Rows on
   * another server are written by transactions with ids of that server.
   */
  isExact: boolean;
}

/**
 * Looks up one of our relations by its name, whatever the search_path is. NULL if it does not
 * exist.
 */
export const relationOf = (name: string): SQL => sql`to_regclass(${`public.${name}`})`;

/**
 * The relations, columns and functions that a relation's rule refers to, without Postgres' own
 * functions.
 */
const readBy = (relation: SQL): SQL => sql`
  select distinct pg_depend.refobjid as oid, pg_depend.refobjsubid as column_number
  from pg_rewrite
  inner join pg_depend
    on pg_depend.classid = 'pg_rewrite'::regclass
    and pg_depend.objid = pg_rewrite.oid
  where pg_rewrite.ev_class = ${relation}
    and pg_depend.refclassid in ('pg_class'::regclass, 'pg_proc'::regclass)
    and pg_depend.refobjid <> ${relation}`;

const inputsOf = (relation: SQL): SQL => sql`
  select coalesce(json_agg(json_build_object(
    'oid', read.oid::bigint,
    'schema', nspname,
    'name', relname,
    'isTable', coalesce(relkind in ('r', 'p', 'v'), false),
    'isReadable', coalesce(has_table_privilege(read.oid, 'select'), false),
    'isExact', coalesce(
      relkind in ('r', 'm')
        and relam = (select oid from pg_am where amname = 'heap')
        and not relhassubclass
        and not row_security_active(read.oid),
      false)
  ) order by read.oid), '[]')
  from (select distinct oid from (${readBy(relation)}) as columns) as read
  left join pg_class on read.oid = pg_class.oid
  left join pg_namespace on relnamespace = pg_namespace.oid`;

/** The columns of a table or view that a view reads, by their current names. */
interface ReadColumns {
  oid: number;
  columns: string[];
}

const columnsOf = (relation: SQL): SQL => sql`
  select coalesce(json_agg(json_build_object('oid', oid::bigint, 'columns', columns)), '[]')
  from (
    select read.oid, json_agg(attname order by attnum) as columns
    from (${readBy(relation)}) as read
    inner join pg_attribute on attrelid = read.oid and attnum = read.column_number
    group by read.oid
  ) as read_columns`;

/** A relation that a view is declared to read: its name, and the oid that now has this name. */
interface DeclaredRelation {
  name: string;
  oid: number | null;
}

/** A unique index, and the flaw that keeps REFRESH … CONCURRENTLY from using it, or null. */
interface UniqueIndex {
  name: string;
  flaw: string | null;
}

/**
 * Looks up a view, and checks in advance for everything that would make its refresh fail.
 * https://www.postgresql.org/docs/16/sql-refreshmaterializedview.html
 *
 * Throws an Error that says what is wrong and what to do if the view does not exist or is not a
 * materialized view, if it has no unique index that REFRESH … CONCURRENTLY can use, or if it does
 * not read the declared tables and columns. Unless `isToRefresh` is false, also throws if the
 * current role may not refresh the view or may not read its tables.
 */
export async function catalogView(
  db: PgDatabase<PgQueryResultHKT>,
  view: PgMaterializedView,
  { isToRefresh = true } = {},
): Promise<CatalogedView> {
  const { name } = getMaterializedViewConfig(view);
  const [found] = await db
    .select({
      oid: sql`oid`.mapWith(Number),
      isMaterialized: sql<boolean>`relkind = 'm'`,
      populated: sql<boolean>`relispopulated`,
      role: sql<string>`current_user`,
      owner: sql<string>`pg_get_userbyid(relowner)`,
      // In a CASE, because Postgres 16 does not know the privilege "maintain".
      mayRefresh: sql<boolean>`
        pg_has_role(relowner, 'usage')
        or case
          when current_setting('server_version_num')::int >= 170000
            then has_table_privilege(oid, 'maintain')
          else false
        end`,
      uniqueIndexes: sql<UniqueIndex[] | null>`(
        select json_agg(json_build_object(
          'name', (select relname from pg_class as index where index.oid = indexrelid),
          'flaw', case
            when not indisvalid then 'is not valid'
            when indpred is not null then 'leaves out rows (it has a WHERE)'
            when 0 = any (indkey::int2[]) then 'is on an expression'
          end
        ) order by indexrelid)
        from pg_index
        where indrelid = pg_class.oid and indisunique
      )`,
      isOwned: sql<boolean>`pg_has_role(relowner, 'usage')`,
      inputs: sql<Omit<Input, 'isDistributed'>[]>`(${inputsOf(sql`pg_class.oid`)})`,
      readColumns: sql<ReadColumns[]>`(${columnsOf(sql`pg_class.oid`)})`,
      declared: sql<DeclaredRelation[]>`(
        select coalesce(json_agg(json_build_object(
          'name', name, 'oid', to_regclass(format('public.%I', name))::oid::bigint
        )), '[]')
        from json_array_elements_text(${JSON.stringify(declaredInputs(view))}::json) as names (name)
      )`,
    })
    .from(sql`pg_class`)
    .where(sql`oid = ${relationOf(name)}`);
  if (!found) {
    throw missing(name, undefined);
  }
  const { oid, populated, role, owner, isOwned, uniqueIndexes, inputs, declared } = found;
  if (!found.isMaterialized) {
    throw new Error(`${name} is not a materialized view in this database.`);
  }
  if (isToRefresh && !found.mayRefresh) {
    throw new Error(
      `The role ${role} may not refresh ${name}: its owner is ${owner}. Connect as ${owner} or a member of that role, or, from PostgreSQL 17 on, grant this role maintain and select on both views, and select on the input tables.`,
    );
  }
  if (!uniqueIndexes?.some(({ flaw }) => flaw === null)) {
    const flaws = uniqueIndexes?.map((index) => `${index.name} ${index.flaw}`).join(', ');
    throw new Error(
      `${name} has no unique index that REFRESH … CONCURRENTLY can use${flaws ? `: ${flaws}` : ''}. Create it again with its statement in schema/migrations.`,
    );
  }
  for (const relation of declared) {
    const read = found.readColumns.find(({ oid }) => oid === relation.oid);
    const strange = read?.columns.find(
      (column) => !declaredColumns(view, relation.name).includes(column),
    );
    if (!read || strange !== undefined) {
      const what = read ? `reads ${strange} of ${relation.name}` : `does not read ${relation.name}`;
      throw new Error(
        `${name} ${what}. A view keeps reading the tables and columns with which it was created, even after they are renamed or moved. It reads ${inputs.map(nameOf).join(', ')}. Rename them back, and load the rows into the tables that the view reads, or create the view again with its statements in schema/migrations.`,
      );
    }
  }
  const unreadable = inputs.find(({ isTable, isReadable }) => isTable && !isReadable);
  if (isToRefresh && unreadable) {
    throw new Error(
      `The role ${role} may not read ${nameOf(unreadable)}, which a refresh locks and counts. Grant the role select on that table.`,
    );
  }
  const distributed = await readDistributed(db);
  return {
    ...{ view, name, oid, populated, owner, isOwned },
    inputs: inputs.map((input) => {
      const isDistributed = distributed.includes(input.oid);
      return { ...input, isDistributed, isExact: input.isExact && !isDistributed };
    }),
  };
}

const nameOf = ({ oid, schema, name }: Pick<Input, 'oid' | 'schema' | 'name'>): string =>
  name === null ? `the function ${oid}` : schema === 'public' ? name : `${schema}.${name}`;

/** Returns the name of the table or view that a column belongs to. */
const relationNameOf = (column: PgColumn): string => {
  const relation: unknown = column.table;
  return is(relation, PgTable)
    ? getTableName(relation)
    : getViewName(relation as PgMaterializedView);
};

/** Returns the names of the columns of a relation that a view is declared to read. */
const declaredColumns = (view: PgMaterializedView, relation: string): string[] =>
  (propertiesOf(view)?.reads ?? [])
    .filter((column) => relationNameOf(column) === relation)
    .map(({ name }) => name);

/** Returns the names of the tables and views that a view is declared to read. */
export const declaredInputs = (view: PgMaterializedView): string[] => [
  ...new Set((propertiesOf(view)?.reads ?? []).map(relationNameOf)),
];

/**
 * Returns the Error for a relation that does not exist. Its reason depends on whether another of
 * our relations exists (`other`).
 */
export const missing = (relation: string, other: string | undefined): Error =>
  new Error(
    other === undefined
      ? `The database has not been migrated: it has no ${relation}. Migrate it first.`
      : `${relation} is missing, although the database has ${other}. It was dropped or renamed. Rename it back, or create it again with its statements in schema/migrations.`,
  );

/**
 * A query for the sessions and prepared transactions that hold a lock, or wait for one that comes
 * before ours. It has one row for each, with `holder` in words. The condition selects from
 * pg_locks.
 * https://www.postgresql.org/docs/16/view-pg-locks.html
 */
export const selectLockHolders = (condition: SQL): SQL => sql`
  select distinct on (pg_locks.pid, gid)
    case
      when gid is null then
        format('pid %s (%s)', pg_locks.pid, concat_ws(', ', usename, nullif(application_name, '')))
      else format('the prepared transaction %L of %s', gid, owner)
    end
    || case when pg_locks.granted then ' holds ' else ' waits for ' end
    || format('%s on %s', pg_locks.mode, relname) as holder
  from pg_locks
  inner join pg_class on pg_locks.relation = pg_class.oid
  left join pg_stat_activity on pg_locks.pid = pg_stat_activity.pid
  left join pg_locks as prepared
    on pg_locks.pid is null
    and prepared.pid is null
    and prepared.virtualtransaction = pg_locks.virtualtransaction
    and prepared.locktype = 'transactionid'
  left join pg_prepared_xacts on prepared.transactionid = pg_prepared_xacts.transaction
  where pg_locks.locktype = 'relation'
    and pg_locks.database = (select oid from pg_database where datname = current_database())
    and pg_locks.pid is distinct from pg_backend_pid()
    and ${condition}
  order by pg_locks.pid, gid, pg_locks.granted desc, array_position(
    array[
      'AccessExclusiveLock', 'ExclusiveLock', 'ShareRowExclusiveLock', 'ShareLock',
      'ShareUpdateExclusiveLock', 'RowExclusiveLock', 'RowShareLock'
    ],
    pg_locks.mode)`;

/** Returns, in words, the sessions and prepared transactions of that query. */
export async function readLockHolders(
  db: PgDatabase<PgQueryResultHKT>,
  condition: SQL,
): Promise<string[]> {
  const holders = await db
    .select({ holder: sql<string>`holder` })
    .from(sql`(${selectLockHolders(condition)}) as holders`);
  return holders.map(({ holder }) => holder);
}

/**
 * Returns which sessions and prepared transactions keep others from refreshing a view, with their
 * locks: on the view itself, on what it reads, or on the tables in `turns`, which only one session
 * at a time may lock. A refresh takes EXCLUSIVE on the view, ACCESS SHARE on what it reads, and
 * SHARE UPDATE EXCLUSIVE on the tables in `turns`.
 * https://www.postgresql.org/docs/16/explicit-locking.html#LOCKING-TABLES
 */
export async function findRefreshBlockers(
  db: PgDatabase<PgQueryResultHKT>,
  view: string,
  turns: string[],
): Promise<string[]> {
  const condition = sql`
    case
      when pg_locks.relation = ${relationOf(view)} then pg_locks.mode <> 'AccessShareLock'
      when pg_locks.relation in (${sql.join(turns.map(relationOf), sql`, `)})
        then pg_locks.mode !~ '^(Access|Row)Share|^RowExclusive'
      else pg_locks.mode = 'AccessExclusiveLock'
        and pg_locks.relation in (select oid from (${readBy(relationOf(view))}) as read)
    end`;
  return await readLockHolders(db, condition);
}
