import { execFile } from 'node:child_process';
import { type AddressInfo, connect, createServer, type Socket } from 'node:net';
import postgres from 'postgres';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { type PostgresServer, startPostgres } from '../scripts/postgres_server.ts';
import { type Result, run, start } from './support/commands.ts';
import { useServerDatabase } from './support/database.ts';
import {
  filters,
  patience,
  seenBy,
  sessionsEnded,
  sessionsThatWait,
  sessionThatRuns,
} from './support/sessions.ts';

/** So many users that a refresh can be interrupted. */
const users = 50_000;

/** What an unfinished transaction would leave behind. */
const leftovers = (session: postgres.Sql) => session`
  select locktype as name, mode
  from pg_locks
  inner join pg_stat_activity using (pid)
  where datname = current_database()
    and backend_type = 'client backend'
    and pid <> pg_backend_pid()
  union all
  select relname, 'temporary'
  from pg_class
  where relpersistence = 't'`;

describe('if the process of a refresh', () => {
  const database = useServerDatabase();
  let session: postgres.Sql;
  beforeEach(async () => {
    session = postgres(database.url, { max: 2, onnotice: () => {} });
    await session`insert into dim_user (user_id) values ('mia')`;
    await run(database.url, 'npm run refresh');
  });
  afterEach(() => session.end());

  const before = { users: 1, rows: filters, refreshes: 2 };

  test('is killed, nothing of it is left, and the next refresh succeeds', async () => {
    await session`insert into dim_user (user_id) select generate_series(1, ${users - 1}::int)`;
    const { process, result } = start(database.url, 'npm run refresh');
    await sessionThatRuns(session, 'refresh materialized view%');
    process.kill('SIGKILL');
    expect(await result).toMatchObject({ code: 'SIGKILL' });
    await sessionsEnded(session);
    expect(await leftovers(session)).toEqual([]);
    expect(await seenBy(session)).toEqual(before);
    expect(await run(database.url, 'npm run refresh')).toMatchObject({ code: 0 });
    expect(await seenBy(session)).toEqual({ users, rows: filters * users, refreshes: 4 });
  });

  test.each(['SIGTERM', 'SIGKILL'] as const)(
    'loses the npm that runs it to %s, it is cancelled',
    async (signal) => {
      await session`insert into dim_user (user_id) values ('zoe')`;
      await session.begin(async (locked) => {
        await locked`refresh materialized view concurrently fct_lead_conversions`;
        const npm = execFile('npm', ['run', '--silent', 'refresh'], {
          env: { ...process.env, DATABASE_URL: database.url },
        });
        let said = '';
        npm.stderr?.on('data', (text) => {
          said += text;
        });
        await sessionsThatWait(session);
        npm.kill(signal);
        await vi.waitUntil(() => said.includes('\n'), patience);
        expect(said).toBe('Cancelled by SIGTERM. The views have not changed.\n');
        await sessionsEnded(session);
      });
      expect(await seenBy(session)).toEqual(before);
    },
  );

  describe('loses its connection during the commit,', () => {
    const lost = expect.stringMatching(
      /^The connection was lost during the commit \(.+\), so it is not known whether the work is done\. /,
    );

    test('it tries again, and says what is not counted', async () => {
      await session`insert into dim_user (user_id) values ('zoe')`;
      const network = await openNetwork(database.url, 'commit\0');
      const { code, stdout } = await run(network.url, 'npm run refresh', ['--json']);
      expect(code).toBe(0);
      expect(JSON.parse(stdout)).toMatchObject({
        outcome: 'refreshed',
        views: [{ inserted: 0 }, { inserted: 0 }],
        warnings: [
          'An earlier attempt lost its connection during the commit. What it did is not counted here.',
        ],
        retries: [lost],
      });
      expect(await seenBy(session)).toEqual({ users: 2, rows: 2 * filters, refreshes: 6 });
      await network.close();
    });

    test('and may not try again, the error says that the outcome is not known', async () => {
      const network = await openNetwork(database.url, 'commit\0');
      const { code, stderr } = await run(network.url, 'npm run refresh', ['--retries', '0']);
      expect(code).toBe(1);
      expect(stderr.trim()).toEqual(lost);
      expect(stderr.match(/not known/g)).toHaveLength(1);
      await network.close();
    });

    test('and is then cancelled, it does not say that nothing has changed', async () => {
      await session`insert into dim_user (user_id) values ('zoe')`;
      const network = await openNetwork(database.url, 'commit\0');
      const { process, result } = start(network.url, 'npm run refresh', ['--json']);
      process.stderr?.once('data', () => process.kill('SIGTERM'));
      const { code, stdout } = await result;
      expect(code).toBe(143);
      expect(JSON.parse(stdout)).toMatchObject({
        outcome: 'failed',
        reason:
          'Cancelled by SIGTERM. An earlier attempt lost its connection during the commit, so it is not known whether the work is done.',
        retries: [lost],
      });
      await network.close();
    });
  });

  test('hangs, the server ends its transaction, and the next refresh succeeds', async () => {
    await session`insert into dim_user (user_id) values ('zoe')`;
    let hung: ReturnType<typeof start> | undefined;
    await session.begin(async (locked) => {
      await locked`refresh materialized view concurrently fct_lead_conversions`;
      hung = start(database.url, 'npm run refresh');
      await sessionsThatWait(session);
      hung.process.kill('SIGSTOP');
    });
    await sessionsEnded(session);
    expect(await seenBy(session)).toEqual(before);
    expect(await run(database.url, 'npm run refresh')).toMatchObject({ code: 0 });
    expect(await seenBy(session)).toEqual({ users: 2, rows: 2 * filters, refreshes: 4 });
    hung?.process.kill('SIGKILL');
    await hung?.result;
  });

  test('has nobody left to read its output, it still refreshes and exits with 0', async () => {
    await session`insert into dim_user (user_id) values ('zoe')`;
    const { process, result } = start(database.url, 'npm run refresh');
    process.stdout?.destroy();
    process.stderr?.destroy();
    expect(await result).toMatchObject({ code: 0 });
    expect(await seenBy(session)).toEqual({ users: 2, rows: 2 * filters, refreshes: 4 });
  });

  test('loses its connection, it waits until the server has ended what it left there', async () => {
    await session`insert into dim_user (user_id) values ('zoe')`;
    const network = await openNetwork(database.url);
    let refresh: Promise<Result> | undefined;
    await session.begin(async (locked) => {
      await locked`refresh materialized view concurrently fct_lead_conversions`;
      const { process, result } = start(network.url, 'npm run refresh', [
        ...['--json', '--lock-timeout', '1min'],
      ]);
      refresh = result;
      let said = '';
      process.stderr?.on('data', (text) => {
        said += text;
      });
      await sessionsThatWait(session);
      const pid = await sessionThatRuns(session, 'alter materialized view%');
      network.cut();
      await vi.waitUntil(
        () => said.includes('Skipped: a refresh or a migration is already running'),
        30_000,
      );
      network.tellServer();
      await vi.waitUntil(
        async () => (await session`select from pg_stat_activity where pid = ${pid}`).length === 0,
        30_000,
      );
    });
    const { code, stdout } = (await refresh) as Result;
    expect(code).toBe(0);
    const { retries } = JSON.parse(stdout);
    expect(retries[0]).toMatch(/^The connection to the database was lost /);
    expect(retries[1]).toMatch(/^Skipped: a refresh or a migration is already running \(pid /);
    expect(await seenBy(session)).toEqual({ users: 2, rows: 2 * filters, refreshes: 4 });
    await network.close();
  });
});

/**
 * A proxy to a server. It can cut the connection on the client's side without the server noticing.
 * It also cuts it once the client has sent the given text, which still reaches the server.
 */
async function openNetwork(url: string, last?: string) {
  const { hostname: host, port } = new URL(url);
  const clients: Socket[] = [];
  const servers: Socket[] = [];
  const proxy = createServer((client) => {
    const server = connect({ host, port: Number(port) });
    const pass = (bytes: Buffer) => {
      server.write(bytes);
      if (last && bytes.includes(last)) {
        last = undefined;
        client.destroy();
      }
    };
    clients.push(client.on('data', pass).on('error', () => {}));
    servers.push(server.on('data', (bytes) => client.write(bytes)).on('error', () => {}));
  });
  await new Promise<void>((resolve) => proxy.listen(0, '127.0.0.1', resolve));
  const proxied = new URL(url);
  proxied.host = `127.0.0.1:${(proxy.address() as AddressInfo).port}`;
  const destroy = (sockets: Socket[]) => {
    for (const socket of sockets) {
      socket.destroy();
    }
  };
  return {
    url: proxied.href,
    cut: () => destroy(clients),
    tellServer: () => destroy(servers.splice(0)),
    close: async () => {
      destroy([...clients, ...servers]);
      await new Promise((resolve) => proxy.close(resolve));
    },
  };
}

describe('if the server', () => {
  let server: PostgresServer;
  let url: string;
  let session: postgres.Sql;
  beforeAll(async () => {
    server = await startPostgres();
    url = server.url('postgres');
    session = postgres(url, { max: 2, onnotice: () => {} });
    await run(url, 'drizzle-kit migrate');
  });
  afterAll(async () => {
    await session.end();
    await server.remove();
  });
  beforeEach(async () => {
    await session`truncate dim_user, view_refreshes cascade`;
    await session`insert into dim_user (user_id) values ('mia')`;
    await session`refresh materialized view fct_client_conversion_events`;
    await session`refresh materialized view fct_lead_conversions`;
  });

  test('crashes, the views are as they were, and the next refresh succeeds', async () => {
    await session`insert into dim_user (user_id) select generate_series(1, ${users - 1}::int)`;
    const refresh = run(url, 'npm run refresh', ['--retries', '0']);
    await sessionThatRuns(session, 'refresh materialized view%');
    await server.stop('immediate');
    expect(await refresh).toMatchObject({
      code: 1,
      stdout: '',
      stderr: expect.stringMatching(/^The connection to the database was lost /),
    });
    await server.start();
    expect(await leftovers(session)).toEqual([]);
    expect(await seenBy(session)).toEqual({ users: 1, rows: filters, refreshes: 0 });
    expect(await run(url, 'npm run refresh')).toMatchObject({ code: 0 });
    expect(await seenBy(session)).toEqual({ users, rows: filters * users, refreshes: 2 });
  });

  test('is down but starts in time, the refresh waits for it, and says so', async () => {
    await session`insert into dim_user (user_id) values ('zoe')`;
    await server.stop('fast');
    const { process, result } = start(url, 'npm run refresh', ['--json']);
    await new Promise((resolve) => process.stderr?.once('data', resolve));
    await server.start();
    const { code, stdout, stderr } = await result;
    expect(code).toBe(0);
    const { outcome, retries } = JSON.parse(stdout);
    expect(outcome).toBe('refreshed');
    expect(retries.length).toBeGreaterThan(0);
    expect(retries[0]).toMatch(/^The database cannot be reached: connect ECONNREFUSED /);
    expect(stderr).toContain(`${retries[0]}\nTrying again in 1 s (1 of 5).\n`);
    expect(await seenBy(session)).toEqual({ users: 2, rows: 2 * filters, refreshes: 2 });
  });

  test('is shutting down, the refresh waits until it is up again', async () => {
    const stopped = server.stop('smart'); // it waits for the session that is open here
    await vi.waitUntil(async () => {
      const probe = postgres(url, { max: 1 });
      const refused = await probe`select`.then(
        () => false,
        ({ code }) => code === '57P03',
      );
      await probe.end();
      return refused;
    }, 30_000);
    const { process, result } = start(url, 'npm run refresh', ['--json']);
    await new Promise((resolve) => process.stderr?.once('data', resolve));
    await session.end();
    await stopped;
    await server.start();
    session = postgres(url, { max: 2, onnotice: () => {} });
    const { code, stdout } = await result;
    expect(code).toBe(0);
    expect(JSON.parse(stdout).retries[0]).toBe('the database system is shutting down');
  });

  test('stays down, the refresh gives up', async () => {
    await server.stop('fast');
    const { code, stdout, stderr } = await run(url, 'npm run refresh', [
      '--json',
      '--retries',
      '2',
    ]);
    const unreachable = expect.stringMatching(
      /^The database cannot be reached: connect ECONNREFUSED /,
    );
    expect(code).toBe(1);
    expect(JSON.parse(stdout)).toEqual({
      outcome: 'failed',
      reason: unreachable,
      views: [],
      warnings: [],
      durationMs: expect.any(Number),
      retries: [unreachable, unreachable],
    });
    expect(stderr).toContain('Trying again in 2 s (2 of 2).\n');
    await server.start();
  });
});
