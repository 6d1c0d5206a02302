import { asc, sql } from 'drizzle-orm';
import { describe, expect, test } from 'vitest';
import {
  dimBranch,
  dimUser,
  fctCreditPackPurchases,
  fctMembershipPurchases,
} from '../schema/index.ts';
import { fctClientConversionEvents, refreshViews } from '../views/index.ts';
import { useDatabase } from './support/database.ts';

const database = useDatabase();

/** The view's rows after a refresh, by user. */
async function events() {
  await refreshViews(database.db);
  return database.db
    .select()
    .from(fctClientConversionEvents)
    .orderBy(asc(fctClientConversionEvents.userId));
}

/** The values of a lead, which a row of the view has unless a test says otherwise. */
const lead = {
  branchId: null,
  localUserCreatedAt: null,
  leadStatus: 'LEAD',
  clientConversionEventType: null,
  clientConversionEventId: null,
  clientConversionEventLocalCreatedAt: null,
  clientConversionEventName: null,
  clientConversionEventSource: null,
  firstUserMembershipId: null,
  firstLocalMembershipPurchasedAt: null,
  firstMembershipName: null,
  firstMembershipSource: null,
  firstCreditPackId: null,
  firstLocalCreditPackPurchaseAt: null,
  firstCreditPackName: null,
  firstCreditPackSource: null,
};

const march = (day: number, time = '12:00:00') =>
  new Date(`2024-03-${String(day).padStart(2, '0')}T${time}Z`);

