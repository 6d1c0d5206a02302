import { command, runProgram } from './command.ts';
import { openPglite } from './database.ts';
import { generate, generateBaseline } from './generate/files.ts';
import { setting, type Values } from './settings.ts';

const settings = {
  name: setting<string | undefined>(
    '--name <what_changed>',
    'the name of the migration, such as days_to_conversion',
  ),
  check: setting<boolean>('--check', 'write nothing, and fail if there is something to write'),
  baseline: setting<boolean>(
    '--baseline',
    'until the first release: replace all migrations by the one that makes what is declared in an empty database',
  ),
};

const program = command({
  name: 'generate',
  isOfRepository: true,
  description:
    'Writes the migration from what the migrations make so far to what schema/ and views/ declare. Needs no database.',
  settings,
  example: '--name days_to_conversion',
}).action(async ({ name, check, baseline }: Values<typeof settings>) => {
  // drizzle-kit asks whether something was renamed. Where nobody can answer, it comes to a stop.
  if (!process.stdin.isTTY) {
    process.stdin.destroy();
  }
  const explainStop = () =>
    console.error('drizzle-kit has a question. Run "npm run generate" in a terminal.');
  process.once('beforeExit', explainStop);
  const { db, close } = await openPglite();
  try {
    console.log(baseline ? await generateBaseline(db) : await generate(db, { name, check }));
  } finally {
    process.off('beforeExit', explainStop);
    await close();
  }
});

await runProgram(program);
