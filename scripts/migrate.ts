import { percentOf, refreshDefaults } from '../views/refresh.ts';
import { databaseCommand } from './command.ts';
import { migrateDatabase } from './migrations.ts';
import { setting } from './settings.ts';

export const migrate = databaseCommand({
  name: 'migrate',
  description:
    'Creates or updates the tables and views in the database that DATABASE_URL names. Several deploys may run it at once: they take turns, and one migrates.',
  summary: 'creates or updates the tables and views',
  // Not set by environment variables: those of the nightly refresh would then apply to a deploy.
  settings: {
    lockTimeout: setting('--lock-timeout <duration>', 'how long to wait for another deploy', {
      preset: '10min',
    }),
    maxLoss: setting(
      '--max-loss <percent>',
      'the largest share of the users, or of the clients, that a changed view may lose',
      { preset: refreshDefaults.maxLoss },
    ),
  },
  notes: `Durations are in Postgres' notation: 30s, 5min.`,
  exitCodes: { 0: 'migrated, or there was nothing to migrate' },
  example: '--lock-timeout 30min',
  nothing: () => ({
    migrations: [] as { migration: string; durationMs: number }[],
    notices: [] as string[],
  }),
  afterwards: 'The migration that was running was rolled back.',
  isNew: true,
  onNotice: (notice, { notices }) => {
    notices.push(notice);
    console.error(notice);
  },
  work: async ({ database, settings, facts, signal, progress, say }) => {
    percentOf(settings.maxLoss);
    const { applied, isLater } = await migrateDatabase(database.db, {
      ...settings,
      signal,
      onProgress: progress.show,
      onApplied: ({ tag, durationMs }) => {
        const rounded = Math.round(durationMs);
        facts.migrations.push({ migration: tag, durationMs: rounded });
        say(`${tag}: migrated, ${rounded} ms`);
      },
    });
    if (applied === 0) {
      say(
        `Nothing to migrate: the database is ${isLater ? 'at a later version than this package' : 'up to date'}.`,
      );
    }
    return { outcome: 'migrated', reason: null };
  },
});
