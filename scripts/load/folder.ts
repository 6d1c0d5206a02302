import { getTableName, sql } from 'drizzle-orm';
import { getTableConfig, type PgTable } from 'drizzle-orm/pg-core';
import { inputTables } from '../../schema/input_tables.ts';
import { percentOf, refreshDefaults } from '../../views/refresh.ts';
import type { Session } from '../../views/session.ts';
import type { Database } from '../database.ts';
import { addProblemsOfRows } from './checks.ts';
import { findFiles, type InputFile, refuseChanged } from './files.ts';
import { bare, columnNames, type Header, type HeaderOptions, readHeader } from './header.ts';
import { describe, type Problems, problemsOf, quote } from './problems.ts';
import { type CsvOptions, type CsvRecord, type Field, readRecords } from './records.ts';
import { begin, explainFailure, type LoadBounds, type LoadState } from './session.ts';
import {
  countRecords,
  deleteLost,
  type FileLoad,
  findChanges,
  findLosses,
  forgetFound,
  record,
  storeChanges,
} from './store.ts';
import { copyRows, createLoading, keyNames, type LoadTransaction, type Row } from './tables.ts';
import { readText, type UnreadableError } from './text.ts';
import { readInstant, wrongWithJson } from './values.ts';

/** How the files are written, how to load them, and the bounds of the load. */
export interface LoadOptions extends Partial<LoadBounds> {
  /** Whether each file is the whole of its table. If so, rows that it does not have are deleted. */
  isSnapshot?: boolean;
  /** The share of the rows of a table that a snapshot may delete, such as `20%`. */
  maxLoss?: string;
  /** Cancels the load, on the server too. */
  signal?: AbortSignal;
  /** Other names of columns in the files, each as `FROM=TO`. */
  rename?: string[];
  /** Whether to leave out columns that a table does not have. */
  ignoreColumns?: boolean;
  /** Texts that stand for NULL where they are not quoted. An empty field always does. */
  null?: string[];
  /** What escapes a quote within quotes: a second quote, or `\`. */
  escape?: string;
  onProgress?: (progress: LoadProgress) => void;
  /** Called with sentences about what is not loaded. */
  onWarning?: (warning: string) => void;
}

/** How far the loading of one file has come. */
export interface LoadProgress {
  /** Name of the file, such as `dim_user.csv`. */
  file: string;
  /** What is being done with its rows. */
  step: 'read' | 'check' | 'compare' | 'store';
  /** Bytes read so far, and bytes of the whole file. */
  readBytes: number;
  totalBytes: number;
}

/**
 * Loads the CSV files of a folder, each named after its input table (`dim_user.csv`, or
 * `dim_user.csv.gz`), in one transaction. Tables without a file are not loaded. If the key of a row
 * is already in the table, the row replaces the old one. After the commit, the caller vacuums the
 * tables that have changed.
 *
 * If it throws, nothing has changed, unless the connection was lost during the commit: the Error
 * then says that this is unknown. It throws:
 * - an Error with the first problems of all files, each with its file, line and column, if a file
 *   cannot be loaded;
 * - an Error that says what to do if the database is not ready (not migrated, a role without the
 *   privileges, row-level security), or if a snapshot would delete more than `maxLoss` allows;
 * - an Error that names the sessions in the way if a timeout was reached;
 * - the signal's reason if that was aborted.
 */
