import { execFile } from 'node:child_process';
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { gzipSync } from 'node:zlib';
import { parse } from 'csv-parse/sync';
import { asc, sql } from 'drizzle-orm';
import fc from 'fast-check';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { dimBranch, dimUser, fctMembershipPurchases } from '../schema/index.ts';
import { type LoadOptions, loadFolder } from '../scripts/load/folder.ts';
import { type Field, type Mistake, readRecords } from '../scripts/load/records.ts';
import { readInstant } from '../scripts/load/values.ts';
import { useDatabase } from './support/database.ts';

// Which files a load accepts, and what it says about the others.

const database = useDatabase();

let folder: string;
beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'lead-conversions-files-'));
});
afterEach(() => rm(folder, { recursive: true }));

type Files = Record<string, string | Buffer>;

/** Loads files with these contents, and returns the warnings. */
async function load(files: Files, options: LoadOptions = {}): Promise<string[]> {
  await rm(folder, { recursive: true });
  await mkdir(folder);
  for (const [name, content] of Object.entries(files)) {
    await writeFile(join(folder, name), content);
  }
  return await loadWritten(options);
}

async function loadWritten(options: LoadOptions = {}): Promise<string[]> {
  const warnings: string[] = [];
  await loadFolder(database, folder, {
    ...options,
    onWarning: (warning) => warnings.push(warning.replaceAll(folder, 'FOLDER')),
  });
  return warnings;
}

/** Returns the message that refuses these files, and expects nothing of them to be stored. */
async function refusal(files: Files, options: LoadOptions = {}): Promise<string> {
  const counts = async () =>
    Promise.all([dimBranch, dimUser, fctMembershipPurchases].map((it) => database.db.$count(it)));
  const before = await counts();
  const { message } = await load(files, options).then(
    () => ({ message: 'nothing was refused' }),
    (error: Error) => error,
  );
  expect(await counts()).toEqual(before);
  return message.replaceAll(folder, 'FOLDER');
}

const users = 'user_id,branch_id,name,email,created_at';
const branches = 'branch_id,name,email,city,country,timezone_id,created_at';
const memberships =
  'user_id,branch_id,user_membership_id,membership_purchased_at,created_at,membership_purchase_details';

const storedUsers = () => database.db.select().from(dimUser).orderBy(asc(dimUser.userId));

