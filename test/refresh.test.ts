import { eq, inArray, sql } from 'drizzle-orm';
import { afterEach, beforeEach, describe, expect, test, vi } from 'vitest';
import packageJson from '../package.json' with { type: 'json' };
import { dimBranch, dimUser, fctMembershipPurchases } from '../schema/index.ts';
import {
  fctClientConversionEvents,
  fctLeadConversions,
  type RefreshOptions,
  refreshViews,
  viewRefreshes,
} from '../views/index.ts';
import { rowsOf, useDatabase } from './support/database.ts';
import { filters, patience } from './support/sessions.ts';

const database = useDatabase();

/** How a refresh brought each view up to date. */
const modes = async () => (await refresh()).map(({ mode }) => mode);

/**
 * Refreshes until both views are left alone. That may take a while on a server whose other
 * databases are at work: everything written since the oldest open transaction began counts as
 * changed.
 */
const untilUnchanged = () =>
  vi.waitUntil(async () => (await modes()).every((mode) => mode === 'unchanged'), patience);

/** What a refresh reports of the views, without durations. Expects that nothing is distributed. */
async function refresh(options: RefreshOptions = {}) {
  const { views, durationMs, ...rest } = await refreshViews(database.db, options);
  expect(rest).toEqual({ outcome: 'refreshed', reason: null, warnings: [] });
  expect(durationMs).toBeGreaterThanOrEqual(0);
  return views.map(({ durationMs, readsDistributed, ...view }) => {
    expect(readsDistributed).toBe(false);
    expect(durationMs).toBeGreaterThanOrEqual(0);
    return view;
  });
}

test('reports each view’s rows, and how many it inserted and deleted', async () => {
  const { db } = database;
  await refresh();
  await db.insert(dimUser).values([{ userId: 'a' }, { userId: 'b' }, { userId: 'c' }]);
  const mode = 'concurrently';
  expect(await refresh()).toEqual([
    { view: 'fct_client_conversion_events', mode, rows: 3, inserted: 3, deleted: 0 },
    { view: 'fct_lead_conversions', mode, rows: 3 * filters, inserted: 3 * filters, deleted: 0 },
  ]);
  await db.insert(fctMembershipPurchases).values({ userId: 'a', userMembershipId: '1' });
  await db.delete(dimUser).where(eq(dimUser.userId, 'c'));
  expect(await refresh({ maxLoss: '34%' })).toEqual([
    // a changed, c is gone
    { view: 'fct_client_conversion_events', mode, rows: 2, inserted: 1, deleted: 2 },
    // a changed under MEMBERSHIP and ALL, c is gone under each filter
    { view: 'fct_lead_conversions', mode, rows: 2 * filters, inserted: 2, deleted: filters + 2 },
  ]);
});

test('leaves both views alone while neither they nor what they read has changed', async () => {
  await database.db.insert(dimUser).values({ userId: 'a' });
  await untilUnchanged();
  const versions = () =>
    database.db.select({ version: sql`xmin::text` }).from(fctClientConversionEvents);
  const before = await versions();
  const unchanged = { inserted: 0, deleted: 0 };
  expect(await refresh()).toEqual([
    { view: 'fct_client_conversion_events', mode: 'unchanged', rows: 1, ...unchanged },
    { view: 'fct_lead_conversions', mode: 'unchanged', rows: filters, ...unchanged },
  ]);
  expect(await versions()).toEqual(before);
  expect((await refresh({ force: true })).map(({ mode }) => mode)).toEqual([
    'concurrently',
    'concurrently',
  ]);
  await untilUnchanged();
});

test('leaves the second view alone if a change gives the first view the same rows', async () => {
  await database.db.insert(dimUser).values({ userId: 'a' });
  await untilUnchanged();
  await database.db.update(dimUser).set({ name: 'Ada' });
  expect(await modes()).toEqual(['concurrently', 'unchanged']);
});