export async function loadFolder(
  { db, transaction: inTransaction }: Pick<Database, 'db' | 'transaction'>,
  folder: string,
  options: LoadOptions = {},
): Promise<FileLoad[]> {
  const { onProgress = () => {}, onWarning = () => {}, isSnapshot = false } = options;
  const bounds = {
    lockTimeout: options.lockTimeout ?? refreshDefaults.lockTimeout,
    statementTimeout: options.statementTimeout ?? refreshDefaults.statementTimeout,
    workMem: options.workMem ?? refreshDefaults.workMem,
  };
  const maxLoss = percentOf(options.maxLoss ?? refreshDefaults.maxLoss);
  const csv = csvOptions(options);
  const header = headerOptions(options, csv.hasBackslashes);
  const { files, others } = await findFiles(folder);
  const tables = files.map(({ table }) => table);
  const state: LoadState = {};
  try {
    return await inTransaction(async (transaction) => {
      await begin(transaction, tables, isSnapshot, bounds, state);
      const readings: Reading[] = [];
      for (const file of files) {
        readings.push(await readFile(transaction, file, header, csv, onProgress));
      }
      const onStep = ({ name, bytes }: InputFile, step: LoadProgress['step']) =>
        onProgress({ file: name, step, readBytes: bytes, totalBytes: bytes });
      const ended = await endedTransactions(transaction);
      // Losses are not computed if a file has problems: those of a file that is cut off say more
      // than its losses.
      const losses =
        isSnapshot && readings.every(({ problems }) => problems.total === 0)
          ? await findLosses(transaction, files, maxLoss)
          : undefined;
      await refuseProblems(transaction, readings, options, (file) => onStep(file, 'check'));
      for (const warning of warningsOf(readings, others)) {
        onWarning(warning);
      }
      const first = { ended, losses };
      const loads = await storeAll(transaction, files, isSnapshot, maxLoss, state, first, onStep);
      for (const [index, { table }] of files.entries()) {
        await record(transaction, table, loads[index] as FileLoad, isSnapshot);
      }
      return loads;
    }, options.signal);
  } catch (error) {
    throw await explainFailure(db as Session, error, state, bounds);
  }
}

/** How many times the tables are compared with the files if others write to the tables as well. */
const mostComparisons = 3;

/**
 * Stores what the files have. If each file is the whole of its table, also deletes what it does not
 * have. Then compares the tables with the files again, because this session may have waited for the
 * locks of another, which may have changed rows that seemed to be as in the files. There is no
 * second comparison if no transaction has ended meanwhile, and no trigger or rule can have changed
 * what was written.
 *
 * Throws an Error if the tables do not come to match the files.
 */
async function storeAll(
  transaction: LoadTransaction,
  files: InputFile[],
  isSnapshot: boolean,
  maxLoss: number,
  { isMeddledWith }: LoadState,
  first: { ended: string; losses: Map<PgTable, number> | undefined },
  onStep: (file: InputFile, step: LoadProgress['step']) => void,
): Promise<FileLoad[]> {
  const loads: FileLoad[] = [];
  for (const file of files) {
    const counts = await countRecords(transaction, file);
    loads.push({ file: file.name, ...counts, inserted: 0, updated: 0, deleted: 0 });
  }
  // The transactions that had ended before the first look at the tables, including the look for
  // losses.
  let { ended, losses } = first;
  for (let comparison = 1; ; comparison += 1) {
    const different: PgTable[] = [];
    for (const [index, file] of files.entries()) {
      onStep(file, 'compare');
      const { inserted, updated } = await findChanges(transaction, file);
      const deleted = losses?.get(file.table) ?? 0;
      const load = loads[index] as FileLoad;
      Object.assign(load, {
        inserted: load.inserted + inserted,
        updated: load.updated + updated,
        deleted: load.deleted + deleted,
      });
      if (inserted + updated + deleted > 0) {
        different.push(file.table);
      }
    }
    if (different.length > 0 && comparison === mostComparisons) {
      throw new Error(
        `Nothing was loaded, because ${different.map((table) => getTableName(table)).join(' and ')} would not match the files. Either a trigger or a rule changes the rows, or other sessions keep writing to the same rows. Disable the trigger or rule, or load again when nobody else writes.`,
      );
    }
    const changed = files.filter(({ table }) => different.includes(table));
    for (const file of changed) {
      onStep(file, 'store');
      await storeChanges(transaction, file.table);
    }
    // Children go first, and only after all rows that move to another parent have been stored.
    for (const { table } of isSnapshot ? changed.toReversed() : []) {
      await deleteLost(transaction, table);
    }
    const isUndisturbed = !isMeddledWith && ended === (await endedTransactions(transaction));
    if (different.length === 0 || isUndisturbed) {
      return loads;
    }
    for (const { table } of files) {
      await forgetFound(transaction, table, isSnapshot);
    }
    ended = await endedTransactions(transaction);
    losses = isSnapshot ? await findLosses(transaction, files, maxLoss) : undefined;
  }
}

/**
 * Returns which transactions of others had ended. While it stays the same, none has ended since.
 */
async function endedTransactions(transaction: LoadTransaction): Promise<string> {
  const [current] = await transaction.query(sql`select pg_current_snapshot()::text as ended`);
  return String(current?.ended);
}

