import { type SQL, sql } from 'drizzle-orm';
import {
  getMaterializedViewConfig,
  type PgDatabase,
  type PgMaterializedView,
  type PgQueryResultHKT,
} from 'drizzle-orm/pg-core';

/** What a refresh needs to know of a view, from the database itself. */
export interface CatalogedView {
  view: PgMaterializedView;
  name: string;
  oid: number;
  /** False for a view that was created or refreshed WITH NO DATA. */
  populated: boolean;
  /** The oids of the relations and functions that its definition refers to. */
  reads: number[];
}

/** What a relation's rule refers to: relations, and functions that are not Postgres' own. */
const readBy = (relation: SQL): SQL => sql`
  select distinct pg_depend.refobjid::bigint as oid
  from pg_rewrite
  inner join pg_depend
    on pg_depend.classid = 'pg_rewrite'::regclass
    and pg_depend.objid = pg_rewrite.oid
  where pg_rewrite.ev_class = ${relation}
    and pg_depend.refclassid in ('pg_class'::regclass, 'pg_proc'::regclass)
    and pg_depend.refobjid <> ${relation}`;

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
          'name', indexrelid::regclass::text,
          'flaw', case
            when not indisvalid then 'is not valid'
            when indpred is not null then 'leaves out rows (it has a WHERE)'
            when 0 = any (indkey::int2[]) then 'is on an expression'
          end
        ) order by indexrelid)
        from pg_index
        where indrelid = pg_class.oid and indisunique
      )`,
      reads: sql<
        number[] | null
      >`(select json_agg(oid) from (${readBy(sql`pg_class.oid`)}) as read)`,
    })
    .from(sql`pg_class`)
    .where(sql`oid = to_regclass(${name})`);
  if (!found) {
    throw notMigrated(name);
  }
  const { oid, populated, role, owner, uniqueIndexes, reads } = found;
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
  return { view, name, oid, populated, reads: reads ?? [] };
}

export const notMigrated = (relation: string): Error =>
  new Error(
    `The database has no ${relation}: it has not been migrated. Run "npx drizzle-kit migrate" first.`,
  );

/**
 * Which sessions keep others from refreshing a view, by what they have locked: the
 * view itself, what it reads, or the history. A refresh takes EXCLUSIVE on the
 * view, ACCESS SHARE on what it reads, ROW EXCLUSIVE on the history.
 * https://www.postgresql.org/docs/16/explicit-locking.html#LOCKING-TABLES
 */
export async function lockHolders(
  db: PgDatabase<PgQueryResultHKT>,
  view: string,
  history: string,
): Promise<string[]> {
  const strongestFirst = sql`array_position(
    array[
      'AccessExclusiveLock', 'ExclusiveLock', 'ShareRowExclusiveLock', 'ShareLock',
      'ShareUpdateExclusiveLock', 'RowExclusiveLock', 'RowShareLock'
    ],
    mode)`;
  const holders = await db
    .selectDistinctOn([sql`pg_locks.pid`], {
      pid: sql<number>`pg_locks.pid`,
      role: sql<string | null>`usename`,
      application: sql<string | null>`application_name`,
      mode: sql<string>`mode`,
      relation: sql<string>`relation::regclass::text`,
    })
    .from(sql`pg_locks left join pg_stat_activity using (pid)`)
    .where(
      sql`locktype = 'relation'
        and granted
        and database = (select oid from pg_database where datname = current_database())
        and pg_locks.pid <> pg_backend_pid()
        and case relation
          when to_regclass(${view}) then mode <> 'AccessShareLock'
          when to_regclass(${history}) then mode !~ '^(Access|Row)Share|^RowExclusive|^ShareUpdate'
          else mode = 'AccessExclusiveLock' and relation in (${readBy(sql`to_regclass(${view})`)})
        end`,
    )
    .orderBy(sql`pg_locks.pid`, strongestFirst);
  return holders.map(
    ({ pid, role, application, mode, relation }) =>
      `pid ${pid} (${[role, application].filter(Boolean).join(', ')}) holds ${mode} on ${relation}`,
  );
}
