import { eq, getViewName, type SQL, sql } from 'drizzle-orm';
import { PgDialect } from 'drizzle-orm/pg-core';
import { dimBranch } from '../../schema/dim_branch.ts';
import { readerRole } from '../../schema/properties.ts';
import { missing } from '../../views/catalog.ts';
import { fctLeadConversions } from '../../views/fct_lead_conversions.ts';
import { causeOf, pinned, QUERY_CANCELED, type Session, setLocally } from '../../views/session.ts';
import {
  type ConversionEventFilter,
  type ConversionEventType,
  conversionEventFilters,
} from '../../views/values.ts';

/** A month, as its number of months since the beginning of the year 0. */
export type Month = number;

/** A kind of records, which may stop on its own: users who join, or first purchases of a type. */
export type Feed = 'JOINING' | ConversionEventType;

/**
 * The number of records of a feed, and the days of the first and latest one. Dates that cannot be
 * true are left out.
 */
export interface FeedDays {
  feed: Feed;
  records: number;
  first: string;
  latest: string;
}

/** The users under one filter, and how many of them have converted. */
interface Counts {
  users: number;
  clients: number;
}

export interface Headline extends Counts {
  filter: ConversionEventFilter;
  /** Users who have not converted. */
  leads: number;
  /** Clients who bought on a day before the one on which they joined. */
  beforeJoining: number;
  /** Clients whose day of joining or of conversion is unknown, or cannot be true. */
  withoutDays: number;
  /**
   * Half of the clients took at most this many days from joining to conversion. Null without
   * clients.
   */
  medianDays: number | null;
  /** The same for nine in ten clients. */
  p90Days: number | null;
}

export interface MonthCounts extends Counts {
  filter: ConversionEventFilter;
  /** The month of joining. Null if it is unknown. */
  month: Month | null;
}

/** Clients by what they bought, that is, by source or by product. */
export interface Bought {
  filter: ConversionEventFilter;
  type: ConversionEventType;
  /** The place of the source or product, from 1. All that are not named share the last place. */
  rank: number;
  /** The name of the source or product. Null if it has none, and for those that are not named. */
  name: string | null;
  clients: number;
}

export interface Speed {
  filter: ConversionEventFilter;
  type: ConversionEventType;
  /** The number of the span in `spans` that has the days since joining, from 1. */
  span: number;
  clients: number;
}

export interface CohortCell {
  filter: ConversionEventFilter;
  month: Month;
  /** Months from the month of joining to the month of conversion, at most `cohortMonths` + 1. */
  monthsUntil: number;
  clients: number;
}

export interface BranchCounts extends Counts {
  filter: ConversionEventFilter;
  branchId: string | null;
  name: string | null;
  city: string | null;
  medianDays: number | null;
  /** The local days of the first and the latest joining or conversion. */
  first: string | null;
  latest: string | null;
}

export interface Figures {
  /** The branch that the report is about. Null if it is about all branches. */
  branch: { branchId: string; name: string | null } | null;
  /** The first month of joining that the report includes. Null for all users. */
  since: Month | null;
  /** The instant at which the latest refresh began, in ISO 8601. Null if there was none. */
  refreshedAt: string | null;
  /** How many hours before the report that was. */
  hoursOld: number | null;
  /** The local day of the latest joining or conversion in all branches, up to the refresh. */
  until: string | null;
  /**
   * The last day that is over on the clocks of all branches in the report, as far as the data go.
   */
  completeUntil: string | null;
  /** The feeds of the branches in the report, whenever users joined. */
  feeds: FeedDays[];
  /**
   * Users who are left out, because it is unknown whether they joined in the month `since` or
   * later.
   */
  withoutJoining: number;
  /** Users with a date of joining or conversion that cannot be true. */
  mistaken: number;
  /** One for each declared filter, in the declared order. */
  headlines: Headline[];
  /** The headlines of all users of the branch, whenever they joined. */
  everybody: Headline[];
  /** Null without `since`, if no month since then is over, and if the data begin too late. */
  comparison: Comparison | null;
  months: MonthCounts[];
  sources: Bought[];
  products: Bought[];
  speeds: Speed[];
  cohorts: CohortCell[];
  branches: BranchCounts[];
  /** The SQL that computed each of these figures, if it was needed. */
  queries: Partial<Record<Query, string>>;
}

