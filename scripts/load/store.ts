import { getTableName, type SQL, sql } from 'drizzle-orm';
import type { PgTable } from 'drizzle-orm/pg-core';
import packageJson from 'lead-conversions/package.json' with { type: 'json' };
import { inputLoads } from '../../schema/index.ts';
import { percentLost } from '../../views/refresh.ts';
import type { InputFile } from './files.ts';
import { columnNames } from './header.ts';
import { differ, keyNames, type LoadTransaction, list, loadingOf } from './tables.ts';

// Every statement here also runs where the input tables are distributed by user_id, and
// dim_branch is a reference table. So no temporary table is joined with one of them, which
// Citus refuses: a materialized CTE stands between the two.

/** What the loading of one file did. */
export interface FileLoad {
  /** Name of the file, such as `dim_user.csv`. */
  file: string;
  /** Records in the file, the header not counted. */
  rows: number;
  /** Rows that were new to the table. */
  inserted: number;
  /** Rows whose key was there with other values. */
  updated: number;
  /** Rows that were there and are not in the file. 0 unless that is the whole table. */
  deleted: number;
}

/** The rows of a file that its table does not have as they are. */
const changedOf = (table: PgTable): SQL =>
  sql`pg_temp.${sql.identifier(`changed_${getTableName(table)}`)}`;

/**
 * Finds the rows of a file that are new or changed, in the order of their keys, and what
 * storing them will do. Rows that are in their table as they are stay untouched, and
 * unlocked: `on conflict do update … where` would lock, and so write, each of them.
 */
export async function findChanges(
  transaction: LoadTransaction,
  { table, name }: InputFile,
): Promise<Omit<FileLoad, 'deleted'>> {
  const keys = keyNames(table);
  const others = columnNames(table).filter((column) => !keys.includes(column));
  await transaction.query(sql`
    create temporary table ${sql.identifier(`changed_${getTableName(table)}`)} on commit drop as
    with
    named as materialized (select * from ${loadingOf(table)}),
    found as materialized (
      select named.file_line, ${differ(table, others, 'known', 'named')} as is_changed
      from ${table} as known
      inner join named on (${list(keys, 'known')}) = (${list(keys, 'named')})
    )
    select distinct on (${list(keys, 'loading')})
      ${list(columnNames(table), 'loading')},
      found.file_line is not null as is_known
    from ${loadingOf(table)} as loading
    left join found on loading.file_line = found.file_line
    where found.is_changed is distinct from false
    order by ${list(keys, 'loading')}`);
  const [counts] = await transaction.query(sql`
    select
      (select count(*) from ${loadingOf(table)}) as rows,
      count(*) filter (where not is_known) as inserted,
      count(*) filter (where is_known) as updated
    from ${changedOf(table)}`);
  return {
    file: name,
    rows: Number(counts?.rows),
    inserted: Number(counts?.inserted),
    updated: Number(counts?.updated),
  };
}

/** The keys of the rows that a table has and its file does not. */
const lostOf = (table: PgTable): SQL =>
  sql`pg_temp.${sql.identifier(`lost_${getTableName(table)}`)}`;

/**
 * Finds the rows that each table would lose, since its file does not have them, and returns
 * how many. Throws an Error with the numbers if that is a larger share than is allowed: a
 * file may be cut off.
 */
export async function findLosses(
  transaction: LoadTransaction,
  files: InputFile[],
  maxLoss: number,
): Promise<Map<PgTable, number>> {
  const losses = new Map<PgTable, number>();
  const refused: string[] = [];
  for (const { table, name } of files) {
    const keys = keyNames(table);
    await transaction.query(sql`
      create temporary table ${sql.identifier(`lost_${getTableName(table)}`)} on commit drop as
      with kept as materialized (select distinct ${list(keys)} from ${loadingOf(table)})
      select ${list(keys)}
      from ${table} as stored
      where not exists (
        select from kept where (${list(keys, 'kept')}) = (${list(keys, 'stored')})
      )`);
    const count = async (of: SQL | PgTable) =>
      Number((await transaction.query(sql`select count(*) from ${of}`))[0]?.count);
    const lost = await count(lostOf(table));
    losses.set(table, lost);
    const rows = await count(table);
    const percent = percentLost(rows, lost, maxLoss);
    if (percent !== undefined) {
      refused.push(
        `${name} lacks ${lost} of the ${rows} rows of ${getTableName(table)} (${percent} %)`,
      );
    }
  }
  if (refused.length > 0) {
    throw new Error(
      `Nothing was loaded, because --snapshot would delete too many rows: ${refused.join('; ')}. Check that the files are complete. If they are, allow the loss with --max-loss 100%, which is ${maxLoss}% now.`,
    );
  }
  return losses;
}

/** Stores the rows that were found to be new or changed. */
export async function storeChanges(
  transaction: LoadTransaction,
  table: PgTable,
  { inserted, updated }: FileLoad,
): Promise<void> {
  if (inserted + updated === 0) {
    return;
  }
  const keys = keyNames(table);
  const assignments = columnNames(table)
    .filter((column) => !keys.includes(column))
    .map((column) => sql`${sql.identifier(column)} = excluded.${sql.identifier(column)}`);
  const stored = await transaction.write(sql`
    insert into ${table} (${list(columnNames(table))})
    select ${list(columnNames(table))}
    from ${changedOf(table)}
    order by ${list(keys)}
    on conflict (${list(keys)}) do update
    set ${sql.join(assignments, sql`, `)}`);
  refusePartial(table, stored, inserted + updated, 'stored');
}

/** Deletes the rows that were found to be lost. */
export async function deleteLost(
  transaction: LoadTransaction,
  table: PgTable,
  { deleted }: FileLoad,
): Promise<void> {
  if (deleted === 0) {
    return;
  }
  const keys = keyNames(table);
  // No CTE, which Citus does not take where dim_branch is a reference table.
  const done = await transaction.write(
    sql`delete from ${table} where (${list(keys)}) in (select ${list(keys)} from ${lostOf(table)})`,
  );
  refusePartial(table, done, deleted, 'deleted');
}

/** Throws an Error if a trigger or a rule has left out rows, or added some. */
function refusePartial(table: PgTable, done: number, wanted: number, what: string): void {
  if (done !== wanted) {
    throw new Error(
      `Nothing was loaded, because ${done} instead of ${wanted} rows were ${what} in ${getTableName(table)}. Either a trigger or a rule on that table changes what is written to it, which a load cannot go along with, or others have written to it at the same moment: then load again.`,
    );
  }
}

/** Records what was loaded. */
export async function record(
  transaction: LoadTransaction,
  table: PgTable,
  { rows, inserted, updated, deleted }: FileLoad,
  isSnapshot: boolean,
): Promise<void> {
  await transaction.query(sql`
    insert into ${inputLoads} (
      input_table, started_at, finished_at, is_snapshot,
      rows, inserted, updated, deleted, package_version
    )
    values (
      ${getTableName(table)}, now(), clock_timestamp(), ${isSnapshot},
      ${rows}, ${inserted}, ${updated}, ${deleted}, ${packageJson.version}
    )`);
}
