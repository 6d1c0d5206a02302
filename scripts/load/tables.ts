import { getTableName, type SQL, sql } from 'drizzle-orm';
import { getTableConfig, type PgTable } from 'drizzle-orm/pg-core';
import { columnNames } from './header.ts';
import type { Problem } from './problems.ts';

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
export const loadingOf = (table: PgTable): SQL =>
  sql`pg_temp.${sql.identifier(`loading_${getTableName(table)}`)}`;

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

export const list = (names: string[], of?: string): SQL =>
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

/** The columns of the primary key of a table. */
export const keyNames = (table: PgTable): string[] => {
  const { columns, primaryKeys } = getTableConfig(table);
  return (primaryKeys[0]?.columns ?? columns.filter(({ primary }) => primary)).map(
    ({ name }) => name,
  );
};
