import { createReadStream, createWriteStream } from 'node:fs';
import { stat } from 'node:fs/promises';
import { join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { getTableName } from 'drizzle-orm';
import type { PgTable } from 'drizzle-orm/pg-core';
import { drizzle } from 'drizzle-orm/postgres-js';
import { migrate } from 'drizzle-orm/postgres-js/migrator';
import postgres from 'postgres';
import { inputTables } from '../../schema/input_tables.ts';
import { migrations } from '../../schema/migrations.ts';
import { refreshDefaults } from '../../views/index.ts';
import { vacuum } from '../../views/vacuum.ts';
import { type Database, openDatabase } from '../database.ts';
import { loadFolder } from '../load/folder.ts';
import { columnNames } from '../load/header.ts';
import { generate, type Size } from './data.ts';
import { median, type OnProgress } from './measure.ts';

export const loadSteps = ['COPY', 'first load', 'same files again'] as const;
export type LoadStep = (typeof loadSteps)[number];

/** The cost of getting files into the input tables, including the vacuum. */
export interface LoadCost {
  /** In milliseconds. */
  time: number;
  /** The processor time of this process, which reads the files, in milliseconds. */
  cpu: number;
  /** The most memory that this process had at one time, in bytes. */
  memory: number;
  /** What the server wrote to its write-ahead log, in bytes. */
  wal: number;
}

/**
 * The measurements of the load for one size: medians over the rounds, but for memory the maximum.
 */
export interface LoadMeasurements extends Size {
  /** The size of all files together, in bytes. */
  files: number;
  costs: Record<LoadStep, LoadCost>;
}

/**
 * Measures, in an empty database, the load of files of a size, a second load of the same files, and
 * COPY of these files directly into the same tables. Writes the files to a folder.
 */
export async function measureLoad(
  url: string,
  size: Size,
  { folder, rounds, onProgress }: { folder: string; rounds: number; onProgress: OnProgress },
): Promise<LoadMeasurements> {
  const client = postgres(url, { max: 1, onnotice: () => {}, fetch_types: false });
  const database = await openDatabase(url);
  try {
    onProgress('migrate, generate and write files');
    await migrate(drizzle(client), migrations);
    await generate(client, size);
    const sizes: number[] = [];
    for (const table of inputTables) {
      await writeTable(url, table, pathOf(folder, table));
      sizes.push((await stat(pathOf(folder, table))).size);
    }
    const samples: Record<LoadStep, LoadCost[]> = {
      COPY: [],
      'first load': [],
      'same files again': [],
    };
    const ways: Record<LoadStep, () => Promise<unknown>> = {
      COPY: () => copyFolder(client, folder),
      'first load': () => load(database, folder),
      'same files again': () => load(database, folder),
    };
    for (let round = 0; round < rounds; round += 1) {
      for (const step of loadSteps) {
        onProgress(`round ${round + 1} of ${rounds}, ${step}`);
        if (step !== 'same files again') {
          await client.unsafe(`truncate ${inputTables.map((table) => getTableName(table))}`);
        }
        samples[step].push(await costOf(client, ways[step]));
      }
    }
    const medianOf = (step: LoadStep, of: keyof LoadCost) =>
      median(samples[step].map((cost) => cost[of]));
    return {
      ...size,
      files: sizes.reduce((sum, bytes) => sum + bytes, 0),
      costs: Object.fromEntries(
        loadSteps.map((step) => [
          step,
          {
            time: medianOf(step, 'time'),
            cpu: medianOf(step, 'cpu'),
            memory: Math.max(...samples[step].map(({ memory }) => memory)),
            wal: medianOf(step, 'wal'),
          },
        ]),
      ) as Record<LoadStep, LoadCost>,
    };
  } finally {
    await database.close();
    await client.end();
  }
}

const pathOf = (folder: string, table: PgTable) => join(folder, `${getTableName(table)}.csv`);

/**
 * Uses a connection of its own: after one COPY … TO, postgres.js waits forever for the end of a
 * second one.
 */
async function writeTable(url: string, table: PgTable, path: string): Promise<void> {
  const client = postgres(url, {
    ...{ max: 1, fetch_types: false },
    connection: { TimeZone: 'UTC' },
  });
  const columns = columnNames(table);
  const query = client.unsafe(
    `copy (select ${columns} from ${getTableName(table)}) to stdout with (format csv, header)`,
  );
  await pipeline(await query.readable(), createWriteStream(path));
  await client.end();
}

async function copyFolder(client: postgres.Sql, folder: string): Promise<void> {
  for (const table of inputTables) {
    const into = `${getTableName(table)} (${columnNames(table)})`;
    const query = client.unsafe(`copy ${into} from stdin with (format csv, header)`);
    await pipeline(createReadStream(pathOf(folder, table)), await query.writable());
  }
  await client.unsafe(
    `vacuum (analyze, truncate false) ${inputTables.map((table) => getTableName(table))}`,
  );
}

/** Does the same as `npm run load`. */
async function load(database: Database, folder: string): Promise<void> {
  const files = await loadFolder(database, folder);
  for (const { file, inserted, updated, deleted } of files) {
    if (inserted + updated + deleted > 0) {
      const { statementTimeout } = refreshDefaults;
      await vacuum(database.db, file.replace('.csv', ''), 'loaded', { statementTimeout });
    }
  }
}

async function costOf(client: postgres.Sql, work: () => Promise<unknown>): Promise<LoadCost> {
  const position = async () => {
    const [row] = await client`
      select (pg_current_wal_lsn() - '0/0'::pg_lsn)::float8 as position`;
    return Number(row?.position);
  };
  await client.unsafe('checkpoint');
  const walBefore = await position();
  let memory = process.memoryUsage.rss();
  const sampling = setInterval(() => {
    memory = Math.max(memory, process.memoryUsage.rss());
  }, 50);
  const cpuBefore = process.cpuUsage();
  const started = performance.now();
  await work();
  const time = performance.now() - started;
  const { user, system } = process.cpuUsage(cpuBefore);
  clearInterval(sampling);
  return { time, cpu: (user + system) / 1000, memory, wal: (await position()) - walBefore };
}