describe('a time', () => {
  /** The time in UTC that is stored for a time in a file. */
  const stored = async (time: string) => {
    await load({ 'dim_user.csv': `${users}\nmia,,,,${time}\n` });
    const [user] = await database.db
      .select({ at: sql<string>`(created_at at time zone 'UTC')::text` })
      .from(dimUser);
    return user?.at;
  };

  test.each([
    ['2024-06-01', '2024-06-01 00:00:00'],
    ['2024-06-01T12:30', '2024-06-01 12:30:00'],
    ['2024-06-01 12:30:05', '2024-06-01 12:30:05'],
    ['2024-06-01T12:30:05.25Z', '2024-06-01 12:30:05.25'],
    ['2024-06-01 12:30:05 UTC', '2024-06-01 12:30:05'],
    ['2024-06-01 12:30:05UTC', '2024-06-01 12:30:05'],
    ['2024-06-01T12:30:05+05:30', '2024-06-01 07:00:05'],
    ['2024-06-01 12:30 -0530', '2024-06-01 18:00:00'],
    ['2024-06-01 12:30+05', '2024-06-01 07:30:00'],
    ['2024-12-31 24:00:00', '2025-01-01 00:00:00'],
    ['2024-06-01 23:59:60', '2024-06-02 00:00:00'],
    ['0001-01-01', '0001-01-01 00:00:00'],
    ['9999-12-31T23:59:59.999999Z', '9999-12-31 23:59:59.999999'],
  ])('%s is stored as %s in UTC', async (time, instant) => {
    expect(await stored(time)).toBe(instant);
  });

  test.each([
    ...['13/04/23 07:15', '3/4/24 10:00', '05-Feb-24', '202-01-01', '240102', '20240601'],
    ...[
      'now',
      'today',
      'epoch',
      'infinity',
      'yesterday',
      'allballs',
      '2024',
      '2024-06',
      '2024-6-1',
    ],
    ...['2024-06-01 12:30 CET', '2024-06-01 12:30 Europe/Dublin', '2024-06-01Z', '2024-06-01 12'],
    ...['2024-06-01  12:30', ' 2024-06-01', '2024-06-01 ', '2024-06-0112:30:00', '1717243800'],
    ...[
      '2024-W22-6',
      '2024-153',
      '2024-06-01 12:30 PM',
      '12024-06-01',
      '2024-06-01 BC',
      '-2024-06-01',
    ],
    ...['2024-06-01T12:30:05,5', '2024-06-01 12:30:05+5', '2024-06-01t12:30z', '٢٠٢٤-٠٦-٠١'],
  ])('%j is refused, and the message shows the accepted forms', async (time) => {
    expect(await refusal({ 'dim_user.csv': `${users}\nmia,,,,"${time}"\n` })).toBe(
      `dim_user.csv, line 2, column created_at: ${JSON.stringify(time)} is not a time. Write 2024-06-01 or 2024-06-01T12:30:00Z. You may write an offset such as +05:30 instead of Z. Without one, the time is UTC.`,
    );
  });

  test.each([
    '2024-02-30',
    '0000-12-31 23:00-02:00',
    '2023-02-29',
    '2024-13-01',
    '2024-06-01 24:00:01',
    '2024-06-01 12:60',
  ])('%j is refused, because there is no such date or time', async (time) => {
    expect(await refusal({ 'dim_user.csv': `${users}\nmia,,,,${time}\n` })).toBe(
      `dim_user.csv, line 2, column created_at: "${time}" is not a valid date or time.`,
    );
  });

  test.each(['0001-01-01 00:00+01', '9999-12-31 24:00', '9999-12-31 23:59:59.9999999'])(
    '%j is refused, because it is not in the years 1 to 9999',
    async (time) => {
      expect(await refusal({ 'dim_user.csv': `${users}\nmia,,,,${time}\n` })).toContain(
        'is not in the years 1 to 9999 (UTC).',
      );
    },
  );

  test('is accepted if Postgres accepts it, and means the same instant', async () => {
    const digits = (length: number, max: number) =>
      fc.integer({ min: 0, max }).map((number) => String(number).padStart(length, '0'));
    const times = fc
      .record({
        year: fc.integer({ min: 2, max: 9998 }).map((year) => String(year).padStart(4, '0')),
        month: digits(2, 13),
        day: digits(2, 32),
        hours: digits(2, 25),
        minutes: digits(2, 61),
        seconds: fc.oneof(
          fc.constant(''),
          digits(2, 61).map((text) => `:${text}`),
          fc.constant(':59.9999996'),
        ),
        offset: fc.oneof(
          fc.constantFrom('', 'Z', ' UTC'),
          fc
            .tuple(fc.constantFrom('+', '-', ' +'), digits(2, 17), digits(2, 61))
            .map(([sign, hours, minutes]) => `${sign}${hours}:${minutes}`),
        ),
      })
      .map(
        ({ year, month, day, hours, minutes, seconds, offset }) =>
          `${year}-${month}-${day}T${hours}:${minutes}${seconds}${offset}`,
      );
    await fc.assert(
      fc.asyncProperty(fc.array(times, { minLength: 50, maxLength: 50 }), async (texts) => {
        const read = texts.map((text) => readInstant(text));
        const values = texts.map((text, index) => {
          const instant = read[index];
          return { text, value: typeof instant === 'string' ? instant : null };
        });
        const [differences] = await database.db
          .select({ differences: sql`json_agg(text)` })
          .from(sql`(
          select text
          from json_to_recordset(${JSON.stringify(values)}::json) as times (text text, value text)
          where case
            when pg_input_is_valid(text, 'timestamptz')
            then value is null or value::timestamptz <> text::timestamptz
            else value is not null
          end
        ) as differences`);
        expect(differences).toEqual({ differences: null });
      }),
      { numRuns: 40 },
    );
  });
});

