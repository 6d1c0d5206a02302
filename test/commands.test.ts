import { expect, test } from 'vitest';
import { openDatabase } from '../scripts/database.ts';
import { fctClientConversionEvents, fctLeadConversions } from '../views/index.ts';
import { run } from './support/commands.ts';
import { rowsOf, useUnmigratedDatabase } from './support/database.ts';

const unmigrated = useUnmigratedDatabase();

test('migrate, load and refresh take an empty database to both reports', async () => {
  const { url } = unmigrated;
  expect(await run(url, 'drizzle-kit migrate')).toMatchObject({ code: 0 });

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

  const again = await run(url, 'npm run refresh', ['--json']);
  expect(again).toMatchObject({ code: 0, stderr: '' });
  expect(again.stdout).toMatch(/^.+\n$/);
  const durationMs = expect.any(Number);
  expect(JSON.parse(again.stdout)).toEqual({
    views: [
      { view: 'fct_client_conversion_events', rows: 13, inserted: 0, deleted: 0, durationMs },
      { view: 'fct_lead_conversions', rows: 39, inserted: 0, deleted: 0, durationMs },
    ],
    durationMs,
  });

  const database = await openDatabase(url);
  expect(await rowsOf(database, fctClientConversionEvents)).toHaveLength(13);
  expect(await rowsOf(database, fctLeadConversions)).toHaveLength(39);
  await database.close();
});
