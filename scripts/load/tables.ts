import { getTableName, type SQL, sql } from 'drizzle-orm';
import { getTableConfig, type PgTable } from 'drizzle-orm/pg-core';
import { columnNames } from './header.ts';
import { type Problem, type Problems, shownProblems } from './problems.ts';

/**
 * One transaction on the database to load into, in which names mean what Postgres has
 * (see `pinSearchPath`).
 */
export interface LoadTransaction {
  /** Runs a statement and returns its rows. */
  query(statement: SQL): Promise<Record<string, unknown>[]>;
  /**
   * Runs COPY … FROM STDIN on lines in the text format. Throws what Postgres reports,
   * with `where` for the place.
   * https://www.postgresql.org/docs/16/sql-copy.html
   */
  copy(into: SQL, lines: AsyncIterable<string>): Promise<void>;
}

/** A record of a file, as it is stored. */
export interface Row {
  /** The line on which it ends. */
  line: number;
  values: (string | null)[];
}

/** The rows of a file until all files are known to be right, each with its line. */
const loadingOf = (table: PgTable): SQL =>
  sql`pg_temp.${sql.identifier(`loading_${getTableName(table)}`)}`;

/** Throws an Error that says what to do if a table is not there. */
export async function refuseUnmigrated(
  transaction: LoadTransaction,
  table: PgTable,
): Promise<void> {
  const name = getTableName(table);
  const [relation] = await transaction.query(
    sql`select to_regclass(${`public.${name}`}) is null as missing`,
  );
  if (relation?.missing) {
    throw new Error(`The database has no ${name}: it has not been migrated. Migrate it first.`);
  }
}

/** Creates the table for the rows of a file. Its rules are checked later, for all rows at once. */
export async function createLoading(transaction: LoadTransaction, table: PgTable): Promise<void> {
  const names = columnNames(table);
  const columns = getTableConfig(table)
    .columns.filter(({ name }) => names.includes(name))
    .map((column) => sql`${sql.identifier(column.name)} ${sql.raw(column.getSQLType())}`);
  await transaction.query(sql`
    create temporary table ${sql.identifier(`loading_${getTableName(table)}`)} (
      file_line bigint, ${sql.join(columns, sql`, `)}
    ) on commit drop`);
}

/** How many characters are sent at once. */
const chunkLength = 2 ** 16;

/**
 * Stores rows for the time being, with values for these columns. Returns what Postgres
 * alone finds to be wrong with a value, such as too large a number in JSON; then no row is
 * stored, and the transaction has failed.
 */
export async function copyRows(
  transaction: LoadTransaction,
  table: PgTable,
  columns: string[],
  rows: AsyncIterable<Iterable<Row>>,
): Promise<Omit<Problem, 'file'> | undefined> {
  /** By how much lines of the file are ahead of rows, from which row on. */
  const offsets: [row: number, offset: number][] = [];
  let row = 0;
  const lines = async function* () {
    let chunk = '';
    let offset: number | undefined;
    for await (const piece of rows) {
      for (const { line, values } of piece) {
        row += 1;
        if (line - row !== offset) {
          offset = line - row;
          offsets.push([row, offset]);
        }
        chunk += line;
        for (const value of values) {
          chunk += `\t${asCopyText(value)}`;
        }
        chunk += '\n';
        if (chunk.length > chunkLength) {
          yield chunk;
          chunk = '';
        }
      }
    }
    yield chunk;
  };
  try {
    await transaction.copy(sql`${loadingOf(table)} (file_line, ${list(columns)})`, lines());
    return undefined;
  } catch (error) {
    const { code = '', message, where = '' } = error as Error & { code?: string; where?: string };
    if (!/^(22|54)\w{3}$/.test(code)) {
      throw error;
    }
    // COPY loading_dim_user, line 3, column created_at: "2024-06-01 12:00:00+00:00"
    const [, number, column] = /loading_\w+, \S+ (\d+)(?:, \S+ (\w+))?/.exec(where) ?? [];
    const [, offset = 0] = offsets.findLast(([from]) => from <= Number(number)) ?? [];
    return {
      line: number === undefined ? undefined : Number(number) + offset,
      column,
      text: `Postgres refuses this value: ${message}`,
    };
  }
}

