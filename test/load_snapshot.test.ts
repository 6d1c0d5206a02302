import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { sql } from 'drizzle-orm';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { inputLoads } from '../schema/index.ts';
import { type LoadOptions, loadFolder } from '../scripts/load/folder.ts';
import { useDatabase } from './support/database.ts';

// Loads with --snapshot, for which each file is the whole table.

const database = useDatabase();

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'lead-conversions-snapshot-'));
});
afterEach(() => rm(folder, { recursive: true }));

/** The keys of the rows of each table: branches as `a`, users as `a/mia`, purchases as `mia/1`. */
interface Keys {
  branches?: string[];
  users?: string[];
  creditPacks?: string[];
  memberships?: string[];
}

const fileOf: Record<keyof Keys, [name: string, header: string]> = {
  branches: ['dim_branch.csv', 'branch_id,name,email,city,country,timezone_id,created_at'],
  users: ['dim_user.csv', 'branch_id,user_id,name,email,created_at'],
  creditPacks: [
    'fct_credit_pack_purchases.csv',
    'user_id,credit_pack_id,branch_id,credit_pack_purchased_at,created_at,credit_pack_purchase_details',
  ],
  memberships: [
    'fct_membership_purchases.csv',
    'user_id,user_membership_id,branch_id,membership_purchased_at,created_at,membership_purchase_details',
  ],
};

/** Loads files of rows that have these keys and nothing else. */
async function load(keys: Keys, options: LoadOptions = {}) {
  await rm(folder, { recursive: true });
  await mkdir(folder);
  for (const [kind, [name, header]] of Object.entries(fileOf)) {
    const rows = keys[kind as keyof Keys]?.map((key) => {
      const fields = key.split('/');
      return [...fields, ...Array(header.split(',').length - fields.length).fill('')].join(',');
    });
    if (rows) {
      await writeFile(join(folder, name), `${[header, ...rows].join('\n')}\n`);
    }
  }
  const loads = await loadFolder(database, folder, options);
  return loads.map(({ inserted, updated, deleted }) => [inserted, updated, deleted]);
}

const snapshot = (keys: Keys, options: LoadOptions = {}) =>
  load(keys, { isSnapshot: true, maxLoss: '100%', ...options });

async function stored(): Promise<Keys> {
  const [keys] = await database.db
    .select({
      keys: sql<Keys>`json_build_object(
        'branches', (select json_agg(branch_id order by branch_id) from dim_branch),
        'users', (
          select json_agg(concat_ws('/', branch_id, user_id) order by user_id) from dim_user
        ),
        'creditPacks', (
          select json_agg(user_id || '/' || credit_pack_id order by user_id, credit_pack_id)
          from fct_credit_pack_purchases
        ),
        'memberships', (
          select json_agg(user_id || '/' || user_membership_id order by user_id, user_membership_id)
          from fct_membership_purchases
        )
      )`,
    })
    .from(sql`(values (1)) as once`);
  return keys?.keys ?? {};
}

const all = {
  branches: ['a', 'b'],
  users: ['a/mia', 'a/sam', 'b/zoe'],
  creditPacks: ['mia/1', 'zoe/1'],
  memberships: ['mia/1', 'mia/2', 'sam/1', 'zoe/1'],
};