/** The whole months of joining from `since` on, and as many months before them. */
export interface Comparison {
  months: [first: Month, last: Month];
  headlines: Headline[];
  monthsBefore: [first: Month, last: Month];
  /**
   * The days at whose end each is counted, as many months apart. So both had about the same time to
   * convert.
   */
  asOf: string;
  asOfBefore: string;
  headlinesBefore: Headline[];
}

export type Query =
  | 'refresh'
  | 'period'
  | 'headlines'
  | 'everybody'
  | 'comparison'
  | 'comparisonBefore'
  | 'feeds'
  | 'months'
  | 'sources'
  | 'products'
  | 'speeds'
  | 'cohorts'
  | 'branches';

/** How many sources and products are named. */
export const shownNames = 10;

/** How many months after the month of joining the cohorts show. */
export const cohortMonths = 12;

/** The days since joining with which each span begins. */
export const spans = [0, 1, 8, 31, 91, 366] as const;

export interface FiguresOptions {
  /** The identifier of the one branch to report on. All branches if undefined. */
  branch?: string | undefined;
  /** The first month of joining to report on, `YYYY-MM`. All users if undefined. */
  since?: string | undefined;
  statementTimeout: string;
  workMem: string;
  signal?: AbortSignal;
  /** Called with the name of the figure that is being computed. */
  onFigure?: (figure: string) => void;
}

/** The users whose conversions are counted. */
interface Scope {
  branch?: string | undefined;
  /** The instant at which the latest refresh began, in ISO 8601. */
  refreshedAt: string | null;
  from?: Month | null;
  /** The last month of joining. */
  to?: Month | undefined;
  /** The last day whose conversions count. All of them if undefined. */
  asOf?: string | undefined;
}

/**
 * Computes what the report shows, in one snapshot of a read-only transaction. It reads only
 * fct_lead_conversions, view_refreshes and the columns of dim_branch that name a branch, so a
 * member of lead_conversions_reader may do this.
 *
 * Throws an Error that says what to do if an option is invalid, or if the view is missing, is not
 * populated, or does not have the same users under each declared filter.
 */
