import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { constants, tmpdir } from 'node:os';
import { join } from 'node:path';
import postgres from 'postgres';
import { refreshDefaults } from '../views/index.ts';
import { type LoadMeasurements, loadSteps, measureLoad } from './benchmark/load.ts';
import { type Measurements, measure, type Refresh, steps } from './benchmark/measure.ts';
import { measureReport, type ReportMeasurements } from './benchmark/report.ts';
import { cancelledBySignals, command, runProgram } from './command.ts';
import { readConnection } from './connection.ts';
import { startPostgres } from './postgres_server.ts';
import { progressOn } from './progress.ts';
import { setting, type Values } from './settings.ts';
import { tableOf } from './table.ts';

const parts = ['refresh', 'load', 'report'];

const settings = {
  part: setting(
    '--part <name...>',
    'what to measure: refresh, load, report; all of them unless given',
    {
      preset: parts,
    },
  ),
  users: setting('--users <number...>', 'how many users; may be several numbers', {
    preset: ['100000'],
  }),
  purchasesPerUser: setting('--purchases-per-user <number>', 'how many on average', {
    preset: '5',
  }),
  rounds: setting('--rounds <number>', 'how often to measure, for medians', { preset: '3' }),
  workMem: setting('--work-mem <size>', 'memory for each sort and hash table of our refresh', {
    preset: refreshDefaults.workMem,
  }),
  json: setting<string | undefined>('--json <file>', 'write all figures there, too'),
};

/** The environment variable that names the server to work on, if any. */
const variable = 'BENCHMARK_DATABASE_URL';

const { signal, cancelledBy } = cancelledBySignals();
const stopped = new Promise<never>((_, reject) => {
  signal.addEventListener('abort', () => {
    // When its database is dropped, a connection may throw where nothing can catch the error.
    process.on('uncaughtException', () => {});
    reject(new Error(`Stopped by ${cancelledBy()}.`));
  });
});
stopped.catch(() => {}); // in case nothing waits for it yet

const seconds = (value: number) => `${(value / 1000).toFixed(2)} s`;
const milliseconds = (value: number) => `${value.toFixed(1)} ms`;
const secondsOf = ({ events, conversions, both }: Refresh) =>
  `${(events / 1000).toFixed(2)} + ${(conversions / 1000).toFixed(2)} = ${seconds(both)}`;
const ratio = (one: number, other: number) => (one / other).toFixed(2);
const megabytes = (bytes: number | null) =>
  bytes === null ? 'not known' : `${Math.round(bytes / 2 ** 20)} MB`;

const program = command({
  name: 'benchmark',
  isOfRepository: true,
  description:
    'Measures the refresh of both views against the obvious form of the same views and against the least that it can cost, what readers pay, the load of files against COPY, and the report.',
  settings,
  notes: `Runs on a PostgreSQL 16 that it starts itself, or on the server that
BENCHMARK_DATABASE_URL names, in databases that it creates and drops there.`,
  example: '--users 100000 1000000',
}).action(async (values: Values<typeof settings>) => {
  const sizes = values.users
    .map((users) => ({
      users: numberOf('users', users, 1000),
      purchasesPerUser: numberOf('purchases-per-user', values.purchasesPerUser, 1),
    }))
    .toSorted((one, other) => one.users - other.users);
  const rounds = numberOf('rounds', values.rounds, 1);
  const unknown = values.part.find((part) => !parts.includes(part));
  if (unknown !== undefined) {
    throw new Error(`--part is refresh, load or report, not ${JSON.stringify(unknown)}.`);
  }
  if (values.json) {
    await writeFile(values.json, '', { flag: 'a' }); // fails now rather than at the end
  }
  const givenUrl = process.env[variable];
  if (givenUrl) {
    readConnection(givenUrl, variable); // fails now rather than later
  }
  const server = givenUrl ? undefined : await startPostgres();
  const serverUrl = givenUrl || (server?.url('postgres') ?? '');
  const progress = progressOn(process.stderr);
  const results: Measurements[] = [];
  const loads: LoadMeasurements[] = [];
  const reports: ReportMeasurements[] = [];
  try {
    const facts = await withClient(serverUrl, (client) => factsOf(client, values.workMem));
    console.log(
      `PostgreSQL ${facts.version}, shared_buffers ${facts.sharedBuffers}; work_mem ${values.workMem} for ours, ${facts.workMem} for the reference; medians of ${rounds}\n`,
    );
    for (const size of sizes) {
      const onProgress = (doing: string) => {
        const line = `${size.users.toLocaleString('en')} users: ${doing}`;
        progress.show(line);
        if (!process.stderr.isTTY) {
          console.error(line);
        }
      };
      if (values.part.includes('refresh')) {
        const result = await inDatabase(serverUrl, (url) =>
          measure(url, size, { rounds, workMem: values.workMem, onProgress }),
        ).finally(progress.end);
        print(result, results.at(-1));
        results.push(result);
      }
      if (values.part.includes('load')) {
        const folder = await mkdtemp(join(tmpdir(), 'lead-conversions-benchmark-'));
        const result = await inDatabase(serverUrl, (url) =>
          measureLoad(url, size, { folder, rounds, onProgress }),
        ).finally(async () => {
          progress.end();
          await rm(folder, { recursive: true, force: true });
        });
        printLoad(result);
        loads.push(result);
      }
      if (values.part.includes('report')) {
        const result = await inDatabase(serverUrl, (url) =>
          measureReport(url, size, { rounds, onProgress }),
        ).finally(progress.end);
        printReport(result, reports.at(-1));
        reports.push(result);
      }
    }
    for (const [view, plan] of Object.entries(results.at(-1)?.plans ?? {})) {
      console.log(`Plan of ${view}\n\n${plan}\n`);
    }
    if (values.json) {
      await writeFile(
        values.json,
        `${JSON.stringify({ ...facts, rounds, results, loads, reports }, null, 2)}\n`,
      );
    }
  } finally {
    await server?.remove();
  }
});

