import { readFile } from 'node:fs/promises';
import { setTimeout as sleep } from 'node:timers/promises';
import { getTableName, getViewName } from 'drizzle-orm';
import { drizzle } from 'drizzle-orm/postgres-js';
import { migrate } from 'drizzle-orm/postgres-js/migrator';
import postgres from 'postgres';
import {
  dimBranch,
  dimUser,
  fctCreditPackPurchases,
  fctMembershipPurchases,
} from '../../schema/index.ts';
import { migrations } from '../../schema/migrations.ts';
import {
  fctClientConversionEvents,
  fctLeadConversions,
  type RefreshReport,
  refreshViews,
} from '../../views/index.ts';
import { openDatabase } from '../database.ts';
import { branches, branchId, buy, generate, type Size, userId } from './data.ts';
import { conversionsOnInputTables, createReference } from './reference.ts';

const events = getViewName(fctClientConversionEvents);
const conversions = getViewName(fctLeadConversions);
export const steps = ['first populate', 'nothing changed', '1 % bought'] as const;
export type Step = (typeof steps)[number];

/**
 * Milliseconds of a refresh of both views. If it changes nothing, `both` is the time of the whole
 * refresh.
 */
export interface Refresh {
  events: number;
  conversions: number;
  both: number;
}

/** The most that the server processes of a refresh used at one time, in bytes. */
export interface Peak {
  /** Memory that they share with no other process. Null if only the server itself could tell. */
  memory: number | null;
  /** Sorts and hash tables on disk. Null if the role may not see their size. */
  temporaryFiles: number | null;
}

/** The cost of statements, in milliseconds. */
export interface Cost {
  time: number;
  /** The processor time of the server process. Null if only the server itself could tell. */
  cpu: number | null;
}

/** The costs of one size, in milliseconds: medians over the rounds. */
export interface Measurements extends Size {
  ours: Record<Step, Refresh>;
  reference: Record<Step, Refresh>;
  /** The vacuum and analysis of both views after a refresh for which 1 % had bought something. */
  vacuum: number;
  /**
   * The time for writing the rows of the first view and its unique index, and reading each input
   * once.
   */
  floor: number;
  /**
   * A plain REFRESH of the first view right after a load, without and with a vacuum of the input.
   */
  afterLoad: { withoutVacuum: number; withVacuum: number };
  /** The two REFRESH statements alone, after 1 % have bought something. */
  statements: { ours: Cost; limit: Cost };
  /** Sizes of the input tables and their indexes, in bytes. */
  sizes: { tables: number; indexes: number };
  peaks: Record<Step, Peak>;
  readers: { branchReport: number; branchReportOnInputTables: number; userRows: number };
  plans: Record<string, string>;
}

/** Called with what is being done from now until the next call. */
export type OnProgress = (doing: string) => void;

/**
 * Measures a size in an empty database, and leaves the data there.
 *
 * Throws an Error that shows a row if the views differ from the reference.
 */