export async function readFigures(session: Session, options: FiguresOptions): Promise<Figures> {
  const { branch: branchId, statementTimeout, workMem, signal, onFigure } = options;
  const since = options.since === undefined ? null : monthGiven(options.since);
  let doing = 'the view';
  const work = async (tx: Session): Promise<Figures> => {
    await tx.execute(
      setLocally({ work_mem: workMem, lock_timeout: '10s', row_security: 'off', jit: 'off' }),
    );
    await lookUp(tx);
    const read = async <Result>(what: string, query: SQL): Promise<Result[]> => {
      doing = what;
      onFigure?.(what);
      const rows = await tx
        .select({ row: sql<Row>`to_json(figure)` })
        .from(sql`(${query}) as figure`);
      return rows.map(({ row }) => rowOf<Result>(row));
    };
    const branch = branchId === undefined ? null : await branchOf(tx, branchId);
    const [refresh] = await read<Refresh>(namesOfFigures.refresh, latestRefresh);
    const refreshedAt = refresh?.startedAt ?? null;
    refuseFuture(since, refreshedAt);
    const whole: Scope = { branch: branchId, refreshedAt };
    const scope: Scope = { ...whole, from: since };
    const queries: Partial<Record<Query, SQL>> = { refresh: latestRefresh };
    const figure = <Result>(name: Query, query: SQL): Promise<Result[]> => {
      queries[name] = query;
      return read(namesOfFigures[name], query);
    };
    const [period] = await figure<Period>('period', periodOf(scope));
    const { until = null, completeUntil = null, withoutJoining = 0, mistaken = 0 } = period ?? {};
    const feeds = await figure<FeedDays>('feeds', feedsOf(whole));
    const headlines = await figure<Headline>('headlines', headlinesOf(scope));
    refuseUnequal(headlines);
    const everybody =
      since === null ? headlines : await figure<Headline>('everybody', headlinesOf(whole));
    return {
      ...{ branch, since, refreshedAt, until, completeUntil, feeds, mistaken, everybody },
      hoursOld: refresh?.hoursOld ?? null,
      withoutJoining: since === null ? 0 : withoutJoining,
      headlines: conversionEventFilters.map((filter) => of(filter, headlines) ?? noUsers(filter)),
      comparison: await comparisonOf(
        whole,
        since,
        judgedUntil('ALL', { refreshedAt, completeUntil, feeds }),
        figure,
        (query) => read(namesOfFigures.comparison, query),
      ),
      months: await figure('months', monthsOf(scope)),
      sources: await figure('sources', sourcesOf(scope)),
      products: await figure('products', productsOf(scope)),
      speeds: await figure('speeds', speedsOf(scope)),
      cohorts: await figure('cohorts', cohortsOf(scope)),
      branches: await figure('branches', branchesOf(scope)),
      queries: Object.fromEntries(
        Object.entries(queries).map(([figure, query]) => [figure, textOf(query)]),
      ),
    };
  };
  try {
    return await pinned(
      session,
      statementTimeout,
      work,
      { isolationLevel: 'repeatable read', accessMode: 'read only' },
      signal,
    );
  } catch (error) {
    const cause = causeOf(error);
    throw cause.code === QUERY_CANCELED
      ? new Error(
          `The report could not read ${doing}: ${cause.message}. The statement timeout was ${statementTimeout}.`,
          { cause },
        )
      : error;
  }
}

/** Returns the figure of a filter. */
const of = <Figure extends { filter: ConversionEventFilter }>(
  filter: ConversionEventFilter,
  figures: Figure[],
): Figure | undefined => figures.find((figure) => figure.filter === filter);

interface Refresh {
  startedAt: string;
  hoursOld: number;
}

type Period = Pick<Figures, 'until' | 'completeUntil' | 'withoutJoining' | 'mistaken'>;

const namesOfFigures: Record<Query, string> = {
  refresh: 'the latest refresh',
  period: 'the days of the data',
  headlines: 'the headline figures',
  everybody: 'all users',
  comparison: 'the months to compare',
  comparisonBefore: 'the months before',
  feeds: 'the kinds of data',
  months: 'the months',
  sources: 'the sources',
  products: 'the products',
  speeds: 'the days until conversion',
  cohorts: 'the cohorts',
  branches: 'the branches',
};

/** A feed is silent if at least this many records were to be expected in the time without any. */
const expectedRecords = 5;

/** A feed is silent only after this many days, however many records were to be expected. */
const quietDays = 7;

/** Returns the number of whole days from a day to the refresh. */
export const daysBeforeRefresh = (day: string, refreshedAt: string | null): number =>
  Math.floor(Date.parse(refreshedAt ?? new Date().toISOString()) / dayMs - dayOf(day));

/**
 * Returns whether there have been no records for a week, and for longer than chance would explain.
 * Perhaps they are no longer loaded.
 */
export function isSilent(
  { records, first, latest }: Pick<FeedDays, 'records' | 'first' | 'latest'>,
  refreshedAt: string | null,
  expected = expectedRecords,
): boolean {
  const silence = daysBeforeRefresh(latest, refreshedAt);
  const daysPerRecord = (dayOf(latest) - dayOf(first)) / (records - 1);
  return records >= expected && silence >= quietDays && silence >= expected * daysPerRecord;
}

/**
 * Returns the latest day of all feeds if it is a week or more before the refresh. Perhaps nothing
 * is loaded any more.
 */