await runProgram(program, variable);
const stoppedBy = cancelledBy();
if (stoppedBy) {
  process.exit(128 + constants.signals[stoppedBy]);
}

function numberOf(option: string, text: string, least: number): number {
  const number = Number(text);
  if (!Number.isSafeInteger(number) || number < least) {
    throw new Error(`--${option} is a whole number from ${least} on, not ${JSON.stringify(text)}.`);
  }
  return number;
}

async function withClient<Result>(
  url: string,
  work: (client: postgres.Sql) => Promise<Result>,
): Promise<Result> {
  const client = postgres(url, { max: 1, fetch_types: false, onnotice: () => {} });
  try {
    return await work(client);
  } finally {
    await client.end();
  }
}

/**
 * Returns facts about the server. Throws Postgres' error if it does not accept the work_mem, before
 * anything is measured.
 */
async function factsOf(client: postgres.Sql, workMem: string) {
  await client`select set_config('work_mem', ${workMem}, true)`;
  const [facts] = await client`
    select
      current_setting('server_version') as version,
      current_setting('shared_buffers') as "sharedBuffers",
      current_setting('work_mem') as "workMem"`;
  return facts as unknown as { version: string; sharedBuffers: string; workMem: string };
}

/**
 * Does work in a new database on the server. Drops the database afterwards, even after a signal.
 */
function inDatabase<Result>(
  serverUrl: string,
  work: (url: string) => Promise<Result>,
): Promise<Result> {
  return withClient(serverUrl, async (client) => {
    const name = `lead_conversions_benchmark_${process.pid}`;
    await client`create database ${client(name)} template template0`;
    try {
      const url = new URL(serverUrl);
      url.pathname = `/${name}`;
      return await Promise.race([work(url.href), stopped]);
    } finally {
      await client`drop database ${client(name)} with (force)`;
    }
  });
}

