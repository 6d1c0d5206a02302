import { basename } from 'node:path';
import { parseArgs } from 'node:util';
import { type FileLoad, type LoadProgress, loadFolder } from '../schema/load.ts';
import { vacuum } from '../views/vacuum.ts';
import { renewLine, run } from './command.ts';
import { type Database, withDatabase } from './database.ts';

await run(async () => {
  const { positionals } = parseArgs({ allowPositionals: true });
  const [folder] = positionals;
  if (folder === undefined || positionals.length > 1) {
    throw new Error('Name the one folder to load: npm run load -- FOLDER');
  }
  const progress = progressLine(process.stderr);
  await withDatabase(async (database) => {
    const loads = await database
      .transaction((transaction) => loadFolder(transaction, folder, progress.show))
      .finally(progress.end);
    for (const { file, rows, inserted, updated } of loads) {
      const unchanged = rows - inserted - updated;
      console.log(
        `${file}: ${rows} rows, ${inserted} inserted, ${updated} updated, ${unchanged} unchanged`,
      );
    }
    for (const warning of await vacuumChanged(database, loads)) {
      console.error(`Warning: ${warning}`);
    }
  });
});

/** Vacuums the tables that have changed, and returns what went wrong with that. */
async function vacuumChanged({ db }: Database, loads: FileLoad[]): Promise<string[]> {
  const warnings: string[] = [];
  for (const { file, inserted, updated } of loads) {
    if (inserted + updated > 0) {
      const unlimited = { statementTimeout: '0', statementTimeoutMs: 0 };
      warnings.push(...(await vacuum(db, basename(file, '.csv'), 'loaded', unlimited)));
    }
  }
  return warnings;
}

/** Tells how far a load is: in a terminal on one line that renews itself, in a log every 5 s. */
function progressLine(stream: NodeJS.WriteStream) {
  const everyMs = stream.isTTY ? 100 : 5000;
  const [start, end] = stream.isTTY ? [renewLine, ''] : ['', '\n'];
  let shownAt = performance.now();
  let shown = false;
  return {
    show: ({ file, readBytes, totalBytes }: LoadProgress) => {
      const isRead = readBytes === totalBytes;
      if (performance.now() - shownAt < everyMs && !(isRead && shown)) {
        return;
      }
      const megabytes = (totalBytes / 1e6).toFixed(1);
      const percent = Math.floor((100 * readBytes) / totalBytes);
      const done = isRead ? 'read, storing its rows' : `${percent} % of ${megabytes} MB read`;
      stream.write(`${start}${file}: ${done}${end}`);
      shownAt = performance.now();
      shown = true;
    },
    end: () => {
      if (stream.isTTY && shown) {
        stream.write(start);
      }
    },
  };
}
