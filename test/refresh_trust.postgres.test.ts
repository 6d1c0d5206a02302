import { execFile } from 'node:child_process';
import { rename, rm, writeFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { promisify } from 'node:util';
import type { SQL } from 'drizzle-orm';
import { PgDialect, type PgMaterializedView, type PgTransactionConfig } from 'drizzle-orm/pg-core';
import postgres from 'postgres';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { type Database, openDatabase } from '../scripts/database.ts';
import { type PostgresServer, startPostgres } from '../scripts/postgres_server.ts';
import { refreshViews } from '../views/index.ts';
import { type Result, run, start } from './support/commands.ts';
import { filters, sessionsEnded, sessionsThatWait } from './support/sessions.ts';

// A refresh never succeeds with wrong numbers. These tests cover what it does not trust.

/** A separate server, on which no other database has open transactions. */
let server: PostgresServer;
let admin: postgres.Sql;
beforeAll(async () => {
  server = await startPostgres({ max_prepared_transactions: '2', autovacuum: 'off' });
  admin = postgres(server.url('postgres'), { max: 1, onnotice: () => {} });
  await admin`create role owner login createrole`;
  await admin`create role other login`;
  await admin`create database template owner owner`;
  await run(urlAs('owner', 'template'), 'drizzle-kit migrate');
}, 60_000);
afterAll(async () => {
  await admin.end();
  await server.remove();
});

function urlAs(role: string, database = 'gym'): string {
  const url = new URL(server.url(database));
  url.username = role;
  return url.href;
}

const refresh = (...args: string[]) => run(urlAs('owner'), 'npm run refresh', args);

/** How a refresh brought each view up to date. */
async function modes(...args: string[]): Promise<string[]> {
  const { stdout, stderr } = await refresh('--json', ...args);
  expect(stderr).toBe('');
  return JSON.parse(stdout).views.map(({ mode }: { mode: string }) => mode);
}

/** Sessions of the owner on a database with ten users, whose views are up to date. */
let owner: postgres.Sql;
/** A superuser's session on that database. */
let superuser: postgres.Sql;
beforeEach(async () => {
  await admin`create database gym template template owner owner`;
  owner = postgres(urlAs('owner'), { max: 4, onnotice: () => {} });
  superuser = postgres(server.url('gym'), { max: 1, onnotice: () => {} });
  await owner`insert into dim_branch (branch_id) values ('b')`;
  await owner`insert into dim_user (user_id, branch_id) select number, 'b' from generate_series(1, 10) as number`;
  await owner`insert into fct_membership_purchases (user_id, user_membership_id) values (1, 1), (2, 1)`;
  expect(await modes()).toEqual(['concurrently', 'concurrently']);
  expect(await modes()).toEqual(['unchanged', 'unchanged']);
});
afterEach(async () => {
  await owner.end();
  await superuser.end();
  await admin`drop database gym with (force)`;
});

/** The status that the second view shows for a user under ALL, MEMBERSHIP and USER_CREDIT. */
const statusesOf = async (user: number) => {
  const rows = await owner`
    select lead_status from fct_lead_conversions
    where user_id = ${user}
      and client_conversion_event_filter in ('ALL', 'MEMBERSHIP', 'USER_CREDIT')
    order by client_conversion_event_filter`;
  return rows.map(({ lead_status }) => lead_status);
};
const buy = (session: postgres.ISql, user: number, id = 1) =>
  session`insert into fct_membership_purchases (user_id, user_membership_id) values (${user}, ${id})`;

const lead = ['LEAD', 'LEAD', 'LEAD'];
const client = ['CLIENT', 'CLIENT', 'LEAD'];

/** A database that calls a hook just before its first REFRESH or VACUUM, after all checks. */
function hooked(
  db: Database['db'],
  statement: 'refresh' | 'vacuum',
  hook: () => Promise<unknown>,
): Database['db'] {
  let isDone = false;
  const once = async () => {
    if (!isDone) {
      isDone = true;
      await hook();
    }
  };
  const wrap = (target: Database['db']): Database['db'] =>
    new Proxy(target, {
      get: (_, key) => {
        if (key === 'transaction') {
          return (work: (tx: Database['db']) => Promise<unknown>, config?: PgTransactionConfig) =>
            target.transaction((tx) => work(wrap(tx)), config);
        }
        if (key === 'refreshMaterializedView' && statement === 'refresh') {
          return (view: PgMaterializedView) => ({
            concurrently: async () => {
              await once();
              await target.refreshMaterializedView(view).concurrently();
            },
          });
        }
        if (key === 'execute' && statement === 'vacuum') {
          return async (query: SQL) => {
            if (new PgDialect().sqlToQuery(query).sql.startsWith('vacuum')) {
              await once();
            }
            return await target.execute(query);
          };
        }
        const value = Reflect.get(target, key, target);
        return typeof value === 'function' ? value.bind(target) : value;
      },
    });
  return wrap(db);
}

describe('a view that somebody has refreshed from old rows is recomputed', () => {
  test('after a REFRESH … CONCURRENTLY that waited for the nightly refresh', async () => {
    await buy(owner, 3);
    let night: Promise<Result> | undefined;
    let byHand: PromiseLike<unknown> | undefined;
    await owner.begin(async (locked) => {
      await locked`refresh materialized view concurrently fct_lead_conversions`;
      night = refresh('--lock-timeout', '1min');
      await sessionsThatWait(owner);
      byHand = owner`refresh materialized view concurrently fct_lead_conversions`.execute();
      await sessionsThatWait(owner, 2);
    });
    expect(await night).toMatchObject({ code: 0 });
    await byHand;
    expect(await statusesOf(3)).toEqual(lead); // still as before the refresh
    expect(await modes()).toEqual(['unchanged', 'concurrently']);
    expect(await statusesOf(3)).toEqual(client);
  });

  test.each([
    ['whose id is lower than that of the nightly refresh', true],
    ['whose id is higher', false],
  ])('after a plain REFRESH in a REPEATABLE READ transaction %s', async (_, isEarlier) => {
    for (const view of ['fct_client_conversion_events', 'fct_lead_conversions']) {
      const user = view === 'fct_lead_conversions' ? 4 : 3;
      await owner.begin('isolation level repeatable read', async (byHand) => {
        await byHand`select from dim_user`;
        if (isEarlier) {
          await byHand`select pg_current_xact_id()`;
        }
        await buy(owner, user);
        expect(await refresh()).toMatchObject({ code: 0 });
        expect(await statusesOf(user)).toEqual(client);
        await byHand.unsafe(`refresh materialized view ${view}`);
      });
      expect(await modes()).toContain('concurrently');
      expect(await statusesOf(user)).toEqual(client);
      await refresh();
      expect(await modes()).toEqual(['unchanged', 'unchanged']);
    }
  });
});

test("a refresh waits for another session's uncommitted REFRESH of a view that seems unchanged", async () => {
  await buy(owner, 3);
  let night: Promise<Result> | undefined;
  let committed = () => {};
  const stale = new Promise<void>((resolve) => {
    committed = resolve;
  });
  let byHand: Promise<unknown> | undefined;
  await owner.begin(async (locked) => {
    await locked`refresh materialized view concurrently fct_lead_conversions`;
    night = refresh('--lock-timeout', '1min');
    await sessionsThatWait(owner);
    byHand = owner.begin(async (session) => {
      await session`refresh materialized view concurrently fct_lead_conversions`;
      await stale;
    });
    await sessionsThatWait(owner, 2);
  });
  expect(await night).toMatchObject({ code: 0 });
  // The manual REFRESH has the rows from before its wait, and is not committed yet.
  const nextNight = refresh('--lock-timeout', '1min');
  await sessionsThatWait(owner);
  committed();
  await byHand;
  expect(await nextNight).toMatchObject({ code: 0 });
  expect(await statusesOf(3)).toEqual(client);
});

describe('the input counts as changed', () => {
  test('after a transaction that began before the refresh and leaves the same number of rows', async () => {
    await owner.begin(async (early) => {
      await early`select pg_current_xact_id()`;
      await owner`insert into dim_user (user_id) values ('late')`;
      expect(await modes()).toEqual(['concurrently', 'concurrently']);
      await early`insert into dim_user (user_id) values ('early')`;
      await early`delete from dim_user where user_id = 'late'`;
    });
    expect(await modes()).toEqual(['concurrently', 'concurrently']);
    expect(
      await owner`select user_id from fct_lead_conversions where user_id in ('late', 'early')`,
    ).toHaveLength(filters);
    expect(await modes()).toEqual(['unchanged', 'unchanged']);
  });

  test('if something is committed between the check of the input and the REFRESH', async () => {
    await buy(owner, 3);
    let night: Promise<Result> | undefined;
    await owner.begin(async (locked) => {
      await locked`refresh materialized view concurrently fct_client_conversion_events`;
      night = refresh('--lock-timeout', '1min');
      await sessionsThatWait(owner);
      await buy(owner, 4);
    });
    expect(await night).toMatchObject({ code: 0, stderr: '' });
    expect((await modes())[0]).toBe('concurrently');
    expect(await statusesOf(4)).toEqual(client);
  });

  test('if a table with children is emptied and filled again while the refresh waits for it', async () => {
    // A table that once had a child counts as one with children until it is analyzed.
    await owner`create table archive () inherits (fct_membership_purchases)`;
    await owner`drop table archive`;
    let night: Promise<Result> | undefined;
    await owner.begin(async (loading) => {
      const rows = await loading`select user_id, user_membership_id from fct_membership_purchases`;
      await loading`truncate fct_membership_purchases`;
      night = refresh('--lock-timeout', '1min');
      await sessionsThatWait(owner);
      await loading`insert into fct_membership_purchases ${loading(rows)}`;
    });
    expect(await night).toMatchObject({ code: 0, stderr: '' });
    expect(await statusesOf(1)).toEqual(client);
  });

  test.each([
    [
      'a user',
      `insert into dim_user (user_id) values ('ghost')`,
      `delete from dim_user where user_id = 'ghost'`,
    ],
    [
      'a purchase',
      `insert into fct_membership_purchases (user_id, user_membership_id) values ('5', 'ghost')`,
      `delete from fct_membership_purchases where user_membership_id = 'ghost'`,
    ],
    [
      'a credit pack',
      `insert into fct_credit_pack_purchases (user_id, credit_pack_id) values ('5', 'ghost')`,
      `delete from fct_credit_pack_purchases where credit_pack_id = 'ghost'`,
    ],
  ])('if %s existed only during the REFRESH', async (_, insert, remove) => {
    await buy(owner, 3);
    const { db, close } = await openDatabase(urlAs('owner'));
    const { views } = await refreshViews(hooked(db, 'refresh', () => owner.unsafe(insert)));
    await close();
    expect(views.map(({ mode }) => mode)).toEqual(['concurrently', 'concurrently']);
    await owner.unsafe(remove);
    const shown = () => owner`
      select from fct_lead_conversions
      where user_id = 'ghost' or client_conversion_event_id = 'ghost'`;
    expect((await shown()).length).toBeGreaterThan(0);
    expect(await modes('--max-loss', '100%')).toEqual(['concurrently', 'concurrently']);
    expect(await shown()).toHaveLength(0);
    expect(await modes()).toEqual(['unchanged', 'unchanged']);
  });

  test('if a deleted purchase existed again only during the REFRESH', async () => {
    await buy(owner, 3, 7);
    expect(await modes()).toEqual(['concurrently', 'concurrently']);
    await owner`delete from fct_membership_purchases where user_membership_id = '7'`;
    const { db, close } = await openDatabase(urlAs('owner'));
    await refreshViews(
      hooked(db, 'refresh', () => buy(owner, 3, 7)),
      { maxLoss: '100%' },
    );
    await close();
    await owner`delete from fct_membership_purchases where user_membership_id = '7'`;
    expect((await modes('--max-loss', '100%'))[0]).toBe('concurrently');
    expect(await statusesOf(3)).toEqual(lead);
  });

  test('if a table has children, because Postgres counts their rows with it', async () => {
    await owner`create table newcomers () inherits (dim_user)`;
    expect(await modes()).toEqual(['concurrently', 'unchanged']);
    expect(await modes()).toEqual(['concurrently', 'unchanged']);
  });
});

test('the rows of a replaced view are counted, not copied from the history', async () => {
  await owner`drop materialized view fct_lead_conversions`;
  await owner`
    create materialized view fct_lead_conversions as
    select user_id, 'ALL'::varchar as filter from fct_client_conversion_events`;
  await owner`create unique index on fct_lead_conversions (user_id)`;
  expect(await refresh()).toMatchObject({
    code: 0,
    stdout: expect.stringMatching(/^fct_lead_conversions: 10 rows, 0 inserted, 0 deleted, /m),
  });
  expect(await owner`select rows::int from view_refreshes order by id desc limit 1`).toEqual([
    { rows: 10 },
  ]);
});

describe('a refresh stops if a table or view was swapped by renaming it:', () => {
  test.each([
    ['table', 'dim_user', 'fct_client_conversion_events'],
    ['table', 'fct_membership_purchases', 'fct_client_conversion_events'],
    ['table', 'dim_branch', 'fct_client_conversion_events'],
    ['materialized view', 'fct_client_conversion_events', 'fct_lead_conversions'],
  ])('%s %s', async (kind, name, view) => {
    await owner.unsafe(`alter ${kind} ${name} rename to was_there_before`);
    if (kind === 'table') {
      await owner.unsafe(`create table ${name} (like was_there_before including all)`);
    } else {
      const [definition] = await owner`select pg_get_viewdef('was_there_before'::regclass) as text`;
      await owner.unsafe(`create materialized view ${name} as ${definition?.text}`);
      await owner.unsafe(`create unique index on ${name} (user_id)`);
    }
    expect(await refresh()).toEqual({
      code: 1,
      stdout: '',
      stderr: expect.stringMatching(
        new RegExp(
          `^${view} does not read ${name}\\. A view keeps reading the tables and columns with which it was created, [^\n]*\\. It reads [^\n]*was_there_before[^\n]*\\.\n$`,
        ),
      ),
    });
    await owner.unsafe(`drop ${kind} ${name}`);
    await owner.unsafe(`alter ${kind} was_there_before rename to ${name}`);
    expect(await refresh()).toMatchObject({ code: 0 });
  });
});

describe('a refresh stops if a view reads a moved or renamed object:', () => {
  test('a table that was swapped by moving it to another schema', async () => {
    await owner`create schema archive`;
    await owner`alter table dim_user set schema archive`;
    await owner`create table dim_user (like archive.dim_user including all)`;
    expect(await refresh()).toMatchObject({
      code: 1,
      stderr: expect.stringContaining('It reads dim_branch, archive.dim_user, '),
    });
  });

  test('a column that was swapped by renaming it', async () => {
    await owner.unsafe(`
      alter table fct_membership_purchases add column other timestamptz;
      alter table fct_membership_purchases rename membership_purchased_at to was_there_before;
      alter table fct_membership_purchases rename other to membership_purchased_at`);
    expect(await refresh()).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(
        /^fct_client_conversion_events reads was_there_before of fct_membership_purchases\. /,
      ),
    });
  });

  test('two columns that have exchanged their names', async () => {
    await owner.unsafe(`
      alter table fct_membership_purchases rename membership_purchased_at to other;
      alter table fct_membership_purchases rename created_at to membership_purchased_at;
      alter table fct_membership_purchases rename other to created_at`);
    expect(await refresh()).toMatchObject({ code: 1 });
  });
});