/** Throws an Error with all problems of the files, if there are any. */
async function refuseProblems(
  transaction: LoadTransaction,
  readings: Reading[],
  { isSnapshot = false, rename = [] }: LoadOptions,
  onCheck: (file: InputFile) => void,
): Promise<void> {
  const filesOf = (found: Reading[]) => found.map(({ file }) => file);
  const loading = {
    complete: filesOf(readings.filter(({ isComplete }) => isComplete)),
    incomplete: filesOf(readings.filter(({ isComplete }) => !isComplete)),
    isSnapshot,
  };
  for (const { file, header, problems } of readings) {
    if (header) {
      onCheck(file);
      await addProblemsOfRows(transaction, file, problems, loading);
    }
  }
  const wrong = [
    describe(readings.map(({ problems }) => problems)),
    ...unusedRenames(rename, readings),
  ].filter(Boolean);
  if (wrong.length > 0) {
    throw new Error(wrong.join('\n'));
  }
}

/** Returns sentences about what is not loaded. */
function warningsOf(readings: Reading[], others: string[]): string[] {
  const warnings = readings.flatMap(({ file, header }) =>
    header && header.ignored.length > 0
      ? `${file.name}: these columns are ignored: ${header.ignored.map((name) => JSON.stringify(name)).join(', ')}.`
      : [],
  );
  if (others.length > 0) {
    const names = inputTables.map((table) => `${getTableName(table)}.csv`);
    warnings.push(
      `Not loaded: ${others.join(', ')}. Only files with these names are loaded: ${names.join(', ')}, with or without .gz.`,
    );
  }
  return warnings;
}

/** What was read from one file into the database, and its problems. */
interface Reading {
  file: InputFile;
  problems: Problems;
  /** Undefined if the file has no usable header. Then nothing else was read. */
  header?: Header;
  /** Whether all of its records were read, so all of its keys are known. */
  isComplete: boolean;
}

/** Reads those records of a file that can be read into a temporary table. */
async function readFile(
  transaction: LoadTransaction,
  file: InputFile,
  headerOptions: HeaderOptions,
  csv: Omit<CsvOptions, 'delimiter'>,
  onProgress: (progress: LoadProgress) => void,
): Promise<Reading> {
  const { table, name, bytes } = file;
  const problems = problemsOf(name);
  const addUnreadable = ({ message, line }: UnreadableError) =>
    problems.add({ line, text: message });
  const onRead = (readBytes: number) =>
    onProgress({ file: name, step: 'read', readBytes, totalBytes: bytes });
  let header: Header;
  let text: AsyncGenerator<string>;
  try {
    ({ header, text } = await beginText(file, readText(file, onRead), headerOptions));
  } catch (error) {
    addUnreadable(error as UnreadableError);
    return { file, problems, isComplete: false };
  }
  const { columns, delimiter } = header;
  let isComplete = true;
  const records = readRecords(text, { ...csv, delimiter }, (mistake) => {
    isComplete = false;
    problems.add(mistake);
  });
  const readers = columns.map((column) =>
    column === undefined ? undefined : readerOf(table, column, csv.nulls),
  );
  const rowsOf = function* (piece: Iterable<CsvRecord>): Generator<Row> {
    for (const { line, fields } of piece) {
      if (line <= header.line) {
        continue;
      }
      if (fields.length !== columns.length) {
        isComplete = false;
        problems.add({
          line,
          text: `the line has ${fields.length} fields, but the header has ${columns.length}`,
        });
        continue;
      }
      const values: (string | null)[] = [];
      for (let index = 0; index < columns.length; index += 1) {
        const value = readers[index]?.(fields[index]);
        if (value !== null && typeof value === 'object') {
          problems.add({ line, column: columns[index], text: value.wrong });
          values.push(null);
        } else if (value !== undefined) {
          values.push(value);
        }
      }
      yield { line, values };
    }
  };
  const rows = async function* (): AsyncGenerator<Iterable<Row>> {
    try {
      for await (const piece of records) {
        yield rowsOf(piece);
      }
      await refuseChanged(file);
    } catch (error) {
      // Not thrown, because that would end the transaction, and other files may have problems to
      // report.
      isComplete = false;
      addUnreadable(error as UnreadableError);
    }
  };
  const names = columns.filter((column) => column !== undefined);
  await createLoading(transaction, table);
  await transaction.query(sql`savepoint before_copy`);
  const refused = await copyRows(transaction, table, names, rows());
  if (refused) {
    problems.add(refused);
    isComplete = false;
    await transaction.query(sql`rollback to savepoint before_copy`);
  }
  return { file, problems, header, isComplete };
}