describe('quoting', () => {
  test('is strict: each wrongly quoted line is reported, and the lines around it are still read', async () => {
    expect(
      await refusal({
        'dim_user.csv': `${users}\nu1,,Al,,\nu8,,5" Bo,,\nu9,,6" Ann,,\nu10,,"x" y,,\nu11,,Zoe,,\n`,
      }),
    ).toBe(
      [
        'dim_user.csv, line 3: a field has a quote in it, but is not quoted. Put quotes around the field, and double the quote in it.',
        'dim_user.csv, line 4: a field has a quote in it, but is not quoted. Put quotes around the field, and double the quote in it.',
        `dim_user.csv, line 5: there is text between the closing quote of a field and the next field. Double each quote within a field, or load with --escape '\\' if the file writes \\" in its place.`,
      ].join('\n'),
    );
  });

  test('preserves every character, even those that have a meaning for COPY', async () => {
    const names = [
      '\\.',
      '\\N',
      'a\\tb',
      'tab\there',
      '"',
      ',',
      'one\ntwo\r\n\\.\nthree',
      '\u00a0',
      '\\',
    ];
    const lines = names.map((name, index) => `u${index},,"${name.replaceAll('"', '""')}",,`);
    await load({ 'dim_user.csv': `${users}\n${lines.join('\n')}\n\\.,,after,,\n` });
    expect((await storedUsers()).map(({ name }) => name)).toEqual(['after', ...names]);
  });

  test.each(['open', 'closed'])(
    'that makes a record longer than 16 MB is refused: %s',
    async (end) => {
      const field = `"${'long,\n'.repeat(3_000_000)}${end === 'closed' ? '"' : ''}`;
      expect(await refusal({ 'dim_user.csv': `${users}\na,,A,,\nb,,${field},,\nc,,C,,\n` })).toBe(
        'dim_user.csv, line 3: the record that begins here is longer than 16 MB. Perhaps a quote in it is never closed.',
      );
    },
  );

  test('that is wrong in many lines is reported for each of them, and for no other line', async () => {
    const lines = Array.from(
      { length: 50_000 },
      (_, index) => `u${index},,"n"${index % 2 ? 'x' : ''},,`,
    );
    const said = (await refusal({ 'dim_user.csv': `${users}\n${lines.join('\n')}\n` })).split('\n');
    expect(said[19]).toMatch(/^dim_user\.csv, line 41: there is text between /);
    expect(said[20]).toBe('and 24980 more');
  });

  test('with line breaks inside fields does not shift the reported line numbers', async () => {
    const json = '"{\r\n  ""name"": ""x""\r\n}"';
    expect(
      await refusal({
        'dim_user.csv': `${users}\r\nmia,,"two\r\nlines",,\r\nzoe,,Zoe,,soon\r\n`,
        'fct_membership_purchases.csv': `${memberships}\r\nmia,,1,,,${json}\r\nmia,,2,,,${json.slice(0, -1)}\r\n`,
      }),
    ).toMatch(
      /^dim_user\.csv, line 4, column created_at: .+\nfct_membership_purchases\.csv, line 5: the quote that opens here is never closed\.$/,
    );
  });

  test('is read as csv-parse reads it, in any text', async () => {
    const read = async (text: string) => {
      const mistakes: Mistake[] = [];
      const records: Field[][] = [];
      const chunks = (async function* () {
        yield* text; // one character at a time
      })();
      const options = { delimiter: ',', nulls: new Set<string>(), hasBackslashes: false };
      for await (const piece of readRecords(chunks, options, (it) => mistakes.push(it))) {
        records.push(...Array.from(piece, ({ fields }) => fields));
      }
      return mistakes.length > 0
        ? undefined
        : records.map((fields) => fields.map((field) => field ?? ''));
    };
    const oracle = (text: string): string[][] | undefined => {
      try {
        return parse(text, {
          record_delimiter: ['\r\n', '\n', '\r'],
          skip_empty_lines: true,
          relax_column_count: true,
        });
      } catch {
        return undefined;
      }
    };
    const withValues = (records: string[][] | undefined) =>
      records?.filter((fields) => fields.some((field) => field !== ''));
    await fc.assert(
      fc.asyncProperty(
        fc.string({ unit: fc.constantFrom('"', '"', ',', '\r', '\n', 'a', '\\'), maxLength: 14 }),
        async (text) => {
          expect(withValues(await read(text))).toEqual(withValues(oracle(text)));
        },
      ),
      { numRuns: 3000 },
    );
  });

  test('that never ends is reported at the line where it begins', async () => {
    expect(
      await refusal({
        'dim_user.csv': `${users}\nu1,,"two\nlines",,\n\nu2,,"A",,\nu3,"",\n"B,,\nu4,,,,\n`,
      }),
    ).toContain('dim_user.csv, line 7: the quote that opens here is never closed.');
  });
});

