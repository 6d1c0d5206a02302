import { readFile } from 'node:fs/promises';
import { parse } from 'csv-parse/sync';
import { beforeEach, expect, test } from 'vitest';
import { loadFolder } from '../scripts/load/folder.ts';
import { fctClientConversionEvents, fctLeadConversions, refreshViews } from '../views/index.ts';
import { rowsOf, useDatabase } from './support/database.ts';

const database = useDatabase();

beforeEach(async () => {
  await loadFolder(database, 'test/sample');
  await refreshViews(database.db);
});

/** The rows of a file in test/sample/expected, which were checked by hand against the rules. */
async function expected(file: string): Promise<Record<string, string | null>[]> {
  return parse(await readFile(`test/sample/expected/${file}`), {
    columns: true,
    cast: (value, { header }) =>
      header ? value : value === '' ? null : value.replace(/^(\d{4}-\d{2}-\d{2}) /, '$1T'),
  });
}

test('fct_client_conversion_events of the sample is as expected', async () => {
  const rows = await rowsOf(database, fctClientConversionEvents, 'user_id');
  expect(rows).toEqual(await expected('fct_client_conversion_events.csv'));
});

test('fct_lead_conversions of the sample is as expected', async () => {
  const order = ['user_id', 'client_conversion_event_filter'];
  const rows = await rowsOf(database, fctLeadConversions, ...order);
  expect(rows).toEqual(await expected('fct_lead_conversions.csv'));
});
