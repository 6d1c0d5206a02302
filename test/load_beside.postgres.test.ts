import { execFile, execFileSync } from 'node:child_process';
import { mkdir, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import postgres from 'postgres';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { openDatabase } from '../scripts/database.ts';
import { loadFolder } from '../scripts/load/folder.ts';
import { startPostgres } from '../scripts/postgres_server.ts';
import { type Result, run, start } from './support/commands.ts';
import { useServerDatabase } from './support/database.ts';
import { patience, sessionsEnded, sessionsThatWait, sessionThatRuns } from './support/sessions.ts';

// What a load does beside other work in its database.

const database = useServerDatabase();

let folder: string;
let session: postgres.Sql;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'lead-conversions-beside-'));
  session = postgres(database.url, { max: 4, onnotice: () => {} });
});
afterEach(async () => {
  await session.end();
  await rm(folder, { recursive: true });
});

/** Writes users with these identifiers and one name to a folder, and returns its path. */
async function usersIn(name: string, ids: Iterable<string>, named = ''): Promise<string> {
  const path = join(folder, name);
  await mkdir(path, { recursive: true });
  const rows = Array.from(ids, (id) => `${id},,${named},,\n`);
  const header = 'user_id,branch_id,name,email,created_at\n';
  await writeFile(join(path, 'dim_user.csv'), header + rows.join(''));
  return path;
}

const numbers = (count: number) => Array.from({ length: count }, (_, index) => `user-${index}`);

const load = (...args: string[]) => run(database.url, 'npm run load', args);

const names = () => session`select user_id, name from dim_user order by user_id`;

/** The pid of a session. */
const pidOf = async (other: postgres.ReservedSql | postgres.TransactionSql) =>
  (await other<{ pid: number }[]>`select pg_backend_pid() as pid`)[0]?.pid;

describe('a second load', () => {
  const waitsForTheFirst = () =>
    vi.waitUntil(async () => {
      const waiting = await session`
        select from pg_locks
        where relation = 'input_loads'::regclass and not granted
          and database = (select oid from pg_database where datname = current_database())`;
      return waiting.length > 0;
    }, patience);

  test('waits for the first one, and sees what it has stored', async () => {
    const first = await usersIn('first', ['mia', 'sam'], 'First');
    const second = await usersIn('second', ['mia', 'zoe'], 'Second');
    const loads: Promise<Result>[] = [];
    await session.begin(async (locked) => {
      await locked`lock table dim_user in share mode`;
      loads.push(load(first));
      await sessionsThatWait(session);
      loads.push(load('--snapshot', '--max-loss', '50%', second));
      await waitsForTheFirst();
    });
    expect((await Promise.all(loads)).map(({ stdout }) => stdout)).toEqual([
      'dim_user.csv: 2 rows, 2 inserted, 0 updated, 0 unchanged\n',
      'dim_user.csv: 2 rows, 1 inserted, 1 updated, 1 deleted, 0 unchanged\n',
    ]);
    expect(await names()).toEqual([
      { user_id: 'mia', name: 'Second' },
      { user_id: 'zoe', name: 'Second' },
    ]);
  });

  test('that waits too long names the first one, and tries again', async () => {
    const path = await usersIn('users', ['mia']);
    const { second, pid } = await session.begin(async (other) => {
      await other`lock table input_loads in share update exclusive mode`;
      const running = start(database.url, 'npm run load', [path, '--lock-timeout', '100ms']);
      await vi.waitUntil(async () => {
        running.process.stderr?.once('data', () => running.process.emit('told'));
        return true;
      });
      await new Promise((told) => running.process.once('told', told));
      return { second: running.result, pid: await pidOf(other) };
    });
    expect(await second).toMatchObject({
      code: 0,
      stderr: `Nothing was loaded: it got no lock within 100ms, because pid ${pid} (postgres, postgres.js) holds ShareUpdateExclusiveLock on input_loads.\nTrying again in 1 s (1 of 5).\n`,
    });
  });

  test('is not blocked by a role that may only read', async () => {
    const role = `analyst_${process.pid}`;
    await session`create role ${session(role)}`;
    try {
      await session`grant select on all tables in schema public to ${session(role)}`;
      await session.begin(async (analyst) => {
        await analyst`set local role ${analyst(role)}`;
        for (const table of ['input_loads', 'dim_user']) {
          await analyst
            .savepoint((tx) => tx`lock table ${tx(table)} in share update exclusive mode`)
            .then(
              () => expect.fail('it was locked'),
              ({ code }) => expect(code).toBe('42501'),
            );
          await analyst`lock table ${analyst(table)} in access share mode`;
        }
        expect(await load(await usersIn('users', ['mia']))).toMatchObject({ code: 0 });
      });
    } finally {
      await session`drop owned by ${session(role)}`;
      await session`drop role ${session(role)}`;
    }
  });
});

