import { sql } from 'drizzle-orm';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { type Figures, readFigures } from '../scripts/report/figures.ts';
import { percent, points, shorten, warningOf } from '../scripts/report/wording.ts';
import { conversionEventFilters, fctLeadConversions, refreshViews } from '../views/index.ts';
import { useDatabase } from './support/database.ts';
import { inputOf, store } from './support/generated.ts';
import { leadConversions } from './support/model.ts';

const database = useDatabase();

const bounds = { statementTimeout: '1min', workMem: '4MB' };

const read = (options: { branch?: string; since?: string } = {}) =>
  readFigures(database.db, { ...bounds, ...options });

const input = inputOf({
  identifiers: Array.from({ length: 14 }, (_, number) => `id-${number}`),
  zones: ['America/New_York', 'Pacific/Kiritimati', 'UTC'],
  // Days, weeks and months apart, and on either side of midnight and of the end of a month.
  instants: [
    '1900-01-01T00:00:00Z',
    '2023-12-31T23:30:00Z',
    '2024-01-01T00:30:00Z',
    '2024-01-31T12:00:00Z',
    '2024-02-01T03:00:00Z',
    '2024-02-02T12:00:00Z',
    '2024-02-29T23:59:59.999999Z',
    '2024-03-03T12:00:00Z',
    '2024-06-15T12:00:00Z',
    '2025-03-15T12:00:00Z',
  ],
  texts: ['Monthly', 'monthly', 'App', '', 'א'],
  ...{ maxBranches: 3, maxUsers: 14, maxPurchases: 30 },
});

/** A row of the second view, as the model computes it. */
type Row = NonNullable<ReturnType<typeof leadConversions>[number]>;

/** Rows by what they have in common, as the text of its JSON. */
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

const daysOf = ({
  local_user_created_at: from,
  client_conversion_event_local_created_at: to,
}: Row) =>
  from && to ? (Date.parse(to.slice(0, 10)) - Date.parse(from.slice(0, 10))) / dayMs : null;

/** The least of some days that a share of them does not exceed. */
function percentile(share: number, days: number[]): number | null {
  const sorted = days.toSorted((one, other) => one - other);
  return sorted.find((_, index) => (index + 1) / sorted.length >= share) ?? null;
}

/** What the report says of some rows, computed plainly. */
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
      [0, 1, 8, 31, 91, 181, 366].filter((first) => first <= (daysOf(row) ?? -1)).length,
    ]).map(([[filter, type, span], rows]) => ({ filter, type, span, clients: rows.length })),
    cohorts: groupsOf(fromJoining, (row) => {
      const month = monthOf(row.local_user_created_at) || 0;
      const monthsUntil = (monthOf(row.client_conversion_event_local_created_at) || 0) - month;
      return [filterOf(row), month, Math.min(monthsUntil, 13)];
    }).map(([[filter, month, monthsUntil], rows]) => ({
      ...{ filter, month, monthsUntil, clients: rows.length },
    })),
    branches: groupsOf(rows, (row) => [filterOf(row), row.branch_id]).map(
      ([[filter, branchId], rows]) => ({
        ...{ filter, branchId, name: null, city: null, ...counts(rows) },
        medianDays: percentile(0.5, days(rows)),
      }),
    ),
  };
}

/** In an order of their own, since the order of equals is not fixed. */
const sorted = (rows: unknown[]) =>
  rows.map((row) => JSON.stringify(row, Object.keys(row as object).sort())).sort();

test('every figure is what a plain recomputation makes of any input', async () => {
  const months = fc.option(fc.constantFrom('1900-01', '2024-01', '2024-02', '2024-03', '2025-03'), {
    nil: undefined,
  });
  await fc.assert(
    fc.asyncProperty(input, months, fc.boolean(), async (generated, since, isOfOneBranch) => {
      await store(database, generated);
      await refreshViews(database.db, { maxLoss: '100%' });
      const branch = isOfOneBranch ? generated.branches[0]?.branch_id : undefined;
      const all = leadConversions(generated) as Row[];
      const own = all.filter((row) => branch === undefined || row.branch_id === branch);
      const joined = (row: Row) => row.local_user_created_at;
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

      const times = all.flatMap((row) => [
        joined(row),
        row.client_conversion_event_local_created_at,
      ]);
      const until =
        times
          .filter((time) => time !== null)
          .sort()
          .at(-1)
          ?.slice(0, 10) ?? null;
      expect(figures.until).toBe(until);
      expect(figures.withoutJoining).toBe(
        since === undefined
          ? 0
          : own.filter((row) => joined(row) === null && filterOf(row) === 'ALL').length,
      );

      const begin = monthOf(since ?? null) || 0;
      const end = 2 * begin - (monthOf(until) || 0) - 1;
      const before = own.filter((row) => {
        const month = monthOf(joined(row));
        return month !== null && month !== '' && month >= end && month < begin;
      });
      const isCompared =
        since !== undefined &&
        (until ?? '') >= since &&
        own.some((row) => monthOf(joined(row)) === end);
      expect(figures.before && sorted(figures.before.headlines)).toEqual(
        isCompared ? sorted(figuresOf(before).headlines) : null,
      );
    }),
    { numRuns: 60 },
  );
});

