import { parseArgs } from 'node:util';
import { refreshViews } from '../views/index.ts';
import { run } from './command.ts';
import { withDatabase } from './database.ts';

await run(async () => {
  const { values } = parseArgs({ options: { json: { type: 'boolean' } } });
  const report = await withDatabase(({ db }) => refreshViews(db));
  if (values.json) {
    console.log(JSON.stringify(report));
    return;
  }
  for (const { view, rows, inserted, deleted, durationMs } of report.views) {
    console.log(
      `${view}: ${rows} rows, ${inserted} inserted, ${deleted} deleted, ${durationMs} ms`,
    );
  }
});
