import { isDeepStrictEqual } from 'node:util';
import { DrizzleQueryError, getViewName, sql } from 'drizzle-orm';
import {
  getMaterializedViewConfig,
  type PgDatabase,
  type PgQueryResultHKT,
} from 'drizzle-orm/pg-core';
import { readerRole } from '../../schema/properties.ts';
import { catalogView } from '../../views/catalog.ts';
import { fctClientConversionEvents } from '../../views/fct_client_conversion_events.ts';
import { viewsInOrder } from '../../views/refresh.ts';
import { explain } from '../failure.ts';
import {
  type Comment,
  columnOrder,
  type Grant,
  type Relation,
  readRelations,
} from '../relations.ts';
import {
  dependents,
  dropNotes,
  dropOnceUnread,
  putBack,
  putBackLast,
  refuseDependents,
  type Touched,
  writeDown,
} from './kept.ts';
import {
  bounds,
  countBefore,
  createReaderRole,
  firstStatement,
  giveToOwner,
  literal,
  lockRefreshes,
  lockTablesOncePossible,
  pinTimeZone,
  records,
  refuseLoss,
  refuseOtherDatabases,
  refuseUselessGrants,
  revokeAll,
  revokeNote,
  scratch,
  type TableLock,
  takeTurn,
} from './statements.ts';

/** What drizzle-kit reports about a change. */
export interface Changes {
  /** The statements of its migration. */
  statements: string[];
  /** The statements that would create each view. */
  creations: string[];
  /** The statements that would create the indexes of all tables. */
  tableIndexes: string[];
}

type Session = PgDatabase<PgQueryResultHKT>;

/** What a migration consists of, as input for its phases. */
interface Plan {
  declared: Relation[];
  creations: string[];
  /** What the earlier migrations have made. */
  made: Relation[];
  /** Pairs of tables with a foreign key between them. */
  links: string[][];
  /** Statements that create each declared index of a table. */
  tableIndexes: string[];
  /** Views that change, according to drizzle-kit. */
  changed: string[];
  /** Existing views that change, or that read what changes. Each comes before what it reads. */
  viewsToDrop: string[];
  /** Views to create. Each comes after what it reads. */
  viewsToCreate: string[];
  /** Changes of tables, which come first. */
  changes: string[];
  /** Statements that drop what an old view may still read. They come last. */
  drops: string[];
  /** Whether Postgres refuses the changes while the views that read the tables exist. */
  isUnderViews: boolean;
}

/** Tries a statement, and adds it to a migration. */
type Add = (statement: string, note?: string) => Promise<void>;

/**
 * Completes the migration that drizzle-kit proposes: adds the declared comments, grants and indexes
 * of views, and replaces every changed view with a new one that was filled beside it. Returns the
 * statements of each file, none if nothing changes. If tables and views change, the tables have a
 * file of their own, and so a transaction of their own: its locks are not held while the views are
 * filled.
 *
 * Each statement is tried immediately in the given database, which has all earlier migrations.
 * Nothing remains in it. Throws an Error with the statement if one fails, or an Error that names
 * what would not match its declaration. The first file is recorded under `createdAt`, the second
 * under the next number.
 */
export async function completeMigration(
  database: Session,
  declared: Relation[],
  changes: Changes,
  createdAt: number,
): Promise<string[][]> {
  const files: string[][] = [];
  const file = async (db: Session, heading: (plan: Plan) => string, phase: Phase, plan: Plan) => {
    const { add, migration } = writerOf(db);
    for (const statement of [firstStatement, ...bounds, pinTimeZone]) {
      await add(statement);
    }
    await add(takeTurn(createdAt + files.length));
    await add(
      lockRefreshes,
      'No refresh may run at the same time. This waits up to five minutes for a running refresh, and then fails and names its session.',
    );
    const begun = migration.length;
    await phase(db, plan, add);
    if (migration.length > begun) {
      files.push(beginningWith(heading(plan), migration));
    }
  };
  await rolledBack(database, async (db) => {
    await db.execute(firstStatement);
    const plan = await planOf(db, declared, changes);
    const touchesViews = plan.viewsToDrop.length > 0 || plan.viewsToCreate.length > 0;
    const locks = locksOf(plan.changes, plan);
    if (locks.length > 0 && touchesViews && !plan.isUnderViews) {
      await file(db, headingOfTables, changeTables, plan);
      await file(db, headingOf, replaceViews, { ...plan, changes: [] });
    } else {
      await file(db, headingOf, touchesViews ? replaceViews : changeTables, plan);
    }
    refuseDifferences(declared, await readRelations(db));
    await refuseUndeclaredReads(db);
  });
  return files;
}

