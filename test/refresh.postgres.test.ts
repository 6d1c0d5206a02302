import { setTimeout } from 'node:timers/promises';
import postgres from 'postgres';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { openDatabase } from '../scripts/database.ts';
import { refreshViews } from '../views/index.ts';
import { type Result, run, start } from './support/commands.ts';
import { useServerDatabase } from './support/database.ts';
import {
  filters,
  seenBy,
  sessionsEnded,
  sessionsThatWait,
  sessionThatRuns,
} from './support/sessions.ts';

const database = useServerDatabase();

/** Sessions on the database beside that of a refresh. */
let session: postgres.Sql;
beforeEach(() => {
  session = postgres(database.url, { max: 3, onnotice: () => {} });
});
afterEach(() => session.end());

/** What --json prints of a refresh that did not happen, besides its outcome and reason. */
const nothingDone = { views: [], warnings: [], durationMs: expect.any(Number), retries: [] };

/** Holds a lock on the second view, for which a refresh waits, until the work is done. */
async function whileLocked(
  work: (locked: postgres.TransactionSql) => Promise<void>,
): Promise<void> {
  await session.begin(async (locked) => {
    await locked`refresh materialized view concurrently fct_lead_conversions`;
    await work(locked);
  });
}

/** The rows in which the views disagree on the nine columns that they share. */
const disagreements = `
  with
  events as (
    select user_id, branch_id, local_user_created_at, lead_status, client_conversion_event_type,
      client_conversion_event_id, client_conversion_event_local_created_at,
      client_conversion_event_name, client_conversion_event_source
    from fct_client_conversion_events
  ),
  conversions as (
    select user_id, branch_id, local_user_created_at, lead_status, client_conversion_event_type,
      client_conversion_event_id, client_conversion_event_local_created_at,
      client_conversion_event_name, client_conversion_event_source
    from fct_lead_conversions
    where client_conversion_event_filter = 'ALL'
  )
  (table events except table conversions) union all (table conversions except table events)`;

describe('readers', () => {
  test('never fail, never wait, and see both views agree, through 20 refreshes', async () => {
    await session`insert into dim_user (user_id) select generate_series(1, 2000)`;
    await run(database.url, 'npm run refresh');
    let isOver = false;
    /** Reads until isOver is set, and returns how many states it has seen. */
    const read = async (): Promise<number> => {
      const reader = postgres(database.url, { max: 1 });
      const counts = new Set<number>();
      try {
        await reader`set lock_timeout = '1ms'`;
        while (!isOver) {
          expect(await reader.unsafe(disagreements)).toEqual([]);
          const [users] = await reader`select count(*)::int from fct_client_conversion_events`;
          counts.add(users?.count);
        }
      } finally {
        await reader.end();
      }
      return counts.size;
    };
    const refresh = async (): Promise<void> => {
      const { db, close } = await openDatabase(database.url);
      try {
        for (let night = 1; night <= 20; night += 1) {
          await session`insert into dim_user (user_id) values (${-night})`;
          await session`
            insert into fct_membership_purchases (user_id, user_membership_id)
            select user_id, ${night} from dim_user where user_id::int % 20 = ${night - 1}`;
          const { views } = await refreshViews(db);
          const changed = views.filter(({ inserted, deleted }) => inserted > 0 && deleted > 0);
          expect(changed).toHaveLength(2);
        }
      } finally {
        isOver = true;
        await close();
      }
    };
    const [first, second] = await Promise.all([read(), read(), refresh()]);
    // The readers did see the refreshes happen.
    expect(Math.min(first, second)).toBeGreaterThan(10);
  });
});

