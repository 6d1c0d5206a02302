import { eq, getTableName, sql } from 'drizzle-orm';
import { describe, expect, test } from 'vitest';
import {
  dimBranch,
  dimUser,
  fctCreditPackPurchases,
  fctMembershipPurchases,
} from '../schema/index.ts';
import { useDatabase } from './support/database.ts';

const database = useDatabase();

/** The error of the database for a statement. */
const refusal = async (statement: Promise<unknown>): Promise<string> => {
  const error = await statement.then(
    () => new Error('not refused'),
    (reason: Error) => reason,
  );
  return ((error.cause ?? error) as Error).message;
};

describe('a time zone', () => {
  const writeZone = (timezoneId: string) =>
    refusal(database.db.insert(dimBranch).values({ branchId: 'b', timezoneId }));

  test('may be any name that Postgres knows, except those that it reads as abbreviations', async () => {
    const others = ['CET', 'EET', 'EST', 'Factory', 'HST', 'MET', 'MST', 'WET'];
    const { db } = database;
    await db.execute(sql`
      insert into dim_branch (branch_id, timezone_id)
      select name, name
      from pg_timezone_names
      where name not in ${others} and name !~ '^(posix|localtime)'`);
    expect(await db.$count(dimBranch)).toBeGreaterThan(590 - others.length);
    for (const zone of others) {
      expect(await writeZone(zone)).toContain('dim_branch_timezone_id_check');
    }
  });

  test('is refused if Postgres does not know it, and the error names it', async () => {
    expect(await writeZone('Mars/Olympus')).toBe('time zone "Mars/Olympus" not recognized');
    expect(await writeZone('America/New York')).toContain('dim_branch_timezone_id_check');
  });

  test.each([
    'FOO+3',
    'Mars/Olympus+3',
    'Etc/GMT+13',
    'Etc/GMT-15',
    'EST5EDT,M3.2.0,M11.1.0',
    '<+03>-3',
    '+03',
    '+03:00',
    '3',
    'PST',
    'Z',
    '',
    ' Europe/Dublin',
    'Europe/Dublin\n',
  ])(
    'is refused if it is no IANA name, even if Postgres could read it as a zone: %j',
    async (zone) => {
      expect(await writeZone(zone)).toContain('dim_branch_timezone_id_check');
    },
  );

  test('is refused on update too', async () => {
    await database.db.insert(dimBranch).values({ branchId: 'b', timezoneId: 'Europe/Dublin' });
    const update = database.db.update(dimBranch).set({ timezoneId: 'Mars/Olympus' });
    expect(await refusal(update)).toBe('time zone "Mars/Olympus" not recognized');
  });
});

describe('an instant', () => {
  test.each(['infinity', '-infinity', '0001-12-31 23:59:59+00 BC', '10000-01-01 00:00:00+00'])(
    'is refused if it is infinite or not in the years 1 to 9999: %s',
    async (instant) => {
      const at = sql`${instant}::timestamptz`;
      const { db } = database;
      await db.insert(dimUser).values({ userId: 'u' });
      expect(
        await refusal(db.insert(dimBranch).values({ branchId: 'b', createdAt: at })),
      ).toContain('dim_branch_created_at_check');
      expect(await refusal(db.update(dimUser).set({ createdAt: at }))).toContain(
        'dim_user_created_at_check',
      );
      const purchase = { userId: 'u', creditPackId: '1', userMembershipId: '1' };
      for (const [column, values] of Object.entries({
        credit_pack_purchased_at: { ...purchase, creditPackPurchasedAt: at },
        created_at: { ...purchase, createdAt: at },
      })) {
        expect(await refusal(db.insert(fctCreditPackPurchases).values(values))).toContain(
          `fct_credit_pack_purchases_${column}_check`,
        );
      }
      for (const [column, values] of Object.entries({
        membership_purchased_at: { ...purchase, membershipPurchasedAt: at },
        created_at: { ...purchase, createdAt: at },
      })) {
        expect(await refusal(db.insert(fctMembershipPurchases).values(values))).toContain(
          `fct_membership_purchases_${column}_check`,
        );
      }
    },
  );
});

describe('purchase details', () => {
  test.each(['[]', '"Monthly"', '5', 'true'])('are refused if they are %s', async (json) => {
    const details = sql`${json}::jsonb`;
    const { db } = database;
    await db.insert(dimUser).values({ userId: 'u' });
    expect(
      await refusal(
        db
          .insert(fctCreditPackPurchases)
          .values({ userId: 'u', creditPackId: '1', creditPackPurchaseDetails: details }),
      ),
    ).toContain('fct_credit_pack_purchases_credit_pack_purchase_details_check');
    expect(
      await refusal(
        db
          .insert(fctMembershipPurchases)
          .values({ userId: 'u', userMembershipId: '1', membershipPurchaseDetails: details }),
      ),
    ).toContain('fct_membership_purchases_membership_purchase_details_check');
  });

  test('are refused if a refresh could not read them', async () => {
    await database.db.insert(dimUser).values({ userId: 'u' });
    const insert = database.db.execute(sql`
      insert into fct_membership_purchases (user_id, user_membership_id, membership_purchase_details)
      values ('u', '1', '{"name": "\\u0000"}')`);
    expect(await refusal(insert)).toBe('unsupported Unicode escape sequence');
  });
});