/** A part of a migration, which may be a file of its own. */
type Phase = (db: Session, plan: Plan, add: Add) => Promise<void>;

async function planOf(
  db: Session,
  declared: Relation[],
  { statements, creations, tableIndexes }: Changes,
): Promise<Plan> {
  const ofTables = statements.filter((it) => !isOfView(it) && !isDrop(it));
  const underViews = await tablesUnderViews(db, ofTables);
  const changed = statements.filter(isOfView).map(viewOf);
  const reading = await viewsReading(db, [...changed, ...underViews]);
  const viewsToDrop = reading.filter(
    (view) => changed.includes(view) || declared.some(({ name }) => name === view),
  );
  return {
    declared,
    creations,
    made: await readRelations(db),
    links: await foreignKeys(db),
    tableIndexes,
    changed,
    viewsToDrop,
    viewsToCreate: viewNames().filter(
      (name) => changed.includes(name) || viewsToDrop.includes(name),
    ),
    changes: ofTables,
    drops: statements.filter((it) => !isOfView(it) && isDrop(it)),
    isUnderViews: underViews.length > 0 && viewsToDrop.length > 0,
  };
}

/** Changes tables, and the declared properties of the tables and views that stay. */
async function changeTables(db: Session, plan: Plan, add: Add): Promise<void> {
  const remaining = remainingIn(plan);
  const drops = touches(plan) ? [] : plan.drops;
  if (!plan.isUnderViews) {
    // An index of a view takes long to create, but blocks no reader.
    const views = remaining.filter(({ kind }) => kind !== 'TABLE');
    await addIndexesAndComments(db, views, 'public', add);
    // All locks that block others are taken at once. While this waits for them, it must hold none
    // of them.
    await lockChanging(
      [...plan.changes, ...drops],
      undeclaredIndexes(remaining, plan.made),
      plan,
      add,
    );
  }
  await refuseWhatOthersLose(db, plan.changes, add);
  const sequencesBefore = await sequences(db);
  for (const statement of plan.changes) {
    await add(statement);
  }
  // If a column was dropped to be derived anew, its indexes are gone, too.
  const there = await readRelations(db);
  const lost = plan.tableIndexes.filter((statement) => {
    const name = /INDEX "([^"]+)"/.exec(statement)?.[1];
    return !there.some(({ indexes }) => indexes.some((index) => index.name === name));
  });
  for (const statement of lost) {
    await add(statement);
  }
  const newSequences = (await sequences(db)).filter((it) => !sequencesBefore.includes(it));
  const newTables = plan.changes.flatMap((it) => /^CREATE TABLE (\S+)/.exec(it)?.[1] ?? []);
  await addIndexesAndComments(db, remaining, 'public', add);
  if (newTables.length + newSequences.length > 0) {
    await add(giveToOwner([...newTables, ...newSequences]), ownerNote);
    await add(revokeAll([...newTables, ...newSequences]), revokeNote);
  }
  await addGrants(db, remaining, 'public', add);
  await drop(db, drops, add);
}

/** Returns the declared tables that stay, and the declared views if no view is replaced. */
const remainingIn = (plan: Plan): Relation[] =>
  plan.declared.filter(
    ({ name, kind }) => !plan.viewsToCreate.includes(name) && (kind === 'TABLE' || !touches(plan)),
  );

const touches = ({ viewsToDrop, viewsToCreate }: Plan) =>
  viewsToDrop.length > 0 || viewsToCreate.length > 0;

