import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { getTableName, sql } from 'drizzle-orm';
import type { PgMaterializedView } from 'drizzle-orm/pg-core';
import { migrate } from 'drizzle-orm/pglite/migrator';
import postgres from 'postgres';
import { afterAll, afterEach, beforeAll, beforeEach, inject } from 'vitest';
import { inputTables } from '../../schema/input_tables.ts';
import { migrations } from '../../schema/migrations.ts';
import { type Database, openDatabase, openPglite } from '../../scripts/database.ts';
import { fctClientConversionEvents, fctLeadConversions } from '../../views/index.ts';
import { databaseUrl } from './postgres_setup.ts';

/**
 * A migrated database for the tests of one file: an embedded one in memory, or one on the real
 * server. Its input tables and views are empty before each test.
 */
export function useDatabase(): Database {
  const database = {} as Database;
  let dispose = async () => {};

  beforeAll(async () => {
    const template = inject('template');
    if (template) {
      const scratch = await createServerDatabase(template);
      Object.assign(database, await openDatabase(scratch.url));
      dispose = async () => {
        await database.close();
        await scratch.dispose();
      };
    } else {
      embedded ??= openMigratedPglite();
      Object.assign(database, await embedded);
    }
  });

  beforeEach(async () => {
    await database.db.execute(sql.raw(truncateInputTables));
    // Otherwise the first refresh would refuse to remove everything that the previous test has
    // left.
    await database.db.refreshMaterializedView(fctClientConversionEvents);
    await database.db.refreshMaterializedView(fctLeadConversions);
  });

  afterAll(() => dispose());

  return database;
}

/** The statement that empties all input tables. */
export const truncateInputTables = `truncate ${inputTables.map((table) => getTableName(table))}`;

/** Starting one takes seconds, so the files of a worker share one. */
let embedded: Promise<Database> | undefined;

async function openMigratedPglite(): Promise<Database> {
  const database = await openPglite();
  await migrate(database.db, migrations);
  return database;
}

/** The DATABASE_URL of a migrated database on the real server, a separate one for each test. */
export function useServerDatabase(): { url: string } {
  const database = { url: '' };
  let dispose: () => Promise<void>;

  beforeEach(async () => {
    ({ url: database.url, dispose } = await createServerDatabase(inject('template') ?? ''));
  });

  afterEach(() => dispose());

  return database;
}

/** The DATABASE_URL of a database that nothing has migrated yet, a separate one for each test. */
export function useUnmigratedDatabase(): { url: string } {
  const database = { url: '' };
  let dispose: () => Promise<void>;

  beforeEach(async () => {
    if (inject('serverUrl')) {
      ({ url: database.url, dispose } = await createServerDatabase('template0'));
    } else {
      const folder = await mkdtemp(join(tmpdir(), 'lead-conversions-pglite-'));
      database.url = `pglite:${join(folder, 'database')}`;
      dispose = () => rm(folder, { recursive: true });
    }
  });

  afterEach(() => dispose());

  return database;
}

let created = 0;

async function createServerDatabase(template: string) {
  const serverUrl = inject('serverUrl') ?? '';
  const client = postgres(serverUrl, { max: 1, onnotice: () => {} });
  created += 1;
  const name = `lead_conversions_test_${process.pid}_${created}`;
  await client`create database ${client(name)} template ${client(template)}`;
  return {
    url: databaseUrl(serverUrl, name),
    dispose: async () => {
      await client`drop database ${client(name)} with (force)`;
      await client.end();
    },
  };
}

/** The rows of a view under their SQL names, with local times in ISO 8601, as JSON has them. */
export async function rowsOf(
  { db }: Database,
  view: PgMaterializedView,
  ...order: string[]
): Promise<unknown[]> {
  const rows = await db
    .select({ row: sql`to_json(report)` })
    .from(sql`${view} as report`)
    .orderBy(...order.map((column) => sql`${sql.identifier(column)}`));
  return rows.map(({ row }) => row);
}
