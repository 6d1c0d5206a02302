import { randomUUID } from 'node:crypto';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { generateDrizzleJson, generateMigration } from 'drizzle-kit/api';
import { getTableName, is } from 'drizzle-orm';
import { PgTable } from 'drizzle-orm/pg-core';
import { migrations } from '../../schema/migrations.ts';
import { refreshDefaults } from '../../views/refresh.ts';
import type { Session } from '../../views/session.ts';
import { createRecords, migrateDatabase } from '../migrations.ts';
import { declarations, declaredRelations } from '../relations.ts';
import {
  type Changes,
  completeBaseline,
  completeMigration,
  rolledBack,
  textOf,
} from './migration.ts';
import { firstStatement } from './statements.ts';

/** The path in messages, relative to the folder in which the commands run. */
const folder = 'schema/migrations';
const journalFile = 'meta/_journal.json';
const baseline = '0000_lead_conversions';
const prefixOf = (idx: number) => String(idx).padStart(4, '0');
const sqlFile = (tag: string) => `${tag}.sql`;
const snapshotFile = (idx: number) => `meta/${prefixOf(idx)}_snapshot.json`;

type Snapshot = ReturnType<typeof generateDrizzleJson>;

/** drizzle-kit's list of the migrations. */
interface Journal {
  entries: { idx: number; version: string; when: number; tag: string; breakpoints: boolean }[];
}

const read = (file: string) => readFileSync(join(migrations.migrationsFolder, file), 'utf8');
const save = (file: string, text: string) =>
  writeFileSync(join(migrations.migrationsFolder, file), text);

const settings = { lockTimeout: '0', maxLoss: refreshDefaults.maxLoss };

/**
 * Writes the migration that leads from the result of the earlier migrations to the declarations.
 * Returns a message for people. Tries the migration in the given embedded database, where nothing
 * remains of it.
 *
 * Throws an Error that says why there can be no such migration, or, with `check`, that there is
 * one.
 */
export async function generate(
  db: Session,
  { name, check = false }: { name?: string; check?: boolean },
): Promise<string> {
  if (!check && !/^[a-z0-9_]+$/.test(name ?? '')) {
    throw new Error(
      'Name the migration after the change, with lower-case letters, digits and underscores: npm run generate -- --name WHAT_CHANGED',
    );
  }
  const journal: Journal = JSON.parse(read(journalFile));
  const last = journal.entries.at(-1);
  if (!last) {
    throw new Error(
      `There are no migrations in ${folder}. Write the first one with "npm run generate -- --baseline".`,
    );
  }
  refuseOtherOrder(journal);
  for (const { tag } of journal.entries) {
    refuseOtherBeginnings(tag);
  }
  const declared = declaredRelations();
  const previous: Snapshot = JSON.parse(read(snapshotFile(last.idx)));
  const current = generateDrizzleJson(declarations, previous.id);
  const changes = await changesBetween(previous, current);
  // Drizzle skips a migration that is not later than the migrations before it.
  const when = Math.max(Date.now(), last.when + 1);
  const files: string[][] = [];
  await rolledBack(db, async (tx) => {
    await migrateDatabase(tx, settings);
    files.push(...(await completeMigration(tx, declared, changes, when)));
  });
  if (files.length === 0) {
    return 'Nothing to generate: the migrations match schema/ and views/.';
  }
  if (check) {
    throw new Error(
      `The migrations do not match schema/ and views/. Run "npm run generate -- --name WHAT_CHANGED", which writes:\n\n${files.map(textOf).join('\n')}`,
    );
  }

  const tablesFirst = { ...current, ...tablesOfBoth(previous, current), id: randomUUID() };
  const snapshots =
    files.length === 1 ? [current] : [tablesFirst, { ...current, prevId: tablesFirst.id }];
  const written = files.map((migration, index) => {
    const idx = last.idx + 1 + index;
    const isOfTables = index < files.length - 1;
    const tag = `${prefixOf(idx)}_${name}${isOfTables ? '_tables' : ''}`;
    journal.entries.push({ ...last, idx, when: when + index, tag });
    return write(migration, snapshots[index] as Snapshot, journal);
  });
  return written.join('\n');
}

/**
 * Returns the snapshot between the two files: the tables have their new parts, the views are
 * unchanged, and nothing has been dropped yet.
 */
