import { parseArgs } from 'node:util';
import { percentOf, refreshDefaults } from '../views/refresh.ts';
import { elapsedLine, run } from './command.ts';
import { openDatabase } from './database.ts';
import { migrateDatabase } from './migrations.ts';

const defaults = { 'lock-timeout': '10min', 'max-loss': refreshDefaults.maxLoss };

const usage = `npm run migrate -- [OPTION …]

Brings the database that DATABASE_URL names to the schema of this version. Any
number of deploys may start it at once: they take turns, and one migrates.

  --lock-timeout DURATION  how long to wait for another deploy (${defaults['lock-timeout']})
  --max-loss PERCENT       how many of the users, and of the clients, a changed
                           view may lose (${defaults['max-loss']})
  --help                   prints this

Durations are in Postgres' notation: 30s, 5min. The environment variables of the
refresh do not count here.

Exit codes: 0 migrated, or nothing to migrate; 1 failed, and then the migration
that failed has changed nothing.`;

await run(async () => {
  const { values } = parseArgs({
    options: {
      'lock-timeout': { type: 'string' },
      'max-loss': { type: 'string' },
      help: { type: 'boolean', short: 'h' },
    },
  });
  if (values.help) {
    console.log(usage);
    return;
  }
  const settings = {
    lockTimeout: values['lock-timeout'] ?? defaults['lock-timeout'],
    maxLoss: values['max-loss'] ?? defaults['max-loss'],
  };
  percentOf(settings.maxLoss);
  const progress = elapsedLine(process.stdout);
  const database = await openDatabase(process.env.DATABASE_URL, {
    onNotice: (notice) => {
      progress.end();
      console.error(notice);
    },
    isNew: true,
  });
  try {
    const { applied, isLater } = await migrateDatabase(database.db, {
      ...settings,
      onProgress: progress.show,
      onApplied: ({ tag, durationMs }) => {
        progress.end();
        console.log(`${tag}: migrated, ${Math.round(durationMs)} ms`);
      },
    });
    if (applied === 0) {
      console.log(
        `Nothing to migrate: the database is ${isLater ? 'at a later version than this one' : 'up to date'}.`,
      );
    }
  } finally {
    progress.end();
    await database.close();
  }
});
