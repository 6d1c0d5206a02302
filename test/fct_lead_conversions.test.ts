import { asc, inArray } from 'drizzle-orm';
import { expect, test } from 'vitest';
import {
  dimBranch,
  dimUser,
  fctCreditPackPurchases,
  fctMembershipPurchases,
} from '../schema/index.ts';
import {
  type ConversionEventFilter,
  conversionEventFilters,
  fctLeadConversions,
  refreshViews,
} from '../views/index.ts';
import { useDatabase } from './support/database.ts';

const database = useDatabase();

/** The rows of the view under some filters after a refresh, by user and filter. */
async function conversions(
  filters: readonly ConversionEventFilter[] = ['ALL', 'MEMBERSHIP', 'USER_CREDIT'],
) {
  await refreshViews(database.db);
  const { userId, clientConversionEventFilter } = fctLeadConversions;
  return database.db
    .select()
    .from(fctLeadConversions)
    .where(inArray(clientConversionEventFilter, filters))
    .orderBy(asc(userId), asc(clientConversionEventFilter));
}

const user = {
  userId: 'u',
  branchId: 'dublin',
  localUserCreatedAt: '2024-06-01 10:00:00',
};

const asLead = {
  ...user,
  leadStatus: 'LEAD',
  clientConversionEventType: null,
  clientConversionEventId: null,
  clientConversionEventLocalCreatedAt: null,
  clientConversionEventName: null,
  clientConversionEventSource: null,
};

const byMembership = {
  ...user,
  leadStatus: 'CLIENT',
  clientConversionEventType: 'MEMBERSHIP',
  clientConversionEventId: 'member',
  clientConversionEventLocalCreatedAt: '2024-06-03 19:30:00',
  clientConversionEventName: 'Monthly',
  clientConversionEventSource: 'web',
};

const byCreditPack = {
  ...user,
  leadStatus: 'CLIENT',
  clientConversionEventType: 'USER_CREDIT',
  clientConversionEventId: 'pack',
  clientConversionEventLocalCreatedAt: '2024-06-02 19:30:00',
  clientConversionEventName: '5 classes',
  clientConversionEventSource: 'app',
};

async function insertUser() {
  await database.db.insert(dimBranch).values({ branchId: 'dublin', timezoneId: 'Europe/Dublin' });
  await database.db
    .insert(dimUser)
    .values({ userId: 'u', branchId: 'dublin', createdAt: new Date('2024-06-01T09:00:00Z') });
}

async function insertMembership(purchasedAt: string) {
  await database.db.insert(fctMembershipPurchases).values({
    userId: 'u',
    userMembershipId: 'member',
    membershipPurchasedAt: new Date(purchasedAt),
    membershipPurchaseDetails: { name: 'Monthly', source: 'web' },
  });
}

async function insertCreditPack(purchasedAt: string) {
  await database.db.insert(fctCreditPackPurchases).values({
    userId: 'u',
    creditPackId: 'pack',
    creditPackPurchasedAt: new Date(purchasedAt),
    creditPackPurchaseDetails: { name: '5 classes', source: 'app' },
  });
}

test('shows a client who bought both kinds by the kinds that each filter considers', async () => {
  await insertUser();
  await insertMembership('2024-06-03T18:30:00Z');
  await insertCreditPack('2024-06-02T18:30:00Z');
  expect(await conversions()).toEqual([
    { ...byCreditPack, clientConversionEventFilter: 'ALL' },
    { ...byMembership, clientConversionEventFilter: 'MEMBERSHIP' },
    { ...byCreditPack, clientConversionEventFilter: 'USER_CREDIT' },
  ]);
});

test('takes the membership for ALL if both kinds were bought at the same instant', async () => {
  await insertUser();
  await insertMembership('2024-06-03T18:30:00Z');
  await insertCreditPack('2024-06-03T18:30:00Z');
  const later = { ...byCreditPack, clientConversionEventLocalCreatedAt: '2024-06-03 19:30:00' };
  expect(await conversions()).toEqual([
    { ...byMembership, clientConversionEventFilter: 'ALL' },
    { ...byMembership, clientConversionEventFilter: 'MEMBERSHIP' },
    { ...later, clientConversionEventFilter: 'USER_CREDIT' },
  ]);
});

test('shows a user who bought only a membership as a lead under USER_CREDIT', async () => {
  await insertUser();
  await insertMembership('2024-06-03T18:30:00Z');
  expect(await conversions()).toEqual([
    { ...byMembership, clientConversionEventFilter: 'ALL' },
    { ...byMembership, clientConversionEventFilter: 'MEMBERSHIP' },
    { ...asLead, clientConversionEventFilter: 'USER_CREDIT' },
  ]);
});

test('shows a user who bought only a credit pack as a lead under MEMBERSHIP', async () => {
  await insertUser();
  await insertCreditPack('2024-06-02T18:30:00Z');
  expect(await conversions()).toEqual([
    { ...byCreditPack, clientConversionEventFilter: 'ALL' },
    { ...asLead, clientConversionEventFilter: 'MEMBERSHIP' },
    { ...byCreditPack, clientConversionEventFilter: 'USER_CREDIT' },
  ]);
});

test('has one row per filter for a lead, too', async () => {
  await insertUser();
  expect(await conversions(conversionEventFilters)).toEqual(
    conversionEventFilters
      .toSorted()
      .map((clientConversionEventFilter) => ({ ...asLead, clientConversionEventFilter })),
  );
});
