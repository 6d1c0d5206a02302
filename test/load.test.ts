import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { asc, sql } from 'drizzle-orm';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { dimBranch, dimUser, fctMembershipPurchases } from '../schema/index.ts';
import { type LoadOptions, type LoadProgress, loadFolder } from '../scripts/load/folder.ts';
import { useDatabase } from './support/database.ts';

const database = useDatabase();

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'lead-conversions-load-'));
});
afterEach(() => rm(folder, { recursive: true }));

/** Loads a folder that has only these files, with these lines or bytes. */
async function load(files: Record<string, string[] | Buffer>, options: LoadOptions = {}) {
  await rm(folder, { recursive: true });
  await mkdir(folder);
  for (const [file, content] of Object.entries(files)) {
    await writeFile(
      join(folder, file),
      Array.isArray(content) ? content.map((line) => `${line}\n`).join('') : content,
    );
  }
  return loadFolder(database, folder, options);
}

const branches = 'branch_id,name,email,city,country,timezone_id,created_at';
const users = 'user_id,branch_id,name,email,created_at';
const memberships =
  'user_id,branch_id,user_membership_id,membership_purchased_at,created_at,membership_purchase_details';

const storedUsers = () => database.db.select().from(dimUser).orderBy(asc(dimUser.userId));