export async function measure(
  url: string,
  size: Size,
  { rounds, workMem, onProgress }: { rounds: number; workMem: string; onProgress: OnProgress },
): Promise<Measurements> {
  const client = postgres(url, { max: 1, onnotice: () => {}, fetch_types: false });
  const database = await openDatabase(url);
  try {
    onProgress('migrate and generate');
    await migrate(drizzle(client), migrations);
    await createReference(client);
    await generate(client, size);
    const populateFirst = () =>
      timed(() => client.unsafe(`refresh materialized view public.${events}`));
    onProgress('first view right after the load');
    const withoutVacuum = await populateFirst();
    await client.unsafe('vacuum analyze');
    const withVacuum = await populateFirst();

    const samples: Record<'ours' | 'reference', Record<Step, Refresh[]>> = {
      ours: emptySteps(),
      reference: emptySteps(),
    };
    const peaks: Record<Step, Peak[]> = emptySteps();
    const vacuums: number[] = [];
    const floors: number[] = [];
    for (let round = 0; round < rounds; round += 1) {
      for (const step of steps) {
        if (step === '1 % bought') {
          await buy(client, size, round);
        }
        const forms = {
          ours: async () => {
            if (step === 'first populate') {
              await unpopulate(client, 'public');
            }
            const refreshOnce = () => sampled(url, () => refreshViews(database.db, { workMem }));
            const { result: report, peak } =
              step === 'nothing changed' ? await untilUnchanged(refreshOnce) : await refreshOnce();
            const [first, second] = report.views.map(({ durationMs }) => durationMs);
            const refresh = refreshOf(first, second);
            if (step === 'nothing changed') {
              refresh.both = report.durationMs; // including the looks, which are all that it does
            }
            samples.ours[step].push(refresh);
            peaks[step].push(peak);
            if (step === '1 % bought') {
              vacuums.push(report.durationMs - refresh.both);
            }
          },
          reference: async () => {
            if (step === 'first populate') {
              await unpopulate(client, 'reference');
            }
            const how = step === 'first populate' ? '' : 'concurrently';
            const refresh = (view: string) =>
              timed(() => client.unsafe(`refresh materialized view ${how} reference.${view}`));
            samples.reference[step].push(
              refreshOf(await refresh(events), await refresh(conversions)),
            );
          },
        };
        // They take turns in going first, so neither always finds in memory what the other has left
        // there.
        const order = ['ours', 'reference'] as const;
        for (const form of round % 2 === 0 ? order : order.toReversed()) {
          onProgress(`round ${round + 1} of ${rounds}, ${step}, ${form}`);
          await forms[form]();
        }
      }
      onProgress(`round ${round + 1} of ${rounds}, floor`);
      floors.push(await measureFloor(client));
    }
    const costs: Record<'ours' | 'limit', Cost[]> = { ours: [], limit: [] };
    await createLimit(client);
    for (let round = 0; round < rounds; round += 1) {
      await buy(client, size, rounds + round);
      onProgress(`round ${round + 1} of ${rounds}, the two REFRESH statements, ours and the limit`);
      costs.ours.push(await costOf(client, workMem, [`public.${events}`, `public.${conversions}`]));
      costs.limit.push(await costOfLimit(client, workMem));
    }
    onProgress('compare the rows');
    for (const view of [events, conversions]) {
      await client.unsafe(`refresh materialized view reference.${view}`);
    }
    await compare(client, events, ['user_id']);
    await compare(client, conversions, ['user_id', 'client_conversion_event_filter']);
    onProgress('readers');
    return {
      ...size,
      ours: mediansOf(samples.ours),
      reference: mediansOf(samples.reference),
      vacuum: median(vacuums),
      floor: median(floors),
      afterLoad: { withoutVacuum, withVacuum },
      statements: { ours: medianCost(costs.ours), limit: medianCost(costs.limit) },
      sizes: await sizesOf(client),
      peaks: mapSteps((step) => highest(peaks[step])),
      readers: await measureReaders(client, size),
      plans: {
        [events]: await planOf(client, events, workMem),
        [conversions]: await planOf(client, conversions, workMem),
      },
    };
  } finally {
    await database.close();
    await client.end();
  }
}

/**
 * Refreshes until both views are left alone. The first attempt is enough unless transactions are
 * open in other databases of the server. Throws an Error after 100 attempts.
 */
async function untilUnchanged(
  refresh: () => Promise<{ result: RefreshReport; peak: Peak }>,
): Promise<{ result: RefreshReport; peak: Peak }> {
  for (let attempt = 1; attempt <= 100; attempt += 1) {
    const refreshed = await refresh();
    if (refreshed.result.views.every(({ mode }) => mode === 'unchanged')) {
      return refreshed;
    }
    await sleep(500);
  }
  throw new Error(
    'The views are recomputed although nothing has changed, because transactions are open on this server all the time.',
  );
}

const mapSteps = <Value>(of: (step: Step) => Value) =>
  Object.fromEntries(steps.map((step) => [step, of(step)])) as Record<Step, Value>;

const emptySteps = <Value>() => mapSteps((): Value[] => []);

const refreshOf = (first = Number.NaN, second = Number.NaN): Refresh => ({
  events: first,
  conversions: second,
  both: first + second,
});

const mediansOf = (samples: Record<Step, Refresh[]>) =>
  mapSteps((step) => ({
    events: median(samples[step].map((refresh) => refresh.events)),
    conversions: median(samples[step].map((refresh) => refresh.conversions)),
    both: median(samples[step].map((refresh) => refresh.both)),
  }));

/** Returns the median, or the lower one of the two middle values of an even number. */
export const median = (values: number[]): number =>
  values.toSorted((one, other) => one - other)[(values.length - 1) >> 1] ?? Number.NaN;

const highest = (peaks: Peak[]): Peak => ({
  memory: maximum(peaks.map(({ memory }) => memory)),
  temporaryFiles: maximum(peaks.map(({ temporaryFiles }) => temporaryFiles)),
});

const maximum = (values: (number | null)[]) =>
  values.some((value) => value === null) ? null : Math.max(...(values as number[]));

async function timed(work: () => PromiseLike<unknown>): Promise<number> {
  const started = performance.now();
  await work();
  return performance.now() - started;
}

async function unpopulate(client: postgres.Sql, schema: string): Promise<void> {
  await client.unsafe(`
    refresh materialized view ${schema}.${conversions} with no data;
    refresh materialized view ${schema}.${events} with no data`);
}

