import { mkdir, mkdtemp, open, readdir, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import { drizzle } from 'drizzle-orm/postgres-js';
import { migrate } from 'drizzle-orm/postgres-js/migrator';
import postgres from 'postgres';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { migrations } from '../schema/migrations.ts';
import { openDatabase } from '../scripts/database.ts';
import { run, start } from './support/commands.ts';
import { truncateInputTables, useUnmigratedDatabase } from './support/database.ts';
import { filters, sessionsEnded, sessionThatRuns } from './support/sessions.ts';

const unmigrated = useUnmigratedDatabase();

/** Sessions on the database beside that of a command. */
let session: postgres.Sql;
beforeEach(() => {
  session = postgres(unmigrated.url, { max: 2, onnotice: () => {} });
});
afterEach(() => session.end());

describe('drizzle-kit migrate', () => {
  test('has nothing to do on a migrated database', async () => {
    expect(await run(unmigrated.url, 'drizzle-kit migrate')).toMatchObject({ code: 0 });
    expect(await run(unmigrated.url, 'drizzle-kit migrate')).toMatchObject({ code: 0 });
  });

  test('prints the error of the database if a migration fails, and changes nothing', async () => {
    await session`create materialized view fct_lead_conversions as select 1`;
    const { code, stdout, stderr } = await run(unmigrated.url, 'drizzle-kit migrate');
    expect(code).toBe(1);
    expect(stdout + stderr).toContain('relation "fct_lead_conversions" already exists');
    expect(await session`select tablename from pg_tables where schemaname = 'public'`).toEqual([]);
  });

  test('applies our migrations beside those of another app, in either order', async () => {
    const app = await mkdtemp(join(tmpdir(), 'lead-conversions-other-app-'));
    const url = JSON.stringify(unmigrated.url);
    await symlink(resolve('node_modules'), join(app, 'node_modules'));
    await writeFile(
      join(app, 'drizzle.config.ts'),
      `export default { dialect: 'postgresql', out: '.', dbCredentials: { url: ${url} } };`,
    );
    await mkdir(join(app, 'meta'));
    /** Makes the app migrate to this many tables of its own, each dated later than all of ours. */
    const migrateApp = async (count: number) => {
      const numbers = Array.from({ length: count }, (_, index) => index);
      for (const idx of numbers) {
        await writeFile(join(app, `${idx}.sql`), `create table app_${idx} (id int);`);
      }
      const entries = numbers.map((idx) => ({
        idx,
        version: '7',
        when: Date.parse('2100-01-01') + idx,
        tag: `${idx}`,
        breakpoints: true,
      }));
      await writeFile(
        join(app, 'meta/_journal.json'),
        JSON.stringify({ version: '7', dialect: 'postgresql', entries }),
      );
      expect(await run(unmigrated.url, 'drizzle-kit migrate', [], {}, app)).toMatchObject({
        code: 0,
      });
    };
    const tables = async () => {
      const rows = await session`
        select tablename from pg_tables where schemaname = 'public' order by tablename`;
      return rows.map(({ tablename }) => tablename);
    };
    const ours = [
      'dim_branch',
      'dim_user',
      'fct_credit_pack_purchases',
      'fct_membership_purchases',
      'input_loads',
      'view_refreshes',
    ];
    try {
      await migrateApp(1);
      expect(await run(unmigrated.url, 'drizzle-kit migrate')).toMatchObject({ code: 0 });
      expect(await tables()).toEqual(['app_0', ...ours]);
      await migrateApp(2);
      expect(await run(unmigrated.url, 'drizzle-kit migrate')).toMatchObject({ code: 0 });
      expect(await tables()).toEqual(['app_0', 'app_1', ...ours]);
    } finally {
      await rm(app, { recursive: true });
    }
  });

  test('refuses a database of an unreleased version', async () => {
    await session`create table dim_branch (branch_id varchar)`;
    const { code, stdout, stderr } = await run(unmigrated.url, 'drizzle-kit migrate');
    expect(code).toBe(1);
    expect(stdout + stderr).toContain(
      'This database was migrated by an earlier, unreleased version. Create a new database and load it again.',
    );
  });

  test("Drizzle's own migrator is refused if it would record the migrations with those of other apps", async () => {
    const { migrationsFolder } = migrations;
    await expect(migrate(drizzle(session), { migrationsFolder })).rejects.toMatchObject({
      cause: {
        message:
          "The migrations of lead-conversions must be recorded in drizzle.lead_conversions_migrations, apart from those of other apps. Migrate with migrationsTable: 'lead_conversions_migrations'.",
      },
    });
    expect(await session`select from drizzle.__drizzle_migrations`).toHaveLength(0);
  });

  test("Drizzle's own migrator is refused if the database is already migrated", async () => {
    expect(await run(unmigrated.url, 'drizzle-kit migrate')).toMatchObject({ code: 0 });
    const { migrationsFolder } = migrations;
    await expect(migrate(drizzle(session), { migrationsFolder })).rejects.toMatchObject({
      cause: {
        message: expect.stringMatching(/^This database has already been migrated, according to /),
      },
    });
  });

  test('stops if somebody has put a trigger on its records', async () => {
    await session`create schema drizzle`;
    await session`create table drizzle.lead_conversions_migrations (id serial primary key, hash text, created_at bigint)`;
    await session`
      create function spy() returns trigger language plpgsql as 'begin return new; end'`;
    await session`
      create trigger spy before insert on drizzle.lead_conversions_migrations
      for each row execute function spy()`;
    const { code, stdout, stderr } = await run(unmigrated.url, 'drizzle-kit migrate');
    expect(code).toBe(1);
    expect(stdout + stderr).toContain(
      'Nothing was migrated, because there is a trigger on drizzle.lead_conversions_migrations. Drop it, and migrate again.',
    );
  });
});

describe('the nightly job', () => {
  test('gives the same rows whatever the time zone of the database', async () => {
    await run(unmigrated.url, 'drizzle-kit migrate');
    const rows = async () => [
      await session`select * from fct_client_conversion_events order by user_id`,
      await session`select * from fct_lead_conversions order by user_id, client_conversion_event_filter`,
    ];
    await run(unmigrated.url, 'npm run load', ['test/sample']);
    await run(unmigrated.url, 'npm run refresh');
    const before = await rows();
    expect(before.map(({ length }) => length)).toEqual([13, 13 * filters]);

    const [{ name } = { name: '' }] = await session<{ name: string }[]>`
      select current_database() as name`;
    await session`alter database ${session(name)} set timezone = 'Asia/Tokyo'`;
    await session.unsafe(truncateInputTables);
    await run(unmigrated.url, 'npm run refresh');
    await run(unmigrated.url, 'npm run load', ['test/sample']);
    await run(unmigrated.url, 'npm run refresh');
    expect(await rows()).toEqual(before);
  });

  test('says that a database has not been migrated', async () => {
    const says = (relation: string) => ({
      code: 1,
      stdout: '',
      stderr: `The database has not been migrated: it has no ${relation}. Migrate it first.\n`,
    });
    expect(await run(unmigrated.url, 'npm run refresh')).toEqual(
      says('fct_client_conversion_events'),
    );
    expect(await run(unmigrated.url, 'npm run load', ['test/sample'])).toEqual(says('dim_branch'));
  });
});

describe('npm run load', () => {
  let folder: string;
  beforeEach(async () => {
    folder = await mkdtemp(join(tmpdir(), 'lead-conversions-load-'));
    await run(unmigrated.url, 'drizzle-kit migrate');
  });
  afterEach(() => rm(folder, { recursive: true }));

  test('says what is wrong with a file, and leaves the tables as they were', async () => {
    await writeFile(
      join(folder, 'dim_branch.csv'),
      'branch_id,name,email,city,country,timezone_id,created_at\nolympus,,,,,Mars/Olympus,\n',
    );
    await writeFile(join(folder, 'dim_user.csv'), 'user_id,branch_id,name,email,created_at\n');
    expect(await run(unmigrated.url, 'npm run load', [folder])).toEqual({
      code: 1,
      stdout: '',
      stderr:
        'dim_branch.csv, line 2, column timezone_id: "Mars/Olympus" must be an IANA time zone name that Postgres knows, such as Europe/Dublin, not an abbreviation (CET) or an offset (FOO+3).\n',
    });
    expect(await session`select from dim_branch`).toHaveLength(0);
  });

  test('reads an export as its options say, and warns of what it leaves out', async () => {
    await writeFile(
      join(folder, 'dim_user.csv'),
      'Member;Branch ID;name;email;created at;hat\nmia;NULL;"Mia \\"M\\"";-;2024-06-01 10:00;none\n',
    );
    await writeFile(join(folder, 'dim_users.csv'), '');
    const args = ['--rename', 'member=user_id', '--ignore-columns', '--escape', '\\'];
    const nulls = ['--null', 'NULL', '--null', '-'];
    expect(await run(unmigrated.url, 'npm run load', [...args, ...nulls, folder])).toEqual({
      code: 0,
      stdout: 'dim_user.csv: 1 rows, 1 inserted, 0 updated, 0 unchanged\n',
      stderr: [
        'Warning: dim_user.csv: these columns are ignored: "hat".\n',
        'Warning: Not loaded: dim_users.csv. Only files with these names are loaded: dim_branch.csv, dim_user.csv, fct_credit_pack_purchases.csv, fct_membership_purchases.csv, with or without .gz.\n',
      ].join(''),
    });
    expect(await session`select * from dim_user`).toEqual([
      {
        user_id: 'mia',
        branch_id: null,
        name: 'Mia "M"',
        email: null,
        created_at: new Date('2024-06-01T10:00:00Z'),
      },
    ]);
  });

  test('vacuums only the tables that it has changed', async () => {
    const vacuumed = async () => {
      const tables = await session`
        select relname from pg_stat_user_tables
        where last_vacuum is not null and last_analyze is not null
        order by relname`;
      return tables.map(({ relname }) => relname);
    };
    expect(await run(unmigrated.url, 'npm run load', ['test/sample'])).toMatchObject({ code: 0 });
    expect(await vacuumed()).toEqual([
      'dim_branch',
      'dim_user',
      'fct_credit_pack_purchases',
      'fct_membership_purchases',
    ]);
    await session`select pg_stat_reset()`;
    await session`update dim_user set name = 'Ada' where user_id = (select min(user_id) from dim_user)`;
    expect(await run(unmigrated.url, 'npm run load', ['test/sample'])).toMatchObject({ code: 0 });
    expect(await vacuumed()).toEqual(['dim_user']);
  });

  test('warns if it could not vacuum a table that it has loaded', async () => {
    await session.begin(async (locked) => {
      await locked`lock table dim_branch in share update exclusive mode`;
      expect(await run(unmigrated.url, 'npm run load', ['test/sample'])).toMatchObject({
        code: 0,
        stderr:
          'Warning: dim_branch was loaded, but not vacuumed: another session has locked it, or this role may not vacuum it. Run VACUUM as its owner.\n',
      });
    });
    expect(await session`select from dim_branch`).toHaveLength(3);
  });

  /** Writes so many users that a load can be interrupted. */
  const writeUsers = async () => {
    const file = await open(join(folder, 'dim_user.csv'), 'w');
    await file.write('user_id,branch_id,name,email,created_at\n');
    for (let chunk = 0; chunk < 100; chunk += 1) {
      const row = (_: unknown, index: number) => `${chunk}-${index},,,,2024-02-01T15:00:00Z\n`;
      await file.write(Array.from({ length: 5000 }, row).join(''));
    }
    await file.close();
  };

  test('fails, and leaves the tables as they were, if its connection is cut', async () => {
    await writeUsers();
    const load = run(unmigrated.url, 'npm run load', [folder, '--retries', '0']);
    await session`select pg_terminate_backend(${await sessionThatRuns(session, 'copy%')})`;
    expect(await load).toEqual({
      code: 1,
      stdout: '',
      stderr: expect.stringMatching(
        /^The connection to the database was lost \([^\n]*\)\. Run this again once the server is back\.\n$/,
      ),
    });
    expect(await session`select from dim_user`).toHaveLength(0);
  });

  test('tries again if its connection is cut, and says so', async () => {
    await writeUsers();
    const load = run(unmigrated.url, 'npm run load', [folder, '--json']);
    await session`select pg_terminate_backend(${await sessionThatRuns(session, 'copy%')})`;
    const { code, stdout, stderr } = await load;
    expect(code).toBe(0);
    expect(JSON.parse(stdout)).toEqual({
      outcome: 'loaded',
      reason: null,
      files: [
        {
          file: 'dim_user.csv',
          rows: 500_000,
          repeated: 0,
          inserted: 500_000,
          updated: 0,
          deleted: 0,
        },
      ],
      warnings: [],
      durationMs: expect.any(Number),
      retries: [expect.stringMatching(/^The connection to the database was lost /)],
    });
    expect(stderr).toContain('Trying again in 1 s (1 of 5).\n');
  });

  test.each([
    ['SIGINT', 130, 'copy%'],
    ['SIGTERM', 143, 'insert%'],
  ] as const)(
    'is cancelled by %s, on the server too, and loads nothing',
    async (signal, code, statement) => {
      await writeUsers();
      await session.begin(async (locked) => {
        if (statement === 'insert%') {
          await locked`insert into dim_user (user_id) values ('50-0')`;
        }
        const { process, result } = start(unmigrated.url, 'npm run load', [folder, '--json']);
        await sessionThatRuns(session, `%${statement}`);
        process.kill(signal);
        const { stdout, ...rest } = await result;
        const reason = `Cancelled by ${signal}. The tables have not changed.`;
        expect(rest).toEqual({ code, stderr: expect.stringContaining(`${reason}\n`) });
        expect(JSON.parse(stdout)).toMatchObject({ outcome: 'failed', reason, files: [] });
        await sessionsEnded(session);
        await locked`delete from dim_user where user_id = '50-0'`;
      });
      expect(await session`select from dim_user`).toHaveLength(0);
    },
  );

  test('that is cancelled during its vacuum has loaded, and says what is not vacuumed', async () => {
    const [{ name } = { name: '' }] = await session<{ name: string }[]>`
      select current_database() as name`;
    // Makes a vacuum slow enough to be cancelled.
    await session`alter database ${session(name)} set vacuum_cost_delay = '100ms'`;
    await session`alter database ${session(name)} set vacuum_cost_limit = 1`;
    const { process, result } = start(unmigrated.url, 'npm run load', ['test/sample', '--json']);
    await sessionThatRuns(session, 'vacuum%');
    process.kill('SIGTERM');
    const { code, stdout } = await result;
    expect(code).toBe(143);
    const { outcome, files, warnings } = JSON.parse(stdout);
    expect({ outcome, files: files.length }).toEqual({ outcome: 'loaded', files: 4 });
    expect(warnings.at(-1)).toBe(
      'fct_membership_purchases was loaded, but not vacuumed: cancelled by SIGTERM.',
    );
    await sessionsEnded(session);
  });

  test('ends with an explanation at its statement timeout', async () => {
    await writeUsers();
    const args = [folder, '--statement-timeout', '50ms'];
    expect(await run(unmigrated.url, 'npm run load', args)).toEqual({
      code: 1,
      stdout: '',
      stderr:
        'Nothing was loaded: canceling statement due to statement timeout. The statement timeout was 50ms.\n',
    });
    expect(await session`select from dim_user`).toHaveLength(0);
  });
});

describe('DATABASE_URL', () => {
  test.each([
    ['npm run load', ['test/sample']],
    ['npm run refresh', []],
  ] as const)('that is not set is refused by %s, which says what to set', async (command, args) => {
    expect(await run('', command, args)).toEqual({
      code: 1,
      stdout: '',
      stderr:
        'DATABASE_URL is not set. Set it to postgres://USER:PASSWORD@HOST:PORT/DATABASE, or to pglite:PATH for the embedded database.\n',
    });
  });

  test.each([
    [
      'mysql://me:secret@localhost/gym',
      /^DATABASE_URL is neither postgres:.* nor pglite:PATH\.\n$/,
    ],
    ['secret', /^DATABASE_URL is neither postgres:.* nor pglite:PATH\.\n$/],
    ['postgres://me:sec#ret@host/gym', /^DATABASE_URL cannot be read\. Set it to .*\.\n$/],
    ['postgres://me:sec%ret@host/gym', /^DATABASE_URL has a "%" that is not followed by .*\.\n$/],
    [
      'postgres://me:secret@127.0.0.1:1,127.0.0.1:2/gym',
      /^DATABASE_URL names several servers.*\n$/,
    ],
  ])('that is invalid is refused without repeating its password: %s', async (url, message) => {
    const result = await run(url, 'npm run refresh');
    expect(result).toEqual({ code: 1, stdout: '', stderr: expect.stringMatching(message) });
    expect(result.stderr).not.toContain('sec');
  });

  test('of an unreachable server leads to an error with its address, not its password', async () => {
    const url = 'postgres://me:secret@127.0.0.1:1/gym';
    expect(await run(url, 'npm run refresh', ['--retries', '0'])).toEqual({
      code: 1,
      stdout: '',
      stderr:
        'The database cannot be reached: connect ECONNREFUSED 127.0.0.1:1. Check that its server is running and that DATABASE_URL names it.\n',
    });
  });

  test('of a missing database leads to an error with its name', async () => {
    const url = new URL(unmigrated.url);
    url.pathname = '/no_such_gym';
    expect(await run(url.href, 'npm run refresh')).toEqual({
      code: 1,
      stdout: '',
      stderr:
        'The database cannot be opened: database "no_such_gym" does not exist. Check DATABASE_URL.\n',
    });
  });

  test.each(['pglite:', 'pglite: ', 'pglite:memory://', 'pglite:file:///gym'])(
    'without a folder is refused: %j',
    async (url) => {
      expect(await run(url, 'npm run migrate')).toEqual({
        code: 1,
        stdout: '',
        stderr:
          'DATABASE_URL does not name a folder. Set it to pglite:PATH, with the path of the folder of the embedded database.\n',
      });
    },
  );

  test('of an embedded database works for one process at a time', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'lead-conversions-shared-'));
    const url = `pglite:${join(folder, 'gym')}`;
    try {
      const both = await Promise.all([run(url, 'npm run migrate'), run(url, 'npm run migrate')]);
      const inUse = expect.stringMatching(
        /^The embedded database in \S+ is in use by another process\. Wait until that process has ended\.\nTrying again in 1 s \(1 of 5\)\.\n/,
      );
      expect(both.toSorted((one, other) => one.stderr.length - other.stderr.length)).toEqual([
        { code: 0, stdout: expect.stringContaining(': migrated, '), stderr: '' },
        { code: 0, stdout: 'Nothing to migrate: the database is up to date.\n', stderr: inUse },
      ]);
      const { db, close } = await openDatabase(url);
      await db.execute('select 1');
      expect(await run(url, 'npm run refresh', ['--retries', '0'])).toMatchObject({ code: 1 });
      await close();
      // The database is free again after a process that used it is killed.
      const { process, result } = start(url, 'npm run refresh', ['--force']);
      await setTimeout(1000);
      process.kill('SIGKILL');
      await result;
      expect(await run(url, 'npm run refresh', ['--retries', '0'])).toMatchObject({ code: 0 });
      expect(await readdir(folder)).toEqual(['gym']);
      expect(
        await run(`pglite:${join(folder, 'gym/PG_VERSION')}`, 'npm run migrate'),
      ).toMatchObject({
        code: 1,
        stderr: expect.stringMatching(/^The embedded database in \S+ cannot be opened: /),
      });
    } finally {
      await rm(folder, { recursive: true });
    }
  });

  test('of a missing embedded database does not create it', async () => {
    const folder = await mkdtemp(join(tmpdir(), 'lead-conversions-empty-'));
    try {
      expect(await run(`pglite:${folder}`, 'npm run refresh')).toEqual({
        code: 1,
        stdout: '',
        stderr: `There is no database in ${folder}. Create it with migrate.\n`,
      });
      expect(await readdir(folder)).toEqual([]);
    } finally {
      await rm(folder, { recursive: true });
    }
  });
});

describe('arguments', () => {
  test.each([
    ['npm run refresh', ['--jason'], "Unknown option '--jason'. Did you mean --json?"],
    [
      'npm run refresh',
      ['now'],
      "Too many arguments for 'refresh'. Expected 0 arguments but got 1.",
    ],
    ['npm run load', [], "Missing required argument 'folder'."],
    [
      'npm run load',
      ['test/sample', 'test'],
      "Too many arguments for 'load'. Expected 1 argument but got 2.",
    ],
    ['npm run migrate', ['--lock-timeout'], "Option '--lock-timeout <duration>' argument missing."],
  ] as const)('that are invalid are named in the error: %s %j', async (command, args, reason) => {
    expect(await run(unmigrated.url, command, args)).toEqual({
      code: 1,
      stdout: '',
      stderr: `${reason}\n`,
    });
    const { stdout } = await run(unmigrated.url, command, ['--json', ...args]);
    expect(JSON.parse(stdout)).toMatchObject({ outcome: 'failed', reason, retries: [] });
  });
});
