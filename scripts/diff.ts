import { databaseCommand } from './command.ts';
import { diffViews, type ViewDiff } from './diff/compare.ts';
import { bounds, setting } from './settings.ts';

export const diff = databaseCommand({
  name: 'diff',
  description:
    'Compares the rows of the views in the database that DATABASE_URL names with the rows that the declared views would have. It only reads. Run it before a migration.',
  summary: 'shows what the declared views would change',
  settings: {
    view: setting<string | undefined>('--view <name>', 'compare only this view'),
    limit: setting('--limit <number>', 'how many examples of each kind to show', { preset: '5' }),
    values: setting<boolean>('--values', 'show all values, not only identifiers and times'),
    statementTimeout: bounds.statementTimeout,
    workMem: bounds.workMem,
  },
  exitCodes: { 0: 'nothing would change', 2: 'something would change' },
  example: '--view fct_client_conversion_events --limit 10',
  nothing: () => ({ views: [] as ViewDiff[] }),
  afterwards: 'Nothing has changed.',
  work: async ({ database, settings, facts, signal, progress, say }) => {
    const limit = Number(settings.limit);
    if (!/^\d{1,6}$/.test(settings.limit)) {
      throw new Error(`--limit must be a whole number, not ${JSON.stringify(settings.limit)}.`);
    }
    facts.views = await diffViews(database.db, {
      ...settings,
      limit,
      showsValues: settings.values ?? false,
      signal,
      onView: (view) => progress.show(`${view}: comparing`),
    });
    facts.views.map(describe).forEach(say);
    return { outcome: facts.views.some(isDifferent) ? 'different' : 'same', reason: null };
  },
});

const isDifferent = ({ added, gone, changed, ...diff }: ViewDiff): boolean =>
  [added, gone, changed].some((count) => count > 0) ||
  [diff.newColumns, diff.droppedColumns, diff.retypedColumns].some(({ length }) => length > 0);

function describe(diff: ViewDiff): string {
  const { view, rows, declaredRows, byRefresh, columns, examples } = diff;
  if (!isDifferent(diff)) {
    return `${view}: ${rows} rows, nothing would change`;
  }
  const kinds = ['changed', 'added', 'gone'] as const;
  const counts = kinds.map(
    (kind) => `${diff[kind]} ${kind} (${byRefresh[kind]} by a refresh alone)`,
  );
  const lines = [
    `${view}: ${rows} rows, ${declaredRows} as declared: ${counts.join(', ')}`,
    ...diff.newColumns.map((column) => `  ${column}: new, not compared`),
    ...diff.droppedColumns.map((column) => `  ${column}: no longer declared`),
    ...diff.retypedColumns.map((column) => `  declared with another type: ${column}`),
    ...columns.map(
      ({ column, changed, byRefresh }) =>
        `  ${column}: differs in ${changed} ${changed === 1 ? 'row' : 'rows'} (${byRefresh} by a refresh alone)`,
    ),
  ];
  for (const { kind, key, columns } of examples) {
    const names = Object.entries(key).map(([name, value]) => `${name} ${JSON.stringify(value)}`);
    lines.push(`  Example, ${kind}: ${names.join(', ')}`);
    for (const { column, now, declared } of kind === 'changed' ? columns : []) {
      const isShown = now !== undefined;
      lines.push(
        `    ${column}: ${isShown ? `${JSON.stringify(now)} -> ${JSON.stringify(declared)}` : 'see --values'}`,
      );
    }
  }
  return lines.join('\n');
}
