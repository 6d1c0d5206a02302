import { sql } from 'drizzle-orm';
import fc from 'fast-check';
import { Temporal } from 'temporal-polyfill';
import { expect, test } from 'vitest';
import {
  type Figures,
  type Headline,
  judgedUntil,
  readFigures,
} from '../scripts/report/figures.ts';
import { percent, points, shorten, warningsOf } from '../scripts/report/wording.ts';
import { conversionEventFilters, fctLeadConversions, refreshViews } from '../views/index.ts';
import { useDatabase } from './support/database.ts';
import { inputOf, store } from './support/generated.ts';
import { leadConversions } from './support/model.ts';

const database = useDatabase();

const bounds = { statementTimeout: '1min', workMem: '4MB' };

const read = (options: { branch?: string; since?: string } = {}) =>
  readFigures(database.db, { ...bounds, ...options });

/** Weeks and months apart, and on either side of midnight and of the ends of months. */
const months = [
  '2023-11-15T12:00:00Z',
  '2023-12-31T23:30:00Z',
  '2024-01-01T00:30:00Z',
  '2024-01-31T12:00:00Z',
  '2024-02-01T03:00:00Z',
  '2024-02-02T12:00:00Z',
  '2024-02-29T23:59:59.999999Z',
  '2024-03-03T12:00:00Z',
];

/** In months that can be compared, because there are months before and after them. */
const few = [
  ...['2023-11-15T12:00:00Z', '2023-12-12T12:00:00Z', '2024-01-01T00:30:00Z'],
  ...['2024-01-14T12:00:00Z', '2024-02-02T12:00:00Z', '2024-02-12T03:00:00Z'],
];

const years = ['1900-01-01T00:00:00Z', '2024-06-15T12:00:00Z', '2025-03-15T12:00:00Z'];

const input = fc.oneof(
  ...[few, months, [...months, ...years]].map((instants) =>
    inputOf({
      identifiers: Array.from({ length: 14 }, (_, number) => `id-${number}`),
      zones: ['America/New_York', 'Pacific/Kiritimati', 'UTC'],
      instants,
      texts: ['Monthly', 'monthly', 'App', '', 'א'],
      ...{ maxBranches: 3, maxUsers: 14, maxPurchases: 30 },
    }),
  ),
);

/** A row of the second view, as the model computes it. */
type Row = NonNullable<ReturnType<typeof leadConversions>[number]>;

/** Groups of rows with the same key, which is compared as JSON. */
function groupsOf(rows: Row[], keyOf: (row: Row) => unknown[]): [key: unknown[], rows: Row[]][] {
  const groups = new Map<string, Row[]>();
  for (const row of rows) {
    const key = JSON.stringify(keyOf(row));
    groups.set(key, [...(groups.get(key) ?? []), row]);
  }
  return [...groups].map(([key, rows]) => [JSON.parse(key), rows]);
}

const dayMs = 86_400_000;
const monthOf = (time: string | null) =>
  time && 12 * Number(time.slice(0, 4)) + Number(time.slice(5, 7)) - 1;
const filterOf = (row: Row) => row.client_conversion_event_filter;
const isClient = (row: Row) => row.lead_status === 'CLIENT';
const typeOf = (row: Row) => row.client_conversion_event_type;

/** A time before 1970, or on its first day, is treated as a mistake. */
const isTrue = (time: string | null): time is string => time !== null && time >= '1970-01-02';

const daysOf = ({
  local_user_created_at: from,
  client_conversion_event_local_created_at: to,
}: Row) =>
  isTrue(from) && isTrue(to)
    ? (Date.parse(to.slice(0, 10)) - Date.parse(from.slice(0, 10))) / dayMs
    : null;

/** The smallest of these numbers of days that at least this share of them does not exceed. */
function percentile(share: number, days: number[]): number | null {
  const sorted = days.toSorted((one, other) => one - other);
  return sorted.find((_, index) => (index + 1) / sorted.length >= share) ?? null;
}

/** The times of joining and of conversions that are not mistakes, in order. */
const timesOf = (rows: Row[]): string[] =>
  rows
    .flatMap((row) => [row.local_user_created_at, row.client_conversion_event_local_created_at])
    .filter(isTrue)
    .sort();