describe('row-level security never filters a view', () => {
  test.each([
    ['on a table of the same owner, if it is forced', 'owner', 'force'],
    ['on a table of another owner', 'other', 'no force'],
  ])('%s', async (_, tableOwner, force) => {
    await superuser.unsafe(`
      alter table dim_user owner to ${tableOwner};
      grant select on dim_user to owner;
      alter table dim_user enable row level security;
      alter table dim_user ${force} row level security`);
    expect(await refresh()).toEqual({
      code: 1,
      stdout: '',
      stderr:
        'fct_client_conversion_events was not refreshed, because row-level security may hide rows of dim_user from owner, the owner of the view. A refresh needs all rows. Exempt that role: "alter role owner bypassrls", or "alter table … no force row level security" if it owns the table.\n',
    });
    expect(await owner`select from fct_client_conversion_events`).toHaveLength(10);
    await superuser`alter role owner bypassrls`;
    try {
      expect(await refresh()).toMatchObject({ code: 0, stderr: '' });
    } finally {
      await superuser`alter role owner nobypassrls`;
    }
    expect(await owner`select from fct_client_conversion_events`).toHaveLength(10);
  });
});

test('the environment can allow a loss, too', async () => {
  await owner`truncate fct_membership_purchases`;
  expect(await refresh()).toMatchObject({
    code: 1,
    stderr: expect.stringContaining('would have 0 clients instead of 2, a loss of 100 %.'),
  });
  expect(await statusesOf(1)).toEqual(client);
  expect(
    await run(urlAs('owner'), 'npm run refresh', [], { LEAD_CONVERSIONS_MAX_LOSS: '100%' }),
  ).toMatchObject({ code: 0 });
  expect(await statusesOf(1)).toEqual(lead);
});