describe('the first purchase of its kind', () => {
  test('is the earliest membership of a client who has several', async () => {
    await database.db.insert(dimUser).values({ userId: 'mia' });
    await database.db.insert(fctMembershipPurchases).values([
      { userId: 'mia', userMembershipId: 'a', membershipPurchasedAt: march(3) },
      {
        userId: 'mia',
        userMembershipId: 'b',
        membershipPurchasedAt: march(1),
        membershipPurchaseDetails: { name: 'Monthly', source: 'web' },
      },
      { userId: 'mia', userMembershipId: 'c', membershipPurchasedAt: march(2) },
    ]);
    expect(await events()).toMatchObject([
      {
        ...lead,
        userId: 'mia',
        leadStatus: 'CLIENT',
        clientConversionEventType: 'MEMBERSHIP',
        clientConversionEventId: 'b',
        clientConversionEventLocalCreatedAt: '2024-03-01 12:00:00',
        clientConversionEventName: 'Monthly',
        clientConversionEventSource: 'web',
        firstUserMembershipId: 'b',
        firstLocalMembershipPurchasedAt: '2024-03-01 12:00:00',
        firstMembershipName: 'Monthly',
        firstMembershipSource: 'web',
      },
    ]);
  });

  test('is the earliest credit pack of a client who has several', async () => {
    await database.db.insert(dimUser).values({ userId: 'carl' });
    await database.db.insert(fctCreditPackPurchases).values([
      { userId: 'carl', creditPackId: 'a', creditPackPurchasedAt: march(3) },
      {
        userId: 'carl',
        creditPackId: 'b',
        creditPackPurchasedAt: march(1),
        creditPackPurchaseDetails: { name: '5 classes', source: 'app' },
      },
      { userId: 'carl', creditPackId: 'c', creditPackPurchasedAt: march(2) },
    ]);
    expect(await events()).toMatchObject([
      {
        ...lead,
        userId: 'carl',
        leadStatus: 'CLIENT',
        clientConversionEventType: 'USER_CREDIT',
        clientConversionEventId: 'b',
        clientConversionEventLocalCreatedAt: '2024-03-01 12:00:00',
        clientConversionEventName: '5 classes',
        clientConversionEventSource: 'app',
        firstCreditPackId: 'b',
        firstLocalCreditPackPurchaseAt: '2024-03-01 12:00:00',
        firstCreditPackName: '5 classes',
        firstCreditPackSource: 'app',
      },
    ]);
  });

  test('is decided to the microsecond', async () => {
    await database.db.insert(dimUser).values({ userId: 'mia' });
    await database.db.insert(fctMembershipPurchases).values([
      {
        userId: 'mia',
        userMembershipId: 'a',
        membershipPurchasedAt: sql`'2024-03-01 12:00:00.000002+00'`,
      },
      {
        userId: 'mia',
        userMembershipId: 'b',
        membershipPurchasedAt: sql`'2024-03-01 12:00:00.000001+00'`,
      },
    ]);
    expect(await events()).toMatchObject([
      {
        firstUserMembershipId: 'b',
        firstLocalMembershipPurchasedAt: '2024-03-01 12:00:00.000001',
      },
    ]);
  });

  test('is the one with the lowest identifier in byte order, if several have the same time', async () => {
    await database.db.insert(dimUser).values([{ userId: 'carl' }, { userId: 'mia' }]);
    await database.db.insert(fctMembershipPurchases).values(
      // Most languages sort é and a before Z, but in bytes Z is the lowest.
      ['é', 'a', 'Z'].map((userMembershipId) => ({
        userId: 'mia',
        userMembershipId,
        membershipPurchasedAt: march(1),
      })),
    );
    await database.db.insert(fctCreditPackPurchases).values(
      ['pack-9', 'pack-10', 'pack_1'].map((creditPackId) => ({
        userId: 'carl',
        creditPackId,
        creditPackPurchasedAt: march(1),
      })),
    );
    expect(await events()).toMatchObject([
      { userId: 'carl', firstCreditPackId: 'pack-10' },
      { userId: 'mia', firstUserMembershipId: 'Z' },
    ]);
  });

  test('is one without a time only if none has a time', async () => {
    await database.db.insert(dimUser).values([{ userId: 'both' }, { userId: 'undated' }]);
    await database.db.insert(fctMembershipPurchases).values([
      { userId: 'both', userMembershipId: 'a' },
      { userId: 'both', userMembershipId: 'b', membershipPurchasedAt: march(1) },
      { userId: 'undated', userMembershipId: 'd' },
      { userId: 'undated', userMembershipId: 'c' },
    ]);
    expect(await events()).toMatchObject([
      {
        userId: 'both',
        firstUserMembershipId: 'b',
        firstLocalMembershipPurchasedAt: '2024-03-01 12:00:00',
      },
      {
        userId: 'undated',
        leadStatus: 'CLIENT',
        clientConversionEventId: 'c',
        clientConversionEventLocalCreatedAt: null,
        firstUserMembershipId: 'c',
        firstLocalMembershipPurchasedAt: null,
      },
    ]);
  });

  test('may be one from before the user was created', async () => {
    await database.db.insert(dimUser).values({ userId: 'ian', createdAt: march(20) });
    await database.db
      .insert(fctMembershipPurchases)
      .values({ userId: 'ian', userMembershipId: 'a', membershipPurchasedAt: march(1) });
    expect(await events()).toMatchObject([
      {
        localUserCreatedAt: '2024-03-20 12:00:00',
        clientConversionEventId: 'a',
        clientConversionEventLocalCreatedAt: '2024-03-01 12:00:00',
      },
    ]);
  });

  test('is decided for each user, even if two users have the same purchase identifier', async () => {
    await database.db.insert(dimUser).values([{ userId: 'carl' }, { userId: 'mia' }]);
    await database.db.insert(fctMembershipPurchases).values([
      {
        userId: 'carl',
        userMembershipId: '1',
        membershipPurchasedAt: march(2),
        membershipPurchaseDetails: { name: 'Yearly' },
      },
      {
        userId: 'mia',
        userMembershipId: '1',
        membershipPurchasedAt: march(1),
        membershipPurchaseDetails: { name: 'Monthly' },
      },
    ]);
    expect(await events()).toMatchObject([
      { userId: 'carl', clientConversionEventName: 'Yearly' },
      { userId: 'mia', clientConversionEventName: 'Monthly' },
    ]);
  });
});

