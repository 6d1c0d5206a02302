import { readdir, stat } from 'node:fs/promises';
import { join } from 'node:path';
import { getTableName } from 'drizzle-orm';
import type { PgTable } from 'drizzle-orm/pg-core';
import { inputTables } from '../../schema/input_tables.ts';
import type { Source } from './text.ts';

/** A file that is named after an input table. */
export interface InputFile extends Source {
  table: PgTable;
  /** Its name, such as `dim_user.csv`. */
  name: string;
  bytes: number;
  /** When it was last written, in milliseconds since 1970. */
  writtenAt: number;
}

const namesOf = (table: PgTable) => [`${getTableName(table)}.csv`, `${getTableName(table)}.csv.gz`];

/** Returns whether a name looks like that of a file to load. */
const isLikely = (name: string) =>
  /csv|tsv|xlsx?$|parquet|branch|user|purchase|member|credit/i.test(name) && !name.startsWith('.');

/**
 * Returns the files of a folder that are loaded, in the order of the tables. Also returns the names
 * of other files that somebody may have wanted to load.
 *
 * Throws an Error that says what to do if there is nothing to load, or if there are two files for
 * one table.
 */
export async function findFiles(folder: string): Promise<{ files: InputFile[]; others: string[] }> {
  const entries = await readdir(folder, { withFileTypes: true }).catch(
    (error: NodeJS.ErrnoException) => {
      throw new Error(`The folder ${folder} cannot be read: ${error.message}.`);
    },
  );
  const names = entries.map(({ name }) => name);
  const files: InputFile[] = [];
  for (const table of inputTables) {
    const found = namesOf(table).filter((name) => names.includes(name));
    if (found.length > 1) {
      throw new Error(
        `${folder} has both ${found.join(' and ')}. Remove the one that is not to be loaded.`,
      );
    }
    for (const name of found) {
      const path = join(folder, name);
      files.push({
        ...{ table, name, path, isCompressed: name.endsWith('.gz') },
        ...(await look(path, name)),
      });
    }
  }
  if (files.length === 0) {
    throw new Error(
      `There is nothing to load in ${folder}: it has none of ${inputTables.map((table) => namesOf(table)[0]).join(', ')}, with or without .gz.`,
    );
  }
  const others = entries
    .filter((entry) => !entry.isDirectory() && isLikely(entry.name))
    .map(({ name }) => name)
    .filter((name) => !files.some((file) => file.name === name));
  return { files, others: others.toSorted() };
}

/**
 * Returns the size of a file and the time it was last written. Throws an Error if it is a folder, a
 * pipe or a device: to open a pipe may take forever.
 */
async function look(path: string, name: string) {
  const found = await stat(path).catch((error: NodeJS.ErrnoException) => {
    throw new Error(`${name} cannot be read: ${error.message}.`);
  });
  if (!found.isFile()) {
    throw new Error(
      `${name} is ${found.isDirectory() ? 'a folder' : 'a pipe or a device'}, not a file.`,
    );
  }
  return { bytes: found.size, writtenAt: found.mtimeMs };
}

/** Throws an Error if a file has been written to since it was found. */
export async function refuseChanged({ path, name, bytes, writtenAt }: InputFile): Promise<void> {
  const now = await look(path, name);
  if (now.bytes !== bytes || now.writtenAt !== writtenAt) {
    throw new Error('the file was written to while it was read. Load it once it is complete');
  }
}
