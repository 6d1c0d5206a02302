import { createReadStream } from 'node:fs';
import { open, readdir } from 'node:fs/promises';
import { join } from 'node:path';
import { parse } from 'csv-parse';
import { parse as parseSync } from 'csv-parse/sync';
import { getTableName, type SQL, sql } from 'drizzle-orm';
import { getTableConfig, type PgTable } from 'drizzle-orm/pg-core';
import { dimBranch } from './dim_branch.ts';
import { dimUser } from './dim_user.ts';
import { fctCreditPackPurchases } from './fct_credit_pack_purchases.ts';
import { fctMembershipPurchases } from './fct_membership_purchases.ts';

/** One transaction on the database to load into, with a search_path in which no name means what others have created. */
export interface LoadTransaction {
  /** Runs a statement and returns its rows. */
  query(statement: SQL): Promise<Record<string, unknown>[]>;
  /**
   * Runs COPY … FROM STDIN on the bytes of a file, telling now and then how many
   * it has read. Throws what Postgres reports, with `where` for the place.
   */
  copy(
    copy: { into: SQL; options: SQL },
    file: string,
    onRead: (bytes: number) => void,
  ): Promise<void>;
}

/** How far the loading of one file has come. */
export interface LoadProgress {
  /** Name of the file, such as `dim_user.csv`. */
  file: string;
  /** Bytes read so far, and in the whole file. Once they are equal, its rows are being stored. */
  readBytes: number;
  totalBytes: number;
}

/** What the loading of one file did. */
export interface FileLoad {
  /** Name of the file, such as `dim_user.csv`. */
  file: string;
  /** Rows in the file, the header not counted. */
  rows: number;
  /** Rows that were new to the table. */
  inserted: number;
  /** Rows whose key was there with other values. */
  updated: number;
}

/** The input tables, each after those that it refers to. */
const inputTables = [dimBranch, dimUser, fctCreditPackPurchases, fctMembershipPurchases];

interface InputFile {
  table: PgTable;
  name: string;
  path: string;
  bytes: number;
  /** The header's columns, in the file's order. */
  columns: string[];
}

/**
 * Loads the CSV files of a folder, each named after its input table
 * (`dim_user.csv`), in the given transaction. A file that is not there is not
 * loaded. A row whose key is in the table already replaces that row. Times
 * without an offset are UTC; an empty field is NULL. The caller vacuums the tables
 * that have changed once the transaction is committed.
 *
 * Throws an Error that names the file, and the line and column as far as
 * Postgres tells them, when the folder holds none of the files or a file cannot
 * be loaded. The caller rolls back then, and nothing has changed.
 */
export async function loadFolder(
  transaction: LoadTransaction,
  folder: string,
  onProgress: (progress: LoadProgress) => void = () => {},
): Promise<FileLoad[]> {
  const files = await findFiles(folder);
  // The files' times mean the same in every session: UTC, and year, month, day
  // in that order (so 03/04/2024 is refused, not guessed at).
  await transaction.query(sql`set local time zone 'UTC'`);
  await transaction.query(sql`set local datestyle to 'ISO, YMD'`);
  const loads: FileLoad[] = [];
  for (const file of files) {
    loads.push(await loadFile(transaction, file, onProgress));
  }
  return loads;
}

/** The input files of a folder, their headers read and checked. */
async function findFiles(folder: string): Promise<InputFile[]> {
  const names = await readdir(folder).catch((error: NodeJS.ErrnoException) => {
    throw new Error(`Cannot read the folder ${folder}: ${error.message}.`);
  });
  const files: InputFile[] = [];
  for (const table of inputTables) {
    const name = fileName(table);
    if (names.includes(name)) {
      files.push(await openFile(table, join(folder, name)));
    }
  }
  if (files.length === 0) {
    throw new Error(
      `There is nothing to load in ${folder}: it has none of ${inputTables.map(fileName).join(', ')}.`,
    );
  }
  return files;
}

const fileName = (table: PgTable) => `${getTableName(table)}.csv`;

/** The columns of a table that are written. Those that Postgres derives are in no file. */
const columnNames = (table: PgTable) =>
  getTableConfig(table)
    .columns.filter(({ generated }) => generated === undefined)
    .map(({ name }) => name);

/** Longer than any header; what has no header's end by then is no CSV. */
const headerBytes = 65_536;

async function openFile(table: PgTable, path: string): Promise<InputFile> {
  const name = fileName(table);
  const file = await open(path);
  try {
    const { size } = await file.stat();
    const { buffer, bytesRead } = await file.read(Buffer.alloc(headerBytes), 0, headerBytes);
    return {
      table,
      name,
      path,
      bytes: size,
      columns: readHeader(table, buffer.subarray(0, bytesRead)),
    };
  } catch (error) {
    throw new Error(`${name}, line 1: ${(error as Error).message}`, { cause: error });
  } finally {
    await file.close();
  }
}

