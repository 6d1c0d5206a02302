import { sql } from 'drizzle-orm';
import { expect, test } from 'vitest';
import { dimUser, fctCreditPackPurchases, fctMembershipPurchases } from '../schema/index.ts';
import {
  conversionEventFilters,
  fctClientConversionEvents,
  fctLeadConversions,
} from '../views/index.ts';
import { useDatabase } from './support/database.ts';

const database = useDatabase();

test.each([
  ['fct_client_conversion_events', fctClientConversionEvents, 10],
  ['fct_lead_conversions', fctLeadConversions, 10 * conversionEventFilters.length],
])('the rows of %s are written in the order of their bytes', async (_, view, count) => {
  const { db } = database;
  const userIds = ['é', 'b10', 'B', 'a', 'b-1', 'Z', 'b_1', 'c', '10', '9'];
  await db.insert(dimUser).values(userIds.map((userId) => ({ userId })));
  const at = (index: number) => new Date(Date.UTC(2024, 2, 20, index));
  await db.insert(fctMembershipPurchases).values(
    userIds.slice(0, 7).map((userId, index) => ({
      userId,
      userMembershipId: 'membership',
      membershipPurchasedAt: at(index),
    })),
  );
  await db.insert(fctCreditPackPurchases).values(
    userIds.slice(2, 9).map((userId, index) => ({
      userId,
      creditPackId: 'pack',
      creditPackPurchasedAt: at(5 - index), // before some memberships, after others
    })),
  );
  await db.refreshMaterializedView(fctClientConversionEvents);
  await db.refreshMaterializedView(fctLeadConversions);

  const rows = await db
    .select({
      isInOrder: sql`coalesce(lag(report) over (order by ctid) operator(pg_catalog.*<) report, true)`,
    })
    .from(sql`${view} as report`);
  expect(rows).toEqual(Array(count).fill({ isInOrder: true }));
});
