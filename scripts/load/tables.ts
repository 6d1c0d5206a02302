import { getTableName, type SQL, sql } from 'drizzle-orm';
import { getTableConfig, type PgTable } from 'drizzle-orm/pg-core';
import { columnNames } from './header.ts';
import type { Problem } from './problems.ts';

/**
 * One transaction on the database to load into. Its names mean what Postgres defines (see
 * `pinSearchPath`).
 */
export interface LoadTransaction {
  /** Runs a statement and returns its rows. */
  query(statement: SQL): Promise<Record<string, unknown>[]>;
  /**
   * Runs COPY … FROM STDIN on lines in the text format. Throws Postgres' error, with the place of
   * the mistake in `where`.
   * https://www.postgresql.org/docs/16/sql-copy.html
   */
  copy(into: SQL, lines: AsyncIterable<string>): Promise<void>;
}

/** A record of a file, with the values to store. */
export interface Row {
  /** The line on which it ends. */
  line: number;
  values: (string | null)[];
}

/**
 * The temporary table that holds the rows of a file, with their lines, until all files are checked.
 */
export const loadingOf = (table: PgTable): SQL =>
  sql`pg_temp.${sql.identifier(`loading_${getTableName(table)}`)}`;

/**
 * Creates the temporary table for the rows of a file. The rules of the input table are checked
 * later, for all rows at once.
 */
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
 * Copies rows to the temporary table, with values for these columns. Returns the problem if
 * Postgres refuses a value that only Postgres can check, such as a number in JSON that is too
 * large. In that case no row is stored, and the transaction has failed.
 */
export async function copyRows(
  transaction: LoadTransaction,
  table: PgTable,
  columns: string[],
  rows: AsyncIterable<Iterable<Row>>,
): Promise<Omit<Problem, 'file'> | undefined> {
  /**
   * The difference between the line in the file and the number of the row, each with the first row
   * that it applies to.
   */
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

/** Returns a value in the text format of COPY, escaped so that no backslash ends the data. */
const asCopyText = (value: string | null): string =>
  value === null
    ? '\\N'
    : /[\\\t\n\r]/.test(value)
      ? value.replace(/[\\\t\n\r]/g, (character) => copyEscapes[character] ?? '')
      : value;

export const list = (names: string[], of?: string): SQL =>
  sql.join(
    names.map((name) =>
      of ? sql`${sql.identifier(of)}.${sql.identifier(name)}` : sql.identifier(name),
    ),
    sql`, `,
  );

/**
 * The condition that columns of two rows differ. JSON is compared as text: the numbers 1.5 and 1.50
 * are equal, but they are different product names.
 */
export function differ(table: PgTable, names: string[], one: string, other: string): SQL {
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

/** Returns the columns of the primary key of a table. */
export const keyNames = (table: PgTable): string[] => {
  const { columns, primaryKeys } = getTableConfig(table);
  return (primaryKeys[0]?.columns ?? columns.filter(({ primary }) => primary)).map(
    ({ name }) => name,
  );
};