function readHeader(table: PgTable, start: Buffer): string[] {
  const [columns = []] = parseSync(start, { bom: true, to: 1 });
  const expected = columnNames(table);
  const unknown = columns.find((column) => !expected.includes(column));
  const missing = expected.find((column) => !columns.includes(column));
  const repeated = columns.find((column, index) => columns.indexOf(column) < index);
  const derived = getTableConfig(table).columns.find(({ name }) => name === unknown);
  const problem =
    (derived && `column ${derived.name} is derived from the details, and is to be left out`) ||
    (unknown !== undefined && `unknown column ${JSON.stringify(unknown.slice(0, 40))}`) ||
    (missing !== undefined && `column ${missing} is missing`) ||
    (repeated !== undefined && `column ${repeated} stands twice`);
  if (problem) {
    throw new Error(
      `${problem}. The header of a comma-separated ${fileName(table)} names ${expected.join(', ')}, in any order.`,
    );
  }
  return columns;
}

/** The file's rows, checked one by one before any of them reaches its table. */
const loading = sql`pg_temp.loading`;

async function loadFile(
  transaction: LoadTransaction,
  file: InputFile,
  onProgress: (progress: LoadProgress) => void,
): Promise<FileLoad> {
  const { table, name, path, bytes } = file;
  const rules = await checkRules(transaction, table);
  try {
    // With the table's CHECKs and NOT NULLs, so that COPY tells the line of a
    // row that breaks one, and with the rows counted for what is found later.
    await transaction.query(sql`
      create temporary table loading (
        like ${table} including constraints,
        file_row bigint generated always as identity
      ) on commit drop`);
    await transaction.copy(
      {
        into: sql`${loading} (${list(file.columns)})`,
        options: sql.raw(`format csv, header, encoding 'UTF8'`),
      },
      path,
      (readBytes) => onProgress({ file: name, readBytes, totalBytes: bytes }),
    );
    await refuseContradictions(transaction, file);
    await refuseUnknownReferences(transaction, file);
    const load = await upsert(transaction, table);
    await transaction.query(sql`drop table ${loading}`);
    return { file: name, ...load };
  } catch (error) {
    throw describe(error, file, rules);
  }
}

/** What a CHECK demands, and of which column. */
interface Rule {
  column: string;
  text: string;
}

/** The CHECKs of a table by name, explained by the comments on them. */
async function checkRules(
  transaction: LoadTransaction,
  table: PgTable,
): Promise<Map<string, Rule>> {
  const name = getTableName(table);
  const [relation] = await transaction.query(
    sql`select to_regclass(${`public.${name}`}) is null as missing`,
  );
  if (relation?.missing) {
    throw new Error(`The database has no ${name}: it has not been migrated. Migrate it first.`);
  }
  const checks = await transaction.query(sql`
    select
      pg_constraint.conname as name,
      pg_attribute.attname as column,
      obj_description(pg_constraint.oid, 'pg_constraint') as text
    from pg_constraint
    inner join pg_attribute
      on pg_constraint.conrelid = pg_attribute.attrelid
      and pg_attribute.attnum = pg_constraint.conkey[1]
    where pg_constraint.conrelid = to_regclass(${`public.${name}`})
      and pg_constraint.contype = 'c'`);
  return new Map(checks.map(({ name, ...rule }) => [name as string, rule as unknown as Rule]));
}

/** Throws if one key stands in the file with different values. */
async function refuseContradictions(transaction: LoadTransaction, file: InputFile): Promise<void> {
  const keys = keyNames(file.table);
  const others = columnNames(file.table).filter((name) => !keys.includes(name));
  const [contradiction] = await transaction.query(sql`
    with repeated_keys as (
      select ${list(keys)}, min(file_row) as first_row
      from ${loading}
      group by ${list(keys)}
      having count(*) > 1
    )
    select first.file_row as first_row, later.file_row as later_row, ${list(keys, 'later')}
    from repeated_keys
    inner join ${loading} as first
      on repeated_keys.first_row = first.file_row
    inner join ${loading} as later
      on (${list(keys, 'repeated_keys')}) = (${list(keys, 'later')})
    where ${differ(file.table, others, 'first', 'later')}
    order by later.file_row
    limit 1`);
  if (contradiction) {
    const firstLine = await lineOfRow(file.path, Number(contradiction.first_row));
    const line = await lineOfRow(file.path, Number(contradiction.later_row));
    throw new Error(
      `${file.name}, line ${line}: ${nameValues(keys, contradiction)} stands in line ${firstLine} too, with other values.`,
    );
  }
}