/** The figures of the report for these rows, computed in plain TypeScript. */
function figuresOf(rows: Row[]) {
  const clients = rows.filter(isClient);
  const fromJoining = rows.filter((row) => (daysOf(row) ?? -1) >= 0);
  const counts = (rows: Row[]) => ({ users: rows.length, clients: rows.filter(isClient).length });
  const days = (rows: Row[]) =>
    rows.map(daysOf).filter((days) => days !== null && days >= 0) as number[];
  return {
    headlines: groupsOf(rows, (row) => [filterOf(row)]).map(([[filter], rows]) => ({
      ...{ filter, ...counts(rows), leads: rows.filter((row) => !isClient(row)).length },
      beforeJoining: rows.filter((row) => (daysOf(row) ?? 0) < 0).length,
      withoutDays: rows.filter((row) => isClient(row) && daysOf(row) === null).length,
      medianDays: percentile(0.5, days(rows)),
      p90Days: percentile(0.9, days(rows)),
    })),
    months: groupsOf(rows, (row) => [filterOf(row), monthOf(row.local_user_created_at)]).map(
      ([[filter, month], rows]) => ({ filter, month, ...counts(rows) }),
    ),
    sources: groupsOf(clients, (row) => [
      ...[filterOf(row), row.client_conversion_event_source, typeOf(row)],
    ]).map(([[filter, name, type], rows]) => ({ filter, name, type, clients: rows.length })),
    products: groupsOf(clients, (row) => [
      ...[filterOf(row), row.client_conversion_event_name, typeOf(row)],
    ]).map(([[filter, name, type], rows]) => ({ filter, name, type, clients: rows.length })),
    speeds: groupsOf(fromJoining, (row) => [
      ...[filterOf(row), typeOf(row)],
      [0, 1, 8, 31, 91, 366].filter((first) => first <= (daysOf(row) ?? -1)).length,
    ]).map(([[filter, type, span], rows]) => ({ filter, type, span, clients: rows.length })),
    cohorts: groupsOf(
      rows.filter((row) => daysOf(row) !== null),
      (row) => {
        const month = monthOf(row.local_user_created_at) || 0;
        const monthsUntil = (monthOf(row.client_conversion_event_local_created_at) || 0) - month;
        return [filterOf(row), month, Math.min(Math.max(monthsUntil, 0), 13)];
      },
    ).map(([[filter, month, monthsUntil], rows]) => ({
      ...{ filter, month, monthsUntil, clients: rows.length },
    })),
    branches: groupsOf(rows, (row) => [filterOf(row), row.branch_id]).map(
      ([[filter, branchId], rows]) => ({
        ...{ filter, branchId, name: null, city: null, ...counts(rows) },
        medianDays: percentile(0.5, days(rows)),
        first: timesOf(rows).at(0)?.slice(0, 10) ?? null,
        latest: timesOf(rows).at(-1)?.slice(0, 10) ?? null,
      }),
    ),
  };
}

/** Rows as sorted JSON, because the report does not fix the order of equal rows. */
const sorted = (rows: unknown[]) =>
  rows.map((row) => JSON.stringify(row, Object.keys(row as object).sort())).sort();