describe('recomputes the views', () => {
  beforeEach(async () => {
    const { db } = database;
    await db.insert(dimBranch).values({ branchId: 'dublin', timezoneId: 'Europe/Dublin' });
    await db.insert(dimUser).values([{ userId: 'a' }, { userId: 'b' }]);
    await untilUnchanged();
  });

  test.each([
    ['insert into dim_branch (branch_id) values (1)'],
    ['update dim_branch set name = name'],
    [`insert into fct_credit_pack_purchases (user_id, credit_pack_id) values ('a', 1)`],
    [`delete from dim_user where user_id = 'a'`],
    [`delete from dim_user where user_id = 'a'`, `insert into dim_user (user_id) values ('a')`],
  ])('after %s', async (...statements) => {
    for (const statement of statements) {
      await database.db.execute(statement);
    }
    const [first] = await refresh({ maxLoss: '50%' });
    expect(first?.mode).toBe('concurrently');
    expect(first?.rows).toBe(await database.db.$count(dimUser));
  });

  test('after the clocks of a time zone have changed', async () => {
    await database.db.execute(sql`
      update view_refreshes set basis = jsonb_set(basis, '{zones}', '"other"')`);
    expect(await modes()).toEqual(['concurrently', 'concurrently']);
    await untilUnchanged();
  });

  test('if the history is from another server or database, even if it is later', async () => {
    const rows = await database.db.select().from(viewRefreshes);
    await database.db.delete(viewRefreshes);
    await database.db.insert(viewRefreshes).values(
      rows.map(({ id, ...row }) => ({
        ...row,
        server: '1',
        startedAt: new Date('2100-01-01'),
      })),
    );
    expect(await modes()).toEqual(['concurrently', 'concurrently']);
    await untilUnchanged();
    await database.db.execute(sql`
      update view_refreshes set basis = jsonb_set(basis, '{database}', '1')`);
    expect(await modes()).toEqual(['concurrently', 'concurrently']);
  });

  test('if the history was restored, so its rows were not written by the refreshes themselves', async () => {
    const rows = await database.db.select().from(viewRefreshes).orderBy(viewRefreshes.id);
    await database.db.delete(viewRefreshes);
    await database.db.insert(viewRefreshes).overridingSystemValue().values(rows);
    expect(await modes()).toEqual(['concurrently', 'concurrently']);
  });

  test('if there is no history', async () => {
    await database.db.delete(viewRefreshes);
    expect(await modes()).toEqual(['concurrently', 'concurrently']);
  });

  test('if a row of the history is from the future', async () => {
    await database.db.execute(sql`
      update view_refreshes set started_at = '2100-01-01' where id = (select min(id) from view_refreshes)`);
    await database.db.insert(dimUser).values({ userId: 'c' });
    expect(await modes()).toEqual(['concurrently', 'concurrently']);
  });

  test('if a billion transactions have passed, so the age of a row may be misjudged', async () => {
    await database.db.execute(sql`
      update view_refreshes set basis = jsonb_set(
        basis, '{view,snapshotXmin}', to_jsonb((pg_current_xact_id()::text::bigint - 2::bigint ^ 30)::text)
      )`);
    expect(await modes()).toEqual(['concurrently', 'concurrently']);
  });
});