describe('a refresh beside another one', () => {
  test('runs if it is the first, and is skipped with exit code 75 otherwise', async () => {
    await session`insert into dim_user (user_id) values ('mia')`;
    let refreshes: Promise<Result>[] = [];
    let pid = 0;
    await whileLocked(async () => {
      const args = ['--json', '--lock-timeout', '1min'];
      refreshes = Array.from({ length: 8 }, () => run(database.url, 'npm run refresh', args));
      let left = refreshes.length;
      for (const refresh of refreshes) {
        refresh.then(() => {
          left -= 1;
        });
      }
      await vi.waitUntil(() => left === 1, { timeout: 30_000 });
      pid = await sessionThatRuns(session, 'alter materialized view%');
    });
    const results = await Promise.all(refreshes);
    expect(results.map(({ code }) => code).toSorted()).toEqual([0, 75, 75, 75, 75, 75, 75, 75]);
    const reason = expect.stringMatching(
      new RegExp(
        `^a refresh or a migration is already running \\(pid ${pid}, since \\d{4}-\\d\\d-\\d\\dT[0-9:]{8}Z\\)$`,
      ),
    );
    for (const { stdout, stderr } of results.filter(({ code }) => code === 75)) {
      const output = JSON.parse(stdout);
      expect(output).toEqual({ ...nothingDone, outcome: 'skipped', reason });
      expect(stderr).toBe(`skipped: ${output.reason}\n`);
    }
    expect(await seenBy(session)).toEqual({ users: 1, rows: filters, refreshes: 2 });
  });

  test('is skipped while somebody holds its lock manually', async () => {
    await session.begin(async (byHand) => {
      await byHand`lock table view_refreshes in share update exclusive mode`;
      const [holder] = await byHand`select pg_backend_pid() as pid`;
      expect(await run(database.url, 'npm run refresh')).toEqual({
        code: 75,
        stdout: '',
        stderr: expect.stringMatching(
          new RegExp(
            `^skipped: somebody is holding off refreshes \\(pid ${holder?.pid}, [^\n]*, postgres\\.js, since [^\n]*\\)\n$`,
          ),
        ),
      });
    });
  });

  test('waits for a manual REFRESH, and both views agree although data has arrived meanwhile', async () => {
    await session`insert into dim_user (user_id) values ('mia')`;
    await run(database.url, 'npm run refresh');
    await session`insert into dim_user (user_id) values ('zoe')`;
    let refresh: Promise<Result> | undefined;
    await session.begin(async (byHand) => {
      await byHand`refresh materialized view concurrently fct_client_conversion_events`;
      refresh = run(database.url, 'npm run refresh');
      await sessionsThatWait(session);
      await session`
        insert into fct_membership_purchases (user_id, user_membership_id) values ('mia', '1')`;
      await byHand`refresh materialized view concurrently fct_client_conversion_events`;
    });
    expect(await refresh).toMatchObject({ code: 0, stderr: '' });
    expect(await session.unsafe(disagreements)).toEqual([]);
  });

  test('tries again after a deadlock with a manual REFRESH', async () => {
    await session`insert into dim_user (user_id) values ('mia')`;
    let refresh: Promise<Result> | undefined;
    await whileLocked(async (locked) => {
      refresh = run(database.url, 'npm run refresh', ['--json']);
      await sessionsThatWait(session);
      await locked`refresh materialized view concurrently fct_client_conversion_events`;
    });
    const { code, stdout, stderr } = (await refresh) as Result;
    expect(code).toBe(0);
    expect(JSON.parse(stdout).retries).toEqual([expect.stringMatching(/^deadlock detected\n/)]);
    expect(stderr).toMatch(/^deadlock detected\n(.+\n)+Trying again in 1 s \(1 of 5\)\.\n$/);
  });
});