const copyEscapes: Record<string, string> = {
  '\\': '\\\\',
  '\t': '\\t',
  '\n': '\\n',
  '\r': '\\r',
};

/** A value in the text format of COPY, in which a backslash never ends the data. */
const asCopyText = (value: string | null): string =>
  value === null
    ? '\\N'
    : /[\\\t\n\r]/.test(value)
      ? value.replace(/[\\\t\n\r]/g, (character) => copyEscapes[character] ?? '')
      : value;

/** The tables that a load is for, by whether all records of their files could be read. */
export interface Loading {
  complete: PgTable[];
  incomplete: PgTable[];
}

/** Adds what is wrong with the rows of a table, by its rules and in the company of all other rows. */
export async function addProblemsOfRows(
  transaction: LoadTransaction,
  table: PgTable,
  problems: Problems,
  loading: Loading,
): Promise<void> {
  for (const query of [
    ...(await brokenRules(transaction, table)),
    contradictions(table),
    ...unknownReferences(table, loading),
  ]) {
    const rows = await transaction.query(sql`
      select *, count(*) over () as total
      from (${query}) as problems
      order by file_line
      limit ${sql.raw(String(shownProblems))}`);
    for (const { file_line: line, column, text } of rows) {
      problems.add({ line: Number(line), column: column as string, text: text as string });
    }
    problems.addUnseen(Math.max(0, Number(rows[0]?.total ?? 0) - rows.length));
  }
}

/** For each CHECK of a table, the rows that it refuses, and what its comment says of it. */
async function brokenRules(transaction: LoadTransaction, table: PgTable): Promise<SQL[]> {
  const checks = await transaction.query(sql`
    select
      pg_attribute.attname as column,
      pg_get_expr(pg_constraint.conbin, pg_constraint.conrelid) as condition,
      coalesce(
        obj_description(pg_constraint.oid, 'pg_constraint'),
        'is refused by ' || pg_constraint.conname
      ) as rule
    from pg_constraint
    inner join pg_attribute
      on pg_constraint.conrelid = pg_attribute.attrelid
      and pg_attribute.attnum = pg_constraint.conkey[1]
    where pg_constraint.conrelid = to_regclass(${`public.${getTableName(table)}`})
      and pg_constraint.contype = 'c'
      -- The rows have no derived columns yet. Rules about those hold when they are stored.
      and not exists (
        select from pg_attribute as derived
        where derived.attrelid = pg_constraint.conrelid
          and derived.attnum = any (pg_constraint.conkey)
          and derived.attgenerated <> ''
      )
    order by pg_constraint.conname`);
  return checks.map(({ column, condition, rule }) => {
    const value = sql.identifier(String(column));
    const isRefused = sql`not (${sql.raw(String(condition))})`;
    return sql`
      select file_line, ${column}::text as column, ${quoted(value)} || ' ' || ${rule} as text
      from ${loadingOf(table)}
      where ${column === 'timezone_id' ? unlessUnknownZone(value, isRefused) : isRefused}`;
  });
}

/** That a time zone is unknown or refused. Postgres itself raises an error for one that it does not know. */
const unlessUnknownZone = (zone: ReturnType<typeof sql.identifier>, isRefused: SQL) => sql`
  case
    when lower(${zone}) in (select lower(name) from pg_timezone_names) then ${isRefused}
    else ${zone} is not null
  end`;