describe('input that is suddenly missing', () => {
  const tenUsers = Array.from({ length: 10 }, (_, number) => ({ userId: `user ${number}` }));
  const buys = (userId: string) => ({ userId, userMembershipId: '1' });
  beforeEach(async () => {
    await database.db.insert(dimUser).values(tenUsers);
    await database.db
      .insert(fctMembershipPurchases)
      .values(tenUsers.slice(0, 5).map(({ userId }) => buys(userId)));
    await refresh();
  });

  test('is accepted up to a fifth of the users and of the clients', async () => {
    const { db } = database;
    await db.delete(fctMembershipPurchases).where(eq(fctMembershipPurchases.userId, 'user 0'));
    await db.delete(dimUser).where(inArray(dimUser.userId, ['user 0', 'user 9']));
    const [first] = await refresh();
    expect(first).toMatchObject({ rows: 8, inserted: 0, deleted: 2 });
  });

  test('is refused beyond a fifth of the users, and nothing changes', async () => {
    const { db } = database;
    await db.delete(dimUser).where(inArray(dimUser.userId, ['user 7', 'user 8', 'user 9']));
    const before = await db.select().from(viewRefreshes);
    await expect(refresh()).rejects.toThrow(
      'Nothing was refreshed, because fct_client_conversion_events would have 7 users instead of 10, a loss of 30 %. Check that the input tables are complete. If they are, allow the loss with --max-loss 100% (it is 20% now).',
    );
    expect(await rowsOf(database, fctClientConversionEvents)).toHaveLength(10);
    expect(await db.select().from(viewRefreshes)).toEqual(before);
    expect((await refresh({ maxLoss: '30%' }))[0]).toMatchObject({ rows: 7, deleted: 3 });
  });

  test('is refused beyond a fifth of the clients', async () => {
    const { db } = database;
    await db
      .delete(fctMembershipPurchases)
      .where(inArray(fctMembershipPurchases.userId, ['user 0', 'user 1']));
    await expect(refresh()).rejects.toThrow(
      'Nothing was refreshed, because fct_client_conversion_events would have 3 clients instead of 5, a loss of 40 %.',
    );
    expect((await refresh({ maxLoss: '100%' }))[0]).toMatchObject({ inserted: 2, deleted: 2 });
  });

  test('is offset by new input', async () => {
    const { db } = database;
    await db.delete(dimUser).where(inArray(dimUser.userId, ['user 7', 'user 8', 'user 9']));
    await db.insert(dimUser).values({ userId: 'new' });
    expect((await refresh())[0]).toMatchObject({ rows: 8 });
  });

  test.each(['', '20', 'a fifth', '101%', '-1%', '1e1%'])(
    'is allowed as a percentage only, not as %j',
    async (maxLoss) => {
      await expect(refresh({ maxLoss })).rejects.toThrow(
        `The allowed loss (--max-loss) must be a percentage from 0% to 100%, not ${JSON.stringify(maxLoss)}.`,
      );
    },
  );
});

test('recomputes the second view if somebody has refreshed the first one manually', async () => {
  const { db } = database;
  await db.insert(dimUser).values({ userId: 'a' });
  await refresh();
  await db.insert(fctMembershipPurchases).values({ userId: 'a', userMembershipId: '1' });
  await db.refreshMaterializedView(fctClientConversionEvents).concurrently();
  expect(await refresh()).toEqual([
    {
      view: 'fct_client_conversion_events',
      mode: 'concurrently',
      rows: 1,
      inserted: 0,
      deleted: 0,
    },
    { view: 'fct_lead_conversions', mode: 'concurrently', rows: filters, inserted: 2, deleted: 2 },
  ]);
});

test.each([fctClientConversionEvents, fctLeadConversions])(
  'populates a view that is not populated, and reports it: %#',
  async (view) => {
    const { db } = database;
    await db.insert(dimUser).values({ userId: 'a' });
    await refresh();
    await db.refreshMaterializedView(view).withNoData();
    const [first, second] = await refresh();
    const populated = view === fctClientConversionEvents ? first : second;
    expect(populated).toEqual({ ...populated, mode: 'populate', deleted: 0 });
    expect(populated?.inserted).toBe(populated?.rows);
    expect(await rowsOf(database, fctClientConversionEvents)).toHaveLength(1);
    expect(await rowsOf(database, fctLeadConversions)).toHaveLength(filters);
  },
);

test('records what it did to each view', async () => {
  const { db } = database;
  await refresh();
  await db.delete(viewRefreshes);
  await db.insert(dimUser).values({ userId: 'a' });
  const { views } = await refreshViews(db);
  const recorded = await db.select().from(viewRefreshes).orderBy(viewRefreshes.view);
  const [startedAt] = recorded.map((row) => row.startedAt);
  expect(recorded).toEqual(
    views.map(({ readsDistributed, ...view }) => ({
      ...view,
      startedAt,
      finishedAt: expect.any(Date),
      packageVersion: packageJson.version,
      id: expect.any(Number),
      server: expect.stringMatching(/^\d+$/),
      basis: expect.objectContaining({ view: expect.objectContaining({ rows: view.rows }) }),
    })),
  );
  const [first, second] = recorded.map(({ finishedAt }) => Number(finishedAt) - Number(startedAt));
  expect(first).toBeGreaterThanOrEqual(views[0]?.durationMs ?? Number.NaN);
  expect(second).toBeGreaterThanOrEqual(first ?? Number.NaN);
});

