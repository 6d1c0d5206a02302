import { spawnSync } from 'node:child_process';
import { defineConfig } from 'drizzle-kit';
import { readConnection } from './scripts/connection.ts';

/** `postgres://…` for a server, `pglite:PATH` for the embedded database in that folder. */
const url = process.env.DATABASE_URL ?? '';

const isConnecting = ['migrate', 'push', 'pull', 'introspect', 'studio'].includes(
  process.argv[2] ?? '',
);

export default defineConfig({
  dialect: 'postgresql',
  schema: ['./schema/index.ts', './views/index.ts'],
  out: './schema/migrations',
  // Not that of all other Drizzle apps in the database: what one of them has
  // migrated later would have ours skipped.
  migrations: { schema: 'drizzle', table: 'lead_conversions_migrations' },
  ...(url.startsWith('pglite:')
    ? { driver: 'pglite', dbCredentials: { url: url.slice('pglite:'.length) } }
    : { dbCredentials: isConnecting ? connect() : { url } }),
});

/**
 * What drizzle-kit is told, so that DATABASE_URL means to it what it means to the commands of
 * this package. It has drivers and a reading of URLs of its own, and neither a time limit nor
 * the choice to go on without TLS. So a connection is tried before.
 */
function connect() {
  const script = ['--import', 'tsx', 'scripts/reach.ts'];
  const { status, stdout } = spawnSync(process.execPath, script, {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  if (status !== 0) {
    process.exit(1);
  }
  const { address, port, database, user, password, applicationName, options, tls } =
    readConnection(url);
  process.env.PGAPPNAME = applicationName;
  process.env.PGOPTIONS = options ?? '';
  return {
    ...{ host: address, port, database, user, ...(password !== '' && { password }) },
    ssl: JSON.parse(String(stdout)) ? (tls?.options ?? false) : false,
  };
}