describe('a snapshot', () => {
  test('deletes the rows that its files lack, children first, and reports how many', async () => {
    await load(all);
    const left = {
      branches: ['a'],
      users: ['a/mia', 'a/sam'],
      creditPacks: ['mia/1'],
      memberships: ['mia/2', 'sam/1'],
    };
    expect(await snapshot(left)).toEqual([
      [0, 0, 1],
      [0, 0, 1],
      [0, 0, 1],
      [0, 0, 2],
    ]);
    expect(await stored()).toEqual(left);
    expect(await snapshot(left)).toEqual([
      [0, 0, 0],
      [0, 0, 0],
      [0, 0, 0],
      [0, 0, 0],
    ]);
  });

  test('moves users to another branch before it deletes their old one', async () => {
    await load(all);
    const moved = { ...all, branches: ['a', 'c'], users: ['a/mia', 'a/sam', 'c/zoe'] };
    expect(await snapshot(moved)).toEqual([
      [1, 0, 1],
      [0, 1, 0],
      [0, 0, 0],
      [0, 0, 0],
    ]);
    expect(await stored()).toEqual(moved);
  });

  test('leaves tables without a file alone', async () => {
    await load(all);
    expect(await snapshot({ memberships: ['mia/1'] })).toEqual([[0, 0, 3]]);
    expect(await stored()).toEqual({ ...all, memberships: ['mia/1'] });
  });

  test('gives the same rows as a load into empty tables, whatever was there before', async () => {
    const subset = (of: string[], remainder: number) =>
      of.filter((_, index) => index % 3 !== remainder);
    const keysOf = (round: number): Keys => {
      const branches = subset(['a', 'b', 'c', 'd', 'e'], round % 3);
      const users = subset(
        Array.from({ length: 30 }, (_, index) => `u${10 + index}`),
        (round + 1) % 3,
      );
      const purchases = users.flatMap((user, index) =>
        subset(
          ['1', '2', '3'].map((id) => `${user}/${id}`),
          (index + round) % 4,
        ),
      );
      return {
        branches,
        users: users.map((user, index) => `${branches[(index + round) % branches.length]}/${user}`),
        creditPacks: purchases,
        memberships: purchases.toReversed(),
      };
    };
    const sorted = (keys: Keys) =>
      Object.fromEntries(
        Object.entries(keys).map(([kind, list]) => [
          kind,
          (list as string[]).toSorted((one, other) =>
            kind === 'users' ? (one.slice(2) < other.slice(2) ? -1 : 1) : one < other ? -1 : 1,
          ),
        ]),
      );
    for (let round = 0; round < 9; round += 1) {
      await snapshot(keysOf(round));
      expect(await stored(), `round ${round}`).toEqual(sorted(keysOf(round)));
    }
  });

  test('is recorded with what it did, like every load', async () => {
    await database.db.delete(inputLoads);
    await load({ users: ['/mia', '/sam'] });
    await snapshot({ users: ['/sam', '/zoe'] });
    const recorded = await database.db.select().from(inputLoads).orderBy(inputLoads.id);
    expect(recorded).toMatchObject([
      { inputTable: 'dim_user', isSnapshot: false, rows: 2, inserted: 2, updated: 0, deleted: 0 },
      { inputTable: 'dim_user', isSnapshot: true, rows: 2, inserted: 1, updated: 0, deleted: 1 },
    ]);
    for (const { startedAt, finishedAt } of recorded) {
      expect(startedAt.valueOf()).toBeLessThanOrEqual(finishedAt.valueOf());
    }
  });
});

describe('a snapshot is refused, and changes nothing, if it', () => {
  beforeEach(async () => {
    await load(all);
  });
  afterEach(async () => {
    expect(await stored()).toEqual(all);
  });

  const refusal = (keys: Keys, options: LoadOptions = {}) =>
    snapshot(keys, options).then(
      () => 'not refused',
      (error: Error) => error.message,
    );

  test('would delete more than is allowed, and the error has the numbers of each table', async () => {
    const cut = { ...all, users: ['a/mia'], memberships: ['mia/1'] };
    expect(await refusal(cut, { maxLoss: '20%' })).toBe(
      'Nothing was loaded, because --snapshot would delete too many rows: dim_user.csv lacks 2 of the 3 rows of dim_user (66.67 %); fct_membership_purchases.csv lacks 3 of the 4 rows of fct_membership_purchases (75 %). Check that the files are complete. If they are, allow the loss with --max-loss 100% (it is 20% now).',
    );
    expect(await refusal({ memberships: [] }, { maxLoss: '99.9%' })).toContain('(100 %)');
    expect(await refusal({ memberships: [] }, { maxLoss: 'all' })).toContain('--max-loss');
  });

  test('has purchases of a user whom it lacks', async () => {
    expect(await refusal({ ...all, users: ['a/mia', 'a/sam'] })).toBe(
      [
        'fct_credit_pack_purchases.csv, line 3, column user_id: dim_user.csv, which with --snapshot is the whole table, has no user_id "zoe".',
        'fct_membership_purchases.csv, line 5, column user_id: dim_user.csv, which with --snapshot is the whole table, has no user_id "zoe".',
      ].join('\n'),
    );
  });

  test('lacks users or branches that tables without a file refer to', async () => {
    expect(await refusal({ users: ['a/mia'], creditPacks: ['mia/1'] })).toBe(
      'dim_user.csv: the file does not have user_id "sam", "zoe", which fct_membership_purchases refers to. --snapshot would delete them from dim_user. Load fct_membership_purchases.csv as well, or complete the file.',
    );
    expect(await refusal({ branches: ['a'] })).toBe(
      'dim_branch.csv: the file does not have branch_id "b", which dim_user refers to. --snapshot would delete it from dim_branch. Load dim_user.csv as well, or complete the file.',
    );
  });

  test('has another mistake, which is reported', async () => {
    expect(await refusal({ users: ['a/mia', 'b/'] }, { maxLoss: '0%' })).toMatch(
      /^dim_user\.csv, line 3, column user_id: must not be empty\.$/m,
    );
  });
});