describe('loading', () => {
  test('stores each row, an empty field as NULL and a quoted empty field as empty text', async () => {
    expect(
      await load({
        'dim_branch.csv': [branches, 'dublin,Docklands,,"",Ireland,Europe/Dublin,2023-01-09'],
        'dim_user.csv': [users, 'mia,dublin,"Mia, Member",mia@mail.example,2024-02-01T15:00:00Z'],
        'fct_membership_purchases.csv': [
          memberships,
          'mia,dublin,1,2024-02-15T22:10:00Z,,"{""name"": ""Monthly""}"',
        ],
      }),
    ).toEqual([
      { file: 'dim_branch.csv', rows: 1, repeated: 0, inserted: 1, updated: 0, deleted: 0 },
      { file: 'dim_user.csv', rows: 1, repeated: 0, inserted: 1, updated: 0, deleted: 0 },
      {
        file: 'fct_membership_purchases.csv',
        rows: 1,
        repeated: 0,
        inserted: 1,
        updated: 0,
        deleted: 0,
      },
    ]);
    expect(await database.db.select().from(dimBranch)).toEqual([
      {
        branchId: 'dublin',
        name: 'Docklands',
        email: null,
        city: '',
        country: 'Ireland',
        timezoneId: 'Europe/Dublin',
        createdAt: new Date('2023-01-09T00:00:00Z'),
      },
    ]);
    expect(await storedUsers()).toEqual([
      {
        userId: 'mia',
        branchId: 'dublin',
        name: 'Mia, Member',
        email: 'mia@mail.example',
        createdAt: new Date('2024-02-01T15:00:00Z'),
      },
    ]);
    expect(await database.db.select().from(fctMembershipPurchases)).toEqual([
      {
        userId: 'mia',
        branchId: 'dublin',
        userMembershipId: '1',
        membershipPurchasedAt: new Date('2024-02-15T22:10:00Z'),
        createdAt: null,
        membershipPurchaseDetails: { name: 'Monthly' },
        membershipName: 'Monthly',
        membershipSource: null,
      },
    ]);
  });

  test('reads columns by their names in the header, in any order', async () => {
    await load({ 'dim_user.csv': ['email,created_at,name,user_id,branch_id', ',,Mia,mia,'] });
    expect(await storedUsers()).toMatchObject([{ userId: 'mia', name: 'Mia', email: null }]);
  });

  test('accepts a byte order mark, quoted names and Windows line ends', async () => {
    await load({
      'dim_user.csv': Buffer.from(
        '\ufeff"user_id",branch_id,name,email,created_at\r\nmia,,Mia,,\r\nzoë,,Zoë,,\r\n',
      ),
    });
    expect(await storedUsers()).toMatchObject([
      { userId: 'mia', name: 'Mia' },
      { userId: 'zoë', name: 'Zoë' },
    ]);
  });

  test('distinguishes names that are the same number in JSON', async () => {
    const purchase = (name: string) => ({
      'dim_user.csv': [users, 'mia,,,,'],
      'fct_membership_purchases.csv': [memberships, `mia,,1,,,"{""name"": ${name}}"`],
    });
    await load(purchase('1.5'));
    expect(await load(purchase('1.50'))).toContainEqual({
      file: 'fct_membership_purchases.csv',
      rows: 1,
      repeated: 0,
      inserted: 0,
      updated: 1,
      deleted: 0,
    });
    expect(await database.db.select().from(fctMembershipPurchases)).toMatchObject([
      { membershipName: '1.50' },
    ]);
    // JSON that differs only in the order of its keys and in spaces is the same.
    await load(purchase('{"" a"": 1, ""b"": 2}'));
    expect(await load(purchase('{""b"":2,"" a"":1}'))).toContainEqual({
      file: 'fct_membership_purchases.csv',
      rows: 1,
      repeated: 0,
      inserted: 0,
      updated: 0,
      deleted: 0,
    });
    await expect(
      load({
        'fct_membership_purchases.csv': [
          memberships,
          'mia,,1,,,"{""name"": 1}"',
          'mia,,1,,,"{""name"": 1.0}"',
        ],
      }),
    ).rejects.toThrow(
      'fct_membership_purchases.csv, line 3: user_id "mia", user_membership_id "1" is already in line 2, with different values.',
    );
  });

  test('loads a file with a header and no rows', async () => {
    expect(await load({ 'dim_user.csv': [users] })).toEqual([
      { file: 'dim_user.csv', rows: 0, repeated: 0, inserted: 0, updated: 0, deleted: 0 },
    ]);
  });

  test('changes nothing if the same files are loaded again', async () => {
    const files = {
      'dim_branch.csv': [branches, 'dublin,,,,,Europe/Dublin,2023-01-09'],
      'dim_user.csv': [users, 'mia,dublin,,,'],
      'fct_membership_purchases.csv': [memberships, 'mia,,1,,,"{""name"": ""Monthly""}"'],
    };
    await load(files);
    const versions = sql`select xmin::text, ctid::text from ${fctMembershipPurchases}`;
    const before = await database.db.execute(versions);
    expect(await load(files)).toMatchObject([
      { rows: 1, repeated: 0, inserted: 0, updated: 0, deleted: 0 },
      { rows: 1, repeated: 0, inserted: 0, updated: 0, deleted: 0 },
      { rows: 1, repeated: 0, inserted: 0, updated: 0, deleted: 0 },
    ]);
    expect(await database.db.execute(versions)).toEqual(before);
  });

  test('replaces a row with the same key and other values, even with NULL', async () => {
    await load({ 'dim_user.csv': [users, 'mia,,Mia,mia@mail.example,', 'sam,,Sam,,'] });
    expect(
      await load({ 'dim_user.csv': [users, 'mia,,,mia@gym.example,', 'sam,,Sam,,', 'zoe,,,,'] }),
    ).toEqual([
      { file: 'dim_user.csv', rows: 3, repeated: 0, inserted: 1, updated: 1, deleted: 0 },
    ]);
    expect(await storedUsers()).toMatchObject([
      { userId: 'mia', name: null, email: 'mia@gym.example' },
      { userId: 'sam', name: 'Sam' },
      { userId: 'zoe', name: null },
    ]);
  });

  test('accepts the same row twice in one file, and stores it once', async () => {
    expect(await load({ 'dim_user.csv': [users, 'mia,,Mia,,', 'mia,,Mia,,'] })).toEqual([
      { file: 'dim_user.csv', rows: 2, repeated: 1, inserted: 1, updated: 0, deleted: 0 },
    ]);
  });

  test('counts repeated rows, whether they are new or already stored', async () => {
    await load({ 'dim_user.csv': [users, 'sam,,Sam,,'] });
    const files = {
      'dim_user.csv': [users, 'mia,,,,', 'sam,,Sam,,', 'mia,,,,', 'sam,,Sam,,', 'mia,,,,'],
    };
    expect(await load(files)).toEqual([
      { file: 'dim_user.csv', rows: 5, repeated: 3, inserted: 1, updated: 0, deleted: 0 },
    ]);
  });

  test('reads times without an offset as UTC, whatever the time zone of the session', async () => {
    await database.db.execute(sql`set time zone 'Asia/Tokyo'`);
    try {
      await load({
        'dim_user.csv': [
          users,
          'a,,,,2024-02-01 15:00:00',
          'b,,,,2024-02-01',
          'c,,,,2024-02-01T15:00:00+02:00',
        ],
      });
    } finally {
      await database.db.execute(sql`reset time zone`);
    }
    expect((await storedUsers()).map(({ createdAt }) => createdAt)).toEqual([
      new Date('2024-02-01T15:00:00Z'),
      new Date('2024-02-01T00:00:00Z'),
      new Date('2024-02-01T13:00:00Z'),
    ]);
  });

  test('reports its progress with each file', async () => {
    const progress: LoadProgress[] = [];
    await load(
      { 'dim_user.csv': [users, 'mia,,,,'] },
      { onProgress: (event) => progress.push(event) },
    );
    expect(progress).toEqual(
      ['read', 'check', 'compare', 'store'].map((step) => ({
        ...{ file: 'dim_user.csv', step, readBytes: 48, totalBytes: 48 },
      })),
    );
  });
});