/** Creates new views beside the old ones, fills them, and exchanges them. */
async function replaceViews(db: Session, plan: Plan, add: Add): Promise<void> {
  const { viewsToDrop, viewsToCreate, declared, made, creations } = plan;
  const replaced = viewsToCreate.filter((name) => viewsToDrop.includes(name));
  const place = replaced.length > 0 ? scratch : 'public';
  const remaining = declared.filter(({ name }) => !viewsToCreate.includes(name));
  const indexesToDrop = undeclaredIndexes(remaining, made);
  if (plan.changes.length > 0 && !plan.isUnderViews) {
    await changeTables(db, plan, add);
  }
  if (replaced.length > 0) {
    await add(
      `CREATE SCHEMA "${scratch}";`,
      'The new views are first created in a schema of their own. REFRESH fills them, because the rows that it writes are visible even to transactions that began earlier.',
    );
  }
  if (plan.isUnderViews) {
    await writeDownOld(plan, replaced, add);
    const locks = locksOf([...plan.changes, ...plan.drops], plan);
    await add(dropOnceUnread(indexesToDrop, viewsToDrop, replaced, locks), exchangeNote);
    await changeTables(db, plan, add);
  }
  await addIndexesAndComments(db, remaining, 'public', add);
  if (viewsToCreate.length > 0) {
    await add(takeAllRows, takeAllRowsNote);
  }
  for (const name of viewsToCreate) {
    await add(creationOf(name, creations, viewsToCreate, place));
    await add(`REFRESH MATERIALIZED VIEW "${place}"."${name}";`);
    await addIndexesAndComments(db, relationsOf([name], declared), place, add);
  }
  if (viewsToCreate.length > 0) {
    await add(revokeAll(viewsToCreate.map((name) => `"${place}"."${name}"`)), revokeNote);
  }
  await addGrants(db, remaining, 'public', add);
  await addGrants(db, relationsOf(viewsToCreate, declared), place, add);
  if (!plan.isUnderViews) {
    await writeDownOld(plan, replaced, add);
  }
  if (replaced.length > 0) {
    await add(putBack, 'Gives the new views what others have put on the old ones.');
  }
  for (const name of viewsToCreate) {
    await add(`ANALYZE "${place}"."${name}";`);
  }
  if (replaced.includes(firstView)) {
    await add(refuseLoss, 'Stops if the input seems to be half loaded.');
  }
  const locks = locksOf(plan.drops, plan);
  if (!plan.isUnderViews && indexesToDrop.length + viewsToDrop.length + locks.length > 0) {
    await add(dropOnceUnread(indexesToDrop, viewsToDrop, replaced, locks), exchangeNote);
  }
  if (replaced.length > 0) {
    for (const name of viewsToCreate) {
      await add(`ALTER MATERIALIZED VIEW "${scratch}"."${name}" SET SCHEMA "public";`);
    }
    await add(putBackLast);
    for (const statement of dropNotes) {
      await add(statement);
    }
    await add(`DROP SCHEMA "${scratch}";`);
  }
  const added = viewsToCreate.filter((name) => !viewsToDrop.includes(name));
  if (added.length > 0) {
    await add(giveToOwner(added.map((name) => `"public"."${name}"`)), ownerNote);
  }
  await drop(db, plan.drops, add);
}

const ownerNote = 'Gives new tables and views the same owner as the others, whoever migrates.';

const exchangeNote =
  'Others wait only here. This waits 0.3 seconds for sessions that use these views and tables, then lets all sessions continue, and tries again a second later. If a view of somebody else reads what is dropped, the migration stops and names that view.';

/** Writes down what is on the views that are about to be replaced, for the new ones. */
async function writeDownOld({ made, declared }: Plan, replaced: string[], add: Add): Promise<void> {
  if (replaced.length > 0) {
    const [first = '', ...others] = writeDown(replaced, made, declared);
    await add(first, 'Notes the owner of the old views, and what others have put on them.');
    for (const statement of others) {
      await add(statement);
    }
  }
  if (replaced.includes(firstView)) {
    const columns = named(firstView, made)?.columns ?? [];
    await add(countBefore((name) => columns.some((column) => column.startsWith(`${name} `))));
  }
}

async function drop(db: Session, drops: string[], add: Add): Promise<void> {
  await refuseWhatOthersLose(db, drops, add);
  for (const statement of drops) {
    await add(statement.replace(/ CASCADE;$/, ';'));
  }
}

/**
 * Adds a statement that stops the migration if it would remove or break what others have put on a
 * table. Whatever depends on the tables in the embedded database is ours.
 */
