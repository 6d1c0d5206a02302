import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import postgres from 'postgres';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { run, start } from './support/commands.ts';
import { useUnmigratedDatabase } from './support/database.ts';
import {
  addPhone,
  addUserInitial,
  landedMigrations,
  laterMigration,
  type ScratchTree,
  scratchTree,
} from './support/scratch_tree.ts';
import { sessionsEnded, sessionThatRuns } from './support/sessions.ts';

const unmigrated = useUnmigratedDatabase();
let session: postgres.Sql;
beforeEach(() => {
  session = postgres(unmigrated.url, { max: 2, onnotice: () => {} });
});
afterEach(() => session.end());

/** A later version of the package, which changes a table and both views. */
let later: ScratchTree;
beforeAll(async () => {
  later = await scratchTree();
  await addUserInitial(later);
  await addPhone(later);
  await later.run('', 'npm run generate', ['--name', 'later']);
});
afterAll(() => later.remove());

const [laterTables, laterViews] = [laterMigration('later_tables'), laterMigration('later', 2)];
const upToDate = 'Nothing to migrate: the database is up to date.\n';
const migrated = (...tags: string[]) =>
  expect.stringMatching(
    new RegExp(`^${tags.map((tag) => `${tag}: migrated, \\d+ ms\n`).join('')}$`),
  );
const records = () => session`select hash from drizzle.lead_conversions_migrations order by id`;

/** Starts nine deploys at the same moment, and returns the sorted lines of their output. */
async function nineAtOnce(tree?: ScratchTree): Promise<string[]> {
  const deploys = Array.from({ length: 9 }, () =>
    tree ? tree.run(unmigrated.url, 'npm run migrate') : run(unmigrated.url, 'npm run migrate'),
  );
  const results = await Promise.all(deploys);
  expect(results.map(({ code, stderr }) => [code, stderr])).toEqual(Array(9).fill([0, '']));
  return results
    .flatMap(({ stdout }) =>
      stdout
        .replace(/\d+ ms/g, 'N ms')
        .trim()
        .split('\n'),
    )
    .sort();
}

describe('nine deploys at once', () => {
  const ours = landedMigrations.map((tag) => `${tag}: migrated, N ms`);
  const idle = (count: number) => Array(count).fill(upToDate.trim());

  test('all succeed on an empty database, and apply each file once', async () => {
    const said = await nineAtOnce();
    expect(said.filter((line) => line !== upToDate.trim())).toEqual(ours);
    expect(await records()).toHaveLength(ours.length);
    expect(await nineAtOnce()).toEqual(idle(9));
    expect(await records()).toHaveLength(ours.length);
  });

  test('apply each file once if several are pending', async () => {
    const said = await nineAtOnce(later);
    expect(said.filter((line) => line !== upToDate.trim())).toEqual([
      ...ours,
      `${laterTables}: migrated, N ms`,
      `${laterViews}: migrated, N ms`,
    ]);
    expect(await records()).toHaveLength(ours.length + 2);
    expect(await session`select user_initial from fct_client_conversion_events`).toEqual([]);
  });
});

