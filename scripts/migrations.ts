import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { sql } from 'drizzle-orm';
import { readMigrationFiles } from 'drizzle-orm/migrator';
import { migrations } from '../schema/migrations.ts';
import {
  INSUFFICIENT_PRIVILEGE,
  LOCK_NOT_AVAILABLE,
  pinned,
  readCommitted,
  type Session,
} from '../views/session.ts';
import { codeOf, explain, reasonOf } from './failure.ts';
import {
  holdersOfRecords,
  lockRecords,
  lockTimeout as lockTimeoutOfStatements,
  records,
  revokeAll,
} from './generate/statements.ts';

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

interface Settings {
  /** How long to wait for another deploy, in Postgres' notation. */
  lockTimeout: string;
  /** How many of the users, and of the clients, a changed view may lose, such as `20%`. */
  maxLoss: string;
  /** Told what is being done. */
  onProgress?: (doing: string) => void;
  /** Cancels the migration that is running, which then changes nothing. */
  signal?: AbortSignal;
  /** Told when a migration has been committed. */
  onApplied?: (migration: { tag: string; durationMs: number }) => void;
}

/**
 * Applies the migrations that a database does not have, each in a transaction of
 * its own, which gives its locks back at the end. Any number of sessions may do
 * that at once: they take turns. Returns how many were applied, and whether the
 * database has later ones than this version knows.
 *
 * Throws an Error that names a migration that fails, one that was changed after
 * it was applied, one that would be skipped, and who keeps the lock for too long; and the
 * signal's reason.
 */
export async function migrateDatabase(
  db: Session,
  settings: Settings,
): Promise<{ applied: number; isLater: boolean }> {
  const files = readMigrations();
  try {
    await createRecords(db, settings);
    for (let applied = 0; ; applied += 1) {
      const started = performance.now();
      const tag = await migrateNext(db, files, settings);
      if (tag === undefined) {
        const last = (await readRecords(db)).at(-1);
        return { applied, isLater: (last?.createdAt ?? 0) > (files.at(-1)?.createdAt ?? 0) };
      }
      settings.onApplied?.({ tag, durationMs: performance.now() - started });
    }
  } catch (error) {
    // Where a migration has failed, the error says so itself.
    if (reasonOf(error).code === INSUFFICIENT_PRIVILEGE) {
      throw new Error(
        `This role may not migrate: ${explain(error)}. Migrate as the owner of the tables and views, or as a member of that role.`,
      );
    }
    throw error;
  }
}

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

/**
 * How the migrations of this version and those that a database has on record differ: what
 * it has not had yet, what was changed since it had it, and how many it has on record, of which
 * this version does not know some.
 */
export async function compareMigrations(
  db: Session,
): Promise<{ pending: string[]; changed: string[]; recorded: number; unknown: number }> {
  const files = readMigrations();
  const recorded = await readRecords(db);
  const recordOf = ({ createdAt }: Migration) =>
    recorded.find((record) => record.createdAt === createdAt);
  const tagsOf = (found: Migration[]) => found.map(({ tag }) => tag);
  return {
    pending: tagsOf(files.filter((file) => !recordOf(file))),
    recorded: recorded.length,
    changed: tagsOf(files.filter((file) => (recordOf(file)?.hash ?? file.hash) !== file.hash)),
    unknown: recorded.filter(({ createdAt }) => !files.some((file) => file.createdAt === createdAt))
      .length,
  };
}

/** The statement that creates an index or a constraint of a table, as the migrations have it. */
export function statementThatCreates(name: string, table: string): string | undefined {
  const all = readMigrations().flatMap(({ statements }) => statements.map((it) => it.trim()));
  const own = all.findLast((statement) =>
    new RegExp(`^(CREATE (UNIQUE )?INDEX|ALTER TABLE .* ADD CONSTRAINT) "${name}"`).test(statement),
  );
  const lines = all.flatMap((statement) => statement.split('\n'));
  const [, constraint] =
    lines
      .map((line) => new RegExp(`^\\s*(CONSTRAINT "${name}" .*?),?$`).exec(line))
      .findLast((match) => match !== null) ?? [];
  return own ?? (constraint && `ALTER TABLE "public"."${table}" ADD ${constraint};`);
}

/** What Postgres says to the second of two sessions that create the same at once. */
function isAlreadyThere(error: unknown): boolean {
  return ['23505', '42P06', '42P07'].includes(codeOf(reasonOf(error)));
}

/** Creates the table in which Drizzle records migrations, as Drizzle does, if it is not there. */
export async function createRecords(
  db: Session,
  { lockTimeout, signal }: Pick<Settings, 'lockTimeout' | 'signal'>,
): Promise<void> {
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
        readCommitted,
        signal,
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
  { lockTimeout, maxLoss, onProgress, signal }: Settings,
): Promise<string | undefined> {
  if (!firstPending(files, await readRecords(db))) {
    return undefined; // without the lock, so that this waits for nobody
  }
  const work = async (tx: Session) => {
    await bound(tx, 'lock_timeout', lockTimeout);
    onProgress?.('waiting for another deploy');
    await tx.execute(sql.raw(lockRecords)).catch(async (error) => {
      if (codeOf(reasonOf(error)) !== LOCK_NOT_AVAILABLE) {
        throw error;
      }
      const holders = await db
        .select({ holder: sql<string>`holder` })
        .from(sql.raw(`(${holdersOfRecords}) as holders`));
      throw new Error(
        `Nothing was migrated, because the lock of deploys was not free within ${lockTimeout}: ${holders.map(({ holder }) => holder).join(', ') || 'another deploy held it until now'}. Migrate again once it is free.`,
      );
    });
    const pending = firstPending(files, await readRecords(tx));
    if (!pending) {
      return undefined;
    }
    onProgress?.(pending.tag);
    await bound(tx, 'lock_timeout', lockTimeoutOfStatements);
    await bound(tx, 'lead_conversions.max_loss', maxLoss);
    for (const statement of pending.statements) {
      await tx.execute(sql.raw(statement)).catch((error) => {
        const reason = explain(error);
        const outcome = reason.startsWith('Nothing was') ? ':' : ' failed, and changed nothing.';
        throw new Error(`${pending.tag}${outcome} ${reason}`, { cause: reasonOf(error) });
      });
    }
    await tx.execute(
      sql`insert into ${sql.raw(records)} (hash, created_at) values (${pending.hash}, ${pending.createdAt})`,
    );
    return pending.tag;
  };
  return await pinned(db, '0', work, readCommitted, signal);
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
        `The file of ${file.tag} was changed after it was applied to this database. Restore the file, and put the change into a new migration.`,
      );
    }
  }
  const pending = files.find((file) => !recordOf(file));
  const last = recorded.at(-1);
  if (pending && last && pending.createdAt < last.createdAt) {
    const name = files.find(({ createdAt }) => createdAt === last.createdAt)?.tag;
    throw new Error(
      `${pending.tag} was never applied to this database, but is older than ${name ?? 'its last migration, which this version does not have'}. ${name ? 'Generate it again, so it comes last.' : 'Deploy the version that last migrated the database, or a later one.'}`,
    );
  }
  return pending;
}