test('losing all credit packs counts as a loss, even if their buyers have memberships', async () => {
  await owner`insert into fct_credit_pack_purchases (user_id, credit_pack_id) values (1, 1)`;
  expect(await refresh()).toMatchObject({ code: 0 });
  await owner`truncate fct_credit_pack_purchases`;
  expect(await refresh()).toMatchObject({
    code: 1,
    stderr: expect.stringContaining('would have 0 clients by credit pack instead of 1'),
  });
});

test('the views are recomputed if the clocks of a zone change a day earlier than before', async () => {
  const [setting] = await superuser`show data_directory`;
  const zones = join(dirname(setting?.data_directory), 'share/postgresql/timezone');
  await owner`update dim_branch set timezone_id = 'Asia/Gaza'`;
  await owner`
    update dim_user set created_at = '2022-10-29 12:00Z' where user_id = '1'`;
  const createdAt = async () => {
    const [row] = await owner`
      select local_user_created_at::text as at from fct_client_conversion_events where user_id = '1'`;
    return row?.at;
  };
  await rename(join(zones, 'Asia/Gaza'), join(zones, 'Asia/Gaza.before'));
  try {
    for (const [until, local] of [
      ['2022 Oct 30 1:00', '2022-10-29 15:00:00'],
      ['2022 Oct 29 2:00', '2022-10-29 14:00:00'],
    ]) {
      const source = join(zones, 'Asia/Gaza.source');
      await writeFile(source, `Zone Asia/Gaza 3:00 - EEST ${until}\n\t\t\t2:00 - EET\n`);
      await promisify(execFile)('/usr/sbin/zic', ['-d', zones, source]);
      await rm(source);
      expect(await modes()).toEqual(['concurrently', 'concurrently']);
      expect(await createdAt()).toBe(local);
      expect(await modes()).toEqual(['unchanged', 'unchanged']);
    }
  } finally {
    await rename(join(zones, 'Asia/Gaza.before'), join(zones, 'Asia/Gaza'));
  }
});