describe('the purchase that is the conversion', () => {
  test.each([
    { credit: march(1), membership: march(2), type: 'USER_CREDIT', why: 'the earlier credit pack' },
    { credit: march(2), membership: march(1), type: 'MEMBERSHIP', why: 'the earlier membership' },
    {
      credit: march(1),
      membership: march(1),
      type: 'MEMBERSHIP',
      why: 'the membership if both have the same time',
    },
    { credit: null, membership: march(1), type: 'MEMBERSHIP', why: 'the dated membership' },
    { credit: march(1), membership: null, type: 'USER_CREDIT', why: 'the dated credit pack' },
    {
      credit: null,
      membership: null,
      type: 'MEMBERSHIP',
      why: 'the membership if neither has a time',
    },
  ])('is $why', async ({ credit, membership, type }) => {
    await database.db.insert(dimUser).values({ userId: 'u' });
    await database.db.insert(fctCreditPackPurchases).values({
      userId: 'u',
      creditPackId: 'pack',
      creditPackPurchasedAt: credit,
      creditPackPurchaseDetails: { name: '5 classes', source: 'app' },
    });
    await database.db.insert(fctMembershipPurchases).values({
      userId: 'u',
      userMembershipId: 'member',
      membershipPurchasedAt: membership,
      membershipPurchaseDetails: { name: 'Monthly', source: 'web' },
    });
    const [row] = await events();
    const asFirst = {
      MEMBERSHIP: [
        row?.firstUserMembershipId,
        row?.firstLocalMembershipPurchasedAt,
        row?.firstMembershipName,
        row?.firstMembershipSource,
      ],
      USER_CREDIT: [
        row?.firstCreditPackId,
        row?.firstLocalCreditPackPurchaseAt,
        row?.firstCreditPackName,
        row?.firstCreditPackSource,
      ],
    }[type];
    expect(row).toMatchObject({
      leadStatus: 'CLIENT',
      clientConversionEventType: type,
      firstUserMembershipId: 'member',
      firstMembershipName: 'Monthly',
      firstCreditPackId: 'pack',
      firstCreditPackName: '5 classes',
    });
    expect([
      row?.clientConversionEventId,
      row?.clientConversionEventLocalCreatedAt,
      row?.clientConversionEventName,
      row?.clientConversionEventSource,
    ]).toEqual(asFirst);
  });

  test('is none for a user who never bought, who stays a lead', async () => {
    await database.db.insert(dimUser).values({ userId: 'lea' });
    expect(await events()).toMatchObject([{ ...lead, userId: 'lea' }]);
  });
});

