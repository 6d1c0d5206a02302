import type postgres from 'postgres';

export interface Size {
  users: number;
  /** The average over all users, for both kinds together. */
  purchasesPerUser: number;
}

const zones = [
  'Africa/Johannesburg',
  'America/Argentina/Buenos_Aires',
  'America/Chicago',
  'America/Los_Angeles',
  'America/New_York',
  'America/Sao_Paulo',
  'America/St_Johns',
  'Asia/Dubai',
  'Asia/Kathmandu',
  'Asia/Kolkata',
  'Asia/Singapore',
  'Asia/Tokyo',
  'Australia/Adelaide',
  'Australia/Sydney',
  'Europe/Athens',
  'Europe/Dublin',
  'Europe/Madrid',
  'Pacific/Auckland',
  'UTC',
];

export const branches = 2000;

/** Returns the identifier of the branch, user and so on with this number, in SQL. */
const id = (kind: string, number: string) => `md5('${kind} ' || ${number})::uuid::varchar`;
export const branchId = (number: string) => id('branch', number);
export const userId = (number: string) => id('user', number);

/** Returns, in SQL, an instant within the six years from 2020 on, which depends on a number. */
const instant = (number: string, prime: number) =>
  `timestamptz '2020-01-01' + (${number}::bigint * ${prime} % 189302400) * interval '1 second'`;

/**
 * Returns, in SQL, the details of a purchase, with a product and a source that depend on its
 * number.
 */
const details = (product: string) => `jsonb_build_object(
  'name', '${product} ' || number % 12, 'source', (array['app', 'web', 'till'])[number % 3 + 1])`;

/**
 * Fills the input tables. Every second user buys credit packs. Two in five users buy memberships,
 * independently of that. The same size gives the same rows. The numbers are multiplied by primes,
 * so the purchases of a user, and the users of a branch, are scattered over the tables, as in real
 * ones. The tables are analyzed, but not vacuumed.
 */
export async function generate(
  client: postgres.Sql,
  { users, purchasesPerUser }: Size,
): Promise<void> {
  const ofEachKind = Math.round((users * purchasesPerUser) / 2);
  const restore = await dropIndexes(client);
  await client.unsafe(`
    insert into dim_branch (branch_id, name, timezone_id)
    select
      ${branchId('number')}, 'Branch ' || number,
      ('{${zones}}'::varchar[])[number % ${zones.length + 1} + 1]
    from generate_series(0, ${branches - 1}) as number;

    insert into dim_user (user_id, branch_id, name, email, created_at)
    select
      ${userId('number')}, ${branchId(`number::bigint * 7919 % ${branches}`)},
      'Member ' || number, 'member' || number || '@example.com', ${instant('number', 104729)}
    from generate_series(0, ${users - 1}) as number;

    insert into fct_credit_pack_purchases
    select
      ${userId(`2 * (number::bigint * 48271 % ${Math.ceil(users / 2)})`)},
      ${branchId(`number::bigint * 7927 % ${branches}`)}, ${id('credit pack', 'number')},
      ${instant('number', 15485863)}, now(), ${details('Credit pack')}
    from generate_series(1, ${ofEachKind}) as number;

    insert into fct_membership_purchases
    select
      ${userId(`buyer / 2 * 5 + buyer % 2 * 2`)},
      ${branchId(`number::bigint * 7933 % ${branches}`)}, ${id('membership', 'number')},
      ${instant('number', 32452843)}, now(), ${details('Membership')}
    from (
      select number, number::bigint * 15485863 % ${Math.floor(users / 5) * 2} as buyer
      from generate_series(1, ${ofEachKind}) as number
    ) as purchases`);
  await restore();
  await client.unsafe('analyze');
}

/**
 * Drops the keys and indexes of the input tables, because it would be slow to maintain them row by
 * row. Returns a function that creates them again.
 */
async function dropIndexes(client: postgres.Sql): Promise<() => Promise<void>> {
  const tables = `
    oid in ('dim_user'::regclass, 'fct_credit_pack_purchases'::regclass, 'fct_membership_purchases'::regclass)`;
  const indexes = await client.unsafe<{ drop: string; restore: string }[]>(`
    with tables as (select oid from pg_class where ${tables})
    select
      format('alter table %s drop constraint %I', conrelid::regclass, conname) as drop,
      format(
        'alter table %s add constraint %I %s',
        conrelid::regclass, conname, pg_get_constraintdef(pg_constraint.oid)
      ) as restore,
      contype = 'f' as is_reference
    from pg_constraint inner join tables on conrelid = tables.oid
    where contype in ('p', 'f')
    union all
    select format('drop index %s', indexrelid::regclass), pg_get_indexdef(indexrelid), null
    from pg_index inner join tables on indrelid = tables.oid
    where not indisprimary
    order by is_reference`);
  for (const { drop } of indexes.toReversed()) {
    await client.unsafe(drop);
  }
  return async () => {
    for (const { restore } of indexes) {
      await client.unsafe(restore);
    }
  };
}

/**
 * Makes one in a hundred users buy something, later than all purchases of the rounds before. Half
 * of them buy a membership, half a credit pack.
 */
export async function buy(client: postgres.Sql, { users }: Size, round: number): Promise<void> {
  // Each round takes another user of each hundred, so the buyers include leads and clients of all
  // kinds.
  const buyers = (remainder: number) => `
    (select number, ${id('round', `${round} || ' ' || number`)} as id
    from (
      select hundred, hundred * 100 + (hundred * 37 + ${round * 13}) % 100 as number
      from generate_series(0, ${users} / 100 - 1) as hundred
    ) as buyers
    where hundred % 2 = ${remainder}) as purchases`;
  const at = `timestamptz '2026-01-01' + ${round} * interval '1 day'`;
  await client.unsafe(`
    insert into fct_membership_purchases
    select ${userId('number')}, null, id, ${at}, now(), ${details('Membership')} from ${buyers(0)};
    insert into fct_credit_pack_purchases
    select ${userId('number')}, null, id, ${at}, now(), ${details('Credit pack')} from ${buyers(1)}`);
}