describe('beside CREATE INDEX CONCURRENTLY on an input table, a load', () => {
  const createIndex = () =>
    session`create index concurrently on dim_user (name)`.execute().then(() => 'created');

  const isValid = async () =>
    (await session`
      select indisvalid from pg_index
      where indexrelid = 'dim_user_name_idx'::regclass`) as unknown;

  test('goes on while the index waits for a writer', async () => {
    const path = await usersIn('users', numbers(1000));
    const { index, result } = await session.begin(async (writer) => {
      await writer`insert into dim_user (user_id) values ('slow')`;
      const building = createIndex();
      await sessionsThatWait(session);
      return { index: building, result: await load(path) };
    });
    expect(result).toMatchObject({
      code: 0,
      stdout: 'dim_user.csv: 1000 rows, 1000 inserted, 0 updated, 0 unchanged\n',
    });
    expect(await index).toBe('created');
    expect(await isValid()).toEqual([{ indisvalid: true }]);
    expect(await session`select from dim_user`).toHaveLength(1001);
  });

  test('makes the index wait if the load began first', async () => {
    const running = load(await usersIn('users', numbers(300_000)));
    await sessionThatRuns(session, 'copy%');
    const index = createIndex();
    await sessionsThatWait(session);
    expect(await running).toMatchObject({ code: 0 });
    expect(await index).toBe('created');
    expect(await isValid()).toEqual([{ indisvalid: true }]);
  });
});

test('a load goes on beside a long VACUUM of an input table', async () => {
  await session`insert into dim_user (user_id) select 'old-' || generate_series(1, 20000)`;
  const vacuuming = await session.reserve();
  await vacuuming`set vacuum_cost_delay = '100ms'`;
  await vacuuming`set vacuum_cost_limit = 1`;
  const pid = (await pidOf(vacuuming)) ?? 0;
  const vacuum = vacuuming`vacuum dim_user`.execute().catch(({ code }) => code);
  const isRunning = async () =>
    (await session`select from pg_stat_progress_vacuum where pid = ${pid}`).length > 0;
  await vi.waitUntil(isRunning, patience);
  expect(await load(await usersIn('users', ['mia']))).toMatchObject({
    code: 0,
    stdout: 'dim_user.csv: 1 rows, 1 inserted, 0 updated, 0 unchanged\n',
    stderr: expect.stringMatching(/^Warning: dim_user was loaded, but not vacuumed: another /),
  });
  expect(await isRunning()).toBe(true);
  await session`select pg_cancel_backend(${pid})`;
  expect(await vacuum).toBe('57014');
  vacuuming.release();
});

