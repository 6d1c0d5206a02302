import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { sql } from 'drizzle-orm';
import { readMigrationFiles } from 'drizzle-orm/migrator';
import type { PgDatabase, PgQueryResultHKT } from 'drizzle-orm/pg-core';
import { percentOf, refreshDefaults } from '../views/refresh.ts';
import { LOCK_NOT_AVAILABLE, pinned } from '../views/session.ts';
import { codeOf, elapsedLine, explain, reasonOf, run } from './command.ts';
import { migrations, openDatabase } from './database.ts';
import { holdersOfRecords, lockRecords, records, revokeAll } from './generate/statements.ts';

const defaults = { 'lock-timeout': '10min', 'max-loss': refreshDefaults.maxLoss };

const usage = `npm run migrate -- [OPTION …]

Brings the database that DATABASE_URL names to the schema of this version. Any
number of deploys may start it at once: they take turns, and one migrates.

  --lock-timeout DURATION  how long to wait for another deploy (${defaults['lock-timeout']})
  --max-loss PERCENT       how many of the users, and of the clients, a changed
                           view may lose (${defaults['max-loss']})
  --help                   prints this

Durations are in Postgres' notation: 30s, 5min. An option that is not given is
taken from LEAD_CONVERSIONS_LOCK_TIMEOUT and so on.

Exit codes: 0 migrated, or nothing to migrate; 1 failed, and then the migration
that failed has changed nothing.`;

interface Migration {
  /** The name of its file. */
  tag: string;
  /** What Drizzle records of it: its time in the journal, and the hash of its file. */
  createdAt: number;
  hash: string;
  statements: string[];
}

/** A migration as the database has it on record. */
type Recorded = Pick<Migration, 'createdAt' | 'hash'>;

type Session = PgDatabase<PgQueryResultHKT>;

await run(async () => {
  const { values } = parseArgs({
    options: {
      'lock-timeout': { type: 'string' },
      'max-loss': { type: 'string' },
      help: { type: 'boolean', short: 'h' },
    },
  });
  if (values.help) {
    console.log(usage);
    return;
  }
  const setting = (name: keyof typeof defaults) =>
    values[name] ??
    (process.env[`LEAD_CONVERSIONS_${name.toUpperCase().replaceAll('-', '_')}`] || defaults[name]);
  const settings = { lockTimeout: setting('lock-timeout'), maxLoss: setting('max-loss') };
  percentOf(settings.maxLoss);
  const progress = elapsedLine(process.stdout);
  const database = await openDatabase(process.env.DATABASE_URL, {
    onNotice: (notice) => {
      progress.end();
      console.error(notice);
    },
    isNew: true,
  });
  let count = 0;
  try {
    const files = readMigrations();
    await createRecords(database.db, settings.lockTimeout);
    // Each in a transaction of its own, which gives its locks back at the end.
    for (;;) {
      const started = performance.now();
      const tag = await migrateNext(database.db, files, settings, progress.show);
      progress.end();
      if (tag === undefined) {
        break;
      }
      console.log(`${tag}: migrated, ${Math.round(performance.now() - started)} ms`);
      count += 1;
    }
    if (count === 0) {
      const [newest] = (await readRecords(database.db)).slice(-1);
      const isLater = (newest?.createdAt ?? 0) > (files.at(-1)?.createdAt ?? 0);
      console.log(
        `Nothing to migrate: the database is ${isLater ? 'at a later version than this one' : 'up to date'}.`,
      );
    }
  } finally {
    progress.end();
    await database.close();
  }
});

/** The migrations of this version, in the order of the journal. */
function readMigrations(): Migration[] {
  const journal: { entries: { tag: string }[] } = JSON.parse(
    readFileSync(join(migrations.migrationsFolder, 'meta/_journal.json'), 'utf8'),
  );
  return readMigrationFiles(migrations).map(({ folderMillis, hash, sql: statements }, index) => ({
    tag: journal.entries[index]?.tag ?? '',
    createdAt: folderMillis,
    hash,
    statements,
  }));
}

/** What Postgres says to the second of two sessions that create the same at once. */
function isAlreadyThere(error: unknown): boolean {
  return ['23505', '42P06', '42P07'].includes(codeOf(reasonOf(error)));
}

