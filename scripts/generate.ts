import { parseArgs } from 'node:util';
import { run } from './command.ts';
import { openPglite } from './database.ts';
import { generate, generateBaseline } from './generate/files.ts';

const usage = `npm run generate -- --name WHAT_CHANGED

Writes the migration from what the migrations make so far to what schema/ and
views/ declare. Needs no database.

  --name WHAT_CHANGED  the name of the migration, such as days_to_conversion
  --check              write nothing, and fail if there is something to write
  --baseline           until the first release: replace all migrations by the one
                       that makes what is declared in an empty database`;

await run(async () => {
  const { values } = parseArgs({
    options: {
      name: { type: 'string' },
      check: { type: 'boolean' },
      baseline: { type: 'boolean' },
      help: { type: 'boolean', short: 'h' },
    },
  });
  if (values.help) {
    console.log(usage);
    return;
  }
  // drizzle-kit asks whether something was renamed. Where nobody can answer, it comes to a stop.
  if (!process.stdin.isTTY) {
    process.stdin.destroy();
  }
  const explainStop = () =>
    console.error('drizzle-kit has a question. Run "npm run generate" in a terminal.');
  process.once('beforeExit', explainStop);
  const { db, close } = await openPglite();
  try {
    const said = values.baseline ? await generateBaseline(db) : await generate(db, values);
    console.log(said);
  } finally {
    process.off('beforeExit', explainStop);
    await close();
  }
});
