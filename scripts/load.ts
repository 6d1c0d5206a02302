import { basename } from 'node:path';
import { vacuum } from '../views/vacuum.ts';
import { databaseCommand } from './command.ts';
import { type FileLoad, type LoadProgress, loadFolder } from './load/folder.ts';
import { repeatable, setting } from './settings.ts';

export const load = databaseCommand({
  name: 'load',
  description:
    'Loads the CSV files of a folder, each named after its input table (dim_user.csv), into the database that DATABASE_URL names: all of them or none. A row whose key is there already replaces that row.',
  summary: 'loads CSV files into the input tables',
  argument: ['<folder>', 'the folder that has the files'],
  settings: {
    rename: repeatable(
      '--rename <from=to>',
      'another name of a column in the files, with the name in the table; may be given several times',
    ),
    ignoreColumns: setting<boolean>(
      '--ignore-columns',
      'leave out columns that a table does not have',
    ),
    null: repeatable(
      '--null <text>',
      'what stands for NULL where it is not quoted, beside nothing at all; may be given several times',
    ),
    escape: setting(
      '--escape <character>',
      'what escapes a quote within quotes: a second quote, or \\',
      { preset: '"' },
    ),
  },
  exitCodes: { 0: 'loaded' },
  example: 'exports/2024-06-01',
  nothing: () => ({ files: [] as FileLoad[] }),
  afterwards: 'The tables are as they were.',
  work: async ({ database, settings, argument, facts, signal, progress, say, warn, onCommit }) => {
    const tell = ({ file, readBytes, totalBytes }: LoadProgress) => {
      if (readBytes === totalBytes) {
        progress.show(`${file}: storing its rows`);
      } else {
        const percent = Math.floor((100 * readBytes) / totalBytes);
        progress.update(`${file}: ${percent} % of ${(totalBytes / 1e6).toFixed(1)} MB read`);
      }
    };
    facts.files = await database.transaction(
      (transaction) =>
        loadFolder(transaction, argument, { ...settings, onProgress: tell, onWarning: warn }),
      signal,
    );
    onCommit({ outcome: 'loaded', reason: null });
    for (const { file, rows, inserted, updated } of facts.files) {
      const unchanged = rows - inserted - updated;
      say(
        `${file}: ${rows} rows, ${inserted} inserted, ${updated} updated, ${unchanged} unchanged`,
      );
    }
    for (const { file, inserted, updated } of facts.files) {
      if (inserted + updated > 0) {
        const table = basename(basename(file, '.gz'), '.csv');
        progress.show(`${table}: vacuuming`);
        const unlimited = { statementTimeout: '0', statementTimeoutMs: 0, signal };
        (await vacuum(database.db, table, 'loaded', unlimited)).forEach(warn);
      }
    }
    return { outcome: 'loaded', reason: null };
  },
});
