import { basename } from 'node:path';
import { type FileLoad, type LoadProgress, loadFolder } from '../schema/load.ts';
import { vacuum } from '../views/vacuum.ts';
import { databaseCommand } from './command.ts';

export const load = databaseCommand({
  name: 'load',
  description:
    'Loads the CSV files of a folder, each named after its input table (dim_user.csv), into the database that DATABASE_URL names: all of them or none. A row whose key is there already replaces that row.',
  summary: 'loads CSV files into the input tables',
  argument: ['<folder>', 'the folder that has the files'],
  settings: {},
  exitCodes: { 0: 'loaded' },
  example: 'exports/2024-06-01',
  nothing: () => ({ files: [] as FileLoad[] }),
  afterwards: 'The tables are as they were.',
  work: async ({ database, argument, facts, signal, progress, say, warn }) => {
    const tell = ({ file, readBytes, totalBytes }: LoadProgress) => {
      if (readBytes === totalBytes) {
        progress.show(`${file}: storing its rows`);
      } else {
        const percent = Math.floor((100 * readBytes) / totalBytes);
        progress.update(`${file}: ${percent} % of ${(totalBytes / 1e6).toFixed(1)} MB read`);
      }
    };
    facts.files = await database.transaction(
      (transaction) => loadFolder(transaction, argument, tell),
      signal,
    );
    for (const { file, rows, inserted, updated } of facts.files) {
      const unchanged = rows - inserted - updated;
      say(
        `${file}: ${rows} rows, ${inserted} inserted, ${updated} updated, ${unchanged} unchanged`,
      );
    }
    for (const { file, inserted, updated } of facts.files) {
      if (inserted + updated > 0) {
        const table = basename(file, '.csv');
        progress.show(`${table}: vacuuming`);
        const unlimited = { statementTimeout: '0', statementTimeoutMs: 0, signal };
        (await vacuum(database.db, table, 'loaded', unlimited)).forEach(warn);
      }
    }
    return { outcome: 'loaded', reason: null };
  },
});