async function refuseWhatOthersLose(db: Session, statements: string[], add: Add): Promise<void> {
  const touched = statements.flatMap((statement) => touchedBy(statement, statements));
  if (touched.length > 0) {
    const ours = (await db
      .select({ object: sql<string>`object` })
      .from(sql.raw(`(${dependents(touched)}) as dependents`))) as { object: string }[];
    await add(
      refuseDependents(touched, ours.map(({ object }) => object).toSorted()),
      'Stops if the change would drop objects that others have created on a table.',
    );
  }
}

/** Returns the table or column that a statement drops, or whose type it changes. */
function touchedBy(statement: string, all: string[]): Touched[] {
  const [, gone] = /^DROP TABLE "public"\."([^"]+)"/.exec(statement) ?? [];
  if (gone) {
    return [{ table: gone, column: null, how: 'DROP' }];
  }
  const action = /^ALTER TABLE "public"\."([^"]+)" (DROP|ALTER) COLUMN "([^"]+)"( SET DATA TYPE)?/i;
  const [, table, verb = '', column = '', isRetyped] = action.exec(statement) ?? [];
  if (!table || (verb.toUpperCase() === 'ALTER' && !isRetyped)) {
    return [];
  }
  const added = `ALTER TABLE "public"."${table}" ADD COLUMN "${column}"`;
  const isDerived = all.some((other) => other.includes(added));
  return [{ table, column, how: isRetyped ? 'RETYPE' : isDerived ? 'DERIVE' : 'DROP' }];
}

/** Locks the tables that statements change, and drops indexes, before the first change. */
async function lockChanging(
  statements: string[],
  indexesToDrop: string[],
  plan: Plan,
  add: Add,
): Promise<void> {
  const locks = locksOf(statements, plan);
  if (indexesToDrop.length > 0) {
    await add(dropOnceUnread(indexesToDrop, [], [], locks), exchangeNote);
  } else if (locks.length > 0) {
    await add(
      lockTablesOncePossible(locks),
      'This waits 0.3 seconds for sessions that use the tables, then lets all sessions continue, and tries again a second later.',
    );
  }
}

/**
 * Returns the locks that statements need on existing tables, one for each table. A statement that
 * may affect a foreign key locks the tables on both sides.
 */
function locksOf(statements: string[], { made, links }: Pick<Plan, 'made' | 'links'>): TableLock[] {
  const needed = statements.flatMap((statement): TableLock[] => {
    const table = tableOf(statement) ?? tableOfIndex(statement, made);
    const mode = /^CREATE (UNIQUE )?INDEX/.test(statement) ? 'SHARE' : 'ACCESS EXCLUSIVE';
    const isDropped = /^DROP TABLE| DROP (CONSTRAINT|COLUMN) | SET DATA TYPE /i.test(statement);
    const linked = links.flatMap((link) =>
      isDropped && table && link.includes(table) ? link.filter((other) => other !== table) : [],
    );
    const references = [...statement.matchAll(/ REFERENCES "public"\."([^"]+)"/g)];
    return [
      ...(table ? [{ table, mode } as const] : []),
      ...linked.map((other) => ({ table: other, mode: 'ACCESS EXCLUSIVE' }) as const),
      ...references.map(
        ([, other = '']) => ({ table: other, mode: 'SHARE ROW EXCLUSIVE' }) as const,
      ),
    ];
  });
  const modes = ['ACCESS EXCLUSIVE', 'SHARE ROW EXCLUSIVE', 'SHARE'] as const;
  return made.flatMap(({ name: table }) => {
    const mode = modes.find((mode) =>
      needed.some((lock) => lock.table === table && lock.mode === mode),
    );
    return mode ? [{ table, mode }] : [];
  });
}

/** Returns the pairs of tables with a foreign key between them. */
async function foreignKeys(db: Session): Promise<string[][]> {
  const rows = await db
    .select({
      table: sql<string>`(select relname from pg_class where oid = conrelid)`,
      other: sql<string>`(select relname from pg_class where oid = confrelid)`,
    })
    .from(sql`pg_constraint`)
    .where(sql`contype = 'f'`);
  return rows.map(({ table, other }) => [table, other]);
}

/**
 * Returns the tables that Postgres refuses to change because a view reads what changes, such as the
 * type of a column.
 */
async function tablesUnderViews(db: Session, statements: string[]): Promise<string[]> {
  const tables: string[] = [];
  await rolledBack(db, async (trial) => {
    for (const statement of statements) {
      const table = tableOf(statement) ?? '';
      if (tables.includes(table)) {
        continue; // it may depend on the statement that was refused
      }
      await trial
        .transaction(async (savepoint) => {
          await savepoint.execute(sql.raw(statement));
        })
        .catch((error) => {
          const { code } = (error instanceof DrizzleQueryError ? error.cause : error) as {
            code?: string;
          };
          // DEPENDENT_OBJECTS_STILL_EXIST, FEATURE_NOT_SUPPORTED
          if (code === '2BP01' || code === '0A000') {
            tables.push(table);
          }
        });
    }
  });
  return tables;
}

/** Does work in a transaction, which is rolled back afterwards. */
export async function rolledBack(db: Session, work: (tx: Session) => Promise<void>): Promise<void> {
  const done = new Error('done');
  await db
    .transaction(async (tx) => {
      await work(tx);
      throw done;
    })
    .catch((error) => {
      if (error !== done) {
        throw error;
      }
    });
}

/**
 * Makes the one migration of an empty database, table by table and view by view, each with its
 * declared properties. Tries every statement immediately in the given database, in which the table
 * of drizzle-kit's records exists. Throws the same errors as completeMigration.
 */
export async function completeBaseline(
  database: Session,
  declared: Relation[],
  { statements, creations }: Changes,
  tables: string[],
): Promise<string[]> {
  const noteOf = (name: string) => named(name, declared)?.comments[0]?.text ?? '';
  const written: string[] = [];
  await rolledBack(database, async (db) => {
    const { add, migration } = writerOf(db);
    for (const statement of [firstStatement, ...bounds, refuseOtherDatabases]) {
      await add(statement);
    }
    for (const statement of statements.filter((it) => !isOfView(it) && !tableOf(it))) {
      await add(statement);
    }
    for (const table of tables) {
      const ofTable = statements.filter((statement) => tableOf(statement) === table);
      for (const statement of ofTable) {
        await add(
          // In a CHECK, column names need no table name.
          statement.replaceAll(`"public"."${table}"."`, '"'),
          statement === ofTable[0] ? noteOf(table) : undefined,
        );
      }
      await addIndexesAndComments(db, relationsOf([table], declared), 'public', add);
    }
    const views = viewNames();
    await add(takeAllRows, takeAllRowsNote);
    for (const view of views) {
      await add(creationOf(view, creations, views, 'public'), noteOf(view));
      await add(`REFRESH MATERIALIZED VIEW "public"."${view}";`);
      await addIndexesAndComments(db, relationsOf([view], declared), 'public', add);
      await add(`ANALYZE "public"."${view}";`);
    }
    await add(
      createReaderRole,
      'Roles belong to the whole server, so the migration of another database may have created this one, or may be creating it now.',
    );
    const names = [...tables, ...views];
    await add(
      revokeAll([...names.map((name) => `"public"."${name}"`), records], 'drizzle'),
      revokeNote,
    );
    await add(`GRANT USAGE ON SCHEMA "public" TO "${readerRole}";`);
    await add(refuseUselessGrants);
    await addGrants(db, relationsOf(names, declared), 'public', add);
    refuseDifferences(declared, await readRelations(db));
    await refuseUndeclaredReads(db);
    written.push(
      ...beginningWith(
        'Creates everything that lead-conversions keeps in a database: the input tables, the history of loads and refreshes, the two views, and the role that reads them. Written by "npm run generate -- --baseline" from the declarations in schema/ and views/.',
        migration,
      ),
    );
  });
  return written;
}

const takeAllRows = 'SET LOCAL row_security TO off;';

const takeAllRowsNote =
  'With this setting, REFRESH fails if row-level security hides rows from the owner of a view, instead of filling the view with the other rows.';

const firstView = getViewName(fctClientConversionEvents);

const viewNames = () => viewsInOrder.map((view) => getMaterializedViewConfig(view).name);

/** Puts a description before a migration. */
const beginningWith = (heading: string, [first, ...others]: string[]) => [
  `${comment(heading)}\n--\n${comment('Every name in this file is in pg_catalog or is qualified with its schema. So no name can mean an object that others have created under the same name in another schema.')}\n${first}`,
  ...others,
];

/** Returns a migration, and the function that tries statements and adds them to it. */
function writerOf(db: Session): { add: Add; migration: string[] } {
  const migration: string[] = [];
  const add: Add = async (statement, note) => {
    await db.execute(sql.raw(statement)).catch((error) => {
      throw new Error(
        `A statement of the migration would fail: ${explain(error)}\n${placeOf(error, statement)}`,
      );
    });
    const text = statement.trimEnd();
    migration.push(note ? `${comment(note)}\n${text}` : text);
  };
  return { add, migration };
}

/** Adds the statements for the declared indexes and comments of relations. */
const addIndexesAndComments = addingTo(indexAndCommentStatements);

/** Adds the statements for the declared grants on relations. */
const addGrants = addingTo(grantStatements);

function addingTo(what: typeof indexAndCommentStatements) {
  return async (db: Session, relations: Relation[], inSchema: string, add: Add): Promise<void> => {
    for (const relation of relations) {
      const actual = named(relation.name, await readRelations(db, inSchema));
      for (const statement of what(relation, actual, inSchema)) {
        await add(statement);
      }
    }
  };
}

/**
 * Returns the statement that creates a view in a schema. In it, the view reads those views of the
 * same schema that are created with it.
 */
function creationOf(
  name: string,
  creations: string[],
  viewsToCreate: string[],
  inSchema: string,
): string {
  const creation = creations.find((statement) => viewOf(statement) === name) ?? '';
  const names = viewsToCreate.map((other) => `(?="?${other}\\b)`).join('|');
  return creation
    .replaceAll(new RegExp(`"public"\\.(?:${names})`, 'g'), `"${inSchema}".`)
    .replaceAll(new RegExp(`\\bpublic\\.(?:${names})`, 'g'), `${inSchema}.`)
    .replace(/\)(?: WITH NO DATA)?;$/, ') WITH NO DATA;');
}

