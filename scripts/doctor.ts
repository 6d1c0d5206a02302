import { databaseCommand } from './command.ts';
import { examine, type Finding } from './doctor/examine.ts';
import { bounds, setting } from './settings.ts';

export const doctor = databaseCommand({
  name: 'doctor',
  description:
    'Checks whether the database that DATABASE_URL names matches what this version declares: its tables, views, grants, and the rows of its views. It changes nothing.',
  summary: 'checks whether the database matches its declaration',
  settings: {
    maxAge: setting('--max-age <interval>', 'how old a view may be', { preset: '26h' }),
    statementTimeout: bounds.statementTimeout,
  },
  exitCodes: { 0: 'healthy', 1: 'findings, or failed with the reason on stderr' },
  example: '--max-age 26h --json',
  nothing: () => ({ findings: [] as Finding[], notes: [] as string[] }),
  afterwards: 'Nothing has changed.',
  work: async ({ database, settings, facts, signal, progress, say }) => {
    Object.assign(
      facts,
      await examine(database.db, {
        ...settings,
        signal,
        onCheck: (what) => progress.show(`examining ${what}`),
      }),
    );
    for (const { finding, keys, remedy } of facts.findings) {
      say(
        [finding, keys.length > 0 && `  ${keys.join(', ')}`, `  ${remedy}`]
          .filter(Boolean)
          .join('\n'),
      );
    }
    for (const note of facts.notes) {
      say(`Note: ${note}`);
    }
    const isHealthy = facts.findings.length === 0;
    const count = facts.findings.length === 1 ? '1 finding.' : `${facts.findings.length} findings.`;
    say(isHealthy ? 'The database is healthy.' : count);
    return { outcome: isHealthy ? 'healthy' : 'findings', reason: null };
  },
});