describe('a load names the session that locks', () => {
  const briefly = ['--lock-timeout', '100ms', '--retries', '0'];

  test.each(['share', 'share row exclusive', 'exclusive', 'access exclusive'])(
    'a table in %s mode',
    async (mode) => {
      const path = await usersIn('users', ['mia']);
      await session.begin(async (other) => {
        await other`lock table dim_user in ${other.unsafe(mode)} mode`;
        expect(await load(path, ...briefly)).toEqual({
          code: 1,
          stdout: '',
          stderr: expect.stringMatching(
            new RegExp(
              `^Nothing was loaded: it got no lock within 100ms, because pid ${await pidOf(other)} \\(postgres, postgres\\.js\\) holds \\w+Lock on dim_user\\.\\n$`,
            ),
          ),
        });
      });
    },
  );

  test('a row', async () => {
    await session`insert into dim_user (user_id) values ('mia')`;
    const path = await usersIn('users', ['mia', 'sam'], 'New');
    await session.begin(async (other) => {
      await other`update dim_user set email = 'mia@mail.example' where user_id = 'mia'`;
      expect(await load(path, ...briefly)).toEqual({
        code: 1,
        stdout: '',
        stderr: `Nothing was loaded: it got no lock within 100ms, because pid ${await pidOf(other)} (postgres, postgres.js) holds RowExclusiveLock on dim_user.\n`,
      });
    });
    expect(await names()).toEqual([{ user_id: 'mia', name: null }]);
  });
});

describe('if others write to the same tables,', () => {
  test('a load that had to wait for them overwrites everything that they wrote', async () => {
    await load(await usersIn('before', ['mia', 'sam', 'zoe'], 'Before'));
    const path = await usersIn('after', ['mia', 'sam', 'zoe'], 'Before');
    const file = join(path, 'dim_user.csv');
    await writeFile(file, (await readFile(file, 'utf8')).replace('sam,,Before', 'sam,,After'));
    const running = await session.begin(async (other) => {
      await other`update dim_user set name = 'Other' where user_id in ('mia', 'sam')`;
      await other`insert into dim_user (user_id) values ('zombie')`;
      await other`delete from dim_user where user_id = 'zoe'`;
      const started = load('--snapshot', '--max-loss', '50%', path);
      await sessionsThatWait(session);
      return { started };
    });
    expect(await running.started).toEqual({
      code: 0,
      stdout: 'dim_user.csv: 3 rows, 1 inserted, 2 updated, 1 deleted, 0 unchanged\n',
      stderr: '',
    });
    expect(await names()).toEqual([
      { user_id: 'mia', name: 'Before' },
      { user_id: 'sam', name: 'After' },
      { user_id: 'zoe', name: 'Before' },
    ]);
  });

  test('a load overwrites what they commit while it checks its files', async () => {
    const path = await usersIn('users', ['mia', 'sam'], 'File');
    await load(path);
    const others = `
      import postgres from 'postgres';
      const session = postgres(process.env.DATABASE_URL);
      await session.begin(async (other) => {
        await other\`insert into dim_user (user_id) values ('zombie')\`;
        await other\`update dim_user set name = 'Other' where user_id = 'mia'\`;
      });
      await session.end();`;
    const opened = await openDatabase(database.url);
    try {
      await loadFolder(opened, path, {
        isSnapshot: true,
        maxLoss: '50%',
        onProgress: ({ step }) => {
          if (step === 'check') {
            execFileSync(process.execPath, ['--input-type=module', '--eval', others], {
              env: { ...process.env, DATABASE_URL: database.url },
            });
          }
        },
      });
    } finally {
      await opened.close();
    }
    expect(await names()).toEqual([
      { user_id: 'mia', name: 'File' },
      { user_id: 'sam', name: 'File' },
    ]);
  });

  test('a load that did not have to wait for them does not overwrite what they commit later', async () => {
    const path = await usersIn('users', ['mia', 'sam'], 'File');
    await load(path);
    await session.begin(async (other) => {
      await other`update dim_user set name = 'Other' where user_id = 'mia'`;
      expect(await load(path)).toMatchObject({
        code: 0,
        stdout: 'dim_user.csv: 2 rows, 0 inserted, 0 updated, 2 unchanged\n',
      });
    });
    expect(await names()).toEqual([
      { user_id: 'mia', name: 'Other' },
      { user_id: 'sam', name: 'File' },
    ]);
  });
});

