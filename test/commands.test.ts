import { connect } from 'node:net';
import { expect, test, vi } from 'vitest';
import { elapsedLine, explain, isTransient } from '../scripts/command.ts';
import { openDatabase } from '../scripts/database.ts';
import { fctClientConversionEvents, fctLeadConversions } from '../views/index.ts';
import { run } from './support/commands.ts';
import { rowsOf, useUnmigratedDatabase } from './support/database.ts';
import { patience } from './support/sessions.ts';

const unmigrated = useUnmigratedDatabase();

test('migrate, load and refresh take an empty database to both reports', async () => {
  const { url } = unmigrated;
  expect(await run(url, 'drizzle-kit migrate')).toMatchObject({
    code: 0,
    stdout: expect.stringContaining('migrations applied successfully!'),
    stderr: '',
  });

  expect(await run(url, 'npm run load', ['test/sample'])).toEqual({
    code: 0,
    stdout: [
      'dim_branch.csv: 3 rows, 3 inserted, 0 updated, 0 unchanged\n',
      'dim_user.csv: 13 rows, 13 inserted, 0 updated, 0 unchanged\n',
      'fct_credit_pack_purchases.csv: 11 rows, 11 inserted, 0 updated, 0 unchanged\n',
      'fct_membership_purchases.csv: 11 rows, 11 inserted, 0 updated, 0 unchanged\n',
    ].join(''),
    stderr: '',
  });

  const refreshed = await run(url, 'npm run refresh');
  expect(refreshed).toMatchObject({ code: 0, stderr: '' });
  expect(refreshed.stdout).toMatch(
    /^fct_client_conversion_events: 13 rows, 13 inserted, 0 deleted, \d+ ms\nfct_lead_conversions: 39 rows, 39 inserted, 0 deleted, \d+ ms\n$/,
  );

  // At the first try, unless transactions of other databases on the server are open.
  const again = await vi.waitUntil(async () => {
    const result = await run(url, 'npm run refresh', ['--json']);
    return result.stdout.includes('"concurrently"') ? undefined : result;
  }, patience);
  expect(again).toMatchObject({ code: 0, stderr: '' });
  expect(again.stdout).toMatch(/^.+\n$/);
  const durationMs = expect.any(Number);
  const unchanged = { inserted: 0, deleted: 0, durationMs };
  expect(JSON.parse(again.stdout)).toEqual({
    outcome: 'refreshed',
    reason: null,
    views: [
      { view: 'fct_client_conversion_events', mode: 'unchanged', rows: 13, ...unchanged },
      { view: 'fct_lead_conversions', mode: 'unchanged', rows: 39, ...unchanged },
    ],
    warnings: [],
    durationMs,
    retries: [],
  });

  const database = await openDatabase(url);
  expect(await rowsOf(database, fctClientConversionEvents)).toHaveLength(13);
  expect(await rowsOf(database, fctLeadConversions)).toHaveLength(39);
  await database.close();
});

test.each([
  [
    true,
    [
      '\r\x1b[Kstep one, 1 s',
      '\r\x1b[Kstep one, 2 s',
      '\r\x1b[K',
      '\r\x1b[Kstep two, 1 s',
      '\r\x1b[K',
    ],
  ],
  [false, []],
])('only a terminal is told how long a step has taken, on one line: %j', (isTTY, lines) => {
  vi.useFakeTimers();
  try {
    const written: unknown[] = [];
    const line = elapsedLine({ isTTY, write: (text: unknown) => written.push(text) > 0 });
    line.show('step one');
    vi.advanceTimersByTime(2500);
    line.show('step two');
    vi.advanceTimersByTime(1500);
    line.end();
    vi.advanceTimersByTime(5000);
    expect(written).toEqual(lines);
  } finally {
    vi.useRealTimers();
  }
});

test('a host of several addresses, none of which answers, is tried again and named', async () => {
  const addresses = [
    { address: '::1', family: 6 },
    { address: '127.0.0.1', family: 4 },
  ];
  const error = await new Promise((resolve) =>
    connect({
      host: 'gym.example',
      port: 1,
      autoSelectFamily: true,
      lookup: (_host, _options, found) => found(null, addresses),
    }).on('error', resolve),
  );
  expect(isTransient(error)).toBe(true);
  expect(explain(error)).toMatch(
    /^The database cannot be reached: connect \w+ ::1:1[^,]*, connect ECONNREFUSED 127\.0\.0\.1:1\. /,
  );
});
