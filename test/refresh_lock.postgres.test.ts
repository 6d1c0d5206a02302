import postgres from 'postgres';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { type PostgresServer, startPostgres } from '../scripts/postgres_server.ts';
import { type Result, run, start } from './support/commands.ts';
import {
  filters,
  seenBy,
  sessionsEnded,
  sessionsThatWait,
  sessionThatRuns,
} from './support/sessions.ts';

// Only one refresh runs at a time. These tests cover its lock: who can take it, and who cannot.

/**
 * A separate server, because roles belong to a whole server, and with prepared transactions, which
 * are off by default.
 */
let server: PostgresServer;
let admin: postgres.Sql;
beforeAll(async () => {
  server = await startPostgres({ max_prepared_transactions: '2' });
  admin = postgres(server.url('postgres'), { max: 1, onnotice: () => {} });
  await admin`create role owner login createrole`;
  await admin`create role anybody login`;
  await admin`create database template owner owner`;
  await run(urlAs('owner', 'template'), 'drizzle-kit migrate');
  await admin`create role reader login in role lead_conversions_reader`;
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

/** Sessions of the owner on a migrated database with one user. */
let owner: postgres.Sql;
beforeEach(async () => {
  await admin`create database gym template template owner owner`;
  owner = postgres(urlAs('owner'), { max: 3, onnotice: () => {} });
  await owner`insert into dim_user (user_id) values ('mia')`;
});
afterEach(async () => {
  await owner.end();
  await admin`drop database gym with (force)`;
});

describe('a role that may not write the history', () => {
  test.each(['anybody', 'reader'])('cannot block a refresh: %s', async (role) => {
    const session = postgres(urlAs(role), { max: 1 });
    await session.begin(async (squatter) => {
      await squatter`select pg_advisory_lock(hashtextextended('lead-conversions refresh', 0))`;
      for (const mode of ['share update exclusive', 'share', 'row exclusive', 'row share']) {
        await expect(
          squatter.savepoint((attempt) =>
            attempt.unsafe(`lock table view_refreshes in ${mode} mode`),
          ),
        ).rejects.toMatchObject({ code: '42501' });
      }
      if (role === 'reader') {
        await squatter`lock table view_refreshes in access share mode`;
      }
      expect(await refresh()).toMatchObject({ code: 0, stderr: '' });
    });
    await session.end();
  });
});

test('a role that is refused the lock again and again does not block a refresh', {
  timeout: 180_000,
}, async () => {
  const squatters = postgres(urlAs('reader'), { max: 3, onnotice: () => {} });
  for (let squatter = 0; squatter < 3; squatter += 1) {
    squatters
      .unsafe(`
        do $$
        begin
          lock table public.view_refreshes in access share mode;
          loop
            begin
              execute 'comment on table public.view_refreshes is null';
            exception when insufficient_privilege then
            end;
          end loop;
        end
        $$`)
      .catch(() => {}); // throws once it is terminated
  }
  const superuser = postgres(server.url('gym'), { max: 1 });
  await sessionThatRuns(superuser, '%access share mode%');
  await superuser.end();
  for (let night = 0; night < 3; night += 1) {
    expect(await refresh('--retries', '0')).toMatchObject({ code: 0 });
  }
  const [{ count } = { count: 0 }] = await admin<{ count: number }[]>`
    select count(pg_terminate_backend(pid))::int from pg_stat_activity where usename = 'reader'`;
  expect(count).toBeGreaterThan(0); // they have tried all the time
  await squatters.end({ timeout: 1 });
});

describe('a session that has the lock for another purpose does not count as a refresh:', () => {
  test.each([
    'analyze view_refreshes',
    `comment on table view_refreshes is 'History'`,
    'alter table view_refreshes set (fillfactor = 90)',
  ])('%s', async (statement) => {
    expect(await refresh()).toMatchObject({ code: 0 });
    await owner.begin(async (session) => {
      await session.unsafe(statement);
      expect(await refresh('--lock-timeout', '1500ms', '--retries', '0')).toMatchObject({
        code: 1,
        stderr: expect.stringContaining(' holds ShareUpdateExclusiveLock on view_refreshes.'),
      });
    });
  });

  test('drop index concurrently', async () => {
    await owner`create index extra on view_refreshes (rows)`;
    let dropped: PromiseLike<unknown> | undefined;
    await owner.begin(async (reader) => {
      await reader`select from view_refreshes`;
      dropped = owner`drop index concurrently extra`.execute();
      await sessionsThatWait(owner);
      expect(await refresh('--lock-timeout', '1500ms', '--retries', '0')).toMatchObject({
        code: 1,
        stderr: expect.stringContaining(' holds ShareUpdateExclusiveLock on view_refreshes.'),
      });
    });
    await dropped;
  });
});

test('a refresh that waits for the history is cancelled on the server, too', async () => {
  await owner.begin(async (locked) => {
    await locked`lock table view_refreshes in access exclusive mode`;
    const { process, result } = start(urlAs('owner'), 'npm run refresh', [
      ...['--lock-timeout', '1min'],
    ]);
    await sessionsThatWait(owner);
    process.kill('SIGTERM');
    expect(await result).toEqual({
      code: 143,
      stdout: '',
      stderr: 'Cancelled by SIGTERM. The views have not changed.\n',
    });
    await sessionsEnded(owner);
  });
});

/** Vacuums the history slowly during the work, then cancels the vacuum. */
async function whileVacuumed(work: (pid: number) => Promise<void>): Promise<void> {
  await owner`
    insert into view_refreshes (view, started_at, finished_at, mode, rows, inserted, deleted, duration_ms, package_version, server)
    select 'x', now(), now(), 'unchanged', 0, 0, 0, 0, '', ''
    from generate_series(1, 100000) as number`;
  await owner`delete from view_refreshes`;
  const vacuuming = await owner.reserve();
  await vacuuming`set vacuum_cost_delay = '100ms'`;
  await vacuuming`set vacuum_cost_limit = 1`;
  const vacuum = vacuuming`vacuum view_refreshes`.then(
    () => 'vacuumed',
    ({ code }) => code,
  );
  const pid = await sessionThatRuns(owner, 'vacuum view_refreshes');
  try {
    await work(pid);
  } finally {
    await owner`select pg_cancel_backend(${pid})`;
    expect(await vacuum).toBe('57014');
    vacuuming.release();
  }
}

describe('a vacuum of the history', () => {
  test('makes a refresh wait', async () => {
    let waiting: Promise<Result> | undefined;
    await whileVacuumed(async () => {
      waiting = refresh('--lock-timeout', '1min');
      await sessionsThatWait(owner);
    });
    expect(await waiting).toMatchObject({ code: 0, stderr: '' });
    expect(await seenBy(owner)).toEqual({ users: 1, rows: filters, refreshes: 2 });
  });

  test('makes a refresh wait no longer than any other lock, and is named', async () => {
    await whileVacuumed(async (pid) => {
      expect(await refresh('--lock-timeout', '500ms', '--retries', '0')).toEqual({
        code: 1,
        stdout: '',
        stderr: `fct_client_conversion_events was not refreshed: it got no lock within 500ms, because pid ${pid} (owner, postgres.js) holds ShareUpdateExclusiveLock on view_refreshes.\n`,
      });
    });
  });

  test('is distinguished from a refresh even by a role that may not see what others do', async () => {
    await admin`create role refresher login`;
    try {
      await whileVacuumed(async (pid) => {
        const superuser = postgres(server.url('gym'), { max: 1 });
        await superuser`alter materialized view fct_client_conversion_events owner to refresher`;
        await superuser`alter materialized view fct_lead_conversions owner to refresher`;
        await superuser`grant select, insert, update on view_refreshes to refresher`;
        await superuser`grant select on dim_branch, dim_user, fct_credit_pack_purchases, fct_membership_purchases to refresher`;
        await superuser.end();
        expect(
          await run(urlAs('refresher'), 'npm run refresh', [
            '--lock-timeout',
            '500ms',
            '--retries',
            '0',
          ]),
        ).toMatchObject({
          code: 1,
          stderr: expect.stringContaining(
            `pid ${pid} (owner, postgres.js) holds ShareUpdateExclusiveLock on view_refreshes.`,
          ),
        });
      });
    } finally {
      await admin`drop database gym with (force)`;
      await admin`drop role refresher`;
      await admin`create database gym`;
    }
  });
});

test('a prepared transaction that has the lock does not count as a refresh, and is named', async () => {
  const preparing = await owner.reserve();
  await preparing`begin`;
  await preparing`lock table view_refreshes in share update exclusive mode`;
  await preparing`prepare transaction 'forgotten'`;
  preparing.release();
  try {
    expect(await refresh('--lock-timeout', '500ms', '--retries', '0')).toEqual({
      code: 1,
      stdout: '',
      stderr:
        "fct_client_conversion_events was not refreshed: it got no lock within 500ms, because the prepared transaction 'forgotten' of owner holds ShareUpdateExclusiveLock on view_refreshes.\n",
    });
  } finally {
    await owner`rollback prepared 'forgotten'`;
  }
  expect(await refresh()).toMatchObject({ code: 0 });
});

test('a session that waits for a lock before the refresh is named, too', async () => {
  await owner.begin(async (reader) => {
    await reader`select from view_refreshes`;
    const altering = owner`alter table view_refreshes add column note text`;
    altering.catch(() => {});
    await sessionsThatWait(owner);
    const pid = await sessionThatRuns(owner, 'alter table view_refreshes%');
    expect(await refresh('--lock-timeout', '500ms', '--retries', '0')).toMatchObject({
      code: 1,
      stderr: expect.stringContaining(
        `pid ${pid} (owner, postgres.js) waits for AccessExclusiveLock on view_refreshes`,
      ),
    });
    await owner`select pg_cancel_backend(${pid})`;
  });
});
