import { basename } from 'node:path';
import { vacuum } from '../views/vacuum.ts';
import { databaseCommand } from './command.ts';
import { type LoadProgress, loadFolder } from './load/folder.ts';
import type { FileLoad } from './load/store.ts';
import { bounds, repeatable, setting } from './settings.ts';

export const load = databaseCommand({
  name: 'load',
  description:
    'Loads the CSV files of a folder, each named after its input table (dim_user.csv), into the database that DATABASE_URL names: all of them or none. A row with a known key is updated.',
  summary: 'loads CSV files into the input tables',
  argument: ['<folder>', 'the folder with the files'],
  settings: {
    snapshot: setting<boolean>(
      '--snapshot',
      'each file is the whole table: delete the rows that are not in the file',
    ),
    rename: repeatable(
      '--rename <from=to>',
      'the name of a column in the files, and its name in the table; may be given several times',
    ),
    ignoreColumns: setting<boolean>(
      '--ignore-columns',
      'ignore columns that a table does not have',
    ),
    null: repeatable(
      '--null <text>',
      'an unquoted text that means NULL, as an empty field does; may be given several times',
    ),
    escape: setting(
      '--escape <character>',
      'the character that escapes a quote within quotes: a quote, or \\',
      { preset: '"' },
    ),
    ...bounds,
  },
  notes: `Durations and sizes are in Postgres' notation: 2s, 5min, 256MB.`,
  exitCodes: { 0: 'loaded' },
  example: 'exports/2024-06-01',
  nothing: () => ({ files: [] as FileLoad[] }),
  afterwards: 'The tables have not changed.',
  work: async ({ database, settings, argument, facts, signal, progress, say, warn, onCommit }) => {
    const tell = ({ file, step, readBytes, totalBytes }: LoadProgress) => {
      if (step === 'read') {
        const percent = Math.floor((100 * readBytes) / totalBytes);
        progress.update(`${file}: ${percent} % of ${(totalBytes / 1e6).toFixed(1)} MB read`);
      } else {
        const doing = { check: 'checking', compare: 'comparing', store: 'storing' }[step];
        progress.show(`${file}: ${doing} its rows`);
      }
    };
    facts.files = await loadFolder(database, argument, {
      ...settings,
      isSnapshot: settings.snapshot ?? false,
      signal,
      onProgress: tell,
      onWarning: warn,
    });
    onCommit({ outcome: 'loaded', reason: null });
    for (const { file, rows, repeated, inserted, updated, deleted } of facts.files) {
      const counts = [
        `${rows} rows`,
        `${inserted} inserted`,
        `${updated} updated`,
        ...(settings.snapshot ? [`${deleted} deleted`] : []),
        `${Math.max(0, rows - repeated - inserted - updated)} unchanged`,
        ...(repeated > 0 ? [`${repeated} repeated`] : []),
      ];
      say(`${file}: ${counts.join(', ')}`);
    }
    for (const { file, inserted, updated, deleted } of facts.files) {
      if (inserted + updated + deleted > 0) {
        const table = basename(basename(file, '.gz'), '.csv');
        progress.show(`${table}: vacuuming`);
        const { statementTimeout } = settings;
        const bounds = { statementTimeout, signal };
        (await vacuum(database.db, table, 'loaded', bounds)).forEach(warn);
      }
    }
    return { outcome: 'loaded', reason: null };
  },
});