test('every figure equals a plain recomputation, for any input', async () => {
  const since = fc.option(
    fc.constantFrom('1900-01', ...Array(5).fill('2024-01'), '2024-02', '2025-03'),
    {
      nil: undefined,
    },
  );
  await fc.assert(
    fc.asyncProperty(input, since, fc.boolean(), async (generated, since, isOfOneBranch) => {
      await store(database, generated);
      await refreshViews(database.db, { maxLoss: '100%' });
      const branch = isOfOneBranch ? generated.branches[0]?.branch_id : undefined;
      const all = leadConversions(generated) as Row[];
      const own = all.filter((row) => branch === undefined || row.branch_id === branch);
      const joined = (row: Row) => row.local_user_created_at;
      if (since !== '2025-03' && timesOf(all).every((time) => time < '2024-02-13')) {
        await refreshedAt('2024-02-14T00:00:00Z');
      }
      const reported = own.filter((row) => since === undefined || (joined(row) ?? '') >= since);
      const { headlines, ...expected } = figuresOf(reported);

      const figures = await read({ ...(branch && { branch }), ...(since && { since }) });

      const found = figures.headlines.filter(({ users }) => users > 0);
      expect(sorted(found)).toEqual(sorted(headlines));
      expect(figures.headlines.map(({ filter }) => filter)).toEqual(conversionEventFilters);
      for (const [figure, rows] of Object.entries(expected)) {
        const ofFigure: object[] = figures[figure as keyof typeof expected];
        expect(sorted(ofFigure.map((row) => ({ ...row, rank: undefined })))).toEqual(sorted(rows));
      }
      expect(sorted(figures.everybody)).toEqual(sorted(figuresOf(own).headlines));

      const until = timesOf(all).at(-1)?.slice(0, 10) ?? null;
      expect(figures.until).toBe(until);
      expect(figures.withoutJoining).toBe(
        since === undefined
          ? 0
          : own.filter((row) => joined(row) === null && filterOf(row) === 'ALL').length,
      );

      const zoneOf = (branchId: string | null) =>
        generated.branches.find(({ branch_id }) => branch_id === branchId)?.timezone_id ?? 'UTC';
      const instants = all.flatMap((row) =>
        timesOf([row]).map((time) =>
          Temporal.PlainDateTime.from(time).toZonedDateTime(zoneOf(row.branch_id)),
        ),
      );
      const latest = instants.sort(Temporal.ZonedDateTime.compare).at(-1)?.toInstant();
      const days = own.map(({ branch_id }) =>
        latest?.toZonedDateTimeISO(zoneOf(branch_id)).toPlainDate().subtract({ days: 1 }),
      );
      const completeUntil = days.map(String).sort()[0];
      expect(figures.completeUntil).toBe(latest ? (completeUntil ?? null) : null);

      const feed = (name: string, rows: Row[], timeOf: (row: Row) => string | null) => {
        const days = rows
          .map(timeOf)
          .filter(isTrue)
          .sort()
          .map((time) => time.slice(0, 10));
        const [first, latest] = [days[0], days.at(-1)];
        return first && latest ? [{ feed: name, records: days.length, first, latest }] : [];
      };
      const feeds = [
        ...feed(
          'JOINING',
          own.filter((row) => filterOf(row) === 'ALL'),
          joined,
        ),
        ...['MEMBERSHIP', 'USER_CREDIT'].flatMap((type) =>
          feed(
            type,
            own.filter((row) => filterOf(row) === type),
            (row) => row.client_conversion_event_local_created_at,
          ),
        ),
      ];
      expect(figures.feeds).toEqual(feeds);
      // Unless refreshedAt has set it, the refresh is long after the data, which count as stopped.
      const refreshed = Temporal.Instant.from(figures.refreshedAt ?? '')
        .toZonedDateTimeISO('UTC')
        .toPlainDate();
      const silenceSince = (day: string) => Temporal.PlainDate.from(day).until(refreshed).days;
      const silent = feeds.filter(({ records, first, latest }) => {
        const days = Temporal.PlainDate.from(first).until(Temporal.PlainDate.from(latest)).days;
        const silence = silenceSince(latest);
        return records >= 5 && silence >= 7 && silence * (records - 1) >= 5 * days;
      });
      const end = feeds
        .map(({ latest }) => latest)
        .sort()
        .at(-1);
      const asOf = [
        ...silent.map(({ latest }) => latest),
        ...(end && silenceSince(end) >= 7 ? [end] : []),
      ]
        .map((day) => Temporal.PlainDate.from(day).subtract({ days: 1 }).toString())
        .concat(latest && completeUntil ? [completeUntil] : [])
        .sort()[0];
      expect(judgedUntil('ALL', figures)).toBe(latest && completeUntil ? asOf : null);

      if (!since || !latest || !completeUntil || !asOf) {
        expect(figures.comparison).toBeNull();
        return;
      }
      const month = (text: string) => Temporal.PlainYearMonth.from(text.slice(0, 7));
      const lastDay = Temporal.PlainDate.from(asOf);
      const isLast = lastDay.day === lastDay.daysInMonth;
      const last = isLast ? month(asOf) : month(asOf).subtract({ months: 1 });
      const length = month(since).until(last, { largestUnit: 'months' }).months + 1;
      const first = month(since).subtract({ months: Math.max(length, 0) });
      const within = (from: Temporal.PlainYearMonth, to: Temporal.PlainYearMonth) =>
        own.filter((row) => {
          const text = joined(row)?.slice(0, 7) ?? '';
          return text >= from.toString() && text <= to.toString();
        });
      const now = within(month(since), last);
      const monthsBefore = Array.from({ length: Math.max(length, 0) }, (_, index) =>
        first.add({ months: index }),
      );
      const usersBefore = within(first, month(since).subtract({ months: 1 })).length;
      const leading = first.subtract({ months: 1 });
      if (
        length < 1 ||
        now.length === 0 ||
        monthsBefore.some((one) => within(one, one).length === 0) ||
        within(leading, leading).length < usersBefore / length / 10
      ) {
        expect(figures.comparison).toBeNull();
        return;
      }
      const earlier = lastDay.subtract({ months: length });
      const asOfBefore = (isLast ? earlier.with({ day: earlier.daysInMonth }) : earlier).toString();
      const asThey = (rows: Row[], wereOn: string) =>
        rows.map((row) =>
          (row.client_conversion_event_local_created_at ?? '').slice(0, 10) > wereOn
            ? { ...row, lead_status: 'LEAD', client_conversion_event_local_created_at: null }
            : row,
        );
      const before = within(first, month(since).subtract({ months: 1 }));
      expect(figures.comparison).toMatchObject({ asOf, asOfBefore });
      expect(sorted(figures.comparison?.headlines ?? [])).toEqual(
        sorted(figuresOf(asThey(now, asOf)).headlines),
      );
      expect(sorted(figures.comparison?.headlinesBefore ?? [])).toEqual(
        sorted(figuresOf(asThey(before, asOfBefore)).headlines),
      );
    }),
    { numRuns: 60 },
  );
});