test.each([
  ['default_transaction_isolation', 'serializable'],
  ['default_transaction_isolation', 'repeatable read'],
  ['default_transaction_read_only', 'on'],
])('a load ignores the default of %s, %s', async (setting, value) => {
  const [{ name } = { name: '' }] = await session<{ name: string }[]>`
    select current_database() as name`;
  await session`alter database ${session(name)} set ${session(setting)} = ${session.unsafe(`'${value}'`)}`;
  expect(await load(await usersIn('users', ['mia']))).toMatchObject({ code: 0, stderr: '' });
});

test('options that npm has taken as its own settings are refused', async () => {
  const path = await usersIn('users', ['mia']);
  const npm = promisify(execFile)('npm', ['run', '--silent', 'load', path, '--snapshot'], {
    env: { ...process.env, npm_lifecycle_event: undefined, DATABASE_URL: database.url },
  });
  await expect(npm).rejects.toMatchObject({
    code: 1,
    stderr:
      'npm took --snapshot as one of its own settings. Put -- before all options: npm run load -- --snapshot …\n',
  });
  expect(await names()).toEqual([]);
});

test('a value that Postgres refuses is reported with its option', async () => {
  const path = await usersIn('users', ['mia']);
  for (const args of [
    ['--lock-timeout', '-1'],
    ['--work-mem', 'lots'],
  ]) {
    expect(await load(path, ...args)).toMatchObject({
      code: 1,
      stderr: expect.stringContaining(`\nIt comes from ${args[0]} or LEAD_CONVERSIONS_`),
    });
  }
});

test('a load works in a database with another encoding', async () => {
  const name = `latin1_${process.pid}`;
  await session`
    create database ${session(name)} template template0 encoding 'LATIN1' locale 'C' locale_provider libc`;
  const url = new URL(database.url);
  url.pathname = `/${name}`;
  try {
    await run(url.href, 'npm run migrate');
    const path = await usersIn('users', ['mia'], 'Zoë');
    expect(await run(url.href, 'npm run load', [path])).toMatchObject({ code: 0, stderr: '' });
  } finally {
    await session`drop database ${session(name)} with (force)`;
  }
});

test('a killed load leaves nothing behind, and the next one succeeds', async () => {
  const path = await usersIn('users', numbers(500_000));
  const { process, result } = start(database.url, 'npm run load', [path]);
  await sessionThatRuns(session, 'copy%');
  process.kill('SIGKILL');
  expect(await result).toMatchObject({ code: 'SIGKILL' });
  await sessionsEnded(session);
  expect(
    await session`
      select relname, 'locked' as what from pg_locks inner join pg_class on relation = pg_class.oid
      where relname ~ '^(dim_|fct_|input_)' and pid <> pg_backend_pid()
        and database = (select oid from pg_database where datname = current_database())
      union all
      select relname, 'temporary' from pg_class where relpersistence = 't'`,
  ).toEqual([]);
  expect(await session`select from dim_user`).toHaveLength(0);
  expect(await session`select from input_loads`).toHaveLength(0);
  expect(await load(await usersIn('users', ['mia']))).toMatchObject({ code: 0 });
});