test('records how fresh the views are, even if nothing has changed', async () => {
  const { db } = database;
  const freshAsOf = () =>
    db
      .select({ view: viewRefreshes.view, at: sql<string>`max(started_at)::text` })
      .from(viewRefreshes)
      .groupBy(viewRefreshes.view)
      .orderBy(viewRefreshes.view);
  await refresh();
  const [before] = await freshAsOf();
  await refresh();
  const [first, second] = await freshAsOf();
  expect(first?.at).toBe(second?.at);
  expect(Date.parse(first?.at ?? '')).toBeGreaterThan(Date.parse(before?.at ?? ''));
});

test('reports each step when it begins', async () => {
  const steps: unknown[] = [];
  await refresh();
  await database.db.insert(dimUser).values({ userId: 'a' });
  await refreshViews(database.db, { onStep: (step) => steps.push(step) });
  expect(steps).toEqual([
    { view: 'fct_client_conversion_events', step: 'refresh' },
    { view: 'fct_lead_conversions', step: 'refresh' },
    { view: 'fct_client_conversion_events', step: 'vacuum' },
    { view: 'fct_lead_conversions', step: 'vacuum' },
  ]);
});

test('refuses to run inside another transaction', async () => {
  await expect(database.db.transaction((tx) => refreshViews(tx))).rejects.toThrow(
    'refreshViews cannot run in a transaction, because it starts its own. Call it on the database.',
  );
});

test('uses the default for a bound that is undefined', async () => {
  const { outcome } = await refreshViews(database.db, {
    lockTimeout: undefined,
    statementTimeout: undefined,
    workMem: undefined,
  });
  expect(outcome).toBe('refreshed');
});

test.each([
  [{ lockTimeout: 'soon' }, 'invalid value for parameter "lock_timeout": "soon"'],
  [{ statementTimeout: '1 parsec' }, 'invalid value for parameter "statement_timeout": "1 parsec"'],
  [{ workMem: '1B' }, '0 kB is outside the valid range for parameter "work_mem"'],
])('refuses bounds that Postgres does not understand: %j', async (bounds, message) => {
  await expect(refreshViews(database.db, bounds)).rejects.toMatchObject({
    cause: { message: expect.stringContaining(message) },
  });
});