describe('a file', () => {
  const text = `${users}\nmia,,Mia,,\nzoë,,Zoë,,\n`;

  test.each([
    ['compressed with gzip', 'dim_user.csv.gz', gzipSync(text)],
    ['with a byte order mark', 'dim_user.csv', Buffer.from(`\ufeff${text}`)],
    ['with Windows line ends', 'dim_user.csv', Buffer.from(text.replaceAll('\n', '\r\n'))],
    ['with the line ends of old Macs', 'dim_user.csv', Buffer.from(text.replaceAll('\n', '\r'))],
    [
      'with line ends of all kinds',
      'dim_user.csv',
      Buffer.from(`${users}\r\nmia,,Mia,,\rzoë,,Zoë,,\n`),
    ],
    ['in UTF-16', 'dim_user.csv', Buffer.from(`\ufeff${text}`, 'utf16le')],
    ['in UTF-16, big-endian', 'dim_user.csv', Buffer.from(`\ufeff${text}`, 'utf16le').swap16()],
    ['with semicolons', 'dim_user.csv', Buffer.from(text.replaceAll(',', ';'))],
    ['with tabs', 'dim_user.csv', Buffer.from(text.replaceAll(',', '\t'))],
    ['with pipes', 'dim_user.csv', Buffer.from(text.replaceAll(',', '|'))],
    [
      'with blank lines and lines of delimiters',
      'dim_user.csv',
      Buffer.from(`\n,,,,\n${text.replaceAll('\n', '\n\n,,,,\n  \n\r\n')}`),
    ],
    ['with blank lines before the header', 'dim_user.csv', Buffer.from(`  ,\t,,,\n"",""\n${text}`)],
    ['without a line end after the last line', 'dim_user.csv', Buffer.from(text.trimEnd())],
  ])('%s is read', async (_, name, content) => {
    await load({ [name]: content });
    expect(await storedUsers()).toMatchObject([
      { userId: 'mia', branchId: null, name: 'Mia' },
      { userId: 'zoë', branchId: null, name: 'Zoë' },
    ]);
  });

  test.each([
    [
      'an xlsx',
      Buffer.from('PK\x03\x04...'),
      'this is a zip archive, as Excel writes (xlsx). Export it as CSV',
    ],
    ['a gzip file', gzipSync(text), 'this is a gzip file. Name it .csv.gz'],
    ['a parquet file', Buffer.from('PAR1...'), 'this is a Parquet file. Export it as CSV'],
    [
      'UTF-16 without a byte order mark',
      Buffer.from(text, 'utf16le'),
      'this is not text in UTF-8: it has NUL bytes. Export it as UTF-8, or as UTF-16 with a byte order mark',
    ],
  ])('that is %s is refused, and the message names the format', async (_, content, says) => {
    expect(await refusal({ 'dim_user.csv': content })).toBe(`dim_user.csv: ${says}.`);
  });

  test.each([
    ['cut off', gzipSync(text).subarray(0, -12)],
    ['damaged', Buffer.concat([gzipSync(text).subarray(0, -6), Buffer.from('damage')])],
    ['not a gzip file', Buffer.from(text)],
  ])('named .gz that is %s is refused', async (_, content) => {
    expect(await refusal({ 'dim_user.csv.gz': content })).toMatch(
      /^dim_user\.csv\.gz: this is not a gzip file, or it is damaged or incomplete \(.+\)\. Name it \.csv if it is not compressed, otherwise copy it again\.$/,
    );
  });

  test('named .gz may have several parts, and is refused if more follows its end', async () => {
    const parts = [gzipSync(text), gzipSync('al,,Al,,\n')];
    await load({ 'dim_user.csv.gz': Buffer.concat([...parts, Buffer.alloc(500)]) });
    expect(await storedUsers()).toHaveLength(3);
    expect(
      await refusal({
        'dim_user.csv.gz': Buffer.concat([gzipSync(text), Buffer.alloc(500), ...parts]),
      }),
    ).toBe(
      'dim_user.csv.gz: the gzip file has data after its end, which would not be read. Compress it again.',
    );
  });

  test('is refused beside another file for the same table', async () => {
    expect(await refusal({ 'dim_user.csv': text, 'dim_user.csv.gz': gzipSync(text) })).toBe(
      'FOLDER has both dim_user.csv and dim_user.csv.gz. Remove the one that is not to be loaded.',
    );
  });

  test('that is a folder or a pipe is refused at once', async () => {
    await mkdir(join(folder, 'dim_user.csv'));
    await expect(loadWritten()).rejects.toThrow('dim_user.csv is a folder, not a file.');
    await promisify(execFile)('mkfifo', [join(folder, 'dim_branch.csv')]);
    await expect(loadWritten()).rejects.toThrow(
      'dim_branch.csv is a pipe or a device, not a file.',
    );
  });

  test('with a similar name is not loaded, and a warning mentions it', async () => {
    expect(
      await load({
        'dim_user.csv': text,
        'dim_users.csv': text,
        'dim_user.csv.bak': text,
        'DIM_BRANCH.CSV': text,
        'notes.md': '',
      }),
    ).toEqual([
      'Not loaded: DIM_BRANCH.CSV, dim_user.csv.bak, dim_users.csv. Only files with these names are loaded: dim_branch.csv, dim_user.csv, fct_credit_pack_purchases.csv, fct_membership_purchases.csv, with or without .gz.',
    ]);
  });

  test('with bytes that are not UTF-8 is refused, and the message names the line', async () => {
    const content = Buffer.concat([
      Buffer.from(`${users}\r\n${'mia,,Zoë,,\r\n'.repeat(40_000)}`),
      Buffer.from('zoe,,Zo\xeb,,\r\n', 'latin1'),
    ]);
    expect(await refusal({ 'dim_user.csv': content })).toBe(
      'dim_user.csv, line 40002: this has bytes that are not UTF-8. Export the file as UTF-8.',
    );
  });
});