/** Reads a text until its header is complete. Returns the header and the whole text. */
async function beginText(
  { table }: InputFile,
  chunks: AsyncGenerator<string>,
  options: HeaderOptions,
): Promise<{ header: Header; text: AsyncGenerator<string> }> {
  let start = '';
  let enough = 0;
  for (;;) {
    const { value, done } = await chunks.next();
    start += value ?? '';
    if (done || start.length >= enough) {
      const header = await readHeader(table, start, done === true, options);
      if (header) {
        const text = (async function* () {
          yield start;
          yield* chunks;
        })();
        return { header, text };
      }
      if (start.length > longestBeginning) {
        throw new Error(`the file has no header in its first ${longestBeginning / 2 ** 20} MB`);
      }
      enough = 2 * start.length; // so a long beginning takes linear time
    }
  }
}

/** The header must be within this many characters, whatever blank lines precede it. */
const longestBeginning = 2 ** 24;

/** Reads a field of one column. Returns the value to store, or what is wrong with it. */
type Reader = (field: Field) => string | null | { wrong: string };

/**
 * Columns of free text. A quoted empty text is stored as such in these, and as NULL in all others.
 */
const freeTexts = ['name', 'email', 'city', 'country'];

function readerOf(table: PgTable, name: string, nulls: Set<string>): Reader {
  const isKey = keyNames(table).includes(name);
  const isFreeText = freeTexts.includes(name);
  const type = getTableConfig(table)
    .columns.find((column) => column.name === name)
    ?.getSQLType();
  return (field) => {
    if (field === undefined || field === null || (field === '' && !isFreeText)) {
      return isKey ? { wrong: 'must not be empty' } : null;
    }
    if (field.includes('\0')) {
      return { wrong: `${quote(field)} has a NUL character, which Postgres cannot store` };
    }
    if (type === 'timestamp with time zone') {
      const instant = readInstant(field);
      return typeof instant === 'string'
        ? instant
        : { wrong: instant.wrong + adviceOnNull(field, nulls) };
    }
    if (type === 'jsonb') {
      const wrong = wrongWithJson(field);
      if (wrong) {
        return { wrong: wrong + adviceOnNull(field, nulls) };
      }
    }
    return field;
  };
}

/** Returns advice if a field looks like what many exports write for NULL. */
const adviceOnNull = (field: string, nulls: Set<string>) =>
  !nulls.has(field) && /^(null|\\n|n\/?a|none|nil|-)$/i.test(field)
    ? `. If it means NULL, load with --null '${field}'`
    : '';

/** Reads --rename and --ignore-columns. */
function headerOptions(
  { rename = [], ignoreColumns = false }: LoadOptions,
  hasBackslashes: boolean,
): HeaderOptions {
  const renamed = rename.map((text) => {
    const [, from = '', to = ''] = /^(.+)=([^=]+)$/s.exec(text) ?? [];
    if (!inputTables.some((table) => columnNames(table).includes(to))) {
      throw new Error(
        `--rename must be FROM=TO, with a column of an input table as TO, not ${JSON.stringify(text)}.`,
      );
    }
    return [bare(from), to] as const;
  });
  return { renamed, ignoresOthers: ignoreColumns, hasBackslashes };
}

/** Reads --null and --escape. */
function csvOptions(options: LoadOptions): Omit<CsvOptions, 'delimiter'> {
  const { null: nulls = [], escape: character = '"' } = options;
  if (character !== '"' && character !== '\\') {
    throw new Error(`--escape must be " or \\, not ${JSON.stringify(character)}.`);
  }
  return { nulls: new Set(nulls), hasBackslashes: character === '\\' };
}

/**
 * Returns a sentence on the --rename options whose columns no file has, if all headers could be
 * read.
 */
function unusedRenames(rename: string[], readings: Reading[]): string[] {
  const names = readings.flatMap(({ header }) => header?.names ?? []);
  const unused = rename.filter((text) => !names.includes(bare(text.replace(/=[^=]+$/s, ''))));
  return unused.length > 0 && readings.every(({ header }) => header)
    ? [
        `No file has the column that --rename ${unused.map((text) => JSON.stringify(text)).join(' and ')} names.`,
      ]
    : [];
}