describe('a refresh', () => {
  test('names the session whose lock it has waited for in vain, and changes nothing', async () => {
    await session`insert into dim_user (user_id) values ('mia')`;
    await whileLocked(async (locked) => {
      const [holder] = await locked`select pg_backend_pid() as pid, current_user as role`;
      expect(
        await run(database.url, 'npm run refresh', ['--lock-timeout', '500ms', '--retries', '0']),
      ).toEqual({
        code: 1,
        stdout: '',
        stderr: `fct_lead_conversions was not refreshed: it got no lock within 500ms, because pid ${holder?.pid} (${holder?.role}, postgres.js) holds ExclusiveLock on fct_lead_conversions.\n`,
      });
    });
    expect(await seenBy(session)).toEqual({ users: 0, rows: 0 * filters, refreshes: 0 });
  });

  test.each([
    ['lock table dim_user in access exclusive mode', 'AccessExclusiveLock on dim_user'],
    ['lock table view_refreshes in share mode', 'ShareLock on view_refreshes'],
    [
      'drop index fct_membership_purchases_first',
      'AccessExclusiveLock on fct_membership_purchases',
    ],
  ])('names the session that locks what it reads or writes: %s', async (statement, lock) => {
    await session
      .begin(async (locked) => {
        await locked.unsafe(statement);
        const { code, stderr } = await run(database.url, 'npm run refresh', [
          ...['--lock-timeout', '500ms', '--retries', '0'],
        ]);
        expect(code).toBe(1);
        expect(stderr).toMatch(
          new RegExp(
            `^fct_client_conversion_events was not refreshed: it got no lock within 500ms, because pid \\d+ \\(\\S+, postgres\\.js\\) holds ${lock}[^\\n]*\\.\\n$`,
          ),
        );
        throw new Error('roll back');
      })
      .catch(({ message }) => expect(message).toBe('roll back'));
  });

  test('ends at its statement timeout, and changes nothing', async () => {
    await session`insert into dim_user (user_id) select generate_series(1, 100000)`;
    expect(await run(database.url, 'npm run refresh', ['--statement-timeout', '50ms'])).toEqual({
      code: 1,
      stdout: '',
      stderr:
        'fct_client_conversion_events was not refreshed: canceling statement due to statement timeout. The statement timeout was 50ms.\n',
    });
    expect(await seenBy(session)).toEqual({ users: 0, rows: 0 * filters, refreshes: 0 });
  });

  test.each([
    ['SIGINT', 130],
    ['SIGTERM', 143],
  ] as const)(
    'is cancelled by %s, on the server too, and changes nothing',
    async (signal, code) => {
      await session`insert into dim_user (user_id) values ('mia')`;
      await whileLocked(async () => {
        const { process, result } = start(database.url, 'npm run refresh', ['--json']);
        await sessionsThatWait(session);
        process.kill(signal);
        await setTimeout(5);
        process.kill(signal); // npm repeats a signal that the process group already has
        const { stdout, ...rest } = await result;
        const reason = `Cancelled by ${signal}. The views have not changed.`;
        expect(rest).toEqual({ code, stderr: `${reason}\n` });
        expect(JSON.parse(stdout)).toEqual({ ...nothingDone, outcome: 'failed', reason });
        // If the server had not cancelled its statement, that would still wait for the lock.
        await sessionsEnded(session);
      });
      expect(await seenBy(session)).toEqual({ users: 0, rows: 0 * filters, refreshes: 0 });
    },
  );

  test('that is cancelled during its vacuum has refreshed, and says what is not vacuumed', async () => {
    await session`insert into dim_user (user_id) select generate_series(1, 300)`;
    const [{ name } = { name: '' }] = await session<{ name: string }[]>`
      select current_database() as name`;
    // Makes a vacuum slow enough to be cancelled.
    await session`alter database ${session(name)} set vacuum_cost_delay = '100ms'`;
    await session`alter database ${session(name)} set vacuum_cost_limit = 1`;
    const { process, result } = start(database.url, 'npm run refresh', ['--json']);
    await sessionThatRuns(session, 'vacuum%');
    process.kill('SIGTERM');
    const { code, stdout } = await result;
    expect(code).toBe(143);
    expect(JSON.parse(stdout)).toMatchObject({
      outcome: 'refreshed',
      warnings: [
        'fct_client_conversion_events was refreshed, but not vacuumed: cancelled by SIGTERM.',
        'fct_lead_conversions was refreshed, but not vacuumed: cancelled by SIGTERM.',
      ],
    });
    expect(await seenBy(session)).toEqual({ users: 300, rows: 300 * filters, refreshes: 2 });
    await sessionsEnded(session);
  });

  test('warns if it could not vacuum a view that it has refreshed', async () => {
    await session`insert into dim_user (user_id) values ('mia')`;
    let refresh: Promise<Result> | undefined;
    let byHand: Promise<unknown> | undefined;
    await whileLocked(async () => {
      refresh = run(database.url, 'npm run refresh');
      await sessionsThatWait(session);
      // This session is next in the queue for the first view, and keeps it until the refresh is
      // over.
      byHand = session.begin(async (next) => {
        await next`refresh materialized view concurrently fct_client_conversion_events`;
        await refresh;
      });
      await sessionsThatWait(session, 2);
    });
    expect(await refresh).toMatchObject({
      code: 0,
      stderr:
        'Warning: fct_client_conversion_events was refreshed, but not vacuumed: another session has locked it, or this role may not vacuum it. Run VACUUM as its owner.\n',
    });
    await byHand;
    expect(await seenBy(session)).toEqual({ users: 1, rows: filters, refreshes: 2 });
  });

  test('recomputes a view that reads a changed table beside an unchanged view', async () => {
    await session`insert into dim_user (user_id) values ('mia')`;
    await session`drop materialized view fct_lead_conversions`;
    await session`
      create materialized view fct_lead_conversions as
      select user_id, name
      from fct_client_conversion_events
      inner join dim_user using (user_id)`;
    await session`create unique index on fct_lead_conversions (user_id)`;
    await run(database.url, 'npm run refresh');
    await session`update dim_user set name = 'Mia'`;
    expect(await run(database.url, 'npm run refresh')).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(
        /^fct_client_conversion_events: 1 rows, 0 inserted, 0 deleted, \d+ ms\nfct_lead_conversions: 1 rows, 1 inserted, 1 deleted, \d+ ms\n$/,
      ),
    });
  });

  test('does not shrink a file, because readers would have to wait', async () => {
    await session`insert into dim_user (user_id) select generate_series(1, 2000)`;
    await run(database.url, 'npm run refresh');
    await session`delete from dim_user`;
    await run(database.url, 'npm run refresh');
    const [sizes] = await session`
      select
        pg_relation_size('fct_client_conversion_events') as events,
        pg_relation_size('fct_lead_conversions') as conversions`;
    expect(Number(sizes?.events)).toBeGreaterThan(0);
    expect(Number(sizes?.conversions)).toBeGreaterThan(0);
  });

  test('keeps the views at most twice as large as new ones over 50 nights that each change a fifth', async () => {
    await session`insert into dim_user (user_id, name) select generate_series(1, 2000), 'x'`;
    await session`
      insert into fct_membership_purchases (user_id, user_membership_id) select user_id, '0' from dim_user`;
    const size = async () => {
      const [{ bytes } = { bytes: 0 }] = await session<{ bytes: number }[]>`
        select sum(pg_total_relation_size(oid))::int as bytes
        from pg_class
        where relname in ('fct_client_conversion_events', 'fct_lead_conversions')`;
      return bytes;
    };
    const { db, close } = await openDatabase(database.url);
    await refreshViews(db);
    await session`vacuum full fct_client_conversion_events`;
    await session`vacuum full fct_lead_conversions`;
    const fresh = await size();
    for (let night = 0; night < 50; night += 1) {
      await session`
        update fct_membership_purchases
        set membership_purchased_at = now()
        where user_id::int % 5 = ${night % 5}`;
      const { views } = await refreshViews(db);
      expect(views.map(({ inserted }) => inserted)).toEqual([400, 800]);
    }
    expect(await size()).toBeLessThanOrEqual(2 * fresh);
    await close();
  });
});

