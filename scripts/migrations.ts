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
  /** What Drizzle records about it: its time in the journal, and the hash of its file. */
  createdAt: number;
  hash: string;
  statements: string[];
}

/** What the database has recorded about a migration. */
type Recorded = Pick<Migration, 'createdAt' | 'hash'>;

interface Settings {
  /** How long to wait for another deploy, in Postgres' notation. */
  lockTimeout: string;
  /** The share of the users, and of the clients, that a changed view may lose, such as `20%`. */
  maxLoss: string;
  /** Called with what is being done. */
  onProgress?: (doing: string) => void;
  /** Cancels the running migration, which then changes nothing. */
  signal?: AbortSignal;
  /** Called when a migration has been committed. */
  onApplied?: (migration: { tag: string; durationMs: number }) => void;
}

/**
 * Applies the migrations that a database does not have. Each runs in its own transaction, so its
 * locks are released at its end. Any number of sessions may do that at once: they take turns.
 * Returns how many migrations were applied, and whether the database has later ones than this
 * version knows.
 *
 * Throws an Error that names the migration if it fails, was changed after it was applied, or could
 * only be skipped. Throws an Error that names the sessions that hold the lock for too long. Throws
 * the signal's reason.
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
    // If a migration has failed, its own error names it.
    if (reasonOf(error).code === INSUFFICIENT_PRIVILEGE) {
      throw new Error(`This role may not migrate: ${explain(error)}. ${adviceOnPrivileges}`);
    }
    throw error;
  }
}

const adviceOnPrivileges =
  'Migrate as the owner of the tables and views. For the first migration, grant the role create on the database and on the schema public.';

/** Returns the migrations of this version, in the order of the journal. */
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
 * Compares the migrations of this version with those that a database has recorded. Returns the
 * names of those that the database has not had (`pending`), the names of those that were changed
 * since (`changed`), how many the database has recorded, and how many of those this version does
 * not know.
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

/**
 * Returns the statement of the migrations that creates an index or a constraint of a table, or
 * undefined if there is none.
 */
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

/**
 * Returns whether an error is the one that Postgres raises for the second of two sessions that
 * create the same object at once.
 */
function isAlreadyThere(error: unknown): boolean {
  return ['23505', '42P06', '42P07'].includes(codeOf(reasonOf(error)));
}

/** Creates the table in which Drizzle records migrations, as Drizzle does, unless it exists. */
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

/**
 * Applies the first migration that the database does not have. Returns its name, or undefined if
 * there is none.
 */
async function migrateNext(
  db: Session,
  files: Migration[],
  { lockTimeout, maxLoss, onProgress, signal }: Settings,
): Promise<string | undefined> {
  if (!firstPending(files, await readRecords(db))) {
    return undefined; // checked without the lock, so this waits for nobody
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
        `Nothing was migrated, because the migration lock was held for ${lockTimeout}: ${holders.map(({ holder }) => holder).join(', ') || 'another session held it until now'}. Migrate again once it is free.`,
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
        const outcome = reason.startsWith('Nothing was') ? '' : ' failed, and changed nothing';
        const advice = /^permission denied|^must be owner/.test(reason)
          ? `. ${adviceOnPrivileges}`
          : '';
        throw new Error(`${pending.tag}${outcome}: ${reason}${advice}`, {
          cause: reasonOf(error),
        });
      });
    }
    await tx.execute(
      sql`insert into ${sql.raw(records)} (hash, created_at) values (${pending.hash}, ${pending.createdAt})`,
    );
    return pending.tag;
  };
  return await pinned(db, '0', work, readCommitted, signal);
}

/** Sets a parameter for the current transaction only. */
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
 * Returns the first migration that is not recorded. Throws an Error that names a migration that
 * could only be skipped, or whose file was changed after it was applied. Drizzle itself looks only
 * at the last record, and silently skips migrations that are older.
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
      `${pending.tag} was never applied to this database, but is older than ${name ?? 'its last migration, which this version does not have'}. ${name ? 'Generate it again: the new one comes last.' : 'Deploy the version that last migrated the database, or a later one.'}`,
    );
  }
  return pending;
}