/** Creates the table in which Drizzle records migrations, as Drizzle does, if it is not there. */
async function createRecords(db: Session, lockTimeout: string): Promise<void> {
  for (let attempt = 1; ; attempt += 1) {
    try {
      await pinned(
        db,
        '0',
        async (tx) => {
          await bound(tx, 'lock_timeout', lockTimeout);
          const [there] = await tx
            .select({
              schema: sql<boolean>`to_regnamespace('drizzle') is not null`,
              table: sql<boolean>`to_regclass(${records}) is not null`,
            })
            .from(sql`(values (1)) as one`);
          if (there?.table) {
            return;
          }
          if (!there?.schema) {
            await tx.execute(sql`create schema drizzle`);
          }
          await tx.execute(sql`
          create table ${sql.raw(records)} (id serial primary key, hash text not null, created_at bigint)`);
          await tx.execute(sql.raw(revokeAll([records], 'drizzle')));
        },
        { isolationLevel: 'read committed', accessMode: 'read write' },
      );
      return;
    } catch (error) {
      if (!isAlreadyThere(error) || attempt === 10) {
        throw error;
      }
    }
  }
}

/** Applies the first migration that the database does not have, and returns its name, if there is one. */
async function migrateNext(
  db: Session,
  files: Migration[],
  { lockTimeout, maxLoss }: { lockTimeout: string; maxLoss: string },
  onProgress: (doing: string) => void,
): Promise<string | undefined> {
  if (!firstPending(files, await readRecords(db))) {
    return undefined; // without the lock, so that this waits for nobody
  }
  const work = async (tx: Session) => {
    await bound(tx, 'lock_timeout', lockTimeout);
    onProgress('waiting for another deploy');
    await tx.execute(sql.raw(lockRecords)).catch(async (error) => {
      if (codeOf(reasonOf(error)) !== LOCK_NOT_AVAILABLE) {
        throw error;
      }
      const holders = await db
        .select({ holder: sql<string>`holder` })
        .from(sql.raw(`(${holdersOfRecords}) as holders`));
      throw new Error(
        `Nothing was migrated: another deploy was at it for ${lockTimeout}: ${holders.map(({ holder }) => holder).join(', ') || 'it has just ended'}. Migrate again once it is done.`,
      );
    });
    const pending = firstPending(files, await readRecords(tx));
    if (!pending) {
      return undefined;
    }
    onProgress(pending.tag);
    await bound(tx, 'lead_conversions.max_loss', maxLoss);
    for (const statement of pending.statements) {
      await tx.execute(sql.raw(statement)).catch((error) => {
        throw new Error(`${pending.tag} has failed and changed nothing. ${explain(error)}`, {
          cause: reasonOf(error),
        });
      });
    }
    await tx.execute(
      sql`insert into ${sql.raw(records)} (hash, created_at) values (${pending.hash}, ${pending.createdAt})`,
    );
    return pending.tag;
  };
  // What others have committed is to be seen once the lock is there, whatever the defaults of the database.
  return await pinned(db, '0', work, {
    isolationLevel: 'read committed',
    accessMode: 'read write',
  });
}

/** Sets something for the transaction alone. */
async function bound(tx: Session, setting: string, value: string): Promise<void> {
  await tx
    .select({ value: sql`set_config(${setting}, ${value}, true)` })
    .from(sql`(values (1)) as one`);
}

async function readRecords(db: Session): Promise<Recorded[]> {
  return await db
    .select({ createdAt: sql<number>`created_at::float8`, hash: sql<string>`hash` })
    .from(sql.raw(records))
    .orderBy(sql`created_at`);
}

/**
 * The first migration that is not on record. Throws an Error that names one that
 * could only be skipped, or was applied from another text: Drizzle itself looks
 * only at what was recorded last, and leaves out without a word what is older.
 */
function firstPending(files: Migration[], recorded: Recorded[]): Migration | undefined {
  const recordOf = ({ createdAt }: Migration) =>
    recorded.find((record) => record.createdAt === createdAt);
  for (const file of files) {
    const record = recordOf(file);
    if (record && record.hash !== file.hash) {
      throw new Error(
        `${file.tag} is not the migration that this database has had: its file has been changed since. Restore the file as it was, and put what is to change into a new migration.`,
      );
    }
  }
  const pending = files.find((file) => !recordOf(file));
  const last = recorded.at(-1);
  if (pending && last && pending.createdAt < last.createdAt) {
    const name = files.find(({ createdAt }) => createdAt === last.createdAt)?.tag;
    throw new Error(
      `${pending.tag} was never applied to this database, but is older than ${name ?? 'its last migration, which this version does not have'}. ${name ? 'Generate it again, so that it comes last.' : 'Deploy the version that the database is at, or a later one.'}`,
    );
  }
  return pending;
}