export function endOfData({
  feeds,
  refreshedAt,
}: Pick<Figures, 'feeds' | 'refreshedAt'>): string | undefined {
  const latest = feeds
    .map(({ latest }) => latest)
    .sort()
    .at(-1);
  return latest !== undefined && daysBeforeRefresh(latest, refreshedAt) >= quietDays
    ? latest
    : undefined;
}

/**
 * Returns the last day for which the data under a filter are complete. If a feed is silent, nothing
 * is known about the days since its latest record.
 */
export function judgedUntil(
  filter: ConversionEventFilter,
  { refreshedAt, completeUntil, feeds }: Pick<Figures, 'refreshedAt' | 'completeUntil' | 'feeds'>,
): string | null {
  const ends = feeds
    .filter(({ feed }) => filter === 'ALL' || feed === 'JOINING' || feed === filter)
    .filter((feed) => isSilent(feed, refreshedAt))
    .map(({ latest }) => latest);
  const days = [ends, endOfData({ feeds, refreshedAt }) ?? []].flat().map(dayBefore);
  return completeUntil === null ? null : ([...days, completeUntil].sort()[0] ?? null);
}

/**
 * Compares the whole months from `since` on with as many months before them, if the data begin
 * before those.
 */
async function comparisonOf(
  whole: Scope,
  since: Month | null,
  asOf: string | null,
  figure: (name: Query, query: SQL) => Promise<Headline[]>,
  read: (query: SQL) => Promise<MonthCounts[]>,
): Promise<Comparison | null> {
  if (since === null || asOf === null) {
    return null;
  }
  const last = lastMonthOf(asOf);
  const length = last - since + 1;
  const first = since - length;
  if (length < 1 || first <= 12 /* the first month that Postgres reads as we write it */) {
    return null;
  }
  const all = await read(monthsOf({ ...whole, from: first - 1, to: since - 1 }));
  const usersOf = (month: Month) =>
    all.find((counts) => counts.filter === 'ALL' && counts.month === month)?.users ?? 0;
  const before = Array.from({ length }, (_, index) => usersOf(first + index));
  const mean = before.reduce((sum, users) => sum + users, 0) / length;
  // There is no comparison with the month in which the data begin, or with the few stray users
  // before it.
  if (before.includes(0) || usersOf(first - 1) < mean / 10) {
    return null;
  }
  const asOfBefore = monthsEarlier(asOf, length);
  const headlines = await figure(
    'comparison',
    headlinesOf({ ...whole, from: since, to: last, asOf }),
  );
  return headlines.length === 0
    ? null
    : {
        ...{ months: [since, last], headlines, asOf },
        ...{ monthsBefore: [first, since - 1], asOfBefore },
        headlinesBefore: await figure(
          'comparisonBefore',
          headlinesOf({ ...whole, from: first, to: since - 1, asOf: asOfBefore }),
        ),
      };
}

const dialect = new PgDialect();

/** Returns the text of a query, which people can run. */
const textOf = (query: SQL): string => dialect.sqlToQuery(sql`${query}`.inlineParams()).sql.trim();

const view = getViewName(fctLeadConversions);

/** Throws an Error that says what to do if the view cannot be read. */
async function lookUp(tx: Session): Promise<void> {
  const [found] = await tx
    .select({
      isPopulated: sql<boolean>`relispopulated`,
      isReadable: sql<boolean>`has_table_privilege(oid, 'select')`,
      role: sql<string>`current_user`,
    })
    .from(sql`pg_class`)
    .where(sql`oid = to_regclass(${`public.${view}`}) and relkind = 'm'`);
  if (!found) {
    throw missing(view, undefined);
  }
  if (!found.isReadable) {
    throw new Error(
      `The role ${found.role} may not read ${view}. Connect as a role that has been granted ${readerRole}.`,
    );
  }
  if (!found.isPopulated) {
    throw new Error(`${view} is not populated. Refresh it first.`);
  }
}

