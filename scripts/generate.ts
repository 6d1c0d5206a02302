import { randomUUID } from 'node:crypto';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { generateDrizzleJson, generateMigration } from 'drizzle-kit/api';
import { getTableName, is, sql } from 'drizzle-orm';
import { PgTable } from 'drizzle-orm/pg-core';
import type { PgliteDatabase } from 'drizzle-orm/pglite';
import { migrate } from 'drizzle-orm/pglite/migrator';
import { run } from './command.ts';
import { migrations, migrationsTable, openPglite } from './database.ts';
import { declarations, declaredRelations } from './generate/catalog.ts';
import { type Changes, completeBaseline, completeMigration, textOf } from './generate/migration.ts';
import { firstStatement } from './generate/statements.ts';

const usage = `npm run generate -- --name WHAT_CHANGED

Writes the migration from what the migrations make so far to what schema/ and
views/ declare. Needs no database.

  --name WHAT_CHANGED  the name of the migration, such as days_to_conversion
  --check              write nothing, and fail if there is something to write
  --baseline           until the first release: replace all migrations by the one
                       that makes what is declared in an empty database`;

const folder = 'schema/migrations';
const journalFile = join(folder, 'meta/_journal.json');
const baseline = '0000_lead_conversions';
const prefixOf = (idx: number) => String(idx).padStart(4, '0');
const sqlFile = (tag: string) => join(folder, `${tag}.sql`);
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
      baseline: { type: 'boolean' },
      help: { type: 'boolean', short: 'h' },
    },
  });
  if (values.help) {
    console.log(usage);
    return;
  }
  const journal: Journal = JSON.parse(readFileSync(journalFile, 'utf8'));
  if (values.baseline) {
    await writeBaseline(journal);
    return;
  }
  if (!values.check && !/^[a-z0-9_]+$/.test(values.name ?? '')) {
    throw new Error(
      'Name the migration after what changes, in lower case, digits and underscores: npm run generate -- --name WHAT_CHANGED',
    );
  }
  const last = journal.entries.at(-1);
  if (!last) {
    throw new Error(`There are no migrations in ${folder} to go on from.`);
  }
  refuseOtherOrder(journal);
  for (const { tag } of journal.entries) {
    refuseOtherBeginnings(tag);
  }
  const declared = declaredRelations();
  const previous: Snapshot = JSON.parse(readFileSync(snapshotFile(last.idx), 'utf8'));
  const current = generateDrizzleJson(declarations, previous.id);
  const changes = await changesBetween(previous, current);
  // Drizzle skips a migration that is not later than those before it.
  const when = Math.max(Date.now(), last.when + 1);
  const files = await inPglite(
    (db) => migrate(db, migrations),
    (db) => completeMigration(db, declared, changes, when),
  );
  if (files.length === 0) {
    console.log('Nothing to generate: the migrations make what schema/ and views/ declare.');
    return;
  }
  if (values.check) {
    throw new Error(
      `The migrations do not make what schema/ and views/ declare. Run "npm run generate -- --name WHAT_CHANGED", which writes:\n\n${files.map(textOf).join('\n')}`,
    );
  }

  const tablesFirst = { ...current, ...tablesOfBoth(previous, current), id: randomUUID() };
  const snapshots =
    files.length === 1 ? [current] : [tablesFirst, { ...current, prevId: tablesFirst.id }];
  files.forEach((migration, index) => {
    const idx = last.idx + 1 + index;
    const isOfTables = index < files.length - 1;
    const tag = `${prefixOf(idx)}_${values.name}${isOfTables ? '_tables' : ''}`;
    journal.entries.push({ ...last, idx, when: when + index, tag });
    write(migration, snapshots[index] as Snapshot, journal);
  });
});

/** What there is once the tables have what is new, the views are as before, and nothing is dropped yet. */
function tablesOfBoth(previous: Snapshot, current: Snapshot): Pick<Snapshot, 'tables' | 'views'> {
  type Tables = Record<string, { columns: object }>;
  const [old, all] = [previous.tables as Tables, current.tables as Tables];
  const tables = Object.entries(all).map(([name, table]) => [
    name,
    { ...table, columns: { ...old[name]?.columns, ...table.columns } },
  ]);
  return { tables: { ...old, ...Object.fromEntries(tables) }, views: previous.views };
}