describe('a header', () => {
  test('is read regardless of case, spaces, hyphens and underscores', async () => {
    await load({ 'dim_user.csv': ' User ID ,Branch-Id,NAME,e_mail,createdAt\nmia,,Mia,m@x,\n' });
    expect(await storedUsers()).toMatchObject([{ userId: 'mia', name: 'Mia', email: 'm@x' }]);
  });

  test('is read whole, wherever it is and however long it is', async () => {
    const header = `${users}_local`;
    const blank = '""\n';
    // A file is read in pieces of 256 KB: here, one ends before "_local".
    const lines = '\n'.repeat(2 ** 18 - blank.length - users.length);
    for (const before of ['', `${blank}${lines}`]) {
      expect(
        await refusal({ 'dim_user.csv': `${before}${header}\nmia,,Mia,,2024-01-01\n` }),
      ).toContain('the header lacks created_at; the table has no "created_at_local". ');
    }
    expect(await refusal({ 'dim_user.csv': 'a'.repeat(2 ** 20) })).toContain(
      'the header lacks user_id',
    );
  });

  test('is recognized even if --null lists the names in it', async () => {
    const names = users.split(',');
    await load({ 'dim_user.csv': `${users}\nmia,,Mia,,\nzoe,,Zoe,,\n` }, { null: [...names, ' '] });
    expect(await storedUsers()).toHaveLength(2);
  });

  test('may have the column names of other exports of this data', async () => {
    await load({
      'dim_user.csv': `${users}\nmia,,,,\n`,
      'fct_membership_purchases.csv':
        'user_id,branch_id,membership_id,credit_membership_purchase_atpack_purchased_at,created_at,membership_purchase_details\nmia,,m1,2024-06-01,,\n',
    });
    expect(await database.db.select().from(fctMembershipPurchases)).toMatchObject([
      { userMembershipId: 'm1', membershipPurchasedAt: new Date('2024-06-01') },
    ]);
  });

  test('may have other names that --rename maps to columns', async () => {
    await load(
      { 'dim_user.csv': 'Member No,Gym,name,email,created_at\nmia,,Mia,,\n' },
      { rename: ['member-no=user_id', 'Gym=branch_id'] },
    );
    expect(await storedUsers()).toMatchObject([{ userId: 'mia' }]);
    expect(
      await refusal({ 'dim_user.csv': `${users}\n` }, { rename: ['member=user_id', 'x=name'] }),
    ).toBe('No file has the column that --rename "member=user_id" and "x=name" names.');
    expect(
      await refusal({ 'dim_user.csv': `${users}\na,,,,soon\n` }, { rename: ['member=user_id'] }),
    ).toMatch(/^dim_user\.csv, line 2, [^\n]+\nNo file has the column [^\n]+$/);
    expect(await refusal({ 'dim_user.csv': `${users}\n` }, { rename: ['member=user'] })).toBe(
      '--rename must be FROM=TO, with a column of an input table as TO, not "member=user".',
    );
  });

  test('may have other columns if they are to be ignored, and a warning lists them', async () => {
    const files = { 'dim_user.csv': `shoe size,${users},hat\n43,mia,,Mia,,,none\n` };
    expect(await load(files, { ignoreColumns: true })).toEqual([
      'dim_user.csv: these columns are ignored: "shoe size", "hat".',
    ]);
    expect(await storedUsers()).toMatchObject([{ userId: 'mia', name: 'Mia' }]);
    expect(await refusal(files)).toContain('dim_user.csv: the table has no "shoe size", "hat". ');
  });
});