async function measureFloor(client: postgres.Sql): Promise<number> {
  const time = await timed(() =>
    client.unsafe(`
      create table reference.floor as table ${events};
      create unique index on reference.floor (user_id);
      select count(created_at) from ${getTableName(dimUser)};
      select count(timezone_id) from ${getTableName(dimBranch)};
      select count(membership_purchase_details) from ${getTableName(fctMembershipPurchases)};
      select count(credit_pack_purchase_details) from ${getTableName(fctCreditPackPurchases)}`),
  );
  await client`drop table reference.floor`;
  return time;
}

/**
 * Creates views that cost the least for the same rows: they read the finished rows, in order, from
 * a table, and have the same indexes. What their REFRESH … CONCURRENTLY costs, it costs with every
 * query.
 */
async function createLimit(client: postgres.Sql): Promise<void> {
  await client.unsafe(`
    create schema least;
    create table least.rows_of_${events} as table public.${events} with no data;
    create table least.rows_of_${conversions} as table public.${conversions} with no data`);
  await fillLimit(client);
  for (const view of [events, conversions]) {
    await client.unsafe(`create materialized view least.${view} as table least.rows_of_${view}`);
    const indexes = await client<{ definition: string }[]>`
      select replace(indexdef, ' ON public.', ' ON least.') as definition
      from pg_indexes
      where schemaname = 'public' and tablename = ${view}`;
    for (const { definition } of indexes) {
      await client.unsafe(definition);
    }
  }
  await client.unsafe('vacuum analyze');
}

/**
 * Fills the tables of the limit with the rows of our views, in the order in which the views compute
 * them.
 */
async function fillLimit(client: postgres.Sql): Promise<void> {
  await client.unsafe(`
    truncate least.rows_of_${events}, least.rows_of_${conversions};
    insert into least.rows_of_${events} select * from public.${events} order by user_id;
    insert into least.rows_of_${conversions} select * from public.${conversions}
    order by user_id, client_conversion_event_type collate "C" nulls last,
      client_conversion_event_filter collate "C"`);
  await client.unsafe(`vacuum analyze least.rows_of_${events}, least.rows_of_${conversions}`);
}

async function costOfLimit(client: postgres.Sql, workMem: string): Promise<Cost> {
  await fillLimit(client);
  return await costOf(client, workMem, [`least.${events}`, `least.${conversions}`]);
}

/**
 * Returns the cost of a concurrent refresh of views in one transaction and one process, like our
 * own.
 */
async function costOf(client: postgres.Sql, workMem: string, views: string[]): Promise<Cost> {
  const cost = await client.begin(async (session) => {
    const [process] = await session<{ pid: number }[]>`select pg_backend_pid() as pid`;
    await session.unsafe(`
      set local work_mem = '${workMem}';
      set local default_statistics_target = 10;
      set local max_parallel_workers_per_gather = 0`);
    const cpu = () => cpuOf(client.options.host, process?.pid ?? 0);
    const before = await cpu();
    const time = await timed(async () => {
      for (const view of views) {
        await session.unsafe(`refresh materialized view concurrently ${view}`);
      }
    });
    const after = await cpu();
    return { time, cpu: before === null || after === null ? null : after - before };
  });
  await client.unsafe(`vacuum analyze ${views}`);
  return cost;
}

const medianCost = (costs: Cost[]): Cost => ({
  time: median(costs.map(({ time }) => time)),
  cpu: costs.some(({ cpu }) => cpu === null) ? null : median(costs.map(({ cpu }) => cpu ?? 0)),
});

async function sizesOf(client: postgres.Sql): Promise<Measurements['sizes']> {
  const [sizes] = (await client`
    select
      sum(pg_table_size(oid))::float8 as tables,
      sum(pg_indexes_size(oid))::float8 as indexes
    from pg_class
    where relnamespace = 'public'::regnamespace
      and relname in ('dim_branch', 'dim_user', 'fct_credit_pack_purchases', 'fct_membership_purchases')
  `) as unknown as [Measurements['sizes']];
  return sizes;
}

/**
 * Throws an Error that shows a row that only one form of a view has. It compares the columns of the
 * reference.
 */
export async function compare(client: postgres.Sql, view: string, key: string[]): Promise<void> {
  const columns = await client<{ name: string }[]>`
    select attname as name from pg_attribute
    where attrelid = to_regclass(${`reference.${view}`}) and attnum > 0 and not attisdropped`;
  const both = columns.map(({ name }) => `"${name}"`);
  const [difference] = await client.unsafe<{ ours: string | null; reference: string | null }[]>(`
    select to_jsonb(ours)::text as ours, to_jsonb(reference)::text as reference
    from (select ${both} from public.${view}) as ours
    full join reference.${view} as reference using (${key})
    where ours is null or reference is null or not ours operator(pg_catalog.*=) reference
    limit 1`);
  if (difference) {
    throw new Error(
      `${view} differs from its reference.\nours:      ${difference.ours}\nreference: ${difference.reference}`,
    );
  }
}

