import { fileURLToPath } from 'node:url';

/**
 * What Drizzle's migrator has to know to bring a database to the schema of this version:
 * `await migrate(db, migrations)`. The table is where it records what it has applied, in
 * the schema `drizzle`, apart from the migrations of other apps in the same database.
 * https://orm.drizzle.team/docs/migrations
 */
export const migrations = {
  migrationsFolder: fileURLToPath(new URL('./migrations', import.meta.url)),
  migrationsTable: 'lead_conversions_migrations',
};