describe('NULL', () => {
  test('is an empty field and, except in columns of free text, also an empty quoted field', async () => {
    await load({
      'dim_branch.csv': `${branches}\nb,"","","","","",""\nc,,,,,,\n`,
      'dim_user.csv': `${users}\nmia,"","","",""\n`,
    });
    expect(await database.db.select().from(dimBranch).orderBy(asc(dimBranch.branchId))).toEqual([
      {
        branchId: 'b',
        name: '',
        email: '',
        city: '',
        country: '',
        timezoneId: null,
        createdAt: null,
      },
      {
        branchId: 'c',
        name: null,
        email: null,
        city: null,
        country: null,
        timezoneId: null,
        createdAt: null,
      },
    ]);
    expect(await storedUsers()).toEqual([
      { userId: 'mia', branchId: null, name: '', email: '', createdAt: null },
    ]);
  });

  test('is refused as a key', async () => {
    expect(
      await refusal(
        { 'dim_user.csv': `${users}\n"",,Mia,,\n,,Zoe,,\nNULL,,Al,,\n` },
        { null: ['NULL'] },
      ),
    ).toBe(
      [2, 3, 4]
        .map((line) => `dim_user.csv, line ${line}, column user_id: must not be empty.`)
        .join('\n'),
    );
  });

  test('may be written in other ways that --null lists, unless the field is quoted', async () => {
    const files = { 'dim_user.csv': `${users}\na,NULL,n/a,"NULL",\\N\nb,,null,,\n` };
    await load(files, { null: ['NULL', '\\N', 'n/a'] });
    expect(await storedUsers()).toEqual([
      { userId: 'a', branchId: null, name: null, email: 'NULL', createdAt: null },
      { userId: 'b', branchId: null, name: 'null', email: null, createdAt: null },
    ]);
    expect(await refusal(files)).toContain(`If it means NULL, load with --null '\\N'`);
  });
});

test('a backslash may escape quotes, and is plain text elsewhere', async () => {
  const details = String.raw`{"name": "5\" \\ é \n", "source": "x"}`;
  const field = `"${details.replace(/["\\]/g, '\\$&')}"`;
  await load(
    {
      'dim_user.csv': `${users}\nmia,,"C:\\new",a\\b,\n`,
      'fct_membership_purchases.csv': `${memberships}\nmia,,m1,,,${field}\nmia,,m2,,,"{\\"name\\": \\"\\u00e9\\"}"\n`,
    },
    { escape: '\\' },
  );
  expect(await storedUsers()).toMatchObject([{ name: 'C:\\new', email: 'a\\b' }]);
  expect(
    await database.db
      .select()
      .from(fctMembershipPurchases)
      .orderBy(asc(fctMembershipPurchases.userMembershipId)),
  ).toMatchObject([{ membershipName: '5" \\ é \n' }, { membershipName: 'é' }]);
  expect(await refusal({ 'dim_user.csv': `${users}\n` }, { escape: "'" })).toBe(
    `--escape must be " or \\, not "'".`,
  );
});

