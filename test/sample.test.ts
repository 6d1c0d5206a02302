import { beforeEach, expect, test } from 'vitest';
import { loadFolder } from '../scripts/load/folder.ts';
import { fctClientConversionEvents, fctLeadConversions, refreshViews } from '../views/index.ts';
import { rowsOf, useDatabase } from './support/database.ts';

const database = useDatabase();

beforeEach(async () => {
  await loadFolder(database, 'test/sample');
  await refreshViews(database.db);
});

/**
 * Rows as a CSV file, to compare with one in test/sample/expected. Those files were checked
 * manually against the rules. If a rule changes, `npm test -- -u` writes them anew: then check them
 * again.
 */
function csvOf(rows: unknown[]): string {
  const quoted = (value: unknown) => {
    const text = String(value ?? '').replace(/^(\d{4}-\d{2}-\d{2})T/, '$1 ');
    return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  const lines = [
    Object.keys(rows[0] as object),
    ...rows.map((row) => Object.values(row as object)),
  ];
  return lines.map((cells) => `${cells.map(quoted).join(',')}\n`).join('');
}

test('fct_client_conversion_events of the sample equals the manually checked file', async () => {
  const rows = await rowsOf(database, fctClientConversionEvents, 'user_id');
  await expect(csvOf(rows)).toMatchFileSnapshot('sample/expected/fct_client_conversion_events.csv');
});

test('fct_lead_conversions of the sample equals the manually checked file', async () => {
  const order = ['user_id', 'client_conversion_event_filter'];
  const rows = await rowsOf(database, fctLeadConversions, ...order);
  await expect(csvOf(rows)).toMatchFileSnapshot('sample/expected/fct_lead_conversions.csv');
});