/** Stores users of one branch on UTC, each with a day of joining and perhaps a membership. */
async function storeUsers(
  users: { joined: string | null; bought?: string | null; name?: string; source?: string }[],
): Promise<void> {
  await store(database, {
    branches: [{ branch_id: 'b', timezone_id: null }],
    users: users.map(({ joined }, index) => ({
      ...{ user_id: `u${index}`, branch_id: 'b', created_at: joined },
    })),
    creditPacks: [],
    memberships: users.flatMap(({ bought, name = 'Gold', source = 'web' }, index) =>
      bought === undefined
        ? []
        : [
            {
              ...{ user_id: `u${index}`, branch_id: 'b', id: 'm', purchased_at: bought },
              details: { name, source },
            },
          ],
    ),
  });
  await refreshViews(database.db, { maxLoss: '100%' });
}

const rows = ({ headlines }: Figures) => headlines.find(({ filter }) => filter === 'ALL');

test('lists the ten sources and products with the most clients, and sums up the rest', async () => {
  const names = Array.from({ length: 12 }, (_, index) => `name ${String(index).padStart(2, '0')}`);
  await storeUsers(
    ['name 11', ...names].map((name) => ({
      ...{ joined: '2026-01-01', bought: '2026-01-02', name, source: name },
    })),
  );
  const { sources, products } = await read();
  for (const bought of [sources, products]) {
    expect(bought.filter(({ filter }) => filter === 'MEMBERSHIP')).toEqual([
      { filter: 'MEMBERSHIP', rank: 1, name: 'name 11', type: 'MEMBERSHIP', clients: 2 },
      ...names.slice(0, 9).map((name, index) => ({
        ...{ filter: 'MEMBERSHIP', rank: index + 2, name, type: 'MEMBERSHIP', clients: 1 },
      })),
      { filter: 'MEMBERSHIP', rank: 11, name: null, type: 'MEMBERSHIP', clients: 2 },
    ]);
  }
});