function tablesOfBoth(previous: Snapshot, current: Snapshot): Pick<Snapshot, 'tables' | 'views'> {
  type Tables = Record<string, { columns: object }>;
  const [old, all] = [previous.tables as Tables, current.tables as Tables];
  const tables = Object.entries(all).map(([name, table]) => [
    name,
    { ...table, columns: { ...old[name]?.columns, ...table.columns } },
  ]);
  return { tables: { ...old, ...Object.fromEntries(tables) }, views: previous.views };
}

/** Throws an Error if Drizzle would skip a migration, for example after a merge of two branches. */
function refuseOtherOrder({ entries }: Journal): void {
  entries.forEach((entry, index) => {
    const before = entries[index - 1];
    if (before && !(entry.idx > before.idx && entry.when > before.when)) {
      throw new Error(
        `In ${join(folder, journalFile)} the migration ${entry.tag} does not come after ${before.tag} by both its idx and its when, so a database that has ${before.tag} would never get it. Remove the later of the two from the journal, delete its files, and generate it again.`,
      );
    }
  });
}

/** Writes the last migration of the journal, and the journal. Returns a message for people. */
function write(migration: string[], snapshot: Snapshot, journal: Journal): string {
  const { idx, tag } = journal.entries.at(-1) as Journal['entries'][number];
  save(sqlFile(tag), textOf(migration));
  save(snapshotFile(idx), JSON.stringify(snapshot, null, 2));
  save(journalFile, JSON.stringify(journal, null, 2));
  return `Wrote ${join(folder, sqlFile(tag))}. Read it, try it, and commit it with its files in ${folder}/meta.`;
}

/**
 * Writes the one migration that creates everything that is declared, in place of all existing
 * migrations. Returns a message for people. Tries the migration in the given database, which must
 * be empty.
 */
export async function generateBaseline(db: Session): Promise<string> {
  const journal: Journal = JSON.parse(read(journalFile));
  const declared = declaredRelations();
  const nothing = generateDrizzleJson({});
  const current = generateDrizzleJson(declarations, nothing.prevId);
  const tables = Object.values(declarations).flatMap((it) =>
    is(it, PgTable) ? [getTableName(it)] : [],
  );
  const changes = await changesBetween(nothing, current);
  const migration: string[] = [];
  await rolledBack(db, async (tx) => {
    await createRecords(tx, settings);
    migration.push(...(await completeBaseline(tx, declared, changes, tables)));
  });
  const [first, ...others] = journal.entries;
  if (first?.tag === baseline && others.length === 0) {
    const was: Snapshot = JSON.parse(read(snapshotFile(0)));
    const isSame = JSON.stringify({ ...current, id: was.id }) === JSON.stringify(was);
    if (isSame && read(sqlFile(baseline)) === textOf(migration)) {
      return 'Nothing to generate: the baseline matches schema/ and views/.';
    }
  }
  for (const { idx, tag } of journal.entries) {
    rmSync(join(migrations.migrationsFolder, sqlFile(tag)));
    rmSync(join(migrations.migrationsFolder, snapshotFile(idx)));
  }
  const { version } = current;
  const entry = { idx: 0, version, when: Date.now(), tag: baseline, breakpoints: true };
  return write(migration, current, { ...journal, entries: [entry] });
}

/**
 * Throws an Error if the migration in this file does not begin by setting the search_path: a name
 * in it could then mean what others have created.
 */
function refuseOtherBeginnings(tag: string): void {
  const text = read(sqlFile(tag)).replace(/^(?:--.*\n|\s)*/, '');
  const breakpoint = '--> statement-breakpoint';
  const [first = ''] = text.split(breakpoint);
  if (first.trim() !== firstStatement) {
    throw new Error(
      `${join(folder, sqlFile(tag))} does not begin with "${firstStatement}${breakpoint}", so a name in it may mean an object that somebody else has created. Begin the file with that line, qualify each relation with its schema, and put ${breakpoint} between all statements.`,
    );
  }
}

/** Returns what drizzle-kit would do to get from one of its snapshots to the next. */
async function changesBetween(previous: Snapshot, current: Snapshot): Promise<Changes> {
  const statements = await generateMigration(previous, current);
  return {
    statements,
    creations: await generateMigration({ ...current, views: {} }, current),
    tableIndexes: (await generateMigration(generateDrizzleJson({}), current)).filter((statement) =>
      /^CREATE (UNIQUE )?INDEX/.test(statement),
    ),
  };
}