describe('an identifier', () => {
  const longest = 'é'.repeat(127); // 254 bytes
  test('may have 255 bytes', async () => {
    const { db } = database;
    const id = `${longest}x`;
    await db.insert(dimBranch).values({ branchId: id });
    await db.insert(dimUser).values({ userId: id, branchId: id });
    const purchase = { userId: id, branchId: id, creditPackId: id, userMembershipId: id };
    await db.insert(fctCreditPackPurchases).values(purchase);
    await db.insert(fctMembershipPurchases).values(purchase);
  });

  test('is refused if it has more than 255 bytes', async () => {
    const { db } = database;
    const id = `${longest}xx`;
    const short = { userId: 'u', branchId: 'b', creditPackId: '1', userMembershipId: '1' };
    for (const [table, columns] of [
      [dimBranch, { branch_id: 'branchId' }],
      [dimUser, { user_id: 'userId', branch_id: 'branchId' }],
      [
        fctCreditPackPurchases,
        { user_id: 'userId', branch_id: 'branchId', credit_pack_id: 'creditPackId' },
      ],
      [
        fctMembershipPurchases,
        { user_id: 'userId', branch_id: 'branchId', user_membership_id: 'userMembershipId' },
      ],
    ] as const) {
      for (const [column, key] of Object.entries(columns)) {
        expect(await refusal(db.insert(table).values({ ...short, [key]: id }))).toContain(
          `"${getTableName(table)}_${column}_check"`,
        );
      }
    }
  });
});

describe('the name and the source of a purchase', () => {
  // Compression does not make this text shorter.
  const random = Buffer.from(
    Array.from({ length: 1000 }, (_, index) => 33 + ((index * 7919 + index ** 3) % 90)),
  )
    .toString('latin1')
    .replaceAll('\\', '/');

  test('may have 1,000 bytes each, beside identifiers of the maximum length', async () => {
    const { db } = database;
    const id = random.slice(0, 255);
    const details = { name: random, source: random };
    await db.insert(dimUser).values({ userId: id });
    await db
      .insert(fctCreditPackPurchases)
      .values({ userId: id, creditPackId: id, creditPackPurchaseDetails: details });
    await db
      .insert(fctMembershipPurchases)
      .values({ userId: id, userMembershipId: id, membershipPurchaseDetails: details });
    expect(
      await db
        .select({
          name: fctMembershipPurchases.membershipName,
          source: fctMembershipPurchases.membershipSource,
        })
        .from(fctMembershipPurchases),
    ).toEqual([details]);
  });

  test.each(['name', 'source'])('are refused if the %s has more than 1,000 bytes', async (key) => {
    const { db } = database;
    const details = { [key]: 'é'.repeat(501) };
    await db.insert(dimUser).values({ userId: 'u' });
    expect(
      await refusal(
        db
          .insert(fctCreditPackPurchases)
          .values({ userId: 'u', creditPackId: '1', creditPackPurchaseDetails: details }),
      ),
    ).toContain('fct_credit_pack_purchases_details_check');
    expect(
      await refusal(
        db
          .insert(fctMembershipPurchases)
          .values({ userId: 'u', userMembershipId: '1', membershipPurchaseDetails: details }),
      ),
    ).toContain('fct_membership_purchases_details_check');
  });
});

describe('keys', () => {
  test('allow two users the same purchase identifier, but no user or purchase twice', async () => {
    const { db } = database;
    await db.insert(dimUser).values([{ userId: 'a' }, { userId: 'b' }]);
    await db.insert(fctMembershipPurchases).values([
      { userId: 'a', userMembershipId: '1' },
      { userId: 'b', userMembershipId: '1' },
    ]);
    await db.insert(fctCreditPackPurchases).values([
      { userId: 'a', creditPackId: '1' },
      { userId: 'b', creditPackId: '1' },
    ]);
    const again = { userId: 'a', creditPackId: '1', userMembershipId: '1' };
    expect(await refusal(db.insert(fctMembershipPurchases).values(again))).toContain(
      'duplicate key value violates unique constraint',
    );
    expect(await refusal(db.insert(fctCreditPackPurchases).values(again))).toContain(
      'duplicate key value violates unique constraint',
    );
    expect(await refusal(db.insert(dimUser).values({ userId: 'a' }))).toContain(
      'duplicate key value violates unique constraint',
    );
  });

  test('may refer only to existing users and branches', async () => {
    const { db } = database;
    await db.insert(dimBranch).values({ branchId: 'known' });
    await db.insert(dimUser).values({ userId: 'known', branchId: 'known' });
    const purchase = { userId: 'known', creditPackId: '1', userMembershipId: '1' };
    for (const statement of [
      db.insert(dimUser).values({ userId: 'a', branchId: 'unknown' }),
      db.insert(fctCreditPackPurchases).values({ ...purchase, userId: 'unknown' }),
      db.insert(fctCreditPackPurchases).values({ ...purchase, branchId: 'unknown' }),
      db.insert(fctMembershipPurchases).values({ ...purchase, userId: 'unknown' }),
      db.insert(fctMembershipPurchases).values({ ...purchase, branchId: 'unknown' }),
      db.delete(dimBranch).where(eq(dimBranch.branchId, 'known')),
    ]) {
      expect(await refusal(statement)).toContain('violates foreign key constraint');
    }
  });
});
