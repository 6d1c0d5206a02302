import { sql } from 'drizzle-orm';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { fctClientConversionEvents, fctLeadConversions, refreshViews } from '../views/index.ts';
import { rowsOf, useDatabase } from './support/database.ts';
import { clientConversionEvents, type Input, leadConversions } from './support/model.ts';

const database = useDatabase();

// Few values, so that ties and matches are frequent, and each one a trap: byte
// order against a language's order, zones on either side of UTC and far from it,
// instants around changes of the clock, a microsecond apart, and before 1970.
const identifiers = ['a', 'B', 'b-1', 'b_1', 'b10', 'é', 'Z', ''];
const zones = [
  'America/New_York',
  'America/St_Johns',
  'Asia/Kathmandu',
  'Australia/Lord_Howe',
  'Etc/GMT+12',
  'Europe/Dublin',
  'Pacific/Apia',
  'Pacific/Kiritimati',
  'UTC',
];
const instants = [
  '1969-12-31T23:59:59.999999Z',
  '2011-12-30T09:59:59Z', // Apia skips a day
  '2011-12-30T10:00:00Z',
  '2024-03-10T06:59:59.999999Z', // New York goes to summer time
  '2024-03-10T07:00:00Z',
  '2024-03-10T07:00:00.000001Z',
  '2024-03-31T00:59:59Z', // Dublin goes to summer time
  '2024-03-31T01:00:00Z',
  '2024-04-06T14:59:59Z', // Lord Howe goes back by half an hour
  '2024-04-06T15:00:00Z',
  '2024-10-27T00:59:59Z', // Dublin goes back
  '2024-10-27T01:00:00Z',
  '2024-11-03T05:30:00Z', // New York has this hour twice
  '2024-11-03T06:30:00Z',
];

const orNull = <Value>(values: fc.Arbitrary<Value>) => fc.option(values, { freq: 5 });
const instant = orNull(fc.constantFrom(...instants));
const text = orNull(fc.constantFrom('Monthly', '5 classes', '', 'Zoë’s "special", \\ and \n'));

const input: fc.Arbitrary<Input> = fc
  .record({
    branchIds: fc.uniqueArray(fc.constantFrom(...identifiers), { maxLength: 4 }),
    userIds: fc.uniqueArray(fc.constantFrom(...identifiers), { minLength: 1, maxLength: 6 }),
  })
  .chain(({ branchIds, userIds }) => {
    const branchId = branchIds.length ? orNull(fc.constantFrom(...branchIds)) : fc.constant(null);
    const purchases = fc.uniqueArray(
      fc.record({
        user_id: fc.constantFrom(...userIds),
        branch_id: branchId,
        id: fc.constantFrom(...identifiers),
        purchased_at: instant,
        details: orNull(fc.record({ name: text, source: text }, { requiredKeys: [] })),
      }),
      { selector: ({ user_id, id }) => JSON.stringify([user_id, id]), maxLength: 20 },
    );
    return fc.record({
      branches: fc.tuple(
        ...branchIds.map((branch_id) =>
          fc.record({
            branch_id: fc.constant(branch_id),
            timezone_id: orNull(fc.constantFrom(...zones)),
          }),
        ),
      ),
      users: fc.tuple(
        ...userIds.map((user_id) =>
          fc.record({ user_id: fc.constant(user_id), branch_id: branchId, created_at: instant }),
        ),
      ),
      creditPacks: purchases,
      memberships: purchases,
    });
  });

async function store({ branches, users, creditPacks, memberships }: Input): Promise<void> {
  const { db } = database;
  await db.execute(
    sql`truncate dim_branch, dim_user, fct_credit_pack_purchases, fct_membership_purchases`,
  );
  const insert = async (table: string, rows: object[]) => {
    const columns = sql.join(
      Object.keys(rows[0] ?? {}).map((name) => sql.identifier(name)),
      sql`, `,
    );
    if (rows.length > 0) {
      await db.execute(sql`
        insert into ${sql.identifier(table)} (${columns})
        select ${columns} from jsonb_populate_recordset(
          null::${sql.identifier(table)}, ${JSON.stringify(rows)}::text::jsonb
        )`);
    }
  };
  await insert('dim_branch', branches);
  await insert('dim_user', users);
  await insert(
    'fct_credit_pack_purchases',
    creditPacks.map(({ id, purchased_at, details, ...purchase }) => ({
      ...purchase,
      credit_pack_id: id,
      credit_pack_purchased_at: purchased_at,
      credit_pack_purchase_details: details,
    })),
  );
  await insert(
    'fct_membership_purchases',
    memberships.map(({ id, purchased_at, details, ...purchase }) => ({
      ...purchase,
      user_membership_id: id,
      membership_purchased_at: purchased_at,
      membership_purchase_details: details,
    })),
  );
}

test('both views are what the model makes of any input', async () => {
  await fc.assert(
    fc.asyncProperty(input, async (generated) => {
      await store(generated);
      await refreshViews(database.db, { maxLoss: '100%' });
      expect(await rowsOf(database, fctClientConversionEvents, 'user_id')).toEqual(
        clientConversionEvents(generated),
      );
      const order = ['user_id', 'client_conversion_event_filter'];
      expect(await rowsOf(database, fctLeadConversions, ...order)).toEqual(
        leadConversions(generated),
      );
    }),
    { numRuns: 100 },
  );
});