/**
 * Returns the text of a migration's file. Drizzle wants breakpoints between the statements. A
 * statement with a note begins a paragraph.
 */
export const textOf = (migration: string[]): string =>
  `${migration.join('--> statement-breakpoint\n').replaceAll('breakpoint\n--', 'breakpoint\n\n--')}\n`;

const ofView = /^(?:CREATE|DROP) MATERIALIZED VIEW "public"\."([^"]+)"/;

const isOfView = (statement: string) => ofView.test(statement);

const viewOf = (statement: string) => ofView.exec(statement)?.[1] ?? '';

/** Returns the table that a statement is about. */
const tableOf = (statement: string) => /(?:TABLE|ON) "public"\."([^"]+)"/.exec(statement)?.[1];

/** Returns the table of the index that a statement drops. */
function tableOfIndex(statement: string, made: Relation[]): string | undefined {
  const index = /^DROP INDEX "public"\."([^"]+)"/.exec(statement)?.[1];
  return made.find(({ indexes }) => indexes.some(({ name }) => name === index))?.name;
}

/**
 * Returns whether a statement drops what an old view may still read, and so must come after its
 * drop.
 */
const isDrop = (statement: string) => /^DROP TABLE |^ALTER TABLE \S+ DROP COLUMN /.test(statement);