async function branchOf(tx: Session, branchId: string): Promise<NonNullable<Figures['branch']>> {
  const { branchId: id, name } = dimBranch;
  const [branch] = await tx.select({ branchId: id, name }).from(dimBranch).where(eq(id, branchId));
  if (!branch) {
    throw new Error(
      `There is no branch ${JSON.stringify(branchId)} in dim_branch. Use the branch_id of a branch.`,
    );
  }
  return branch;
}

/**
 * Throws an Error unless all filters have the same users. If the deployed view lacks a declared
 * filter, or has one that is no longer declared, the page would show wrong numbers.
 */
function refuseUnequal(headlines: Headline[]): void {
  const declared = [...conversionEventFilters].sort();
  const counts = new Set(headlines.map(({ users }) => users));
  const found = headlines.map(({ filter }) => filter).sort();
  if (found.length > 0 && (`${found}` !== `${declared}` || counts.size > 1)) {
    const each = headlines
      .toSorted((one, other) => (one.filter < other.filter ? -1 : 1))
      .map(({ filter, users }) => `${users} under ${filter}`);
    throw new Error(
      `${view} does not have the same users under all filters ${declared.join(', ')}: ${each.join(', ')}. Migrate the database to this version, and refresh it.`,
    );
  }
}

const noUsers = (filter: ConversionEventFilter): Headline => ({
  ...{ filter, users: 0, leads: 0, clients: 0, beforeJoining: 0, withoutDays: 0 },
  ...{ medianDays: null, p90Days: null },
});

function monthGiven(text: string): Month {
  if (!/^(?!0000)\d{4}-(0[1-9]|1[0-2])$/.test(text)) {
    throw new Error(`--since must be a month such as 2026-01, not ${JSON.stringify(text)}.`);
  }
  return monthOf(text);
}

/**
 * Throws an Error if a month is after the refresh, so nobody can have joined since. It must be a
 * typing error.
 */
function refuseFuture(since: Month | null, refreshedAt: string | null): void {
  const refreshed = new Date(refreshedAt ?? Date.now());
  refreshed.setUTCHours(refreshed.getUTCHours() + 14); // the latest local time on earth
  const month = refreshed.getUTCFullYear() * 12 + refreshed.getUTCMonth();
  if (since !== null && since > month) {
    throw new Error(
      `--since ${firstDay(since).slice(0, 7)} is after the latest refresh, which was in ${firstDay(month).slice(0, 7)}.`,
    );
  }
}

/** Returns the month of a day, which is written as Postgres writes it in JSON. */
export function monthOf(day: string): Month;
export function monthOf(day: string | null): Month | null;
export function monthOf(day: string | null): Month | null {
  if (day === null) {
    return null;
  }
  const [, year, month] = /^(\d+)-(\d+)/.exec(day) ?? [];
  return (day.endsWith('BC') ? 1 - Number(year) : Number(year)) * 12 + Number(month) - 1;
}

/** Returns the first day of a month, `YYYY-MM-DD`. */
const firstDay = (month: Month): string => {
  const year = String(Math.floor(month / 12)).padStart(4, '0');
  return `${year}-${String((month % 12) + 1).padStart(2, '0')}-01`;
};

const dayMs = 86_400_000;

/**
 * Returns the number of days from 1970-01-01 to a day, which is written as Postgres writes it in
 * JSON.
 */
export const dayOf = (day: string): number => Date.parse(`${day}T00:00:00Z`) / dayMs;

/** Returns the number of days from 1970-01-01 to the last day of a month. */
export const endOf = (month: Month): number =>
  new Date(0).setUTCFullYear(Math.floor(month / 12), (month % 12) + 1, 0) / dayMs;

/** Returns the last month that is over at the end of a day. */
export const lastMonthOf = (day: string): Month => {
  const month = monthOf(day);
  return dayOf(day) < endOf(month) ? month - 1 : month;
};

const dayBefore = (day: string): string =>
  new Date((dayOf(day) - 1) * dayMs).toISOString().slice(0, 10);

/**
 * Returns the same day of an earlier month. If that month has no such day, or if the day is the
 * last one of its own month, returns the last day of the earlier month.
 */
