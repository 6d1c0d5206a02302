import { eq, sql } from 'drizzle-orm';
import { expect, test } from 'vitest';
import { dimUser, fctMembershipPurchases } from '../schema/index.ts';
import { fctClientConversionEvents, fctLeadConversions, refreshViews } from '../views/index.ts';
import { rowsOf, useDatabase } from './support/database.ts';

const database = useDatabase();

/** What a refresh reports, but for the time it took. */
async function refresh() {
  const { views, durationMs } = await refreshViews(database.db);
  expect(durationMs).toBeGreaterThanOrEqual(0);
  return views.map(({ durationMs, ...view }) => {
    expect(durationMs).toBeGreaterThanOrEqual(0);
    return view;
  });
}

test('reports each view’s rows, and how many it inserted and deleted', async () => {
  const { db } = database;
  await refresh();
  await db.insert(dimUser).values([{ userId: 'a' }, { userId: 'b' }, { userId: 'c' }]);
  expect(await refresh()).toEqual([
    { view: 'fct_client_conversion_events', rows: 3, inserted: 3, deleted: 0 },
    { view: 'fct_lead_conversions', rows: 9, inserted: 9, deleted: 0 },
  ]);
  await db.insert(fctMembershipPurchases).values({ userId: 'a', userMembershipId: '1' });
  await db.delete(dimUser).where(eq(dimUser.userId, 'c'));
  expect(await refresh()).toEqual([
    // a changed, c went
    { view: 'fct_client_conversion_events', rows: 2, inserted: 1, deleted: 2 },
    // a changed under MEMBERSHIP and ALL, c went three times
    { view: 'fct_lead_conversions', rows: 6, inserted: 2, deleted: 5 },
  ]);
});

test('changes nothing when nothing has changed', async () => {
  await database.db.insert(dimUser).values({ userId: 'a' });
  await refresh();
  const versions = () =>
    database.db.select({ version: sql`xmin::text` }).from(fctClientConversionEvents);
  const before = await versions();
  expect(await refresh()).toEqual([
    { view: 'fct_client_conversion_events', rows: 1, inserted: 0, deleted: 0 },
    { view: 'fct_lead_conversions', rows: 3, inserted: 0, deleted: 0 },
  ]);
  expect(await versions()).toEqual(before);
});

test('leaves both views as they were when one of them fails', async () => {
  const { db } = database;
  await db.insert(dimUser).values({ userId: 'a' });
  await refresh();
  await db.insert(dimUser).values({ userId: 'b' });
  const key = sql.identifier('fct_lead_conversions_user_id_client_conversion_event_filter_key');
  await db.execute(sql`drop index ${key}`);
  try {
    await expect(refresh()).rejects.toMatchObject({
      cause: {
        message: 'cannot refresh materialized view "public.fct_lead_conversions" concurrently',
      },
    });
    expect(await rowsOf(database, fctClientConversionEvents)).toMatchObject([{ user_id: 'a' }]);
    expect(await rowsOf(database, fctLeadConversions)).toHaveLength(3);
  } finally {
    await db.execute(
      sql`create unique index ${key} on fct_lead_conversions (user_id, client_conversion_event_filter)`,
    );
  }
});

test('says what to do when the database has not been migrated', async () => {
  const { db } = database;
  await db.execute(sql`alter materialized view fct_lead_conversions rename to elsewhere`);
  try {
    await expect(refresh()).rejects.toThrow(
      'The database has no fct_lead_conversions: it has not been migrated. Run "npx drizzle-kit migrate" first.',
    );
  } finally {
    await db.execute(sql`alter materialized view elsewhere rename to fct_lead_conversions`);
  }
});