/**
 * How many users of a branch who joined in 2024 became clients, by month and source, if any
 * purchase counts.
 */
const branchReport = (from: string, branch: number) => `
  select
    date_trunc('month', local_user_created_at) as month,
    client_conversion_event_source as source,
    count(*) as users,
    count(*) filter (where lead_status = 'CLIENT') as clients
  from ${from} as conversions
  where branch_id = ${branchId(`${branch}`)}
    and client_conversion_event_filter = 'ALL'
    and local_user_created_at >= '2024-01-01'
    and local_user_created_at < '2025-01-01'
  group by month, source
  order by month, source`;

async function measureReaders(client: postgres.Sql, { users }: Size) {
  const medianOf = async (count: number, query: (number: number) => string) => {
    const times: number[] = [];
    for (let number = 0; number < count; number += 1) {
      times.push(await timed(() => client.unsafe(query(number))));
    }
    return median(times);
  };
  return {
    branchReport: await medianOf(51, (number) =>
      branchReport(conversions, (number * 37) % branches),
    ),
    branchReportOnInputTables: await medianOf(3, (number) =>
      branchReport(conversionsOnInputTables, (number * 37) % branches),
    ),
    userRows: await medianOf(
      51,
      (number) => `
        select * from ${conversions}
        where user_id = ${userId(`${Math.floor((users / 51) * number)}`)}
        order by client_conversion_event_filter`,
    ),
  };
}

/** Returns the plan with which a refresh computes a view. */
async function planOf(client: postgres.Sql, view: string, workMem: string): Promise<string> {
  const [{ definition } = { definition: '' }] = await client<
    { definition: string }[]
  >`select pg_get_viewdef(${view}::regclass) as definition`;
  const plan = await client.begin(async (transaction) => {
    await transaction`select set_config('work_mem', ${workMem}, true)`;
    return transaction.unsafe(`explain (costs off) ${definition}`);
  });
  return plan.map((line) => line['QUERY PLAN']).join('\n');
}

/** Does work, and checks ten times a second how much the server uses for it. */
async function sampled<Result>(
  url: string,
  work: () => Promise<Result>,
): Promise<{ result: Result; peak: Peak }> {
  const client = postgres(url, { max: 1, fetch_types: false });
  const peaks: Peak[] = [{ memory: 0, temporaryFiles: 0 }];
  let isDone = false;
  const sampling = async () => {
    while (!isDone) {
      peaks.push(await usage(client));
      await sleep(100);
    }
  };
  const sampler = sampling();
  try {
    return { result: await work(), peak: highest(peaks) };
  } finally {
    isDone = true;
    await sampler.finally(() => client.end());
  }
}

async function usage(client: postgres.Sql): Promise<Peak> {
  const processes = await client<{ pid: number }[]>`
    select pid from pg_stat_activity
    where datname = current_database() and state = 'active' and pid <> pg_backend_pid()`;
  const memory = await Promise.all(processes.map(({ pid }) => memoryOf(client.options.host, pid)));
  // The query checks the privilege first, because an error would fill the server's log ten times a
  // second.
  const [{ temporaryFiles } = { temporaryFiles: null }] = await client<
    { temporaryFiles: number | null }[]
  >`
    select case when pg_has_role(current_user, 'pg_monitor', 'usage')
      then (select coalesce(sum(size), 0)::float8 from pg_ls_tmpdir()) end as "temporaryFiles"`;
  return {
    memory: memory.includes(null) ? null : memory.reduce((sum: number, of) => sum + (of ?? 0), 0),
    temporaryFiles,
  };
}

const isHere = ([host]: string[]) =>
  process.platform === 'linux' && ['127.0.0.1', '::1', 'localhost'].includes(host ?? '');

/**
 * Returns the processor time that a server process on this machine has used, in milliseconds, in
 * steps of 10. Returns null for a server elsewhere.
 */
async function cpuOf(host: string[], pid: number): Promise<number | null> {
  if (!isHere(host)) {
    return null;
  }
  const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
  // After the name in parentheses, utime and stime are fields 14 and 15, in hundredths of a second.
  const [user, system] = stat
    .slice(stat.lastIndexOf(')') + 2)
    .split(' ')
    .slice(11, 13);
  return 10 * (Number(user) + Number(system));
}

/**
 * Returns the memory, in bytes, that a server process on this machine shares with no other process,
 * or null for a server elsewhere.
 * https://man7.org/linux/man-pages/man5/proc.5.html
 */
async function memoryOf(host: string[], pid: number): Promise<number | null> {
  if (!isHere(host)) {
    return null;
  }
  const status = await readFile(`/proc/${pid}/status`, 'utf8').catch(() => ''); // it has ended
  return Number(/^RssAnon:\s+(\d+) kB$/m.exec(status)?.[1] ?? 0) * 1024;
}