function monthsEarlier(day: string, months: number): string {
  const month = monthOf(day) - months;
  const last = new Date(endOf(month) * dayMs).getUTCDate();
  const isLast = dayOf(day) === endOf(monthOf(day));
  const ofMonth = isLast ? last : Math.min(Number(day.slice(-2)), last);
  return `${firstDay(month).slice(0, 8)}${String(ofMonth).padStart(2, '0')}`;
}

/** The latest local time that the refresh can have seen, in any time zone. */
const latestOf = (refreshedAt: string | null): SQL =>
  sql`${refreshedAt === null ? sql`now()` : sql`${refreshedAt}::timestamptz`} at time zone 'UTC' + interval '14 hours'`;

/**
 * The condition that a local time can be true. It must not be after the refresh. A time before
 * 1970, or on its first day, stands for an unknown date.
 */
const canBeTrue = (time: SQL, refreshedAt: string | null): SQL =>
  sql`${time} >= '1970-01-02' and ${time} < ${latestOf(refreshedAt)}`;

const joined = sql`local_user_created_at`;
const converted = sql`client_conversion_event_local_created_at`;

/** A row from Postgres: its columns have their SQL names, and its months are days. */
type Row = Record<string, unknown>;

function rowOf<Result>(row: Row): Result {
  const entries = Object.entries(row).map(([column, value]) => [
    column.replace(/_([a-z])/g, (_, letter: string) => letter.toUpperCase()),
    column.endsWith('month') ? monthOf(value as string | null) : value,
  ]);
  return Object.fromEntries(entries) as Result;
}

/**
 * Returns a CTE with one row per user and filter, from which all figures are counted. It is written
 * only once, and Postgres leaves out the columns that a figure does not need.
 */
function conversionsOf(scope: Scope): SQL {
  const { refreshedAt, asOf } = scope;
  const known =
    asOf === undefined
      ? sql``
      : sql`
            and coalesce(client_conversion_event_local_created_at < ${asOf}::date + 1, true)`;
  return sql`
with

-- One row per user and filter.
conversions as (

    select
        client_conversion_event_filter as filter,
        branch_id,
        local_user_created_at,
        client_conversion_event_local_created_at,
        lead_status = 'CLIENT'${known} as is_client,
        client_conversion_event_type as type,
        client_conversion_event_name as product,
        client_conversion_event_source as source,
        date_trunc('month', local_user_created_at)::date as month,

        -- Days and months from joining to conversion, on the calendar of the
        -- branch. NULL for a lead, and if one of the two dates is unknown: a
        -- date after the refresh or before 1970 is a mistake in the data. Below 0
        -- if the user bought before joining.
        case
            when ${canBeTrue(joined, refreshedAt)}
                and ${canBeTrue(converted, refreshedAt)}${known}
                then client_conversion_event_local_created_at::date
                    - local_user_created_at::date
        end as days,
        12 * extract(year from client_conversion_event_local_created_at)
            + extract(month from client_conversion_event_local_created_at)
            - 12 * extract(year from local_user_created_at)
            - extract(month from local_user_created_at) as months_until
    from public.fct_lead_conversions${whereOf(scope)}

)`;
}

/** Returns the condition for the rows of the view that belong to a scope. */
function whereOf({ branch, from = null, to }: Scope, also?: SQL): SQL {
  const conditions = [
    branch === undefined ? undefined : sql`branch_id = ${branch}`,
    from === null ? undefined : sql`local_user_created_at >= ${firstDay(from)}::date`,
    to === undefined ? undefined : sql`local_user_created_at < ${firstDay(to + 1)}::date`,
    also,
  ].filter((condition) => condition !== undefined);
  return conditions.length === 0
    ? sql``
    : sql`
    where ${sql.join(
      conditions,
      sql`
        and `,
    )}`;
}