/**
 * Returns those of these views that exist, and all views that read them. Each comes before what it
 * reads.
 */
async function viewsReading(db: Session, names: string[]): Promise<string[]> {
  const views = await db
    .select({ name: sql<string>`relname` })
    .from(sql`pg_class`)
    .where(sql`
      relkind = 'm' and oid in (
        with recursive readers (oid) as (
          select to_regclass(format('public.%I', name))
          from json_array_elements_text(${JSON.stringify(names)}::json) as names (name)
          union
          select pg_rewrite.ev_class
          from readers
          inner join pg_depend
            on pg_depend.refclassid = 'pg_class'::regclass
            and pg_depend.refobjid = readers.oid
          inner join pg_rewrite
            on pg_depend.classid = 'pg_rewrite'::regclass
            and pg_depend.objid = pg_rewrite.oid
        )
        select oid from readers
      )`)
    .orderBy(sql`oid desc`);
  return views.map(({ name }) => name);
}

/** Returns the sequences of the schema public, by name. */
async function sequences(db: Session): Promise<string[]> {
  const rows = await db
    .select({ name: sql<string>`format('%I.%I', schemaname, sequencename)` })
    .from(sql`pg_sequences`)
    .where(sql`schemaname = 'public'`);
  return rows.map(({ name }) => name);
}