/** The rows whose key stands in an earlier line with other values. */
function contradictions(table: PgTable): SQL {
  const keys = keyNames(table);
  const others = columnNames(table).filter((name) => !keys.includes(name));
  const loading = loadingOf(table);
  return sql`
    select
      later.file_line,
      null::text as column,
      concat_ws(', ', ${sql.join(
        keys.map((key) => sql`${`${key} `}::text || ${quoted(sql`later.${sql.identifier(key)}`)}`),
        sql`, `,
      )}) || ' is also in line ' || first.file_line || ', with other values' as text
    from (
      select ${list(keys)}, min(file_line) as first_line
      from ${loading}
      group by ${list(keys)}
      having count(*) > 1
    ) as repeated_keys
    inner join ${loading} as first
      on repeated_keys.first_line = first.file_line
      and (${list(keys, 'repeated_keys')}) = (${list(keys, 'first')})
    inner join ${loading} as later
      on (${list(keys, 'repeated_keys')}) = (${list(keys, 'later')})
    where ${differ(table, others, 'first', 'later')}`;
}

/**
 * For each foreign key, the rows that name a branch or a user that neither the table has
 * nor its file. Where records of that file could not be read, nobody knows.
 */
function unknownReferences(table: PgTable, { complete, incomplete }: Loading): SQL[] {
  return getTableConfig(table)
    .foreignKeys.map((foreignKey) => foreignKey.reference())
    .filter(({ foreignTable }) => !incomplete.includes(foreignTable))
    .map(({ columns, foreignTable, foreignColumns }) => {
      const [name = '', foreignName = ''] = [columns[0]?.name, foreignColumns[0]?.name];
      const [value, foreignValue] = [sql.identifier(name), sql.identifier(foreignName)];
      const inFile = complete.includes(foreignTable)
        ? sql`and not exists (
            select from ${loadingOf(foreignTable)} as other
            where other.${foreignValue} = loading.${value}
          )`
        : sql``;
      return sql`
        with
        named as materialized (
          select distinct ${value} as key from ${loadingOf(table)} where ${value} is not null
        ),
        found as materialized (
          select known.${foreignValue} as key
          from ${foreignTable} as known
          inner join named on known.${foreignValue} = named.key
        )
        select
          file_line,
          ${name}::text as column,
          ${`${getTableName(foreignTable)} has no ${foreignName} `}::text || ${quoted(value)} as text
        from ${loadingOf(table)} as loading
        where ${value} is not null
          and not exists (select from found where found.key = loading.${value})
          ${inFile}`;
    });
}

/** A value as messages show it, cut where it is long. */
const quoted = (value: SQL | ReturnType<typeof sql.identifier>): SQL =>
  sql`to_json(left(${value}::text, 80))::text || case when length(${value}::text) > 80 then '…' else '' end`;

/** Moves the checked rows into their table; rows that are there as they are stay untouched. */
export async function upsert(
  transaction: LoadTransaction,
  table: PgTable,
): Promise<{ rows: number; inserted: number; updated: number }> {
  const keys = keyNames(table);
  const others = columnNames(table).filter((name) => !keys.includes(name));
  const [counts] = await transaction.query(sql`
    with upserted as (
      insert into ${table} as stored (${list(columnNames(table))})
      select distinct on (${list(keys)}) ${list(columnNames(table))}
      from ${loadingOf(table)}
      order by ${list(keys)}
      on conflict (${list(keys)}) do update
      set (${list(others)}) = (${list(others, 'excluded')})
      where ${differ(table, others, 'stored', 'excluded')}
      -- A row version that this statement inserted anew has never been locked.
      returning xmax = 0 as inserted
    )
    select
      (select count(*) from ${loadingOf(table)}) as rows,
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

/** The columns of the primary key of a table. */
export const keyNames = (table: PgTable): string[] => {
  const { columns, primaryKeys } = getTableConfig(table);
  return (primaryKeys[0]?.columns ?? columns.filter(({ primary }) => primary)).map(
    ({ name }) => name,
  );
};