describe('a role that loads', () => {
  const role = `loader_${process.pid}`;
  beforeEach(() => session`create role ${session(role)} login`);
  afterEach(async () => {
    await session`drop owned by ${session(role)}`;
    await session`drop role ${session(role)}`;
  });
  const loadAs = (...args: string[]) => {
    const url = new URL(database.url);
    url.username = role;
    return run(url.href, 'npm run load', args);
  };

  test('needs exactly the privileges that the errors name', async () => {
    const path = await usersIn('users', ['mia']);
    const lacking = (privileges: string) => ({
      code: 1,
      stdout: '',
      stderr: `The role ${role} lacks privileges for this load. Grant ${privileges} to it.\n`,
    });
    const others = ['dim_branch', 'fct_credit_pack_purchases', 'fct_membership_purchases'];
    const readable = others.map((table) => `select on ${table}`);
    const ofLoads = 'select, insert, update on input_loads';
    expect(await loadAs(path)).toEqual(
      lacking(
        [readable[0], 'select, insert, update on dim_user', ...readable.slice(1), ofLoads].join(
          ', ',
        ),
      ),
    );
    for (const table of [...others, 'dim_user', 'input_loads']) {
      await session`grant select on ${session(table)} to ${session(role)}`;
    }
    await session`grant insert, update on dim_user, input_loads to ${session(role)}`;
    const { code, stderr } = await loadAs(path);
    expect([code, stderr]).toEqual([
      0,
      'Warning: dim_user was loaded, but not vacuumed: another session has locked it, or this role may not vacuum it. Run VACUUM as its owner.\n',
    ]);
    expect(await loadAs('--snapshot', path)).toEqual(lacking('delete on dim_user'));
    await session`grant delete on dim_user to ${session(role)}`;
    expect(await loadAs('--snapshot', path)).toMatchObject({ code: 0 });
  });

  test('needs the privilege to create temporary tables', async () => {
    const [{ name } = { name: '' }] = await session<{ name: string }[]>`
      select current_database() as name`;
    await session`revoke temporary on database ${session(name)} from public`;
    expect(await loadAs(await usersIn('users', ['mia']))).toEqual({
      code: 1,
      stdout: '',
      stderr: `The role ${role} may not load this. Grant temporary on database ${name} to it.\n`,
    });
  });

  test('is refused if row-level security hides rows from it', async () => {
    await session`insert into dim_user (user_id) values ('mia'), ('sam')`;
    await session`
      grant select, insert, update, delete on all tables in schema public to ${session(role)}`;
    await session`alter table dim_user enable row level security`;
    await session`create policy own on dim_user using (user_id = 'mia')`;
    expect(await loadAs('--snapshot', await usersIn('users', ['mia']))).toEqual({
      code: 1,
      stdout: '',
      stderr:
        'Nothing was loaded: query would be affected by row-level security policy for table "dim_user". A load must see all rows. Load as the owner of the tables, or exempt the role: "alter role … bypassrls".\n',
    });
    expect(await session`select from dim_user`).toHaveLength(2);
  });
});

test('loading the same files again writes almost nothing, and locks no row', async () => {
  const server = await startPostgres({ autovacuum: 'off' });
  const client = postgres(server.url('postgres'), { max: 1, onnotice: () => {} });
  try {
    const url = server.url('postgres');
    expect(await run(url, 'npm run migrate')).toMatchObject({ code: 0 });
    await usersIn('all', numbers(20_000));
    await writeFile(
      join(folder, 'all', 'fct_membership_purchases.csv'),
      [
        'user_id,branch_id,user_membership_id,membership_purchased_at,created_at,membership_purchase_details',
        ...numbers(20_000).map((id) => `${id},,1,2024-02-15,,"{""name"": ""Monthly""}"`),
        '',
      ].join('\n'),
    );
    const writtenBy = async (...args: string[]) => {
      // A checkpoint first, because the first change of a page after one writes the whole page.
      await client`checkpoint`;
      const [before] = await client`select pg_current_wal_insert_lsn() as lsn`;
      const { code } = await run(url, 'npm run load', [join(folder, 'all'), ...args]);
      const [after] = await client`
        select (pg_current_wal_insert_lsn() - ${before?.lsn}::pg_lsn)::float8 as bytes`;
      expect(code).toBe(0);
      return after?.bytes;
    };
    const first = await writtenBy();
    const versions = () => client`
      select ctid::text, xmin::text, xmax::text from dim_user
      union all
      select ctid::text, xmin::text, xmax::text from fct_membership_purchases`;
    const before = await versions();
    expect((await writtenBy()) / first).toBeLessThan(0.02);
    expect((await writtenBy('--snapshot')) / first).toBeLessThan(0.02);
    expect(await versions()).toEqual(before);
  } finally {
    await client.end();
    await server.remove();
  }
});