test('time zones that the server no longer knows are named with their branches', async () => {
  await owner`
    insert into dim_branch (branch_id, timezone_id)
    select 'boston ' || number, 'US/Eastern' from generate_series(1, 7) as number`;
  await owner`insert into dim_branch (branch_id, timezone_id) values ('perth', 'Australia/West')`;
  expect(await refresh()).toMatchObject({ code: 0 });
  const [setting] = await superuser`show data_directory`;
  const zones = join(dirname(setting?.data_directory), 'share/postgresql/timezone');
  const forgotten = ['US/Eastern', 'Australia/West'];
  for (const zone of forgotten) {
    await rename(join(zones, zone), join(zones, `${zone}.gone`));
  }
  try {
    expect(await refresh()).toEqual({
      code: 1,
      stdout: '',
      stderr:
        'Nothing was refreshed, because the server no longer knows the time zones of some branches: Australia/West (branch perth); US/Eastern (branch boston 1, boston 2, boston 3, boston 4, boston 5 and 2 more). Either write the current name of each zone to dim_branch.timezone_id (America/New_York for US/Eastern), or install the legacy names on the server (the package tzdata-legacy on Debian and Ubuntu).\n',
    });
    await owner`update dim_branch set timezone_id = 'America/New_York' where timezone_id = 'US/Eastern'`;
    await owner`update dim_branch set timezone_id = 'Australia/Perth' where timezone_id = 'Australia/West'`;
    expect(await refresh()).toMatchObject({ code: 0, stderr: '' });
  } finally {
    for (const zone of forgotten) {
      await rename(join(zones, `${zone}.gone`), join(zones, zone));
    }
  }
});