describe('the bounds of a refresh', () => {
  const variables = {
    LEAD_CONVERSIONS_LOCK_TIMEOUT: '300ms',
    LEAD_CONVERSIONS_RETRIES: '0',
    LEAD_CONVERSIONS_WORK_MEM: '',
  };

  test.each([
    [[], '300ms'],
    [['--lock-timeout', '200ms'], '200ms'],
  ])('come from the options, or else from the environment: %j', async (args, timeout) => {
    await whileLocked(async () => {
      const { stderr } = await run(database.url, 'npm run refresh', args, variables);
      expect(stderr).toContain(`it got no lock within ${timeout}, because `);
    });
  });

  test.each([
    [
      '--lock-timeout',
      '2 weeks',
      'It comes from --lock-timeout or LEAD_CONVERSIONS_LOCK_TIMEOUT.\n',
    ],
    ['--retries', 'many', '--retries must be a number from 0 to 9999, not "many".\n'],
  ])('are refused with an explanation if they are wrong: %s %s', async (option, value, message) => {
    const { code, stdout, stderr } = await run(database.url, 'npm run refresh', [
      ...[option, value, '--json'],
    ]);
    expect(code).toBe(1);
    expect(stderr).toContain(message);
    expect(JSON.parse(stdout)).toEqual({
      ...nothingDone,
      outcome: 'failed',
      reason: stderr.trimEnd(),
    });
  });

  test('limit the memory, beyond which a refresh uses the disk', async () => {
    await session`insert into dim_user (user_id) select generate_series(1, 20000)`;
    const spilledWith = async (workMem: string) => {
      await session`update dim_user set name = ${workMem}`;
      await session`select pg_stat_reset()`;
      await run(database.url, 'npm run refresh', ['--work-mem', workMem]);
      const [{ bytes } = { bytes: 0 }] = await session<{ bytes: number }[]>`
        select temp_bytes::int as bytes
        from pg_stat_database
        where datname = current_database()`;
      return bytes;
    };
    expect(await spilledWith('64kB')).toBeGreaterThan(0);
    expect(await spilledWith('256MB')).toBe(0);
  });
});