/** Users of one branch, on UTC, each with a day of joining and perhaps a first membership. */
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

test('names the ten sources and products with the most clients, and puts the rest together', async () => {
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

test('compares with as many months before, if the data begin that early', async () => {
  await storeUsers([
    { joined: '2025-11-30', bought: '2026-01-02' },
    { joined: '2025-12-01' },
    { joined: '2025-12-31', bought: '2026-01-05' },
    { joined: '2026-01-01', bought: '2026-02-28' },
    { joined: null },
  ]);
  const two = await read({ since: '2026-01' });
  expect(rows(two)).toMatchObject({ users: 1, clients: 1, leads: 0 });
  expect(two.withoutJoining).toBe(1);
  expect(two.before).toMatchObject({ from: 2025 * 12 + 10, to: 2025 * 12 + 11 });
  expect(two.before?.headlines.find(({ filter }) => filter === 'ALL')).toMatchObject({
    ...{ users: 3, clients: 2, leads: 1 },
  });
  expect((await read({ since: '2025-12' })).before).toBeNull(); // three months, of which one is there
  expect((await read({ since: '2026-03' })).before).toBeNull(); // after the data
  expect((await read()).before).toBeNull();
});

test('does not take a date after the refresh for the end of the data', async () => {
  await storeUsers([{ joined: '2026-01-01', bought: '9999-12-31' }, { joined: '2026-01-31' }]);
  const figures = await read();
  expect(figures.until).toBe('2026-01-31');
  expect(rows(figures)).toMatchObject({ clients: 1, withoutDays: 1, p90Days: null });
});

test('warns of figures that are older than 26 hours, and of those that nobody has refreshed', async () => {
  await storeUsers([{ joined: '2026-01-01' }]);
  expect(warningOf(await read())).toBeNull();
  await database.db.execute(
    sql`update view_refreshes set started_at = now() - interval '25.9 hours'`,
  );
  expect(warningOf(await read())).toBeNull();
  await database.db.execute(
    sql`update view_refreshes set started_at = now() - interval '26.1 hours'`,
  );
  expect(warningOf(await read())).toBe(
    'These figures were 26 hours old when the report was made. The nightly refresh has not run.',
  );
  await database.db.execute(sql`update view_refreshes set started_at = now() + interval '1 hour'`);
  expect(warningOf(await read())).toBe(
    'It is not known how old these figures are, because the clock of the server was set back since the latest refresh.',
  );
  await database.db.execute(sql`update view_refreshes set server = 'another'`);
  expect(warningOf(await read())).toBe(
    'It is not known how old these figures are, because the views have not been refreshed since they were created.',
  );
  await database.db.execute(sql`delete from view_refreshes`);
  expect((await read()).refreshedAt).toBeNull();
});

test.each(['2026', '2026-13', '2026-1', '0000-01', '2026-01-01', "'"])(
  'refuses %s as a month',
  async (since) => {
    await expect(read({ since })).rejects.toThrow(
      `--since is a month, such as 2026-01, not ${JSON.stringify(since)}.`,
    );
  },
);

test('refuses a branch that is not there, whatever it is called', async () => {
  const branch = `b' or '1' = '1`;
  await expect(read({ branch })).rejects.toThrow(
    `There is no branch ${JSON.stringify(branch)} in dim_branch. --branch is a branch_id.`,
  );
});

test('refuses a view that is not populated', async () => {
  const { db } = database;
  await db.refreshMaterializedView(fctLeadConversions).withNoData();
  await expect(read()).rejects.toThrow(
    'fct_lead_conversions has not been populated. Refresh it first.',
  );
});

test('writes 0% and 100% of none and of all alone', () => {
  expect([percent(0, 3000), percent(1, 3000), percent(1, 1000), percent(2999, 3000)]).toEqual([
    ...['0%', 'under 0.1%', '0.1%', 'over 99.9%'],
  ]);
  expect([percent(7, 7), percent(0, 0), percent(1, 3)]).toEqual(['100%', '–', '33.3%']);
});

test('writes a difference that is that of the shares beside it', () => {
  expect(percent(361, 1000)).toBe(percent(3614, 10_000));
  expect(points([3614, 10_000], [361, 1000])).toBe('0');
  expect([points([1, 2], [1, 3]), points([1, 3], [1, 2])]).toEqual(['+16.7', '-16.7']);
});

test('writes a name on one line, by its characters, and without what turns the text around it', () => {
  const family = '👨‍👩‍👧‍👦';
  expect(shorten(family.repeat(30), 4)).toBe(`${family.repeat(3)}…`);
  expect(shorten(' a\n\u2028b\t\u202ec\u0007 ', 9)).toBe('a b c');
  expect(shorten(' \u202e\n', 9)).toBe('(blank)');
  expect(shorten('e\u0301'.repeat(100_000), 3)).toBe('e\u0301e\u0301…');
});
