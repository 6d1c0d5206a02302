import { fileURLToPath } from 'node:url';

/**
 * The options with which Drizzle's migrator brings a database to the schema of this version, as in
 * `await migrate(db, migrations)`. It records in the table, in the schema `drizzle`, which
 * migrations it has applied. The table is separate from those of other apps in the same database.
 * https://orm.drizzle.team/docs/migrations
 */
export const migrations = {
  migrationsFolder: fileURLToPath(new URL('./migrations', import.meta.url)),
  migrationsTable: 'lead_conversions_migrations',
};