describe('a mistake in the files', () => {
  test("may be a value that somebody else's constraint refuses, even on a generated column", async () => {
    const purchase = (name: string) => ({
      'dim_user.csv': `${users}\nmia,,,,\n`,
      'fct_membership_purchases.csv': `${memberships}\nmia,,1,,,"{""name"": ""${name}""}"\n`,
    });
    await database.db.execute(sql`
      alter table fct_membership_purchases add constraint no_gold check (membership_name <> 'Gold')`);
    try {
      await load(purchase('Silver'));
      expect(await refusal(purchase('Gold'))).toContain('violates check constraint "no_gold"');
    } finally {
      await database.db.execute(sql`alter table fct_membership_purchases drop constraint no_gold`);
    }
  });

  test('is reported with all others of all files at once, by file and line', async () => {
    expect(
      await refusal({
        'dim_branch.csv': `${branches}\nb1,,,,,Mars/Olympus,\nb2,,,,,CET,2024-13-01\n`,
        'dim_user.csv': `${users}\na,b1,,,soon\na,b2,,,\nb,b9,,,\n`,
        'fct_membership_purchases.csv': `${memberships}\na,b1,m1,,,nope\nghost,b2,m1,,,[]\na,b1,m2,,\n`,
      }),
    ).toBe(
      [
        'dim_branch.csv, line 2, column timezone_id: "Mars/Olympus" must be an IANA time zone name that Postgres knows, such as Europe/Dublin, not an abbreviation (CET) or an offset (FOO+3).',
        'dim_branch.csv, line 3, column created_at: "2024-13-01" is not a valid date or time.',
        'dim_branch.csv, line 3, column timezone_id: "CET" must be an IANA time zone name that Postgres knows, such as Europe/Dublin, not an abbreviation (CET) or an offset (FOO+3).',
        'dim_user.csv, line 2, column created_at: "soon" is not a time. Write 2024-06-01 or 2024-06-01T12:30:00Z. You may write an offset such as +05:30 instead of Z. Without one, the time is UTC.',
        'dim_user.csv, line 3: user_id "a" is already in line 2, with different values.',
        'dim_user.csv, line 4, column branch_id: dim_branch has no branch_id "b9".',
        'fct_membership_purchases.csv, line 2, column membership_purchase_details: "nope" is not JSON.',
        'fct_membership_purchases.csv, line 3, column membership_purchase_details: "[]" must be a JSON object, or JSON null.',
        'fct_membership_purchases.csv, line 3, column user_id: dim_user has no user_id "ghost".',
        'fct_membership_purchases.csv, line 4: the line has 5 fields, but the header has 6.',
      ].join('\n'),
    );
  });

  test('is only counted after the first 20', async () => {
    const lines = (
      await refusal({
        'dim_user.csv': `${users}\n${'u,nowhere,,,soon\n'.repeat(50)}`,
      })
    ).split('\n');
    expect(lines).toHaveLength(21);
    expect(lines[18]).toMatch(/^dim_user\.csv, line 11, column created_at: "soon" is not a time\./);
    expect(lines[19]).toBe(
      'dim_user.csv, line 11, column branch_id: dim_branch has no branch_id "nowhere".',
    );
    expect(lines[20]).toBe('and 80 more');
  });

  test('is not reported for rows that refer to an unreadable row', async () => {
    expect(
      await refusal({
        'dim_branch.csv': `${branches}\nb1,"x" y,,,,,\n`,
        'dim_user.csv': `${users}\nmia,b1,,,\n`,
      }),
    ).toMatch(/^dim_branch\.csv, line 2: there is text between [^\n]*$/);
  });

  test('may be JSON that jsonb cannot hold', async () => {
    const details = ['{"a": "\\u0000"}', '{"\\ud800": 1}', '{"name": "\\\\u0000"}'];
    const lines = details.map((json, index) => `mia,,${index},,,"${json.replaceAll('"', '""')}"`);
    const says = await refusal({
      'dim_user.csv': `${users}\nmia,,,,\n`,
      'fct_membership_purchases.csv': `${memberships}\n${lines.join('\n')}\n`,
    });
    expect(
      says.split('\n').map((line) => line.replace(/.*line (\d).*(has an escape .*)/, '$1 $2')),
    ).toEqual([
      '2 has an escape for a character that Postgres cannot store.',
      '3 has an escape for a character that Postgres cannot store.',
    ]);
  });

  test('may be JSON that is nested too deep for an embedded database', async () => {
    const nested = (levels: number) => `"${'[""]"",'.repeat(levels)}{}${']'.repeat(levels)}"`;
    const files = (levels: number) => ({
      'dim_user.csv': `${users}\nmia,,,,\n`,
      'fct_membership_purchases.csv': `${memberships}\nmia,,1,,,"{""a"": ${nested(levels).slice(1, -1)}}"\n`,
    });
    await load(files(998));
    expect(await refusal(files(999))).toMatch(/ is nested in more than 1000 levels\.$/);
  });

  test('is reported with its place even if only Postgres finds it', async () => {
    expect(
      await refusal({
        'dim_branch.csv': `${branches}\nb,,,,,,soon\n`,
        'dim_user.csv': `${users}\n\nmia,,"two\nlines",,\n`,
        'fct_membership_purchases.csv': `${memberships}\n\nmia,,1,,,\nmia,,2,,,"{""a"":\n1e999999}"\n`,
      }),
    ).toMatch(
      /^dim_branch\.csv, line 2, column created_at: .+\nfct_membership_purchases\.csv, line 5, column membership_purchase_details: Postgres refuses this value: .+\.$/,
    );
  });

  test('in a typical export is reported with all others in one message, and one command loads the corrected files', async () => {
    const options = { escape: '\\', null: ['NULL'] };
    const purchases = (times: string[]) =>
      `\nuser_id,branch_id,membership_id,membership_purchased_at,created_at,membership_purchase_details\n${times
        .map(
          (time, index) =>
            `mia,NULL,m${index},${time},NULL,"{\\"name\\": \\"Gold\\", \\"source\\": \\"web\\"}"`,
        )
        .join('\n')}\n`;
    const files = (times: string[]) => ({
      'dim_user.csv': `${users}\nmia,NULL,Mia,NULL,2024-01-01 10:00:00\n`,
      'fct_membership_purchases.csv': purchases(times),
    });
    const good = ['2024-02-01 15:00:00', '2024-02-02 15:00:00 UTC', '2024-02-03 15:00:00+00'];
    const bad = ['2024-02-0115:00:00', '2024-02-0215:00:00 UTC', '2024-02-0315:00:00+00'];
    const says = await refusal(files(bad), options);
    expect(says.split('\n').map((line) => line.slice(0, 79))).toEqual(
      bad.map((time, index) =>
        `fct_membership_purchases.csv, line ${index + 3}, column membership_purchased_at: "${time}"`.slice(
          0,
          79,
        ),
      ),
    );
    await load(files(good), options);
    expect(await database.db.$count(fctMembershipPurchases)).toBe(3);
  });
});