/** Makes the latest refresh begin at this instant. */
const refreshedAt = (instant: string) =>
  database.db.execute(sql`update view_refreshes set started_at = ${instant}::timestamptz`);

test('compares whole months with as many months before them, as those were at the same age', async () => {
  const users = [
    { joined: '2025-10-01' },
    { joined: '2025-11-30', bought: '2026-01-02' }, // after 31 December, so a lead until then
    { joined: '2025-12-01' },
    { joined: '2025-12-31', bought: '2025-12-31' },
    { joined: '2026-01-01', bought: '2026-02-28' },
    { joined: '2026-01-01', bought: '2026-03-01T09:00:00Z' }, // on a day that is not over
    { joined: '2026-03-01T10:00:00Z' }, // in a month that is not over
    { joined: null },
  ];
  await storeUsers(users);
  await refreshedAt('2026-03-01T11:00:00Z');
  const all = (headlines: Headline[] = []) => headlines.find(({ filter }) => filter === 'ALL');
  const january = await read({ since: '2026-01' });
  expect(all(january.headlines)).toMatchObject({ users: 3, clients: 2, leads: 1 });
  expect(january.withoutJoining).toBe(1);
  expect(january.comparison).toMatchObject({
    ...{ months: [2026 * 12, 2026 * 12 + 1], monthsBefore: [2025 * 12 + 10, 2025 * 12 + 11] },
    ...{ asOf: '2026-02-28', asOfBefore: '2025-12-31' },
  });
  expect(all(january.comparison?.headlines)).toMatchObject({ users: 2, clients: 1, leads: 1 });
  expect(all(january.comparison?.headlinesBefore)).toMatchObject({
    ...{ users: 3, clients: 1, leads: 2 },
  });
  expect((await read({ since: '2025-12' })).comparison).toBeNull(); // September has no users
  expect((await read({ since: '2026-03' })).comparison).toBeNull(); // no month is over
  expect((await read()).comparison).toBeNull();
  await storeUsers(users.filter(({ joined }) => joined !== '2025-10-01'));
  await refreshedAt('2026-03-01T11:00:00Z');
  expect((await read({ since: '2026-01' })).comparison).toBeNull(); // the data begin in November
  await storeUsers([...users, ...Array.from({ length: 30 }, () => ({ joined: '2025-12-02' }))]);
  await refreshedAt('2026-03-01T11:00:00Z');
  expect((await read({ since: '2026-01' })).comparison).toBeNull(); // except for one stray user
});

/** The days of September 2026. */
const september = Array.from(
  { length: 30 },
  (_, index) => `2026-09-${String(index + 1).padStart(2, '0')}`,
);

test.each([
  // Purchases on every day until the 13th: it is no coincidence that they end then.
  { bought: september.slice(0, 13), judged: '2026-09-12', warns: true },
  // They end a week before the refresh, which is just long enough.
  { bought: september.slice(0, 24), judged: '2026-09-23', warns: true },
  { bought: september.slice(0, 25), judged: '2026-09-29', warns: false },
  { bought: ['2026-09-03', '2026-09-08', '2026-09-13'], judged: '2026-09-29', warns: false },
])(
  'judges only the days before purchases stopped, here until $judged',
  async ({ bought, judged, warns }) => {
    await storeUsers(
      september.map((day) => ({ joined: day, ...(bought.includes(day) && { bought: day }) })),
    );
    await refreshedAt('2026-10-01T03:15:00Z');
    const figures = await read();
    const filters = ['ALL', 'MEMBERSHIP', 'USER_CREDIT'] as const;
    expect(filters.map((filter) => judgedUntil(filter, figures))).toEqual([
      ...[judged, judged, '2026-09-29'],
    ]);
    const latest = `${Number(bought.at(-1)?.slice(-2))} September 2026`;
    expect(warningsOf({ ...figures, hoursOld: 0 })).toEqual(
      warns
        ? [
            `The latest first membership dates from ${latest}, ${31 - Number(bought.at(-1)?.slice(-2))} days before the refresh. Check that memberships are still being loaded.`,
          ]
        : [],
    );
  },
);