const headlinesOf = (scope: Scope): SQL => sql`${conversionsOf(scope)}

-- One row per filter. Half of the clients took at most median_days, and nine in
-- ten took at most p90_days. Both leave out clients who bought before joining.
select
    filter,
    count(*) as users,
    count(*) filter (where not is_client) as leads,
    count(*) filter (where is_client) as clients,
    count(*) filter (where days < 0) as before_joining,
    count(*) filter (where is_client and days is null) as without_days,
    percentile_disc(0.5) within group (order by days)
        filter (where days >= 0) as median_days,
    percentile_disc(0.9) within group (order by days)
        filter (where days >= 0) as p90_days
from conversions
group by filter`;

const monthsOf = (scope: Scope): SQL => sql`${conversionsOf(scope)}

-- One row per filter and month of joining.
select
    filter,
    month,
    count(*) as users,
    count(*) filter (where is_client) as clients
from conversions
group by filter, month
order by filter, month`;

const sourcesOf = (scope: Scope): SQL => sql`${conversionsOf(scope)},

-- One row per filter, source and type. clients_of_source has the clients of all
-- types.
sources as (

    select
        filter,
        source,
        type,
        count(*) as clients,
        sum(count(*)) over (partition by filter, source) as clients_of_source
    from conversions
    where is_client
    group by filter, source, type

),

-- The same, with the rank of each source. All sources that are not shown share
-- the last rank.
ranked as (

    select
        filter,
        source,
        type,
        clients,
        least(
            dense_rank() over (
                partition by filter
                order by clients_of_source desc, source collate "C" asc nulls last
            ),
            ${shownNames}::integer + 1
        ) as rank
    from sources

)

-- One row per filter, rank and type.
select
    filter,
    rank,
    case when rank <= ${shownNames}::integer then source end as name,
    type,
    sum(clients) as clients
from ranked
group by 1, 2, 3, 4
order by filter, rank, type`;

const productsOf = (scope: Scope): SQL => sql`${conversionsOf(scope)},

-- One row per filter, type and product, with its rank. All products that are
-- not shown share the last rank.
ranked as (

    select
        filter,
        type,
        product,
        count(*) as clients,
        least(
            row_number() over (
                partition by filter
                order by count(*) desc, product collate "C" asc nulls last, type asc
            ),
            ${shownNames}::integer + 1
        ) as rank
    from conversions
    where is_client
    group by filter, type, product

)

-- One row per filter, rank and type.
select
    filter,
    rank,
    case when rank <= ${shownNames}::integer then product end as name,
    type,
    sum(clients) as clients
from ranked
group by 1, 2, 3, 4
order by filter, rank, type`;

const speedsOf = (scope: Scope): SQL => sql`${conversionsOf(scope)}

-- One row per filter, type and span of days since joining. The array has the
-- first day of each span.
select
    filter,
    type,
    width_bucket(days, array[${sql.raw(spans.join(', '))}]) as span,
    count(*) as clients
from conversions
where days >= 0
group by 1, 2, 3
order by 1, 2, 3`;

const cohortsOf = (scope: Scope): SQL => sql`${conversionsOf(scope)}

-- One row per filter, month of joining and number of months until conversion. A
-- user who bought before joining was a client from the start. All months that
-- are not shown share the last number.
select
    filter,
    month,
    least(greatest(months_until, 0), ${cohortMonths}::integer + 1)::integer as months_until,
    count(*) as clients
from conversions
where days is not null
group by 1, 2, 3
order by 1, 2, 3`;

const branchesOf = (scope: Scope): SQL => sql`${conversionsOf(scope)},

-- One row per filter and branch.
branches as (

    select
        filter,
        branch_id,
        count(*) as users,
        count(*) filter (where is_client) as clients,
        percentile_disc(0.5) within group (order by days)
            filter (where days >= 0) as median_days,
        least(
            min(local_user_created_at) filter (where ${canBeTrue(joined, scope.refreshedAt)}),
            min(client_conversion_event_local_created_at)
                filter (where ${canBeTrue(converted, scope.refreshedAt)})
        )::date as first,
        greatest(
            max(local_user_created_at) filter (where ${canBeTrue(joined, scope.refreshedAt)}),
            max(client_conversion_event_local_created_at)
                filter (where ${canBeTrue(converted, scope.refreshedAt)})
        )::date as latest
    from conversions
    group by filter, branch_id

)

-- One row per filter and branch, the largest branch first.
select
    branches.filter,
    branches.branch_id,
    dim_branch.name,
    dim_branch.city,
    branches.users,
    branches.clients,
    branches.median_days,
    branches.first,
    branches.latest
from branches
left join public.dim_branch
    on branches.branch_id = dim_branch.branch_id
order by branches.filter, branches.users desc, branches.branch_id asc nulls last`;