/** Returns sentences on what a migration does. */
function headingOf(plan: Plan): string {
  const { changes, drops, changed, viewsToDrop, viewsToCreate, made, isUnderViews } = plan;
  const list = (names: string[]) => [...new Set(names)].join(' and ');
  const tablesIn = (pattern: RegExp) =>
    [...changes, ...drops].flatMap((it) => pattern.exec(it)?.[1] ?? []);
  const newTables = tablesIn(/^CREATE TABLE "public"\."([^"]+)"/);
  const goneTables = tablesIn(/^DROP TABLE "public"\."([^"]+)"/);
  const tables = [...changes, ...drops]
    .flatMap((it) => tableOf(it) ?? tableOfIndex(it, made) ?? [])
    .filter((table) => !newTables.includes(table) && !goneTables.includes(table));
  const added = [...newTables, ...viewsToCreate.filter((name) => !viewsToDrop.includes(name))];
  const removed = [...goneTables, ...viewsToDrop.filter((name) => !viewsToCreate.includes(name))];
  const replaced = viewsToCreate.filter(
    (name) => viewsToDrop.includes(name) && changed.includes(name),
  );
  const readers = viewsToCreate.filter(
    (name) => viewsToDrop.includes(name) && !changed.includes(name),
  );
  const reindexed = plan.declared
    .filter(({ name }) => !viewsToCreate.includes(name))
    .filter((view) => !isDeepStrictEqual(indexesOf(view), indexesOf(named(view.name, made))))
    .map(({ name }) => name);
  const sentences = [
    tables.length > 0 && `Changes ${list(tables)}.`,
    added.length > 0 && `Adds ${list(added)}.`,
    removed.length > 0 && `Removes ${list(removed)}.`,
    replaced.length > 0 &&
      `Replaces ${[list(replaced), ...readers.map((name) => `${name}, which reads it`)].join(', and ')}.`,
    reindexed.length > 0 && `Changes the indexes of ${list(reindexed)}.`,
    isUnderViews &&
      `Drops ${list(viewsToDrop)} and creates ${viewsToDrop.length > 1 ? 'them' : 'it'} again, because ${viewsToDrop.length > 1 ? 'they read' : 'it reads'} a column that changes. Readers wait until the end.`,
  ].filter(Boolean);
  return sentences.join(' ') || 'Updates comments, indexes and grants to match their declarations.';
}

/**
 * Returns sentences on what the migration of the tables does, which precedes the one of the views.
 */
const headingOfTables = (plan: Plan) =>
  `${headingOf({ ...plan, drops: [], viewsToDrop: [], viewsToCreate: [] })} The views follow in the next migration, so nobody waits for these tables while the views are filled.`;

/**
 * Returns the statements for those declared indexes and comments of a relation that drizzle-kit
 * cannot express.
 */
function indexAndCommentStatements(
  declared: Relation,
  actual: Relation | undefined,
  inSchema: string,
): string[] {
  const relation = `"${inSchema}"."${declared.name}"`;
  const objectOf = ({ on, name }: Comment) =>
    ({
      RELATION: `${declared.kind} ${relation}`,
      COLUMN: `COLUMN ${relation}."${name}"`,
      CONSTRAINT: `CONSTRAINT "${name}" ON ${relation}`,
      INDEX: `INDEX "${inSchema}"."${name}"`,
    })[on];
  // In the order of the columns, as readers of the migration expect them, not by name.
  const order = columnOrder(declared.name);
  const byPosition = (one: Comment, other: Comment) =>
    one.on === 'COLUMN' && other.on === 'COLUMN'
      ? order.indexOf(one.name) - order.indexOf(other.name)
      : 0;
  return [
    ...without(indexesOf(declared), indexesOf(actual)).map(({ name, definition }) => {
      const [, unique = '', columns = ''] =
        /^(UNIQUE )?btree \((.*)\)$/.exec(definition ?? '') ?? [];
      return `CREATE ${unique}INDEX "${name}" ON ${relation} USING btree ("${columns.split(', ').join('","')}");`;
    }),
    ...without(declared.comments.toSorted(byPosition), actual?.comments)
      .filter(({ text }) => text !== null || actual)
      .map((comment) => `COMMENT ON ${objectOf(comment)} IS ${literal(comment.text)};`),
  ];
}

