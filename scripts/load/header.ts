import { getTableConfig, type PgTable } from 'drizzle-orm/pg-core';
import { type CsvOptions, type Mistake, readRecords } from './records.ts';

/** How to read the names in headers. */
export interface HeaderOptions {
  /** Other names of columns in the files, each with the name in a table. */
  renamed: (readonly [from: string, to: string])[];
  /** Whether to leave out columns that the table does not have. */
  ignoresOthers: boolean;
  /** See `CsvOptions`. */
  hasBackslashes: boolean;
}

/** What the header of a file says. */
export interface Header {
  delimiter: string;
  /** The line on which the header ends. */
  line: number;
  /** For each field of a record, the column of the table, or undefined if the field is left out. */
  columns: (string | undefined)[];
  /** The names of the columns that are left out. */
  ignored: string[];
  /** All names in the header, each as `bare` returns it. */
  names: string[];
}

const delimiters = [',', ';', '\t', '|'];

/** Names that exports of this data use for columns, besides the names in the tables. */
const otherNames: Record<string, Record<string, string>> = {
  fct_membership_purchases: {
    membership_id: 'user_membership_id',
    // The name in the requirements (figure 1.3.5).
    credit_membership_purchase_atpack_purchased_at: 'membership_purchased_at',
  },
};

/** Returns a name in lower case, without spaces, `-` and `_`, which make no difference. */
export const bare = (name: string): string => name.toLowerCase().replace(/[\s_-]+/g, '');

/**
 * Returns the names of the columns that a load writes. It leaves out columns that Postgres derives,
 * which no file has.
 */
export const columnNames = (table: PgTable): string[] =>
  getTableConfig(table)
    .columns.filter(({ generated }) => generated === undefined)
    .map(({ name }) => name);

/**
 * Reads the header at the start of a file. The delimiter is the one with which most of the table's
 * columns are found. Returns undefined if the start ends before the header does, and the file goes
 * on.
 *
 * Throws an Error that names everything that is wrong with the header.
 */
export async function readHeader(
  table: PgTable,
  start: string,
  isAll: boolean,
  { renamed, ignoresOthers, hasBackslashes }: HeaderOptions,
): Promise<Header | undefined> {
  const { name: tableName, columns: declared } = getTableConfig(table);
  const expected = columnNames(table);
  const known = new Map<string, string>(
    [
      ...expected.map((name) => [name, name] as const),
      ...Object.entries(otherNames[tableName] ?? {}),
    ].map(([name, column]) => [bare(name), column]),
  );
  for (const [from, to] of renamed) {
    if (expected.includes(to)) {
      known.set(from, to);
    }
  }
  const readings: (FirstRecord & { delimiter: string; found: number })[] = [];
  for (const delimiter of delimiters) {
    const first = await firstRecord(start, isAll, { delimiter, hasBackslashes });
    if (!first) {
      return undefined;
    }
    const found = first.names.filter((name) => known.has(bare(name))).length;
    readings.push({ ...first, delimiter, found });
  }
  const { delimiter, names, line } = readings.reduce((best, other) =>
    other.found > best.found || (best.found === 0 && other.names.length > best.names.length)
      ? other
      : best,
  );
  const columns = names.map((name) => known.get(bare(name)));
  const unknown = names.filter((_, index) => columns[index] === undefined);
  const derived = declared.filter(
    ({ name, generated }) => generated && unknown.some((other) => bare(other) === bare(name)),
  );
  const strangers = unknown.filter(
    (name) => !derived.some((other) => bare(other.name) === bare(name)),
  );
  const missing = expected.filter((name) => !columns.includes(name));
  const repeated = expected.filter(
    (name) => columns.filter((column) => column === name).length > 1,
  );
  const show = (list: string[]) => list.map((name) => JSON.stringify(name.slice(0, 40))).join(', ');
  const problems = [
    names.length === 0 && 'the file has no header, or a header with wrong quotes',
    missing.length > 0 && names.length > 0 && `the header lacks ${missing.join(', ')}`,
    repeated.length > 0 && `the header has ${repeated.join(', ')} more than once`,
    derived.length > 0 &&
      !ignoresOthers &&
      `${derived.map(({ name }) => name).join(', ')} must not be in the file, because Postgres derives it from the details`,
    strangers.length > 0 && !ignoresOthers && `the table has no ${show(strangers)}`,
  ].filter(Boolean);
  if (problems.length > 0) {
    throw new Error(
      `${problems.join('; ')}. The columns of ${tableName} are ${expected.join(', ')}, in any order. Use --rename FROM=TO for columns with other names, and --ignore-columns for columns that the table does not have`,
    );
  }
  return {
    delimiter,
    line,
    columns,
    ignored: unknown,
    names: names.map(bare),
  };
}

interface FirstRecord {
  names: string[];
  /** The line on which it ends. */
  line: number;
}

/**
 * Returns the first record that is not blank. It has no names if it is not well-formed. Returns
 * undefined if the start ends before the record does, and the text goes on.
 */
async function firstRecord(
  start: string,
  isAll: boolean,
  options: Omit<CsvOptions, 'nulls'>,
): Promise<FirstRecord | undefined> {
  let isCut = false;
  const text = (async function* () {
    yield start;
    if (!isAll) {
      isCut = true;
      throw new Error('There is more of the text.');
    }
  })();
  let mistake: Mistake | undefined;
  try {
    for await (const records of readRecords(text, { ...options, nulls: new Set() }, (it) => {
      mistake ??= it;
    })) {
      for (const { fields, line } of records) {
        if (mistake) {
          return { names: [], line: mistake.line };
        }
        if (fields.some((field) => field?.trim())) {
          return { names: fields.map((field) => field ?? ''), line };
        }
      }
    }
  } catch (error) {
    if (!isCut) {
      throw error;
    }
    return mistake ? { names: [], line: mistake.line } : undefined;
  }
  return { names: [], line: mistake?.line ?? 1 };
}
