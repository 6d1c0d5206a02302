import { constants } from 'node:os';
import { parseArgs } from 'node:util';
import pRetry from 'p-retry';
import {
  type RefreshReport,
  refreshDefaults,
  refreshViews,
  type ViewRefresh,
} from '../views/index.ts';
import { elapsedLine, explain, isTransient, run } from './command.ts';
import { withDatabase } from './database.ts';

/** By option. */
const defaults = {
  'lock-timeout': refreshDefaults.lockTimeout,
  'statement-timeout': refreshDefaults.statementTimeout,
  'work-mem': refreshDefaults.workMem,
  'max-loss': refreshDefaults.maxLoss,
  retries: '5',
};

const usage = `npm run refresh -- [OPTION …]

Refreshes the views of the database that DATABASE_URL names.

  --lock-timeout DURATION       how long to wait for a lock of another session (${defaults['lock-timeout']})
  --statement-timeout DURATION  how long the refresh of one view may take (${defaults['statement-timeout']})
  --work-mem SIZE               memory for each sort and hash table (${defaults['work-mem']})
  --max-loss PERCENT            how many of the users, and of the clients, may be gone (${defaults['max-loss']})
  --retries NUMBER              how often to try again what may succeed in a moment (${defaults.retries})
  --force                       recompute views that are known to be up to date, too
  --json                        print one line of JSON
  --help                        print this

Durations and sizes are in Postgres' notation: 2s, 5min, 256MB. An option that is
not given is taken from LEAD_CONVERSIONS_LOCK_TIMEOUT and so on.

Exit codes: 0 refreshed, 1 failed, 75 skipped because a refresh or a migration of
the views is running, 130 and 143 cancelled by SIGINT and SIGTERM.`;

/** By outcome. 75 is EX_TEMPFAIL of sysexits.h: nothing is wrong, try again later. */
const exitCodes = { refreshed: 0, failed: 1, skipped: 75 };

/** How long a cancelled refresh has to roll back before the process ends anyway. */
const graceMs = 5000;

/** The first retry comes after a second, each further one after twice that, up to this. */
const maxTimeout = 30_000;

type Result = Pick<RefreshReport, 'reason' | 'views' | 'warnings'> & {
  outcome: keyof typeof exitCodes;
};

/** What --json prints, always with the same keys. */
interface Output extends Result {
  /** How long all attempts took, and the waiting between them. */
  durationMs: number;
  /** Why attempts failed that were followed by another one, in sentences. */
  retries: string[];
}

const started = performance.now();
const retries: string[] = [];
const cancellation = new AbortController();
let cancelledBy: 'SIGINT' | 'SIGTERM' | undefined;
for (const name of ['SIGINT', 'SIGTERM'] as const) {
  // Often twice: from the terminal or the service manager, and from npm.
  process.on(name, () => {
    cancelledBy ??= name;
    cancellation.abort(new Error(`cancelled by ${name}`));
  });
}
const overdue = new Promise<never>((_, reject) => {
  const error = new Error('Cancelled, but the server did not answer in time.');
  cancellation.signal.addEventListener('abort', () => setTimeout(reject, graceMs, error));
});

await run(async () => {
  if (process.argv.includes('--help')) {
    console.log(usage);
    return;
  }
  const report = await Promise.race([refresh(), overdue]).catch(failure);
  print({ ...report, durationMs: Math.round(performance.now() - started), retries });
  if (cancelledBy) {
    process.exit(128 + constants.signals[cancelledBy]);
  }
  process.exitCode = exitCodes[report.outcome];
});

/** Throws what ended the last attempt, unless that one has a report. */
async function refresh(): Promise<Result> {
  const { retries: retriesAllowed, ...bounds } = readSettings();
  const progress = elapsedLine(process.stdout);
  let report: RefreshReport | undefined;
  const attempt = async (number: number) => {
    report = undefined;
    report = await withDatabase(({ db }) =>
      refreshViews(db, {
        ...bounds,
        signal: cancellation.signal,
        onStep: ({ view, step }) => progress.show(`${view}: ${step}ing`),
      }),
    ).finally(progress.end);
    if (report.outcome === 'skipped' && number > 1) {
      // Perhaps by what the attempt before has left on the server, for a moment.
      throw new Error(`Skipped: ${report.reason}.`);
    }
    return report;
  };
  try {
    return await pRetry(attempt, {
      retries: retriesAllowed,
      maxTimeout,
      signal: cancellation.signal,
      shouldRetry: ({ error, attemptNumber }) => {
        if (cancelledBy || !(report || isTransient(error))) {
          return false;
        }
        const seconds = Math.min(2 ** (attemptNumber - 1), maxTimeout / 1000);
        retries.push(explain(error));
        console.error(explain(error));
        console.error(`Trying again in ${seconds} s (${attemptNumber} of ${retriesAllowed}).`);
        return true;
      },
    });
  } catch (error) {
    if (report) {
      return report;
    }
    throw error;
  }
}

/** Each from its option, its environment variable or the default, in this order. */
function readSettings() {
  const { values } = parseArgs({
    options: {
      'lock-timeout': { type: 'string' },
      'statement-timeout': { type: 'string' },
      'work-mem': { type: 'string' },
      'max-loss': { type: 'string' },
      retries: { type: 'string' },
      force: { type: 'boolean' },
      json: { type: 'boolean' },
    },
  });
  const setting = (name: keyof typeof defaults): string => {
    const variable = `LEAD_CONVERSIONS_${name.toUpperCase().replaceAll('-', '_')}`;
    return values[name] ?? (process.env[variable] || defaults[name]);
  };
  const retries = setting('retries');
  if (!/^\d{1,4}$/.test(retries)) {
    throw new Error(`--retries is a number of times, not ${JSON.stringify(retries)}.`);
  }
  return {
    lockTimeout: setting('lock-timeout'),
    statementTimeout: setting('statement-timeout'),
    workMem: setting('work-mem'),
    maxLoss: setting('max-loss'),
    force: values.force ?? false,
    retries: Number(retries),
  };
}

function failure(error: unknown): Result {
  const reason =
    error === cancellation.signal.reason
      ? `Cancelled by ${cancelledBy}. The views are as they were.`
      : explain(error);
  return { outcome: 'failed', reason, views: [], warnings: [] };
}

function print(output: Output): void {
  for (const warning of output.warnings) {
    console.error(`Warning: ${warning}`);
  }
  if (output.outcome !== 'refreshed') {
    console.error(output.outcome === 'skipped' ? `skipped: ${output.reason}` : output.reason);
  }
  if (process.argv.includes('--json')) {
    console.log(JSON.stringify(output));
    return;
  }
  for (const view of output.views) {
    console.log(describe(view));
  }
}

function describe({ view, mode, rows, inserted, deleted, durationMs }: ViewRefresh): string {
  const done = {
    concurrently: `${inserted} inserted, ${deleted} deleted`,
    populate: 'populated by a plain REFRESH, because it was not populated',
    unchanged: 'not recomputed, because neither it nor what it reads has changed',
  };
  return `${view}: ${rows} rows, ${done[mode]}, ${durationMs} ms`;
}
