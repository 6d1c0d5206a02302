import { readFile } from 'node:fs/promises';
import { connect } from 'node:net';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import { openDatabase } from '../scripts/database.ts';
import { explain, isTransient } from '../scripts/failure.ts';
import { load } from '../scripts/load.ts';
import { progressOn } from '../scripts/progress.ts';
import { refresh } from '../scripts/refresh.ts';
import { fctClientConversionEvents, fctLeadConversions } from '../views/index.ts';
import { run, start } from './support/commands.ts';
import { rowsOf, useUnmigratedDatabase } from './support/database.ts';
import { filters, patience } from './support/sessions.ts';

const unmigrated = useUnmigratedDatabase();

test('migrate, load and refresh fill both views of an empty database', {
  timeout: 240_000, // each command opens the embedded database anew
}, async () => {
  const { url } = unmigrated;
  const rows = 13 * filters;
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
    new RegExp(
      `^fct_client_conversion_events: 13 rows, 13 inserted, 0 deleted, \\d+ ms\nfct_lead_conversions: ${rows} rows, ${rows} inserted, 0 deleted, \\d+ ms\n$`,
    ),
  );

  // The first try succeeds unless other databases on the server have open transactions.
  const again = await vi.waitUntil(async () => {
    const result = await run(url, 'npm run refresh', ['--json']);
    return result.stdout.includes('"concurrently"') ? undefined : result;
  }, patience);
  expect(again).toMatchObject({ code: 0, stderr: '' });
  expect(again.stdout).toMatch(/^.+\n$/);
  const durationMs = expect.any(Number);
  const unchanged = { readsDistributed: false, inserted: 0, deleted: 0, durationMs };
  expect(JSON.parse(again.stdout)).toEqual({
    outcome: 'refreshed',
    reason: null,
    views: [
      { view: 'fct_client_conversion_events', mode: 'unchanged', rows: 13, ...unchanged },
      { view: 'fct_lead_conversions', mode: 'unchanged', rows, ...unchanged },
    ],
    warnings: [],
    durationMs,
    retries: [],
  });

  expect(await run(url, 'npm run diff')).toEqual({
    code: 0,
    stdout: [
      'fct_client_conversion_events: 13 rows, nothing would change\n',
      `fct_lead_conversions: ${rows} rows, nothing would change\n`,
    ].join(''),
    stderr: '',
  });
  expect(await run(url, 'npm run doctor')).toEqual({
    code: 0,
    stdout: 'The database is healthy.\n',
    stderr: '',
  });

  const database = await openDatabase(url);
  expect(await rowsOf(database, fctClientConversionEvents)).toHaveLength(13);
  expect(await rowsOf(database, fctLeadConversions)).toHaveLength(rows);
  await database.close();
});

describe('progress', () => {
  beforeEach(() => vi.useFakeTimers());
  afterEach(() => vi.useRealTimers());

  /** Progress on a terminal or in a log, and what it has written. */
  const progress = (isTTY: boolean) => {
    const written: unknown[] = [];
    const write = (text: unknown) => written.push(text) > 0;
    return { ...progressOn({ isTTY, write }), written };
  };

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
  ])(
    'shows only on a terminal how long a step has taken, on one line (terminal: %j)',
    (isTTY, lines) => {
      const { show, end, written } = progress(isTTY);
      show('step one');
      vi.advanceTimersByTime(2500);
      show('step two');
      vi.advanceTimersByTime(1500);
      end();
      vi.advanceTimersByTime(5000);
      expect(written).toEqual(lines);
    },
  );

  test.each([
    [true, 100, (text: string) => `\r\x1b[K${text}`],
    [false, 5000, (text: string) => `${text}\n`],
  ])('shows how far something is (terminal: %j) every %d ms', (isTTY, everyMs, line) => {
    const { update, written } = progress(isTTY);
    vi.advanceTimersByTime(60_000); // a slow start, in which there is nothing to show
    for (let time = 0; time <= 3 * everyMs; time += everyMs / 2) {
      update(`at ${time} ms`);
      vi.advanceTimersByTime(everyMs / 2);
    }
    expect(written).toEqual([1, 2, 3].map((times) => line(`at ${times * everyMs} ms`)));
  });
});

describe('--help', () => {
  test.each([
    'npm run migrate',
    'npm run load',
    'npm run refresh',
    'npm run diff',
    'npm run doctor',
    'npm run report',
    'npm run demo',
    'npm run generate',
    'npm run benchmark',
  ] as const)('of %s shows its usage, and does nothing', async (command) => {
    const { code, stdout, stderr } = await run('', command, ['--help'], {
      npm_lifecycle_event: command.replace('npm run ', ''),
    });
    expect({ code, stderr }).toEqual({ code: 0, stderr: '' });
    expect(stdout).toMatch(new RegExp(`^Usage: ${command} -- \\[options\\]`));
    expect(Math.max(...stdout.split('\n').map(({ length }) => length))).toBeLessThanOrEqual(80);
  });

  test('succeeds even if nobody reads it', async () => {
    const { process, result } = start('', 'npm run refresh', ['--help']);
    process.stdout?.destroy();
    expect(await result).toMatchObject({ code: 0, stderr: '' });
  });
});

test('scripts/README.md lists the settings of a refresh', async () => {
  const readme = await readFile('scripts/README.md', 'utf8');
  const rows = readme.matchAll(/^\| `(--\S+)` +\| (?:`(\S+)`)? *\| (?:`(\S+)`)? *\|/gm);
  expect([...rows].map(([, ...cells]) => cells)).toEqual(
    refresh.options
      .filter(({ long }) => long !== '--version')
      .map(({ long, defaultValue, envVar }) => [long, defaultValue, envVar]),
  );
});

test('schema/README.md lists the settings of a load', async () => {
  const readme = await readFile('schema/README.md', 'utf8');
  const rows = readme.matchAll(/^\| `(--\S+)` +\| (?:`(\S+)`)? *\| \w/gm);
  expect([...rows].map(([, ...cells]) => cells)).toEqual(
    load.options
      .filter(({ long }) => !refresh.options.some((shared) => shared.long === long))
      .map(({ long, defaultValue }) => [
        long,
        typeof defaultValue === 'string' ? defaultValue : undefined,
      ]),
  );
});

test('a host with several addresses, none of which answers, is retried, and all are named', async () => {
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