describe('bad input is refused, and the error says where it is:', () => {
  const adviceOnHeader =
    'Use --rename FROM=TO for columns with other names, and --ignore-columns for columns that the table does not have';
  const zoneRule =
    'must be an IANA time zone name that Postgres knows, such as Europe/Dublin, not an abbreviation (CET) or an offset (FOO+3)';
  const noTime =
    'is not a time. Write 2024-06-01 or 2024-06-01T12:30:00Z. You may write an offset such as +05:30 instead of Z. Without one, the time is UTC';
  const headerOfUsers = `The columns of dim_user are user_id, branch_id, name, email, created_at, in any order. ${adviceOnHeader}.`;
  const badFiles: { what: string; files: Record<string, string[] | Buffer>; says: string }[] = [
    {
      what: 'an unknown time zone',
      files: { 'dim_branch.csv': [branches, 'a,,,,,UTC,', 'b,,,,,Mars/Olympus,'] },
      says: `dim_branch.csv, line 3, column timezone_id: "Mars/Olympus" ${zoneRule}.`,
    },
    {
      what: 'a POSIX time zone',
      files: { 'dim_branch.csv': [branches, 'a,,,,,FOO+3,'] },
      says: `dim_branch.csv, line 2, column timezone_id: "FOO+3" ${zoneRule}.`,
    },
    {
      what: 'an invalid time',
      files: { 'dim_user.csv': [users, 'a,,,,', 'b,,,,one fine day'] },
      says: `dim_user.csv, line 3, column created_at: "one fine day" ${noTime}.`,
    },
    {
      what: 'an ambiguous date',
      files: { 'dim_user.csv': [users, 'a,,,,03/04/2024'] },
      says: `dim_user.csv, line 2, column created_at: "03/04/2024" ${noTime}.`,
    },
    {
      what: 'an infinite time',
      files: { 'dim_user.csv': [users, 'a,,,,infinity'] },
      says: `dim_user.csv, line 2, column created_at: "infinity" ${noTime}.`,
    },
    {
      what: 'broken JSON',
      files: { 'fct_membership_purchases.csv': [memberships, 'known,,1,,,{name}'] },
      says: 'fct_membership_purchases.csv, line 2, column membership_purchase_details: "{name}" is not JSON.',
    },
    {
      what: 'JSON that is not an object',
      files: { 'fct_membership_purchases.csv': [memberships, 'known,,1,,,[]'] },
      says: 'fct_membership_purchases.csv, line 2, column membership_purchase_details: "[]" must be a JSON object, or JSON null.',
    },
    {
      what: 'a product name that is too long',
      files: {
        'fct_membership_purchases.csv': [
          memberships,
          'known,,1,,,{}',
          `known,,2,,,"{""name"": ""${'x'.repeat(1001)}""}"`,
        ],
      },
      says: `fct_membership_purchases.csv, line 3, column membership_purchase_details: ${JSON.stringify(`{"name": "${'x'.repeat(70)}`)}... must not have a name or a source of more than 1,000 bytes.`,
    },
    {
      what: 'an identifier that is too long',
      files: { 'dim_user.csv': [users, 'a,,,,', `${'x'.repeat(5000)},,,,`] },
      says: `dim_user.csv, line 3, column user_id: "${'x'.repeat(80)}"... must be at most 255 bytes long.`,
    },
    {
      what: 'a generated column',
      files: {
        'fct_membership_purchases.csv': [`${memberships},membership_name`, 'known,,1,,,,Gold'],
      },
      says: `fct_membership_purchases.csv: membership_name must not be in the file, because Postgres derives it from the details. The columns of fct_membership_purchases are ${memberships.replaceAll(',', ', ')}, in any order. ${adviceOnHeader}.`,
    },
    {
      what: 'a row without its key',
      files: { 'dim_user.csv': [users, ',,Nobody,,'] },
      says: 'dim_user.csv, line 2, column user_id: must not be empty.',
    },
    {
      what: 'a purchase of an unknown user',
      files: {
        'fct_membership_purchases.csv': [
          memberships,
          'known,,1,,,"{""name"":\n""two lines""}"',
          'ghost,,2,,,',
        ],
      },
      says: 'fct_membership_purchases.csv, line 4, column user_id: dim_user has no user_id "ghost".',
    },
    {
      what: 'a user of an unknown branch',
      files: { 'dim_user.csv': [users, 'a,nowhere,,,'] },
      says: 'dim_user.csv, line 2, column branch_id: dim_branch has no branch_id "nowhere".',
    },
    {
      what: 'one key with different values',
      files: { 'dim_user.csv': [users, 'a,,A,,', 'b,,"B\nB",,', 'a,,B,,'] },
      says: 'dim_user.csv, line 5: user_id "a" is already in line 2, with different values.',
    },
    {
      what: 'one key of two columns with different values',
      files: { 'fct_membership_purchases.csv': [memberships, 'known,,1,,,', 'known,,1,,,{}'] },
      says: 'fct_membership_purchases.csv, line 3: user_id "known", user_membership_id "1" is already in line 2, with different values.',
    },
    {
      what: 'a row with too many fields',
      files: { 'dim_user.csv': [users, 'a,,,,,'] },
      says: 'dim_user.csv, line 2: the line has 6 fields, but the header has 5.',
    },
    {
      what: 'a row with too few fields',
      files: { 'dim_user.csv': [users, 'a,,'] },
      says: 'dim_user.csv, line 2: the line has 3 fields, but the header has 5.',
    },
    {
      what: 'a quote that is never closed',
      files: { 'dim_user.csv': [users, 'a,,"A,,'] },
      says: 'dim_user.csv, line 2: the quote that opens here is never closed.',
    },
    {
      what: 'a file that is not UTF-8',
      files: { 'dim_user.csv': Buffer.from(`${users}\na,,Zo\u00eb,,\n`, 'latin1') },
      says: 'dim_user.csv, line 2: this has bytes that are not UTF-8. Export the file as UTF-8.',
    },
    {
      what: 'an unknown column',
      files: { 'dim_user.csv': [`${users},shoe_size`, 'a,,,,,43'] },
      says: `dim_user.csv: the table has no "shoe_size". ${headerOfUsers}`,
    },
    {
      what: 'a missing column',
      files: { 'dim_user.csv': ['user_id,branch_id,name,email', 'a,,,'] },
      says: `dim_user.csv: the header lacks created_at. ${headerOfUsers}`,
    },
    {
      what: 'a column twice',
      files: { 'dim_user.csv': [`${users},name`, 'a,,,,,'] },
      says: `dim_user.csv: the header has name more than once. ${headerOfUsers}`,
    },
    {
      what: 'a header with several mistakes',
      files: { 'dim_user.csv': ['user_id;branch_id;shoe size;hat', 'a;b;;'] },
      says: `dim_user.csv: the header lacks name, email, created_at; the table has no "shoe size", "hat". ${headerOfUsers}`,
    },
    {
      what: 'an empty file',
      files: { 'dim_user.csv': [] },
      says: `dim_user.csv: the file has no header, or a header with wrong quotes. ${headerOfUsers}`,
    },
    {
      what: 'a file that is not text',
      files: { 'dim_user.csv': Buffer.from([0x50, 0x4b, 0x03, 0x04, 0x00, 0xff]) },
      says: 'dim_user.csv: this is a zip archive, as Excel writes (xlsx). Export it as CSV.',
    },
  ];

  test.each(badFiles)('$what', async ({ files, says }) => {
    await database.db.insert(dimUser).values({ userId: 'known' });
    const before = await storedUsers();
    await expect(load({ 'dim_branch.csv': [branches, 'new,,,,,,'], ...files })).rejects.toThrow(
      new Error(says),
    );
    expect(await storedUsers()).toEqual(before);
    expect(await database.db.$count(dimBranch)).toBe(0);
    expect(await database.db.$count(fctMembershipPurchases)).toBe(0);
  });

  test('a folder without any of the files', async () => {
    await expect(load({ 'users.csv': [users] })).rejects.toThrow(
      `There is nothing to load in ${folder}: it has none of dim_branch.csv, dim_user.csv, fct_credit_pack_purchases.csv, fct_membership_purchases.csv, with or without .gz.`,
    );
  });

  test('a missing folder', async () => {
    const missing = join(folder, 'missing');
    await expect(loadFolder(database, missing)).rejects.toThrow(
      `The folder ${missing} cannot be read: ENOENT: no such file or directory`,
    );
  });
});
