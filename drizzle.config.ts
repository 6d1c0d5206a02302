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
  // A table of our own. In the table that all other Drizzle apps share, a later migration of theirs
  // would make Drizzle skip ours.
  migrations: { schema: 'drizzle', table: 'lead_conversions_migrations' },
  ...(url.startsWith('pglite:')
    ? { driver: 'pglite', dbCredentials: { url: url.slice('pglite:'.length) } }
    : { dbCredentials: isConnecting ? connect() : { url } }),
});

/**
 * Returns the settings for drizzle-kit, so DATABASE_URL means the same to it as to the commands of
 * this package. drizzle-kit has its own drivers and reads URLs in its own way. It has no time limit
 * and cannot fall back to a connection without TLS, so a connection is tried first.
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
