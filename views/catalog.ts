import { getTableName, getViewName, is, type SQL, sql } from 'drizzle-orm';
import {
  getMaterializedViewConfig,
  type PgDatabase,
  type PgMaterializedView,
  type PgQueryResultHKT,
  PgTable,
} from 'drizzle-orm/pg-core';
import { propertiesOf } from '../schema/properties.ts';

/** What a refresh needs to know of a view, from the database itself. */
export interface CatalogedView {
  view: PgMaterializedView;
  name: string;
  oid: number;
  /** False for a view that was created or refreshed WITH NO DATA. */
  populated: boolean;
  /** The role as which Postgres computes it. */
  owner: string;
  /** What its definition refers to, but for what is Postgres' own. */
  inputs: Input[];
}

/** A table, view or function that a view reads. */
export interface Input {
  oid: number;
  /** Null for a function. */
  schema: string | null;
  name: string | null;
  /**
   * Whether this role can tell if its rows have changed: it is an ordinary table
   * or materialized view without children, whose rows it may read, all of them.
   */
  isVisible: boolean;
}

/** A relation of ours by its name, whatever the search_path; NULL if it is not there. */
export const relationOf = (name: string): SQL => sql`to_regclass(${`public.${name}`})`;

/** What a relation's rule refers to: relations, and functions that are not Postgres' own. */
const readBy = (relation: SQL): SQL => sql`
  select distinct pg_depend.refobjid as oid
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
    'schema', relnamespace::regnamespace::text,
    'name', relname,
    'isVisible', coalesce(
      relkind in ('r', 'm')
        and relam = (select oid from pg_am where amname = 'heap')
        and not relhassubclass
        and has_table_privilege(read.oid, 'select')
        and not row_security_active(read.oid),
      false)
  ) order by read.oid), '[]')
  from (${readBy(relation)}) as read
  left join pg_class on read.oid = pg_class.oid`;

/** A unique index, and what keeps REFRESH … CONCURRENTLY from using it. */
interface UniqueIndex {
  name: string;
  flaw: string | null;
}

/**
 * Looks up a view to refresh, and checks beforehand what would make the refresh
 * fail. https://www.postgresql.org/docs/16/sql-refreshmaterializedview.html
 *
 * Throws an Error that says what is wrong and what to do: the view is not there,
 * the current role may not refresh it, or it has no unique index that REFRESH …
 * CONCURRENTLY can use.
 */
export async function catalogView(
  db: PgDatabase<PgQueryResultHKT>,
  view: PgMaterializedView,
): Promise<CatalogedView> {
  const { name } = getMaterializedViewConfig(view);
  const [found] = await db
    .select({
      oid: sql`oid`.mapWith(Number),
      isMaterialized: sql<boolean>`relkind = 'm'`,
      populated: sql<boolean>`relispopulated`,
      role: sql<string>`current_user`,
      owner: sql<string>`pg_get_userbyid(relowner)`,
      // As a case, because Postgres 16 knows no privilege of that name.
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
      inputs: sql<Input[]>`(${inputsOf(sql`pg_class.oid`)})`,
      declared: sql<{ name: string; oid: number | null }[]>`(
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
  const { oid, populated, role, owner, uniqueIndexes, inputs, declared } = found;
  if (!found.isMaterialized) {
    throw new Error(`${name} is not a materialized view in this database.`);
  }
  if (!found.mayRefresh) {
    throw new Error(
      `The role ${role} may not refresh ${name}: its owner is ${owner}. Connect as ${owner} or a member of that role, or (from PostgreSQL 17 on) grant MAINTAIN on it.`,
    );
  }
  if (!uniqueIndexes?.some(({ flaw }) => flaw === null)) {
    const flaws = uniqueIndexes?.map((index) => `${index.name} ${index.flaw}`).join(', ');
    throw new Error(
      `${name} has no unique index that REFRESH … CONCURRENTLY can use${flaws ? `: ${flaws}` : ''}. Create the one of its migration again.`,
    );
  }
  const unread = declared.find((input) => !inputs.some(({ oid }) => oid === input.oid));
  if (unread) {
    const others = inputs
      .filter(({ oid }) => !declared.some((input) => input.oid === oid))
      .map((input) => input.name ?? `the function ${input.oid}`);
    const instead = others.length > 0 ? `, but ${others.join(' and ')}` : '';
    throw new Error(
      `${name} does not read ${unread.name}${instead}. A view goes on reading the table with which it was created, also after that was renamed. Give the table that it reads the name ${unread.name} again and load the rows into it, or create the view anew with the statements of its migration.`,
    );
  }
  return { view, name, oid, populated, owner, inputs };
}

/** The names of what a view is declared to read. */
export const declaredInputs = (view: PgMaterializedView): string[] =>
  (propertiesOf(view)?.reads ?? []).map((input) =>
    is(input, PgTable) ? getTableName(input) : getViewName(input),
  );

/** Says that a relation is not there, and why: another one of ours is there, or none is. */
export const missing = (relation: string, other: string | undefined): Error =>
  new Error(
    other === undefined
      ? `The database has no ${relation}: it has not been migrated. Run "npx drizzle-kit migrate" first.`
      : `The database has no ${relation}, although it has ${other}: it has been dropped or renamed. Give it its name again, or create it with the statements of its migration.`,
  );

/**
 * A query for who has locked something, or waits for a lock that comes before
 * ours: one row per session or prepared transaction, `holder` in words. The
 * condition picks from pg_locks.
 * https://www.postgresql.org/docs/16/view-pg-locks.html
 */
export const lockHolders = (condition: SQL): SQL => sql`
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

/**
 * Who keeps others from refreshing a view, by what they have locked: the view
 * itself, what it reads, or the history. A refresh takes EXCLUSIVE on the view,
 * ACCESS SHARE on what it reads, SHARE UPDATE EXCLUSIVE on the history.
 * https://www.postgresql.org/docs/16/explicit-locking.html#LOCKING-TABLES
 */
export async function lockHoldersInTheWay(
  db: PgDatabase<PgQueryResultHKT>,
  view: string,
  history: string,
): Promise<string[]> {
  const locks = lockHolders(sql`
    case pg_locks.relation
      when ${relationOf(view)} then pg_locks.mode <> 'AccessShareLock'
      when ${relationOf(history)} then pg_locks.mode !~ '^(Access|Row)Share|^RowExclusive'
      else pg_locks.mode = 'AccessExclusiveLock'
        and pg_locks.relation in (${readBy(relationOf(view))})
    end`);
  const holders = await db.select({ holder: sql<string>`holder` }).from(sql`(${locks}) as holders`);
  return holders.map(({ holder }) => holder);
}