/**
 * Returns the statements that make the grants on a relation match the declared ones. The REVOKEs
 * come first, because revoking a privilege on a relation also revokes it on all of its columns.
 */
function grantStatements(
  declared: Relation,
  actual: Relation | undefined,
  inSchema: string,
): string[] {
  const relation = `"${inSchema}"."${declared.name}"`;
  return [
    ...grouped(without(actual?.grants, declared.grants)).map(
      ({ privilege, role }) =>
        `REVOKE ${privilege} ON ${relation} FROM ${role === 'PUBLIC' ? role : `"${role}"`};`,
    ),
    ...grouped(without(declared.grants, actual?.grants)).map(
      ({ privilege, role }) => `GRANT ${privilege} ON ${relation} TO "${role}";`,
    ),
  ];
}

/** Returns grants, with all columns of the same role and privilege in one, as in SQL. */
function grouped(grants: Grant[]): { role: string; privilege: string }[] {
  const groups = new Map<string, { role: string; privilege: string; columns: string[] }>();
  for (const { role, privilege, column } of grants) {
    const key = [role, privilege, column === null].join();
    const group = groups.get(key) ?? { role, privilege, columns: [] };
    group.columns.push(...(column === null ? [] : [`"${column}"`]));
    groups.set(key, group);
  }
  return [...groups.values()].map(({ role, privilege, columns }) => ({
    role,
    privilege: columns.length > 0 ? `${privilege} (${columns.join(', ')})` : privilege,
  }));
}

/** Returns the indexes of a view. drizzle-kit handles the indexes of tables. */
const indexesOf = (relation?: Relation) =>
  relation?.kind === 'MATERIALIZED VIEW' ? relation.indexes : [];

/** Returns the indexes of views that are no longer declared. */
const undeclaredIndexes = (declared: Relation[], actual: Relation[]): string[] =>
  declared
    .flatMap((view) => without(indexesOf(named(view.name, actual)), indexesOf(view)))
    .map(({ name }) => name);

const named = <Item extends { name: string }>(name: string, items: Item[]): Item | undefined =>
  items.find((item) => item.name === name);

const relationsOf = (names: string[], declared: Relation[]): Relation[] =>
  names.flatMap((name) => named(name, declared) ?? []);

/** Returns the items of a list that have no equal item in another list. */
const without = <Item>(items: Item[] = [], others: Item[] = []): Item[] =>
  items.filter((item) => !others.some((other) => isDeepStrictEqual(item, other)));

/** Returns a comment in SQL, in lines of at most 80 characters. */
const comment = (text: string): string =>
  text.replace(/(\S{78,}|.{1,77})(?:\s+|$)/g, '-- $1\n').trimEnd();

/** Returns the line of a statement in which Postgres found an error, or else the first line. */
function placeOf(error: unknown, statement: string): string {
  const { position } = (error as { cause?: { position?: string } }).cause ?? {};
  const before = statement.slice(0, Number(position ?? 1)).split('\n').length;
  return `line ${before}: ${statement.split('\n')[before - 1]?.trim()}`;
}

/**
 * Throws an Error if a view reads something that is not declared in its `reads`. The Error names
 * it.
 */
async function refuseUndeclaredReads(db: Session): Promise<void> {
  for (const view of viewsInOrder) {
    await catalogView(db, view).catch((error) => {
      throw new Error(
        `Declare in "reads" every column that the view reads. A refresh would fail with: ${error.message}`,
      );
    });
  }
}

/** Throws an Error if a relation does not match its declaration. The Error names the difference. */
function refuseDifferences(declared: Relation[], actual: Relation[]): void {
  for (const relation of declared) {
    const made = named(relation.name, actual);
    const properties = ['comments', 'grants', 'columns', 'indexes'] as const;
    // drizzle-kit has made the columns and indexes of a table.
    for (const property of properties.slice(0, relation.kind === 'TABLE' ? 2 : 4)) {
      const [is, wanted] = [made?.[property], relation[property]];
      if (!isDeepStrictEqual(is, wanted)) {
        throw new Error(
          `After the migrations, ${relation.name} would not match its declaration: its ${property} would be ${JSON.stringify(is)}, not ${JSON.stringify(wanted)}.`,
        );
      }
    }
  }
}
