import { defineConfig } from 'drizzle-kit';

/** `postgres://…` for a server, `pglite:PATH` for the embedded database in that folder. */
const url = process.env.DATABASE_URL ?? '';

export default defineConfig({
  dialect: 'postgresql',
  schema: ['./schema/index.ts', './views/index.ts'],
  out: './schema/migrations',
  ...(url.startsWith('pglite:')
    ? { driver: 'pglite', dbCredentials: { url: url.slice('pglite:'.length) } }
    : { dbCredentials: { url } }),
});
