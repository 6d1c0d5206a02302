import { getTableName, type SQL, sql } from 'drizzle-orm';
import type { PgTable } from 'drizzle-orm/pg-core';
import packageJson from 'lead-conversions/package.json' with { type: 'json' };
import { inputLoads } from '../../schema/index.ts';
import { percentLost } from '../../views/refresh.ts';
import type { InputFile } from './files.ts';
import { columnNames } from './header.ts';
import { differ, keyNames, type LoadTransaction, list, loadingOf } from './tables.ts';

// All statements here also run if the input tables are distributed by user_id, and dim_branch is a
// reference table. Citus refuses to join a temporary table with one of these, so a materialized CTE
// is always between the two.

/** What the loading of one file did. */
export interface FileLoad {
  /** Name of the file, such as `dim_user.csv`. */
  file: string;
  /** Records in the file, without the header. */
  rows: number;
  /** Records that repeat an earlier one of the file. */
  repeated: number;
  /** Rows that were new to the table. */
  inserted: number;
  /** Rows whose key was already there, with other values. */
  updated: number;
  /** Rows that were in the table and are not in the file. 0 unless the file is the whole table. */
  deleted: number;
}

/** The temporary table for the rows of a file that are new to its table, or different there. */
const changedOf = (table: PgTable): SQL =>
  sql`pg_temp.${sql.identifier(`changed_${getTableName(table)}`)}`;

/** Returns how many records a file has, and how many of them repeat an earlier one. */
export async function countRecords(
  transaction: LoadTransaction,
  { table }: InputFile,
): Promise<Pick<FileLoad, 'rows' | 'repeated'>> {
  const [counts] = await transaction.query(sql`
    select coalesce(sum(records), 0) as rows, coalesce(sum(records - 1), 0) as repeated
    from (
      select count(*) as records from ${loadingOf(table)} group by ${list(keyNames(table))}
    ) as keys`);
  return { rows: Number(counts?.rows), repeated: Number(counts?.repeated) };
}

/**
 * Finds the rows of a file that are new or changed, in the order of their keys, and returns how
 * many there are of each. Unchanged rows are neither written nor locked. (`on conflict do update …
 * where` would lock each of them, and so write to it.)
 */
export async function findChanges(
  transaction: LoadTransaction,
  { table }: InputFile,
): Promise<Pick<FileLoad, 'inserted' | 'updated'>> {
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
      count(*) filter (where not is_known) as inserted,
      count(*) filter (where is_known) as updated
    from ${changedOf(table)}`);
  return { inserted: Number(counts?.inserted), updated: Number(counts?.updated) };
}

/** The temporary table for the keys of the rows that a table has and its file does not. */
const lostOf = (table: PgTable): SQL =>
  sql`pg_temp.${sql.identifier(`lost_${getTableName(table)}`)}`;

/**
 * Finds the rows that each table would lose because its file does not have them, and returns how
 * many there are. Throws an Error with the numbers if a larger share than allowed would be lost,
 * because the file may be cut off.
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
      `Nothing was loaded, because --snapshot would delete too many rows: ${refused.join('; ')}. Check that the files are complete. If they are, allow the loss with --max-loss 100% (it is ${maxLoss}% now).`,
    );
  }
  return losses;
}

/** Stores the new and changed rows that `findChanges` has found. */
export async function storeChanges(transaction: LoadTransaction, table: PgTable): Promise<void> {
  const keys = keyNames(table);
  const assignments = columnNames(table)
    .filter((column) => !keys.includes(column))
    .map((column) => sql`${sql.identifier(column)} = excluded.${sql.identifier(column)}`);
  await transaction.query(sql`
    insert into ${table} (${list(columnNames(table))})
    select ${list(columnNames(table))}
    from ${changedOf(table)}
    order by ${list(keys)}
    on conflict (${list(keys)}) do update
    set ${sql.join(assignments, sql`, `)}`);
}

/** Deletes the rows that `findLosses` has found. */
export async function deleteLost(transaction: LoadTransaction, table: PgTable): Promise<void> {
  const keys = keyNames(table);
  // Not with a CTE, which Citus does not accept if dim_branch is a reference table.
  await transaction.query(
    sql`delete from ${table} where (${list(keys)}) in (select ${list(keys)} from ${lostOf(table)})`,
  );
}

/** Drops the tables of found rows, so they can be looked for again. */
export async function forgetFound(
  transaction: LoadTransaction,
  table: PgTable,
  isSnapshot: boolean,
): Promise<void> {
  const found = [changedOf(table), ...(isSnapshot ? [lostOf(table)] : [])];
  await transaction.query(sql`drop table ${sql.join(found, sql`, `)}`);
}

/** Records the load of a file in input_loads. */
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
