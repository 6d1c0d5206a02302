import { refreshViews, type ViewRefresh } from '../views/index.ts';
import { databaseCommand } from './command.ts';
import { bounds, setting } from './settings.ts';

export const refresh = databaseCommand({
  name: 'refresh',
  description: 'Refreshes both views in the database that DATABASE_URL names. Readers never wait.',
  summary: 'refreshes both views. Readers never wait',
  settings: {
    ...bounds,
    force: setting<boolean>('--force', 'also recompute views that are known to be up to date'),
  },
  notes: `Durations and sizes are in Postgres' notation: 2s, 5min, 256MB.`,
  exitCodes: {
    0: 'refreshed',
    75: 'skipped: a refresh or migration is running, or refreshes are held off',
  },
  example: '--lock-timeout 30s --json',
  nothing: () => ({ views: [] as ViewRefresh[] }),
  afterwards: 'The views have not changed.',
  work: async ({ database, settings, facts, signal, progress, say, warn, onCommit }) => {
    const { outcome, reason, warnings } = await refreshViews(database.db, {
      ...settings,
      signal,
      onStep: ({ view, step }) => progress.show(`${view}: ${step}ing`),
      onCommit: (views) => {
        facts.views = views;
        if (views.length > 0) {
          onCommit({ outcome: 'refreshed', reason: null });
        }
      },
    });
    warnings.forEach(warn);
    facts.views.map(describe).forEach(say);
    return { outcome, reason };
  },
});

function describe(refresh: ViewRefresh): string {
  const { view, mode, readsDistributed, rows, inserted, deleted, durationMs } = refresh;
  const done = {
    concurrently: `${inserted} inserted, ${deleted} deleted${readsDistributed ? ', always recomputed, because its tables are distributed' : ''}`,
    populate: 'filled by a plain REFRESH, because it was not populated',
    unchanged: 'not recomputed, because nothing has changed',
  };
  return `${view}: ${rows} rows, ${done[mode]}, ${durationMs} ms`;
}
