import { readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { generateDrizzleJson, generateMigration } from 'drizzle-kit/api';
import { migrate } from 'drizzle-orm/pglite/migrator';
import { run } from './command.ts';
import { openPglite } from './database.ts';
import { declarations } from './generate/catalog.ts';
import { completeMigration, textOf } from './generate/migration.ts';

const usage = `npm run generate -- --name WHAT_CHANGED

Writes the migration from what the migrations make so far to what schema/ and
views/ declare. Needs no database.

  --name WHAT_CHANGED  the name of the migration, such as days_to_conversion
  --check              write nothing, and fail if there is something to write`;

const folder = 'schema/migrations';
const journalFile = join(folder, 'meta/_journal.json');
const prefixOf = (idx: number) => String(idx).padStart(4, '0');
const snapshotFile = (idx: number) => join(folder, 'meta', `${prefixOf(idx)}_snapshot.json`);

type Snapshot = ReturnType<typeof generateDrizzleJson>;

/** drizzle-kit's list of the migrations. */
interface Journal {
  entries: { idx: number; version: string; when: number; tag: string; breakpoints: boolean }[];
}

await run(async () => {
  const { values } = parseArgs({
    options: {
      name: { type: 'string' },
      check: { type: 'boolean' },
      help: { type: 'boolean', short: 'h' },
    },
  });
  if (values.help) {
    console.log(usage);
    return;
  }
  if (!values.check && !/^[a-z0-9_]+$/.test(values.name ?? '')) {
    throw new Error(
      'Name the migration after what changes, in lower case, digits and underscores: npm run generate -- --name WHAT_CHANGED',
    );
  }
  const journal: Journal = JSON.parse(readFileSync(journalFile, 'utf8'));
  const last = journal.entries.at(-1);
  if (!last) {
    throw new Error(`There are no migrations in ${folder} to go on from.`);
  }
  const previous = JSON.parse(readFileSync(snapshotFile(last.idx), 'utf8'));
  const current = generateDrizzleJson(declarations, previous.id);
  const migration = await migrationBetween(previous, current);
  if (migration.length === 0) {
    console.log('Nothing to generate: the migrations make what schema/ and views/ declare.');
    return;
  }
  if (values.check) {
    throw new Error(
      `The migrations do not make what schema/ and views/ declare. Run "npm run generate -- --name WHAT_CHANGED", which writes:\n\n${textOf(migration)}`,
    );
  }

  const idx = last.idx + 1;
  const tag = `${prefixOf(idx)}_${values.name}`;
  // Drizzle skips a migration that is not later than those before it.
  const when = Math.max(Date.now(), last.when + 1);
  journal.entries.push({ ...last, idx, when, tag });
  const file = join(folder, `${tag}.sql`);
  writeFileSync(file, textOf(migration));
  writeFileSync(snapshotFile(idx), JSON.stringify(current, null, 2));
  writeFileSync(journalFile, JSON.stringify(journal, null, 2));
  console.log(`Wrote ${file}. Read it, try it, and commit it with its files in ${folder}/meta.`);
});

/** What takes a database from one of drizzle-kit's snapshots to the next. */
async function migrationBetween(previous: Snapshot, current: Snapshot): Promise<string[]> {
  // It asks whether something was renamed. Where nobody can answer, it comes to a stop.
  if (!process.stdin.isTTY) {
    process.stdin.destroy();
  }
  const explainStop = () =>
    console.error('drizzle-kit has a question. Run "npm run generate" in a terminal.');
  process.once('beforeExit', explainStop);
  const statements = await generateMigration(previous, current);
  process.off('beforeExit', explainStop);
  const creations = await generateMigration({ ...current, views: {} }, current);
  const database = await openPglite();
  try {
    await migrate(database.db, { migrationsFolder: folder });
    return await completeMigration(database.db, { statements, creations });
  } finally {
    await database.close();
  }
}