/** Throws if a row names a branch or a user that is not there. */
async function refuseUnknownReferences(
  transaction: LoadTransaction,
  file: InputFile,
): Promise<void> {
  for (const foreignKey of getTableConfig(file.table).foreignKeys) {
    const { columns, foreignTable, foreignColumns } = foreignKey.reference();
    const names = columns.map(({ name }) => name);
    const foreignNames = foreignColumns.map(({ name }) => name);
    const [orphan] = await transaction.query(sql`
      select file_row, ${list(names)}
      from ${loading}
      where num_nulls(${list(names)}) = 0
        and not exists (
          select from ${foreignTable} as known
          where (${list(foreignNames, 'known')}) = (${list(names, 'loading')})
        )
      order by file_row
      limit 1`);
    if (orphan) {
      const line = await lineOfRow(file.path, Number(orphan.file_row));
      throw new Error(
        `${file.name}, line ${line}, column ${names}: ${getTableName(foreignTable)} has no ${nameValues(names, orphan)}.`,
      );
    }
  }
}

/** Moves the checked rows into their table; rows that are there as they are stay untouched. */
async function upsert(
  transaction: LoadTransaction,
  table: PgTable,
): Promise<Omit<FileLoad, 'file'>> {
  const keys = keyNames(table);
  const others = columnNames(table).filter((name) => !keys.includes(name));
  const [counts] = await transaction.query(sql`
    with upserted as (
      insert into ${table} as stored (${list(columnNames(table))})
      select distinct on (${list(keys)}) ${list(columnNames(table))}
      from ${loading}
      order by ${list(keys)}
      on conflict (${list(keys)}) do update
      set (${list(others)}) = (${list(others, 'excluded')})
      where ${differ(table, others, 'stored', 'excluded')}
      -- A row version that this statement inserted anew has never been locked.
      returning xmax = 0 as inserted
    )
    select
      (select count(*) from ${loading}) as rows,
      count(*) filter (where inserted) as inserted,
      count(*) filter (where not inserted) as updated
    from upserted`);
  return {
    rows: Number(counts?.rows),
    inserted: Number(counts?.inserted),
    updated: Number(counts?.updated),
  };
}

const list = (names: string[], of?: string): SQL =>
  sql.join(
    names.map((name) =>
      of ? sql`${sql.identifier(of)}.${sql.identifier(name)}` : sql.identifier(name),
    ),
    sql`, `,
  );

/**
 * Whether columns of two rows differ. JSON differs if its text does: the numbers
 * 1.5 and 1.50 are equal, but are two names of a product.
 */
function differ(table: PgTable, names: string[], one: string, other: string): SQL {
  const { columns } = getTableConfig(table);
  const isJson = (name: string) =>
    columns.some((column) => column.name === name && column.getSQLType() === 'jsonb');
  const values = (of: string) =>
    sql.join(
      names.map((name) => (isJson(name) ? sql`${list([name], of)}::text` : list([name], of))),
      sql`, `,
    );
  return sql`(${values(one)}) is distinct from (${values(other)})`;
}

const nameValues = (names: string[], row: Record<string, unknown>) =>
  names.map((name) => `${name} ${JSON.stringify(row[name])}`).join(', ');

const keyNames = (table: PgTable): string[] => {
  const { columns, primaryKeys } = getTableConfig(table);
  return (primaryKeys[0]?.columns ?? columns.filter(({ primary }) => primary)).map(
    ({ name }) => name,
  );
};

/** The line of a file on which its nth row ends: a quoted field may span lines. */
async function lineOfRow(path: string, row: number): Promise<number | undefined> {
  const source = createReadStream(path);
  const rows = source.pipe(
    parse({ from: row + 1, info: true, relax_column_count: true, relax_quotes: true }),
  );
  try {
    for await (const { info } of rows) {
      return info.lines;
    }
  } finally {
    source.destroy();
  }
}

/** A driver's error: postgres.js has column_name and constraint_name, PGlite column and constraint. */
interface DatabaseError extends Error {
  code?: string;
  detail?: string;
  where?: string;
  column_name?: string;
  column?: string;
  constraint_name?: string;
  constraint?: string;
}

/** What Postgres says of bad data, with the place in the file; any other error as it is. */
function describe(error: unknown, file: InputFile, rules: Map<string, Rule>): unknown {
  const reported = error as DatabaseError;
  // Data exceptions, broken constraints, exceeded limits:
  // https://www.postgresql.org/docs/16/errcodes-appendix.html
  if (!/^(22|23|54)\w{3}$/.test(reported.code ?? '')) {
    return error;
  }
  const rule = rules.get(reported.constraint_name ?? reported.constraint ?? '');
  // COPY loading, line 3, column created_at: "yesterday or so"
  const [, line, columnOfValue] =
    /loading, \S+ (\d+)(?:, \S+ (\w+))?/.exec(reported.where ?? '') ?? [];
  const column = columnOfValue ?? rule?.column ?? reported.column_name ?? reported.column;
  const place = [file.name, line && `line ${line}`, column && `column ${column}`];
  const reason =
    rule?.text ??
    (reported.code === '23502'
      ? 'must not be empty'
      : [reported.message, reported.detail].filter(Boolean).join(': '));
  return new Error(`${place.filter(Boolean).join(', ')}: ${reason}`, { cause: error });
}