test('notices that the data of one branch have stopped', async () => {
  await store(database, {
    branches: ['open', 'shut', 'small'].map((branch_id) => ({ branch_id, timezone_id: null })),
    users: september.flatMap((created_at, index) => [
      { user_id: `a${index}`, branch_id: 'open', created_at },
      ...(index < 20 ? [{ user_id: `b${index}`, branch_id: 'shut', created_at }] : []),
      ...(index < 2 ? [{ user_id: `c${index}`, branch_id: 'small', created_at }] : []),
    ]),
    ...{ creditPacks: [], memberships: [] },
  });
  await refreshViews(database.db, { maxLoss: '100%' });
  await refreshedAt('2026-10-11T03:15:00Z');
  const warnings = async (branch?: string) =>
    warningsOf({ ...(await read(branch === undefined ? {} : { branch })), hoursOld: 0 });
  const advice = 'Check that data are still being loaded.';
  expect(await warnings()).toEqual([
    `The latest user or conversion dates from 30 September 2026, 11 days before the refresh. ${advice}`,
  ]);
  expect(await warnings('shut')).toEqual([
    `The latest user or conversion dates from 20 September 2026, 21 days before the refresh. ${advice}`,
  ]);
  expect(judgedUntil('ALL', await read({ branch: 'shut' }))).toBe('2026-09-19');
  await store(database, {
    branches: ['open', 'shut', 'small'].map((branch_id) => ({ branch_id, timezone_id: null })),
    users: september.flatMap((created_at, index) => [
      { user_id: `a${index}`, branch_id: 'open', created_at },
      ...[1, 2, 3].map((number) => ({
        ...{
          user_id: `b${index}.${number}`,
          branch_id: 'shut',
          created_at: september[index % 20] ?? null,
        },
      })),
      ...(index < 2 ? [{ user_id: `c${index}`, branch_id: 'small', created_at }] : []),
    ]),
    ...{ creditPacks: [], memberships: [] },
  });
  await refreshViews(database.db, { maxLoss: '100%' });
  await refreshedAt('2026-10-01T03:15:00Z');
  expect(await warnings()).toEqual([
    'There are no new users or conversions in 1 branch: shut (the latest dates from 20 September 2026). Check that all data are still being loaded.',
  ]);
});

test('counts users with dates after the refresh, but leaves out their times', async () => {
  await storeUsers([
    { joined: '2026-01-01', bought: '9999-12-31' },
    { joined: '9999-01-01', bought: '2026-01-31' },
    { joined: '2026-01-31' },
  ]);
  const figures = await read();
  expect(figures).toMatchObject({
    until: '2026-01-31',
    completeUntil: '2026-01-30',
    mistaken: 2,
  });
  expect(rows(figures)).toMatchObject({
    ...{ clients: 2, withoutDays: 2, p90Days: null, beforeJoining: 0 },
  });
  expect(warningsOf(figures)).toContain(
    '2 users joined or converted after the refresh or before 1970, according to the data. These users are counted, but are left out of all times.',
  );
});

test('a day is complete only once it is over on the clock of every branch', async () => {
  await store(database, {
    branches: [
      { branch_id: 'apia', timezone_id: 'Pacific/Apia' },
      { branch_id: 'honolulu', timezone_id: 'Pacific/Honolulu' },
    ],
    users: [
      { user_id: 'a', branch_id: 'apia', created_at: '2026-01-31T11:30:00Z' }, // 1 February there
      { user_id: 'h', branch_id: 'honolulu', created_at: '2026-01-31T09:00:00Z' }, // 30 January there
    ],
    ...{ creditPacks: [], memberships: [] },
  });
  await refreshViews(database.db, { maxLoss: '100%' });
  expect(await read()).toMatchObject({ until: '2026-02-01', completeUntil: '2026-01-30' });
  expect(await read({ branch: 'apia' })).toMatchObject({
    ...{ until: '2026-02-01', completeUntil: '2026-01-31' },
  });
});