describe('a refresh warns of dead rows that its vacuum may not remove,', () => {
  const warning = (holder: string) =>
    expect.stringMatching(
      new RegExp(
        `^Warning: fct_client_conversion_events was refreshed and vacuumed, but 1 dead row remains in it, because ${holder} might still read them\\. Until that ends, the view grows with every refresh\\.\nWarning: fct_lead_conversions .* 2 dead rows `,
      ),
    );

  test('and names the session that holds them', async () => {
    await owner.begin('isolation level repeatable read', async (reader) => {
      const [session] = await reader`select pg_backend_pid() as pid from dim_user`;
      await buy(owner, 3);
      expect(await refresh()).toMatchObject({
        code: 0,
        stderr: warning(`pid ${session?.pid} \\(owner, postgres\\.js\\)`),
      });
    });
    await buy(owner, 4);
    expect(await refresh()).toMatchObject({ code: 0, stderr: '' });
  });

  test('and names the prepared transaction that holds them', async () => {
    const preparing = await owner.reserve();
    await preparing`begin`;
    await preparing`select pg_current_xact_id()`;
    await preparing`prepare transaction 'forgotten'`;
    preparing.release();
    try {
      await buy(owner, 3);
      expect(await refresh()).toMatchObject({
        code: 0,
        stderr: warning(`the prepared transaction 'forgotten' of owner`),
      });
    } finally {
      await owner`rollback prepared 'forgotten'`;
    }
  });
});

