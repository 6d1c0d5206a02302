import { command, runProgram } from './command.ts';
import { openPglite } from './database.ts';
import { generate, generateBaseline } from './generate/files.ts';
import { setting, type Values } from './settings.ts';

const settings = {
  name: setting<string | undefined>(
    '--name <what_changed>',
    'the name of the migration, such as days_to_conversion',
  ),
  check: setting<boolean>('--check', 'write nothing, and fail if a migration is missing'),
  baseline: setting<boolean>(
    '--baseline',
    'until the first release: replace all migrations with one that creates everything in an empty database',
  ),
};

const program = command({
  name: 'generate',
  isOfRepository: true,
  description:
    'Compares the result of all migrations with the declarations in schema/ and views/, and writes the missing migration. Needs no database.',
  settings,
  example: '--name days_to_conversion',
}).action(async ({ name, check, baseline }: Values<typeof settings>) => {
  // drizzle-kit asks whether something was renamed. Without a terminal nobody can answer, and it
  // stops.
  if (!process.stdin.isTTY) {
    process.stdin.destroy();
  }
  const explainStop = () =>
    console.error(
      'drizzle-kit asks a question. Run "npm run generate" in a terminal to answer it.',
    );
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