/** https://www.postgresql.org/docs/16/functions-info.html#FUNCTIONS-PG-CONTROL-SYSTEM */
const latestRefresh = sql`
-- The view shows everything that was committed when its latest refresh on this
-- server began.
select
    started_at,
    extract(epoch from now() - started_at) / 3600 as hours_old
from public.view_refreshes
where view = ${view}
    and server = (select system_identifier::text from pg_control_system())
order by id desc
limit 1`;

const feedsOf = (scope: Scope): SQL => sql`
with

-- One row per user, and one per first purchase of each type, which is in the
-- rows of the filter of that type. Dates that cannot be true are left out.
records as (

    select
        'JOINING' as feed,
        local_user_created_at as at
    from public.fct_lead_conversions${whereOf(
      scope,
      sql`client_conversion_event_filter = 'ALL'
        and ${canBeTrue(joined, scope.refreshedAt)}`,
    )}
    union all
    select
        client_conversion_event_type,
        client_conversion_event_local_created_at
    from public.fct_lead_conversions${whereOf(
      scope,
      sql`client_conversion_event_filter = client_conversion_event_type
        and ${canBeTrue(converted, scope.refreshedAt)}`,
    )}

)

-- One row for joining, and one per type of purchase.
select
    feed,
    count(*) as records,
    min(at)::date as first,
    max(at)::date as latest
from records
group by feed
order by feed`;

const periodOf = (scope: Scope): SQL => {
  const { branch, refreshedAt } = scope;
  return sql`
with

-- One row per branch, and one for users without a branch: the time zone, and
-- the latest joining or conversion. A date after the refresh, in every time zone,
-- or before 1970 is a mistake in the data.
branches as (

    select
        conversions.branch_id,
        coalesce(min(dim_branch.timezone_id), 'UTC') as timezone_id,
        greatest(
            max(local_user_created_at) filter (where ${canBeTrue(joined, refreshedAt)}),
            max(client_conversion_event_local_created_at)
                filter (where ${canBeTrue(converted, refreshedAt)})
        ) as latest,
        count(*) filter (
            where client_conversion_event_filter = 'ALL'
                and local_user_created_at is null
        ) as without_joining
    from public.fct_lead_conversions as conversions
    left join public.dim_branch
        on conversions.branch_id = dim_branch.branch_id
    group by conversions.branch_id

),

-- One row: the latest instant in the data.
known as (

    select
        case
            when count(latest) > 0 then least(
                max(latest at time zone timezone_id),
                ${refreshedAt === null ? sql`now()` : sql`${refreshedAt}::timestamptz`}
            )
        end as latest
    from branches

)

-- One row. A day is over once the next day has begun, on the clocks of all
-- branches in the report.
select
    (select max(latest)::date from branches) as until,
    min((known.latest at time zone branches.timezone_id)::date) - 1 as complete_until,
    coalesce(sum(branches.without_joining), 0) as without_joining,
    (
        select count(distinct user_id)
        from public.fct_lead_conversions${whereOf(
          scope,
          sql`not (
            coalesce(${canBeTrue(joined, refreshedAt)}, true)
            and coalesce(${canBeTrue(converted, refreshedAt)}, true)
        )`,
        )}
    ) as mistaken
from branches
cross join known${
    branch === undefined
      ? sql``
      : sql`
where branches.branch_id = ${branch}`
  }`;
};