describe('a vacuum that takes too long', () => {
  /** The warnings of a refresh whose vacuum is slow enough to be interrupted. */
  async function vacuumSlowly(statementTimeout: string): Promise<string[]> {
    await owner`insert into dim_user (user_id) select number from generate_series(11, 5000) as number`;
    const { db, close } = await openDatabase(urlAs('owner'));
    const slowDown = async () => {
      await superuser`alter system set vacuum_cost_delay = '100ms'`;
      await superuser`alter system set vacuum_cost_limit = 1`;
      await superuser`select pg_reload_conf()`;
      await superuser`select pg_sleep(0.5)`;
    };
    const { warnings } = await refreshViews(hooked(db, 'vacuum', slowDown), { statementTimeout });
    await close();
    return warnings;
  }
  afterEach(async () => {
    await superuser`alter system reset all`;
    await superuser`select pg_reload_conf()`;
  });

  test('is ended by the statement timeout of the refresh', async () => {
    expect(await vacuumSlowly('4s')).toEqual(
      ['fct_client_conversion_events', 'fct_lead_conversions'].map(
        (view) =>
          `${view} was refreshed, but not vacuumed: it took longer than the statement timeout of 4s.`,
      ),
    );
    await sessionsEnded(owner);
    expect(await owner`select from fct_lead_conversions`).toHaveLength(5000 * filters);
  });

  test('is ended by the statement timeout of the role, and the warning says so', async () => {
    await admin`alter role owner set statement_timeout = '1s'`;
    try {
      expect((await vacuumSlowly('1min'))[0]).toBe(
        'fct_client_conversion_events was refreshed, but not vacuumed: canceling statement due to statement timeout. The statement_timeout of the role, the database or the server ended it. Raise it with "alter role".',
      );
    } finally {
      await admin`alter role owner reset statement_timeout`;
    }
  });
});

test('a refresh that cannot get a lock tries again', async () => {
  await buy(owner, 3);
  let night: Promise<Result> | undefined;
  await owner.begin(async (locked) => {
    await locked`refresh materialized view concurrently fct_lead_conversions`;
    const { process, result } = start(urlAs('owner'), 'npm run refresh', [
      ...['--json', '--lock-timeout', '200ms'],
    ]);
    night = result;
    await new Promise((resolve) => process.stderr?.once('data', resolve));
  });
  const { code, stdout } = (await night) as Result;
  expect(code).toBe(0);
  expect(JSON.parse(stdout).retries[0]).toMatch(
    /^fct_lead_conversions was not refreshed: it got no lock within 200ms, because pid /,
  );
  expect(await statusesOf(3)).toEqual(client);
});

describe('the error says what is missing:', () => {
  test('USAGE on the schema', async () => {
    await superuser`revoke usage on schema public from public`;
    expect(await run(urlAs('other'), 'npm run refresh')).toEqual({
      code: 1,
      stdout: '',
      stderr:
        'The role other may not use the schema public, where the views are. Grant the role usage on that schema.\n',
    });
  });

  test('a dropped view', async () => {
    await owner`drop materialized view fct_lead_conversions`;
    expect(await refresh()).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(
        /^fct_lead_conversions is missing, although the database has fct_client_conversion_events\. It was dropped or renamed\./,
      ),
    });
  });

  test('a privilege of the owner of the view', async () => {
    await superuser`alter materialized view fct_client_conversion_events owner to other`;
    await superuser`alter materialized view fct_lead_conversions owner to other`;
    expect(await run(server.url('gym'), 'npm run refresh', ['--force'])).toEqual({
      code: 1,
      stdout: '',
      stderr:
        'fct_client_conversion_events was not refreshed, because permission denied for table dim_user. Postgres computes a view with the privileges of its owner: grant select on what it reads to other.\n',
    });
  });
});
