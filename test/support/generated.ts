import { sql } from 'drizzle-orm';
import fc from 'fast-check';
import type { Database } from '../../scripts/database.ts';
import { truncateInputTables } from './database.ts';
import type { Input } from './model.ts';

/** The values that inputs are made of. With few values, ties and matches are frequent. */
interface Values {
  /** Of branches, users and purchases. */
  identifiers: string[];
  zones: string[];
  instants: string[];
  /** Names and sources of purchases. */
  texts: string[];
  maxBranches: number;
  maxUsers: number;
  /** Of each kind of purchase. */
  maxPurchases: number;
}

const orNull = <Value>(values: fc.Arbitrary<Value>) => fc.option(values, { freq: 5 });

/** Any input that is made of these values. Values that may be NULL sometimes are. */
export function inputOf(values: Values): fc.Arbitrary<Input> {
  const { identifiers, zones, maxBranches, maxUsers, maxPurchases } = values;
  const instant = orNull(fc.constantFrom(...values.instants));
  const text = orNull(fc.constantFrom(...values.texts));
  return fc
    .record({
      branchIds: fc.uniqueArray(fc.constantFrom(...identifiers), { maxLength: maxBranches }),
      userIds: fc.uniqueArray(fc.constantFrom(...identifiers), {
        minLength: 1,
        maxLength: maxUsers,
      }),
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
        { selector: ({ user_id, id }) => JSON.stringify([user_id, id]), maxLength: maxPurchases },
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
}

/** Stores an input in the input tables, in place of all their rows. */
export async function store(
  { db }: Pick<Database, 'db'>,
  { branches, users, creditPacks, memberships }: Input,
): Promise<void> {
  await db.execute(sql.raw(truncateInputTables));
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
