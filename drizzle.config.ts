import { defineConfig } from 'drizzle-kit';

/** `postgres://…` for a server, `pglite:PATH` for the embedded database in that folder. */
const url = process.env.DATABASE_URL ?? '';

export default defineConfig({
  dialect: 'postgresql',
  schema: ['./schema/index.ts', './views/index.ts'],
  out: './schema/migrations',
  // Not that of all other Drizzle apps in the database: what one of them has
  // migrated later would have ours skipped.
  migrations: { schema: 'drizzle', table: 'lead_conversions_migrations' },
  ...(url.startsWith('pglite:')
    ? { driver: 'pglite', dbCredentials: { url: url.slice('pglite:'.length) } }
    : { dbCredentials: { url } }),
});