function print(result: Measurements, previous: Measurements | undefined): void {
  const { users, purchasesPerUser, ours, reference, floor, peaks, readers } = result;
  const { afterLoad, statements, sizes } = result;
  const growth = (of: (result: Measurements) => number) =>
    previous ? [`${(of(result) / of(previous)).toFixed(1)}×`] : [];
  const growthColumn = previous
    ? [`ours grew (users ${(users / previous.users).toFixed(1)}×)`]
    : [];
  console.log(
    `${users.toLocaleString('en')} users, ${(users * purchasesPerUser).toLocaleString('en')} purchases\n`,
  );
  console.log(
    tableOf(
      ['refresh, first view + second', 'ours', 'reference', 'ours/reference', ...growthColumn],
      steps.map((step) => [
        step,
        secondsOf(ours[step]),
        secondsOf(reference[step]),
        ratio(ours[step].both, reference[step].both),
        ...growth((result) => result.ours[step].both),
      ]),
    ),
  );
  console.log(
    `\nThe floor of the first view is ${seconds(floor)}: its first populate is ${(ours['first populate'].events / floor).toFixed(2)} of it.`,
    `\nVacuum and analysis after ${steps[2]}: ${seconds(result.vacuum)}.`,
    `\nFirst view right after a load: ${seconds(afterLoad.withoutVacuum)} without a vacuum of the input, ${seconds(afterLoad.withVacuum)} with one.`,
    `\nInput tables: ${megabytes(sizes.tables)}, their indexes: ${megabytes(sizes.indexes)}.\n`,
  );
  const { time: limitTime, cpu: limitCpu } = statements.limit;
  const { time: ourTime, cpu: ourCpu } = statements.ours;
  const limitOfReference = ratio(limitTime, reference['1 % bought'].both);
  console.log(
    tableOf(
      [
        'the two REFRESH statements alone, 1 % bought',
        'ours',
        'limit',
        'ours/limit',
        'limit/reference',
      ],
      [
        ['time', seconds(ourTime), seconds(limitTime), ratio(ourTime, limitTime), limitOfReference],
        ...(ourCpu === null || limitCpu === null
          ? []
          : [
              [
                'CPU of the server process',
                seconds(ourCpu),
                seconds(limitCpu),
                ratio(ourCpu, limitCpu),
                '',
              ],
            ]),
      ],
    ),
  );
  console.log();
  console.log(
    tableOf(
      ['our refresh', 'memory', 'temporary files'],
      steps.map((step) => [
        step,
        megabytes(peaks[step].memory),
        megabytes(peaks[step].temporaryFiles),
      ]),
    ),
  );
  console.log();
  console.log(
    tableOf(
      ['reader', 'on the views', 'on the input tables', 'ratio', ...growthColumn],
      [
        [
          'report of a branch under one filter',
          milliseconds(readers.branchReport),
          milliseconds(readers.branchReportOnInputTables),
          `1/${Math.round(readers.branchReportOnInputTables / readers.branchReport)}`,
          ...growth((result) => result.readers.branchReport),
        ],
        [
          'rows of one user',
          milliseconds(readers.userRows),
          '',
          '',
          ...growth((result) => result.readers.userRows),
        ],
      ],
    ),
  );
  console.log();
}

function printLoad({ users, purchasesPerUser, files, costs }: LoadMeasurements): void {
  const purchases = users * purchasesPerUser;
  console.log(
    `${users.toLocaleString('en')} users, ${purchases.toLocaleString('en')} purchases, in files of ${megabytes(files)}\n`,
  );
  const { COPY: copy, 'first load': first } = costs;
  console.log(
    tableOf(
      [
        'load, with the vacuum after it',
        'time',
        'to COPY',
        'CPU of this process',
        'its share of the time',
        'memory of this process',
        'WAL',
        'to the first load',
      ],
      loadSteps.map((step) => {
        const { time, cpu, memory, wal } = costs[step];
        return [
          step,
          seconds(time),
          ratio(time, copy.time),
          seconds(cpu),
          ratio(cpu, time),
          megabytes(memory),
          megabytes(wal),
          (wal / first.wal).toFixed(4),
        ];
      }),
    ),
  );
  console.log();
}

function printReport(result: ReportMeasurements, previous: ReportMeasurements | undefined): void {
  const { users, figures, reading, drawing, bytes } = result;
  const growth = (now: number, then: number | undefined) =>
    previous ? [then ? `${(now / then).toFixed(1)}×` : ''] : [];
  const growthColumn = previous ? [`grew (users ${(users / previous.users).toFixed(1)}×)`] : [];
  console.log(`${users.toLocaleString('en')} users, a page of ${megabytes(bytes)}\n`);
  console.log(
    tableOf(
      ['report', 'time', ...growthColumn],
      [
        ...Object.entries(figures).map(([figure, time]) => [
          ...[figure, milliseconds(time), ...growth(time, previous?.figures[figure])],
        ]),
        ['all figures', milliseconds(reading), ...growth(reading, previous?.reading)],
        ['drawing', milliseconds(drawing), ...growth(drawing, previous?.drawing)],
      ],
    ),
  );
  console.log();
}