test('warns of old figures, of data that have stopped, and of a lack of users', async () => {
  const today = new Date().toISOString();
  await storeUsers([{ joined: today }]);
  const refresh = (started: string) =>
    database.db.execute(sql`update view_refreshes set started_at = ${started}::timestamptz`);
  const hoursAgo = (hours: number) => new Date(Date.now() - hours * 3_600_000).toISOString();
  expect(warningsOf(await read())).toEqual([]);
  await refresh(hoursAgo(26.1));
  expect(warningsOf(await read())).toContain(
    'These figures were 26 hours old when the report was made. Check the nightly refresh.',
  );
  await refresh(hoursAgo(-1));
  expect(warningsOf(await read())).toEqual([
    'The age of these figures is not known: by the server’s clock, the latest refresh is in the future.',
  ]);
  await database.db.execute(sql`update view_refreshes set server = 'another'`);
  expect(warningsOf(await read())).toEqual([
    'The age of these figures is not known: the views have not been refreshed since they were created. Refresh them.',
  ]);
  await database.db.execute(sql`delete from view_refreshes`);

  await storeUsers([{ joined: hoursAgo(9 * 24) }]);
  expect(warningsOf(await read())).toEqual([
    expect.stringMatching(
      /^The latest user or conversion dates from .*, [89] days before the refresh\. Check that data are still being loaded\.$/,
    ),
  ]);
  await storeUsers([{ joined: hoursAgo(6 * 24) }]);
  expect(warningsOf(await read())).toEqual([]);
  expect(warningsOf(await read({ since: today.slice(0, 7) }))).toEqual(
    hoursAgo(6 * 24).slice(0, 7) < today.slice(0, 7) ? ['There are no users to report on.'] : [],
  );
  await storeUsers([]);
  expect(warningsOf(await read())).toEqual(['There are no users to report on.']);
});

test('refuses a month after the refresh', async () => {
  await storeUsers([{ joined: '2026-01-01' }]);
  await expect(read({ since: '2062-01' })).rejects.toThrow(
    /^--since 2062-01 is after the latest refresh, which was in \d{4}-\d\d\.$/,
  );
});

test.each(['2026', '2026-13', '2026-1', '0000-01', '2026-01-01', "'"])(
  'refuses %s as a month',
  async (since) => {
    await expect(read({ since })).rejects.toThrow(
      `--since must be a month such as 2026-01, not ${JSON.stringify(since)}.`,
    );
  },
);

test('refuses a branch that does not exist, whatever its name', async () => {
  const branch = `b' or '1' = '1`;
  await expect(read({ branch })).rejects.toThrow(
    `There is no branch ${JSON.stringify(branch)} in dim_branch. Use the branch_id of a branch.`,
  );
});

test('refuses a view that is not populated', async () => {
  const { db } = database;
  await db.refreshMaterializedView(fctLeadConversions).withNoData();
  await expect(read()).rejects.toThrow('fct_lead_conversions is not populated. Refresh it first.');
});

test('writes 0% only for none, and 100% only for all', () => {
  expect([percent(0, 3000), percent(1, 3000), percent(1, 1000), percent(2999, 3000)]).toEqual([
    ...['0%', 'under 0.1%', '0.1%', 'over 99.9%'],
  ]);
  expect([percent(7, 7), percent(0, 0), percent(1, 3)]).toEqual(['100%', '–', '33.3%']);
});

test('writes the difference between the rounded shares that are shown beside it', () => {
  expect(percent(361, 1000)).toBe(percent(3614, 10_000));
  expect(percent(2, 5)).toBe('40.0%');
  expect(points([3614, 10_000], [361, 1000])).toBe('0.0');
  expect([points([1, 2], [1, 3]), points([1, 3], [1, 2])]).toEqual(['+16.7', '−16.7']);
});

test('writes a name on one line, cuts it only between whole characters, and drops marks of text direction', () => {
  const family = '👨‍👩‍👧‍👦';
  expect(shorten(family.repeat(30), 4)).toBe(`${family.repeat(3)}…`);
  expect(shorten(' a\n\u2028b\t\u202ec\u0007 ', 9)).toBe('a b c');
  expect(shorten(' \u202e\n', 9)).toBe('(blank)');
  expect(shorten('e\u0301'.repeat(100_000), 3)).toBe('e\u0301e\u0301…');
});