test('a snapshot may delete exactly the share that is allowed', async () => {
  await load({ users: ['/a', '/b', '/c', '/d', '/e'] });
  expect(await snapshot({ users: ['/a', '/b', '/c', '/d'] }, { maxLoss: '20%' })).toEqual([
    [0, 0, 1],
  ]);
  await expect(snapshot({ users: ['/a', '/b', '/c'] }, { maxLoss: '20%' })).rejects.toThrow(
    'dim_user.csv lacks 1 of the 4 rows of dim_user (25 %)',
  );
});

describe("if somebody's trigger on a table", () => {
  const trigger = async (event: string, result: string) => {
    await database.db.execute(sql`
      create or replace function public.meddle() returns trigger language plpgsql as
      ${sql.raw(`$$ begin return ${result}; end $$`)}`);
    await database.db.execute(sql`
      create trigger meddle before ${sql.raw(event)} on public.dim_user
      for each row execute function public.meddle()`);
  };
  afterEach(() => database.db.execute(sql`drop function public.meddle cascade`));

  const refused =
    'Nothing was loaded, because dim_user would not match the files. Either a trigger or a rule changes the rows, or other sessions keep writing to the same rows. Disable the trigger or rule, or load again when nobody else writes.';

  test('keeps rows out, a load is refused', async () => {
    await trigger('insert', `case when new.user_id <> 'sam' then new end`);
    await expect(load({ users: ['/mia', '/sam'] })).rejects.toThrow(refused);
    expect(await stored()).toMatchObject({ users: null });
  });

  test('changes values, a load is refused', async () => {
    await load({ branches: ['a', 'b'], users: ['a/mia', 'a/sam'] });
    await trigger('update', 'old');
    await expect(load({ users: ['a/mia', 'b/sam'] })).rejects.toThrow(refused);
    expect(await stored()).toMatchObject({ users: ['a/mia', 'a/sam'] });
  });

  test('prevents deletes, a snapshot is refused', async () => {
    await load({ users: ['/mia', '/sam', '/zoe'] });
    await trigger('delete', `case when old.user_id <> 'sam' then old end`);
    await expect(snapshot({ users: ['/mia'] })).rejects.toThrow(refused);
    expect(await stored()).toMatchObject({ users: ['mia', 'sam', 'zoe'] });
  });

  test('changes nothing, a load succeeds', async () => {
    await trigger('insert or update', 'new');
    expect(await load({ users: ['/mia', '/sam'] })).toEqual([[2, 0, 0]]);
  });
});

test('a table with inheriting tables is refused', async () => {
  await database.db.execute(sql`create table public.old_users () inherits (public.dim_user)`);
  try {
    await expect(load({ users: ['/mia'] })).rejects.toThrow(
      'dim_user has inheriting tables, and a load cannot tell their rows from those of the table. Move their rows into it, and remove the inheritance: "alter table … no inherit dim_user".',
    );
  } finally {
    await database.db.execute(sql`drop table public.old_users`);
  }
});