describe('npm run migrate', () => {
  test('continues after drizzle-kit, and drizzle-kit continues after it', async () => {
    expect(await run(unmigrated.url, 'drizzle-kit migrate')).toMatchObject({ code: 0 });
    expect(await run(unmigrated.url, 'npm run migrate')).toEqual({
      code: 0,
      stdout: upToDate,
      stderr: '',
    });
    expect(await later.run(unmigrated.url, 'npm run migrate')).toEqual({
      code: 0,
      stdout: migrated(laterTables, laterViews),
      stderr: '',
    });
    const before = await records();
    expect(await later.run(unmigrated.url, 'drizzle-kit migrate')).toMatchObject({ code: 0 });
    expect(await records()).toEqual(before);
    expect(await run(unmigrated.url, 'npm run migrate')).toEqual({
      code: 0,
      stdout: 'Nothing to migrate: the database is at a later version than this package.\n',
      stderr: '',
    });
  });

  test('waits for another deploy, and names it if that takes too long', async () => {
    await run(unmigrated.url, 'npm run migrate');
    const before = await records();
    await session.begin(async (other) => {
      const [holder] = await other<{ pid: number }[]>`select pg_backend_pid() as pid`;
      await other`
        lock table drizzle.lead_conversions_migrations in share update exclusive mode`;
      // It does not wait if there is nothing to do.
      expect(await run(unmigrated.url, 'npm run migrate')).toMatchObject({ stdout: upToDate });
      expect(
        await later.run(unmigrated.url, 'npm run migrate', ['--lock-timeout', '300ms']),
      ).toEqual({
        code: 1,
        stdout: '',
        stderr: expect.stringMatching(
          new RegExp(
            `^Nothing was migrated, because the migration lock was held for 300ms: pid ${holder?.pid} \\(postgres, postgres\\.js\\) holds ShareUpdateExclusiveLock on lead_conversions_migrations\\. Migrate again once it is free\\.\n$`,
          ),
        ),
      });
    });
    expect(await records()).toEqual(before);
  });

  test.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)(
    'is cancelled by %s, on the server too, and says what it has done',
    async (signal, code) => {
      await run(unmigrated.url, 'npm run migrate');
      await session.begin(async (reader) => {
        await reader`select from fct_lead_conversions`;
        const { process, result } = start(
          unmigrated.url,
          ...(['npm run migrate', ['--json'], {}, later.folder] as const),
        );
        await sessionThatRuns(session, '%dependents text%OWNER TO%');
        process.kill(signal);
        const { stdout, stderr, ...rest } = await result;
        const reason = `Cancelled by ${signal}. The migration that was running was rolled back.`;
        expect(rest).toEqual({ code });
        expect(stderr).toBe(`${reason}\n`);
        expect(JSON.parse(stdout)).toEqual({
          outcome: 'failed',
          reason,
          migrations: [{ migration: laterTables, durationMs: expect.any(Number) }],
          notices: [],
          warnings: [],
          durationMs: expect.any(Number),
          retries: [],
        });
        await sessionsEnded(session);
      });
      expect(await records()).toHaveLength(landedMigrations.length + 1);
    },
  );

  test('prints the error of the database if a migration fails, and changes nothing', async () => {
    await session`create materialized view fct_lead_conversions as select 1`;
    expect(await run(unmigrated.url, 'npm run migrate')).toEqual({
      code: 1,
      stdout: '',
      stderr:
        '0000_lead_conversions failed, and changed nothing: relation "fct_lead_conversions" already exists\n',
    });
    expect(await session`select tablename from pg_tables where schemaname = 'public'`).toEqual([]);
    expect(await records()).toEqual([]);
  });

  test('says which role to use if another one may not migrate', async () => {
    await run(unmigrated.url, 'npm run migrate');
    const url = new URL(unmigrated.url);
    url.username = 'may_not_migrate';
    await session`create role may_not_migrate login`;
    try {
      expect(await run(url.href, 'npm run migrate')).toEqual({
        code: 1,
        stdout: '',
        stderr:
          'This role may not migrate: permission denied for schema drizzle. Migrate as the owner of the tables and views. For the first migration, grant the role create on the database and on the schema public.\n',
      });
    } finally {
      await session`drop role may_not_migrate`;
    }
  });

  test('says which privileges the first migration needs', async () => {
    const url = new URL(unmigrated.url);
    url.username = 'first_to_migrate';
    const [{ name } = { name: '' }] = await session<{ name: string }[]>`
      select current_database() as name`;
    await session`create role first_to_migrate login`;
    try {
      await session`grant create on database ${session(name)} to first_to_migrate`;
      expect(await run(url.href, 'npm run migrate')).toEqual({
        code: 1,
        stdout: '',
        stderr:
          '0000_lead_conversions failed, and changed nothing: permission denied for schema public. Migrate as the owner of the tables and views. For the first migration, grant the role create on the database and on the schema public.\n',
      });
    } finally {
      await session`drop owned by first_to_migrate`;
      await session`drop role first_to_migrate`;
    }
  });

  test('never gives others access to its records through default privileges', async () => {
    await session`alter default privileges grant all on tables to public`;
    await session`alter default privileges grant all on schemas to public`;
    await session`create materialized view fct_lead_conversions as select 1`;
    await run(unmigrated.url, 'npm run migrate');
    expect(
      await session`
        select has_table_privilege('pg_monitor', 'drizzle.lead_conversions_migrations', 'insert') as records,
          has_schema_privilege('pg_monitor', 'drizzle', 'usage') as schema`,
    ).toEqual([{ records: false, schema: false }]);
  });

  test('works with any search_path and defaults for transactions, and uses the types of Postgres', async () => {
    await session`create domain public.text as varchar check (value <> value)`;
    const [{ name } = { name: '' }] = await session<{ name: string }[]>`
      select current_database() as name`;
    await session`alter database ${session(name)} set search_path = public, pg_catalog`;
    await session`alter database ${session(name)} set default_transaction_isolation = 'serializable'`;
    await session`alter database ${session(name)} set default_transaction_read_only = on`;
    expect(await run(unmigrated.url, 'npm run migrate')).toMatchObject({
      code: 0,
      stdout: migrated(...landedMigrations),
    });
  });

  test('leaves nothing unfinished if it is killed, and continues the next time', async () => {
    await run(unmigrated.url, 'npm run migrate');
    const before = await records();
    await session.begin(async (reader) => {
      await reader`select from fct_lead_conversions`;
      const { process, result } = start(unmigrated.url, 'npm run migrate', [], {}, later.folder);
      await sessionThatRuns(session, '%dependents text%OWNER TO%');
      process.kill('SIGKILL');
      expect(await result).toMatchObject({ code: 'SIGKILL' });
    });
    // The file for the tables was already complete.
    expect(await records()).toHaveLength(before.length + 1);
    expect(await later.run(unmigrated.url, 'npm run migrate')).toMatchObject({
      code: 0,
      stdout: migrated(laterViews),
    });
  });

  test('refuses a migration that was changed after it was applied', async () => {
    await later.run(unmigrated.url, 'npm run migrate');
    const file = join(later.folder, `schema/migrations/${laterTables}.sql`);
    const text = await readFile(file, 'utf8');
    await writeFile(file, `${text}-- edited\n`);
    const result = await later.run(unmigrated.url, 'npm run migrate');
    await writeFile(file, text);
    expect(result).toEqual({
      code: 1,
      stdout: '',
      stderr: expect.stringMatching(
        new RegExp(
          `^The file of ${laterTables} was changed after it was applied to this database\\. `,
        ),
      ),
    });
  });

  test('refuses a migration that Drizzle would skip because a later one was applied first', async () => {
    await later.run(unmigrated.url, 'npm run migrate');
    await session`
      delete from drizzle.lead_conversions_migrations
      where id = (
        select id from drizzle.lead_conversions_migrations
        order by id
        offset ${landedMigrations.length}
        limit 1
      )`;
    expect(await later.run(unmigrated.url, 'npm run migrate')).toEqual({
      code: 1,
      stdout: '',
      stderr: `${laterTables} was never applied to this database, but is older than ${laterViews}. Generate it again: the new one comes last.\n`,
    });
  });

  test('makes drizzle-kit fail if another deploy has just applied the same migration', async () => {
    await run(unmigrated.url, 'npm run migrate');
    const [tables] = (await readdir(join(later.folder, 'schema/migrations'))).filter((name) =>
      name.endsWith('_tables.sql'),
    );
    const text = await readFile(join(later.folder, 'schema/migrations', tables ?? ''), 'utf8');
    await later.run(unmigrated.url, 'npm run migrate');
    // What drizzle-kit would run if it had read the records before that deploy.
    const rerun = session.begin(async (other) => {
      for (const statement of text.split('--> statement-breakpoint')) {
        await other.unsafe(statement);
      }
    });
    await expect(rerun).rejects.toThrow(
      /^Nothing was migrated, because another deploy has just applied this migration, according to drizzle\.lead_conversions_migrations\. /,
    );
  });

  test('reports wrong connections and options as a refresh does', async () => {
    expect(
      await run('postgres://nobody@127.0.0.1:1/gym', 'npm run migrate', ['--retries', '0']),
    ).toEqual({
      code: 1,
      stdout: '',
      stderr:
        'The database cannot be reached: connect ECONNREFUSED 127.0.0.1:1. Check that its server is running and that DATABASE_URL names it.\n',
    });
    expect(await run('', 'npm run migrate')).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(/^DATABASE_URL is not set\. /),
    });
    expect(await run(unmigrated.url, 'npm run migrate', ['--max-loss', '20'])).toMatchObject({
      code: 1,
      stderr: 'The allowed loss (--max-loss) must be a percentage from 0% to 100%, not "20".\n',
    });
    expect(await run(unmigrated.url, 'npm run migrate', ['--lock-timeout', 'soon'])).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('invalid value for parameter "lock_timeout": "soon"'),
    });
  });
});
