import { drizzle } from 'drizzle-orm/postgres-js';
import { migrate } from 'drizzle-orm/postgres-js/migrator';
import postgres from 'postgres';
import type { TestProject } from 'vitest/node';
import { migrations } from '../../schema/migrations.ts';
import { startPostgres } from '../../scripts/postgres_server.ts';
import { scratchTree } from './scratch_tree.ts';

declare module 'vitest' {
  interface ProvidedContext {
    /** The URL of a database on the real server, for a superuser. Not set on PGlite. */
    serverUrl?: string;
    /** The name of a migrated, empty database on that server, to be copied. */
    template?: string;
    /**
     * A folder with the commands of the package, compiled as they are shipped. Not set on PGlite.
     */
    compiled?: string;
  }
}

/**
 * Provides PostgreSQL 16 to the tests: the server of TEST_DATABASE_URL, which names a superuser, or
 * one that is started for them. The tests work in databases of their own, which are dropped.
 */
export default async function setup(project: TestProject): Promise<() => Promise<void>> {
  const server = process.env.TEST_DATABASE_URL ? undefined : await startPostgres();
  const serverUrl = process.env.TEST_DATABASE_URL ?? server?.url('postgres') ?? '';
  const client = postgres(serverUrl, { max: 1, onnotice: () => {} });
  const template = `lead_conversions_template_${process.pid}`;
  const tree = await scratchTree();
  const teardown = async () => {
    await tree.remove();
    await client`drop database if exists ${client(template)}`;
    await client.end();
    await server?.remove();
  };
  try {
    const [version] =
      await client`select current_setting('server_version_num')::int / 10000 as major`;
    if (version?.major !== 16) {
      throw new Error(
        `The tests want PostgreSQL 16. TEST_DATABASE_URL is PostgreSQL ${version?.major}.`,
      );
    }
    await tree.compile();
    await client`create database ${client(template)}`;
    const templateUrl = databaseUrl(serverUrl, template);
    const templateClient = postgres(templateUrl, { max: 1, onnotice: () => {} });
    await migrate(drizzle(templateClient), migrations).finally(() => templateClient.end());
  } catch (error) {
    await teardown().catch(() => {}); // the first error is the one to report
    throw error;
  }
  project.provide('compiled', tree.folder);
  project.provide('serverUrl', serverUrl);
  project.provide('template', template);
  return teardown;
}

/** The URL of another database on the same server. */
export function databaseUrl(serverUrl: string, database: string): string {
  const url = new URL(serverUrl);
  url.pathname = `/${database}`;
  return url.href;
}