/** Throws if Drizzle would skip a migration, such as one of two branches that were merged. */
function refuseOtherOrder({ entries }: Journal): void {
  entries.forEach((entry, index) => {
    const before = entries[index - 1];
    if (before && !(entry.idx > before.idx && entry.when > before.when)) {
      throw new Error(
        `In ${journalFile} the migration ${entry.tag} does not come after ${before.tag} by both its idx and its when, so a database that has ${before.tag} would never get it. Take the later one of the two out of the journal, delete its files, and generate it again.`,
      );
    }
  });
}

/** Writes the last migration of the journal, and the journal. */
function write(migration: string[], snapshot: Snapshot, journal: Journal): void {
  const { idx, tag } = journal.entries.at(-1) as Journal['entries'][number];
  writeFileSync(sqlFile(tag), textOf(migration));
  writeFileSync(snapshotFile(idx), JSON.stringify(snapshot, null, 2));
  writeFileSync(journalFile, JSON.stringify(journal, null, 2));
  console.log(
    `Wrote ${sqlFile(tag)}. Read it, try it, and commit it with its files in ${folder}/meta.`,
  );
}

/** Writes the one migration that makes all that is declared, in place of those there are. */
async function writeBaseline(journal: Journal): Promise<void> {
  const declared = declaredRelations();
  const nothing = generateDrizzleJson({});
  const current = generateDrizzleJson(declarations, nothing.prevId);
  const tables = Object.values(declarations).flatMap((it) =>
    is(it, PgTable) ? [getTableName(it)] : [],
  );
  const changes = await changesBetween(nothing, current);
  const migration = await inPglite(
    async (db) => {
      await db.execute(sql`create schema drizzle`);
      const records = sql`drizzle.${sql.identifier(migrationsTable)}`;
      await db.execute(sql`create table ${records} (id serial primary key)`);
    },
    (db) => completeBaseline(db, declared, changes, tables),
  );
  const [first, ...others] = journal.entries;
  if (first?.tag === baseline && others.length === 0) {
    const was: Snapshot = JSON.parse(readFileSync(snapshotFile(0), 'utf8'));
    const isSame = JSON.stringify({ ...current, id: was.id }) === JSON.stringify(was);
    if (isSame && readFileSync(sqlFile(baseline), 'utf8') === textOf(migration)) {
      console.log('Nothing to generate: the baseline makes what schema/ and views/ declare.');
      return;
    }
  }
  for (const { idx, tag } of journal.entries) {
    rmSync(sqlFile(tag));
    rmSync(snapshotFile(idx));
  }
  const { version } = current;
  const entry = { idx: 0, version, when: Date.now(), tag: baseline, breakpoints: true };
  write(migration, current, { ...journal, entries: [entry] });
}

/** Throws if in a migration, of the file with this name, a name may mean what others have created. */
function refuseOtherBeginnings(tag: string): void {
  const text = readFileSync(sqlFile(tag), 'utf8').replace(/^(?:--.*\n|\s)*/, '');
  const breakpoint = '--> statement-breakpoint';
  const [first = ''] = text.split(breakpoint);
  if (first.trim() !== firstStatement) {
    throw new Error(
      `${sqlFile(tag)} does not begin with "${firstStatement}${breakpoint}", so a name in it may mean what somebody else has created. Begin it with that line, write each relation with its schema, and put ${breakpoint} between all statements.`,
    );
  }
}

/** What drizzle-kit says it takes to get from one of its snapshots to the next. */
async function changesBetween(previous: Snapshot, current: Snapshot): Promise<Changes> {
  // It asks whether something was renamed. Where nobody can answer, it comes to a stop.
  if (!process.stdin.isTTY) {
    process.stdin.destroy();
  }
  const explainStop = () =>
    console.error('drizzle-kit has a question. Run "npm run generate" in a terminal.');
  process.once('beforeExit', explainStop);
  const statements = await generateMigration(previous, current);
  process.off('beforeExit', explainStop);
  return { statements, creations: await generateMigration({ ...current, views: {} }, current) };
}

/** Does work on a new embedded database, once it has been prepared. */
async function inPglite<Result>(
  prepare: (db: PgliteDatabase) => Promise<void>,
  work: (db: PgliteDatabase) => Promise<Result>,
): Promise<Result> {
  const database = await openPglite();
  try {
    await prepare(database.db);
    return await work(database.db);
  } finally {
    await database.close();
  }
}