describe('local time', () => {
  test('is the wall clock of the branch, west and east of UTC', async () => {
    await database.db.insert(dimBranch).values([
      { branchId: 'east', timezoneId: 'Asia/Kathmandu' },
      { branchId: 'west', timezoneId: 'America/New_York' },
    ]);
    await database.db.insert(dimUser).values([
      { userId: 'e', branchId: 'east', createdAt: march(1, '20:00:00') },
      { userId: 'w', branchId: 'west', createdAt: march(1, '02:00:00') },
    ]);
    expect(await events()).toMatchObject([
      { branchId: 'east', localUserCreatedAt: '2024-03-02 01:45:00' },
      { branchId: 'west', localUserCreatedAt: '2024-02-29 21:00:00' },
    ]);
  });

  test('follows the change to and from summer time', async () => {
    await database.db
      .insert(dimBranch)
      .values({ branchId: 'new-york', timezoneId: 'America/New_York' });
    await database.db.insert(dimUser).values([
      { userId: '1', branchId: 'new-york', createdAt: new Date('2024-03-10T06:59:59Z') },
      { userId: '2', branchId: 'new-york', createdAt: new Date('2024-03-10T07:00:00Z') },
      { userId: '3', branchId: 'new-york', createdAt: new Date('2024-11-03T05:59:59Z') },
      { userId: '4', branchId: 'new-york', createdAt: new Date('2024-11-03T06:00:00Z') },
    ]);
    expect((await events()).map((event) => event.localUserCreatedAt)).toEqual([
      '2024-03-10 01:59:59',
      '2024-03-10 03:00:00',
      '2024-11-03 01:59:59',
      '2024-11-03 01:00:00',
    ]);
  });

  test('does not decide the order of purchases when the clock goes back: the instant does', async () => {
    await database.db
      .insert(dimBranch)
      .values({ branchId: 'new-york', timezoneId: 'America/New_York' });
    await database.db.insert(dimUser).values({ userId: 'u', branchId: 'new-york' });
    await database.db.insert(fctCreditPackPurchases).values({
      userId: 'u',
      creditPackId: 'pack',
      creditPackPurchasedAt: new Date('2024-11-03T05:45:00Z'),
    });
    await database.db.insert(fctMembershipPurchases).values({
      userId: 'u',
      userMembershipId: 'member',
      membershipPurchasedAt: new Date('2024-11-03T06:15:00Z'),
    });
    expect(await events()).toMatchObject([
      {
        clientConversionEventType: 'USER_CREDIT',
        firstLocalCreditPackPurchaseAt: '2024-11-03 01:45:00',
        firstLocalMembershipPurchasedAt: '2024-11-03 01:15:00',
      },
    ]);
  });

  test('is that of the user’s branch, even for purchases at another branch', async () => {
    await database.db.insert(dimBranch).values([
      { branchId: 'home', timezoneId: 'Australia/Sydney' },
      { branchId: 'other', timezoneId: 'America/New_York' },
    ]);
    await database.db.insert(dimUser).values({ userId: 'theo', branchId: 'home' });
    await database.db.insert(fctCreditPackPurchases).values({
      userId: 'theo',
      branchId: 'other',
      creditPackId: 'pack',
      creditPackPurchasedAt: march(1),
    });
    expect(await events()).toMatchObject([
      { branchId: 'home', firstLocalCreditPackPurchaseAt: '2024-03-01 23:00:00' },
    ]);
  });

  test('is UTC for a branch without a time zone and a user without a branch', async () => {
    await database.db.insert(dimBranch).values({ branchId: 'online' });
    await database.db.insert(dimUser).values([
      { userId: 'a', branchId: 'online', createdAt: march(1) },
      { userId: 'b', createdAt: march(1) },
    ]);
    expect((await events()).map((event) => event.localUserCreatedAt)).toEqual([
      '2024-03-01 12:00:00',
      '2024-03-01 12:00:00',
    ]);
  });

  test('is the same whatever the time zone of the refreshing session', async () => {
    await database.db
      .insert(dimBranch)
      .values([{ branchId: 'dublin', timezoneId: 'Europe/Dublin' }, { branchId: 'online' }]);
    await database.db.insert(dimUser).values([
      { userId: 'a', branchId: 'dublin', createdAt: march(31, '01:00:00') },
      { userId: 'b', branchId: 'online', createdAt: march(31, '01:00:00') },
    ]);
    const before = await events();
    await database.db.execute(sql`set time zone 'Asia/Tokyo'`);
    try {
      await database.db.update(dimUser).set({ name: 'changed, so that no refresh is spared' });
      expect(await events()).toEqual(before);
      expect(before).toMatchObject([
        { localUserCreatedAt: '2024-03-31 02:00:00' },
        { localUserCreatedAt: '2024-03-31 01:00:00' },
      ]);
    } finally {
      await database.db.execute(sql`reset time zone`);
    }
  });

  test('is right for instants from the year 1 to the year 9999', async () => {
    await database.db.insert(dimBranch).values([
      { branchId: 'new-york', timezoneId: 'America/New_York' },
      { branchId: 'tokyo', timezoneId: 'Asia/Tokyo' },
    ]);
    await database.db.insert(dimUser).values([
      { userId: 'a', branchId: 'new-york', createdAt: sql`'0001-01-01 00:00:00+00'` },
      // Until 1887 Tokyo kept its local mean time, 9:18:59 ahead of UTC.
      { userId: 'b', branchId: 'tokyo', createdAt: sql`'1880-01-01 00:00:00+00'` },
      { userId: 'c', branchId: 'tokyo', createdAt: sql`'9999-12-31 23:59:59.999999+00'` },
    ]);
    expect((await events()).map((event) => event.localUserCreatedAt)).toEqual([
      '0001-12-31 19:03:58 BC',
      '1880-01-01 09:18:59',
      '10000-01-01 08:59:59.999999',
    ]);
  });
});

describe('purchase details', () => {
  test.each([
    { details: null, what: 'are missing' },
    { details: sql`'null'::jsonb`, what: 'are a JSON null' },
    { details: {}, what: 'have neither key' },
    { details: { name: null, source: null }, what: 'have null values' },
  ])('leave name and source NULL if they $what', async ({ details }) => {
    await database.db.insert(dimUser).values({ userId: 'u' });
    await database.db
      .insert(fctCreditPackPurchases)
      .values({ userId: 'u', creditPackId: 'pack', creditPackPurchaseDetails: details });
    await database.db
      .insert(fctMembershipPurchases)
      .values({ userId: 'u', userMembershipId: 'member', membershipPurchaseDetails: details });
    expect(await events()).toMatchObject([
      {
        ...lead,
        userId: 'u',
        leadStatus: 'CLIENT',
        clientConversionEventType: 'MEMBERSHIP',
        clientConversionEventId: 'member',
        firstUserMembershipId: 'member',
        firstCreditPackId: 'pack',
      },
    ]);
  });

  test('still give the source if the name is missing', async () => {
    await database.db.insert(dimUser).values({ userId: 'u' });
    await database.db.insert(fctMembershipPurchases).values({
      userId: 'u',
      userMembershipId: 'member',
      membershipPurchaseDetails: { source: 'desk' },
    });
    expect(await events()).toMatchObject([
      { clientConversionEventName: null, clientConversionEventSource: 'desk' },
    ]);
  });
});
