import { mkdtemp, readFile, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import postgres from 'postgres';
import { afterEach, beforeEach, expect, inject, test, vi } from 'vitest';
import { generate } from '../scripts/benchmark/data.ts';
import type { LoadMeasurements } from '../scripts/benchmark/load.ts';
import { compare, type Measurements } from '../scripts/benchmark/measure.ts';
import { createReference } from '../scripts/benchmark/reference.ts';
import type { ReportMeasurements } from '../scripts/benchmark/report.ts';
import { run, start } from './support/commands.ts';
import { useServerDatabase } from './support/database.ts';

const database = useServerDatabase();

let session: postgres.Sql;
beforeEach(() => {
  session = postgres(database.url, { max: 1, onnotice: () => {} });
});
afterEach(() => session.end());

const serverEnvironment = () => ({ BENCHMARK_DATABASE_URL: inject('serverUrl') ?? '' });

const benchmark = (...args: string[]) => run('', 'npm run benchmark', args, serverEnvironment());

const databasesLeft = () =>
  session`select datname from pg_database where datname like 'lead_conversions_benchmark%'`;

/** All numbers in a value, with their paths. */
function numbersIn(value: unknown, path = ''): [string, number][] {
  return typeof value === 'number'
    ? [[path, value]]
    : Object.entries(value as object).flatMap(([key, inner]) =>
        typeof inner === 'string' ? [] : numbersIn(inner, `${path}.${key}`),
      );
}

test('the benchmark measures our views and their reference, which agree, and leaves no database', {
  timeout: 180_000,
}, async () => {
  const folder = await mkdtemp(join(tmpdir(), 'lead-conversions-benchmark-'));
  try {
    const file = join(folder, 'figures.json');
    const args = ['--users', '20000', '--users', '2000', '--rounds', '1', '--json', file];
    const { code, stdout, stderr } = await benchmark(...args);
    expect([code, stderr]).toEqual([0, expect.stringContaining('20,000 users: compare the rows')]);
    expect(stdout).toMatch(/^20,000 users, 100,000 purchases$/m);
    expect(stdout).toMatch(/^ 1 % bought .* │ 0\.\d\d .*×/m);
    expect(stdout).toContain('Plan of fct_lead_conversions');

    expect(stdout).toMatch(/^ all figures .*×/m);

    const { results, loads, reports } = JSON.parse(await readFile(file, 'utf8')) as {
      results: Measurements[];
      loads: LoadMeasurements[];
      reports: ReportMeasurements[];
    };
    for (const part of [results, loads, reports]) {
      expect(part.map(({ users }) => users)).toEqual([2000, 20000]);
      for (const [path, number] of numbersIn(part)) {
        expect(number, path).toBeGreaterThanOrEqual(0);
      }
    }
    // Some users have bought something, so the second view was refreshed, too.
    expect(results[1]?.ours['1 % bought'].conversions).toBeGreaterThan(
      results[1]?.ours['nothing changed'].conversions ?? Number.NaN,
    );
    expect(await databasesLeft()).toEqual([]);
  } finally {
    await rm(folder, { recursive: true });
  }
});

test('half of the generated users buy credit packs, and two in five buy memberships', async () => {
  const users = 3000;
  await generate(session, { users, purchasesPerUser: 5 });
  const [counts] = await session`
    select
      (select count(*)::int from dim_user) as users,
      (select count(distinct user_id)::int from fct_credit_pack_purchases) as "creditPackBuyers",
      (select count(*)::int from fct_credit_pack_purchases) as "creditPacks",
      (select count(distinct user_id)::int from fct_membership_purchases) as "membershipBuyers",
      (select count(*)::int from fct_membership_purchases) as memberships,
      (select count(*)::int from pg_indexes where tablename like 'fct%purchases') as indexes`;
  expect(counts).toEqual({
    users,
    creditPackBuyers: users / 2,
    creditPacks: 7500,
    membershipBuyers: (users / 5) * 2,
    memberships: 7500,
    indexes: 4,
  });
});

test('the benchmark stops at a signal, and leaves no database', async () => {
  const { process, result } = start('', 'npm run benchmark', [], serverEnvironment());
  await vi.waitUntil(async () => (await databasesLeft()).length > 0, 30_000);
  process.kill('SIGTERM');
  expect(await result).toMatchObject({
    code: 143,
    stderr: expect.stringMatching(/\nStopped by SIGTERM\.\n$/),
  });
  expect(await databasesLeft()).toEqual([]);
});

test('the comparison shows the rows in which a view differs from its reference', async () => {
  await session`insert into dim_user (user_id) values ('alike'), ('missing')`;
  await createReference(session);
  await session`refresh materialized view fct_client_conversion_events`;
  await session`refresh materialized view reference.fct_client_conversion_events`;
  const comparison = () => compare(session, 'fct_client_conversion_events', ['user_id']);
  await comparison();

  await session`
    insert into fct_membership_purchases (user_id, user_membership_id) values ('alike', 'a')`;
  await session`refresh materialized view fct_client_conversion_events`;
  await expect(comparison).rejects.toThrow(
    /^fct_client_conversion_events differs from its reference\.\nours: .*"CLIENT".*\nreference: .*"LEAD"/,
  );

  await session`truncate fct_membership_purchases`;
  await session`delete from dim_user where user_id = 'missing'`;
  await session`refresh materialized view fct_client_conversion_events`;
  await expect(comparison).rejects.toThrow(/\nours: +null\nreference: .*"missing"/);
});

test.each([
  [['--users', 'many'], '--users is a whole number from 1000 on, not "many".\n'],
  [['--users', '10'], '--users is a whole number from 1000 on, not "10".\n'],
  [['--work-mem', 'lots'], 'invalid value for parameter "work_mem": "lots"\n'],
  [['--part', 'lunch'], '--part is refresh, load or report, not "lunch".\n'],
  [['--rounds', '0'], '--rounds is a whole number from 1 on, not "0".\n'],
])('the benchmark refuses %j', async (args, message) => {
  expect(await benchmark(...args)).toEqual({ code: 1, stdout: '', stderr: message });
});

test.each([
  ['pglite:folder', /^BENCHMARK_DATABASE_URL is not the URL of a Postgres server\.[^\n]*\n$/],
  ['postgres://nobody@127.0.0.1:1/x', /and that BENCHMARK_DATABASE_URL names it\.\n$/],
])('the error names BENCHMARK_DATABASE_URL if that is %s', async (url, message) => {
  expect(await run('', 'npm run benchmark', [], { BENCHMARK_DATABASE_URL: url })).toEqual({
    code: 1,
    stdout: '',
    stderr: expect.stringMatching(message),
  });
});