describe('any file', () => {
  const nullable = (text: fc.Arbitrary<string>) => fc.option(text, { freq: 3 });
  const texts = fc
    .string({ unit: 'binary', maxLength: 12 })
    // NUL and surrogates cannot be stored; PGlite drops a byte order mark when it reads a value.
    .filter((text) => !/[\0\p{Surrogate}\ufeff]/u.test(text));
  const tricky = fc.constantFrom(
    'NULL',
    'n/a',
    '\\N',
    '\\.',
    '"',
    '""',
    ',',
    ';',
    '\t',
    '|',
    '\r\n',
    '\n',
    ' ',
    '\\',
    '',
  );
  const field = nullable(fc.oneof(texts, tricky));
  const rows = fc
    .array(fc.record({ name: field, email: field }), { maxLength: 8 })
    .map((list) => list.map((row, index) => ({ userId: `u${index}`, ...row })));
  const style = fc.record({
    delimiter: fc.constantFrom(',', ';', '\t', '|'),
    lineEnd: fc.constantFrom('\n', '\r\n', '\r'),
    nothing: fc.constantFrom('', 'NULL', '\\N', 'n/a'),
    quotesAll: fc.boolean(),
    backslashes: fc.boolean(),
    mark: fc.boolean(),
    ends: fc.boolean(),
  });
  type Style = typeof style extends fc.Arbitrary<infer Value> ? Value : never;
  type UserRow = typeof rows extends fc.Arbitrary<(infer Value)[]> ? Value : never;

  /** The text that a strict writer makes of rows. */
  const write = (list: UserRow[], how: Style): string => {
    const { delimiter, lineEnd, nothing, quotesAll, backslashes, mark, ends } = how;
    const written = (value: string | null) => {
      if (value === null) {
        return nothing;
      }
      const isPlain = /^[a-zA-Z0-9 ]+$/.test(value) && value !== nothing;
      const escaped = backslashes ? value.replace(/["\\]/g, '\\$&') : value.replaceAll('"', '""');
      return isPlain && !quotesAll ? value : `"${escaped}"`;
    };
    const lines = list.map(({ userId, name, email }) =>
      [userId, null, name, email, null].map(written).join(delimiter),
    );
    const whole = [users.replaceAll(',', delimiter), ...lines].join(lineEnd);
    return `${mark ? '\ufeff' : ''}${whole}${ends ? lineEnd : ''}`;
  };

  test('from a strict writer comes back as the same rows', { timeout: 120_000 }, async () => {
    await fc.assert(
      fc.asyncProperty(rows, style, async (list, how) => {
        await database.db.delete(dimUser);
        await load(
          { 'dim_user.csv': write(list, how) },
          { null: [how.nothing], escape: how.backslashes ? '\\' : '"' },
        );
        expect(await storedUsers()).toEqual(
          list.map((row) => ({ ...row, branchId: null, createdAt: null })),
        );
      }),
      { numRuns: 150 },
    );
  });

  test('with flipped bits is loaded as a strict parser reads it, or refused as a whole', {
    timeout: 120_000,
  }, async () => {
    let loaded = 0;
    await fc.assert(
      fc.asyncProperty(
        rows,
        fc.array(fc.tuple(fc.nat(), fc.constantFrom(0x01, 0x02, 0x20, 0x0d, 0x80)), {
          minLength: 1,
          maxLength: 3,
        }),
        async (list, flips) => {
          const plain = {
            ...({ delimiter: ',', lineEnd: '\n', nothing: '', backslashes: false } as const),
          };
          const bytes = Buffer.from(
            write(list, { ...plain, quotesAll: false, mark: false, ends: true }),
          );
          for (const [position, bit] of flips) {
            const at = position % bytes.length;
            bytes[at] = (bytes[at] ?? 0) ^ bit;
          }
          await database.db.delete(dimUser);
          const message = await load({ 'dim_user.csv': bytes }).then(
            () => undefined,
            (error: Error) => error.message,
          );
          const stored = await storedUsers();
          if (message !== undefined) {
            expect(stored).toEqual([]);
            return;
          }
          loaded += 1;
          const [, ...records]: string[][] = parse(
            new TextDecoder('utf-8', { fatal: true }).decode(bytes),
            {
              record_delimiter: ['\r\n', '\n', '\r'],
              skip_empty_lines: true,
            },
          );
          expect(new Set(stored.map(({ userId, name }) => `${userId} ${name ?? ''}`))).toEqual(
            new Set(
              records
                .filter((record) => record.some((value) => value !== ''))
                .map(([userId, , name]) => `${userId} ${name}`),
            ),
          );
        },
      ),
      { numRuns: 300 },
    );
    expect(loaded).toBeGreaterThan(20);
  });
});