describe('a refresh does not begin, and says what to do,', () => {
  /** Runs statements one by one, because some cannot run in a transaction block. */
  async function execute(...statements: string[]): Promise<void> {
    for (const statement of statements) {
      await database.db.execute(sql.raw(statement));
    }
  }

  test.each([
    ['materialized view', 'fct_client_conversion_events'],
    ['materialized view', 'fct_lead_conversions'],
    ['table', 'view_refreshes'],
    ['table', 'dim_user'],
  ])('if the database no longer has the %s %s', async (kind, name) => {
    await execute(`alter ${kind} ${name} rename to elsewhere`);
    try {
      await expect(refresh()).rejects.toThrow(
        new RegExp(
          `^${name} is missing, although the database has \\w+\\. It was dropped or renamed\\. Rename it back, or create it again with its statements in schema/migrations\\.$`,
        ),
      );
    } finally {
      await execute(`alter ${kind} elsewhere rename to ${name}`);
    }
  });

  test('if a relation with the name of a view is not a materialized view', async () => {
    await execute(
      'alter materialized view fct_lead_conversions rename to elsewhere',
      'create view fct_lead_conversions as select from elsewhere',
    );
    try {
      await expect(refresh()).rejects.toThrow(
        'fct_lead_conversions is not a materialized view in this database.',
      );
    } finally {
      await execute(
        'drop view fct_lead_conversions',
        'alter materialized view elsewhere rename to fct_lead_conversions',
      );
    }
  });

  test.each([
    [null, ''],
    [
      'create unique index flawed on fct_lead_conversions (user_id) where lead_status is null',
      ': flawed leaves out rows (it has a WHERE)',
    ],
    [
      'create unique index flawed on fct_lead_conversions (user_id, lower(client_conversion_event_filter))',
      ': flawed is on an expression',
    ],
    [
      'create unique index concurrently flawed on fct_lead_conversions (user_id)',
      ': flawed is not valid',
    ],
  ])('if REFRESH … CONCURRENTLY has no unique index to use: %s', async (index, flaw) => {
    const key = 'fct_lead_conversions_user_id_client_conversion_event_filter_key';
    const comment = sql<string>`obj_description(${key}::regclass, 'pg_class')`;
    const [was] = await database.db.select({ comment }).from(sql`(values (1)) as once`);
    await database.db.insert(dimUser).values({ userId: 'a' });
    await refresh();
    await execute(`alter index ${key} rename to usable`, 'drop index usable');
    try {
      // An index that is built concurrently and finds duplicates is left behind, not valid.
      await execute(...(index ? [index] : [])).catch((error) =>
        expect(error.cause.message).toBe('could not create unique index "flawed"'),
      );
      await expect(refresh()).rejects.toThrow(
        `fct_lead_conversions has no unique index that REFRESH … CONCURRENTLY can use${flaw}. Create it again with its statement in schema/migrations.`,
      );
    } finally {
      await execute(
        'drop index if exists flawed',
        `create unique index ${key} on fct_lead_conversions (user_id, client_conversion_event_filter)`,
        `comment on index ${key} is '${was?.comment}'`,
      );
    }
  });

  describe('if its role', () => {
    const role = `refresher_${process.pid}`;
    const views = ['fct_client_conversion_events', 'fct_lead_conversions'];
    let owner = '';
    let version = 0;
    beforeEach(async () => {
      const [server] = await database.db
        .select({
          owner: sql<string>`current_user`,
          version: sql`current_setting('server_version_num')`.mapWith(Number),
        })
        .from(sql`(values (1)) as once`);
      ({ owner, version } = server ?? { owner, version });
      await execute(`create role ${role}`);
    });
    afterEach(async () => {
      await execute(
        'reset role',
        ...views.map((view) => `alter materialized view ${view} owner to ${owner}`),
        `drop owned by ${role}`,
        `drop role ${role}`,
      );
    });

    test('neither owns the views nor may maintain them', async () => {
      await execute(`set role ${role}`);
      await expect(refresh()).rejects.toThrow(
        `The role ${role} may not refresh fct_client_conversion_events: its owner is ${owner}. Connect as ${owner} or a member of that role, or, from PostgreSQL 17 on, grant this role maintain and select on both views, and select on the input tables.`,
      );
      await execute(
        'reset role',
        ...(version < 170_000
          ? [`grant ${owner} to ${role}`]
          : [
              `grant maintain, select on ${views} to ${role}`,
              `grant insert, select, update on view_refreshes to ${role}`,
              `grant select on dim_branch, dim_user, fct_credit_pack_purchases, fct_membership_purchases to ${role}`,
            ]),
        `set role ${role}`,
      );
      expect(await refresh()).toHaveLength(2);
    });

    test('may not write the history', async () => {
      await execute(
        ...views.map((view) => `alter materialized view ${view} owner to ${role}`),
        `grant select on all tables in schema public to ${role}`,
        `set role ${role}`,
      );
      await expect(refresh()).rejects.toThrow(
        `The role ${role} may not write view_refreshes. A refresh locks this table and records itself in it. Grant the role select, insert and update on it.`,
      );
      await execute(
        'reset role',
        `grant insert, update on view_refreshes to ${role}`,
        `set role ${role}`,
      );
      expect(await refresh()).toHaveLength(2);
    });
  });

  test('if the server does not count rows', async () => {
    await execute('set track_counts = off');
    try {
      await expect(refresh()).rejects.toThrow(
        'track_counts is off in this database, so a refresh cannot count the rows that it changes. Turn it on. Autovacuum needs it too.',
      );
    } finally {
      await execute('reset track_counts');
    }
  });
});
