import postgres from 'postgres';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { run } from './support/commands.ts';
import { useServerDatabase } from './support/database.ts';
import { addPhone, addUserInitial, type ScratchTree, scratchTree } from './support/scratch_tree.ts';
import { filters } from './support/sessions.ts';

// What `npm run diff` says to an analyst who has changed a view in a tree.

const database = useServerDatabase();

let session: postgres.Sql;
let tree: ScratchTree;
beforeEach(async () => {
  session = postgres(database.url, { max: 1, onnotice: () => {} });
  await session`
    insert into dim_user (user_id) values ('lead'), ('one'), ('two'), ('three')`;
  // "two" has bought two memberships at the same instant.
  await session`
    insert into fct_membership_purchases (user_id, user_membership_id, membership_purchased_at, membership_purchase_details)
    values
      ('one', '1', '2024-01-01', '{"name": "Monthly"}'),
      ('two', '1', '2024-01-01', '{"name": "Monthly"}'),
      ('two', '2', '2024-01-01', '{"name": "Yearly"}'),
      ('three', '1', '2024-01-01', null)`;
  await run(database.url, 'npm run refresh');
  tree = await scratchTree();
});
afterEach(async () => {
  await tree.remove();
  await session.end();
});

const diff = (...args: string[]) => tree.run(database.url, 'npm run diff', args);

const parsed = async (...args: string[]) => {
  const { code, stdout } = await diff('--json', ...args);
  return { code, ...JSON.parse(stdout) };
};

const none = { added: 0, gone: 0, changed: 0 };

/** Makes the highest identifier win among purchases at the same instant. */
const changeTieRule = () =>
  tree.edit('views/fct_client_conversion_events.ts', [
    'user_membership_id asc',
    'user_membership_id desc',
  ]);

describe('a changed rule', () => {
  beforeEach(changeTieRule);

  test('is shown by the rows and columns that it changes, with examples', async () => {
    expect(await diff()).toEqual({
      code: 2,
      stdout: [
        'fct_client_conversion_events: 4 rows, 4 as declared: 1 changed (0 by a refresh alone), 0 added (0 by a refresh alone), 0 gone (0 by a refresh alone)',
        '  client_conversion_event_id: differs in 1 row (0 by a refresh alone)',
        '  client_conversion_event_name: differs in 1 row (0 by a refresh alone)',
        '  first_user_membership_id: differs in 1 row (0 by a refresh alone)',
        '  first_membership_name: differs in 1 row (0 by a refresh alone)',
        '  Example, changed: user_id "two"',
        '    client_conversion_event_id: "1" -> "2"',
        '    client_conversion_event_name: see --values',
        '    first_user_membership_id: "1" -> "2"',
        '    first_membership_name: see --values',
        `fct_lead_conversions: ${4 * filters} rows, ${4 * filters} as declared: 2 changed (0 by a refresh alone), 0 added (0 by a refresh alone), 0 gone (0 by a refresh alone)`,
        '  client_conversion_event_id: differs in 2 rows (0 by a refresh alone)',
        '  client_conversion_event_name: differs in 2 rows (0 by a refresh alone)',
        '  Example, changed: user_id "two", client_conversion_event_filter "ALL"',
        '    client_conversion_event_id: "1" -> "2"',
        '    client_conversion_event_name: see --values',
        '  Example, changed: user_id "two", client_conversion_event_filter "MEMBERSHIP"',
        '    client_conversion_event_id: "1" -> "2"',
        '    client_conversion_event_name: see --values',
        '',
      ].join('\n'),
      stderr: '',
    });
  });

  test('is distinguished from what a refresh would change anyway', async () => {
    await session`insert into dim_user (user_id) values ('new')`;
    await session`
      insert into fct_credit_pack_purchases (user_id, credit_pack_id) values ('lead', '1')`;
    await session`delete from fct_membership_purchases where user_id = 'three'`;
    await session`delete from dim_user where user_id = 'three'`;
    const { code, outcome, views } = await parsed('--limit', '0');
    expect({ code, outcome }).toEqual({ code: 2, outcome: 'different' });
    expect(views).toMatchObject([
      {
        view: 'fct_client_conversion_events',
        ...{ rows: 4, declaredRows: 4, added: 1, gone: 1, changed: 2 },
        byRefresh: { added: 1, gone: 1, changed: 1 },
        examples: [],
      },
      {
        view: 'fct_lead_conversions',
        ...{
          rows: 4 * filters,
          declaredRows: 4 * filters,
          added: filters,
          gone: filters,
          changed: 4,
        },
        byRefresh: { added: filters, gone: filters, changed: 2 },
        examples: [],
      },
    ]);
    expect(views[0].columns).toContainEqual({ column: 'lead_status', changed: 1, byRefresh: 1 });
    expect(views[0].columns).toContainEqual({
      column: 'first_user_membership_id',
      changed: 1,
      byRefresh: 0,
    });
  });

  test('can be shown for one view, with all values and a given number of examples', async () => {
    const { views } = await parsed('--view', 'fct_lead_conversions', '--values', '--limit', '1');
    expect(views).toMatchObject([{ view: 'fct_lead_conversions' }]);
    expect(views[0].examples).toEqual([
      {
        kind: 'changed',
        key: { user_id: 'two', client_conversion_event_filter: 'ALL' },
        columns: [
          { column: 'client_conversion_event_id', now: '1', declared: '2' },
          { column: 'client_conversion_event_name', now: 'Monthly', declared: 'Yearly' },
        ],
      },
    ]);
  });

  test('changes as many rows in the later migration as were shown', async () => {
    const { views } = await parsed();
    await tree.run(database.url, 'npm run generate', ['--name', 'tie_rule']);
    const before = await session`select * from fct_lead_conversions`;
    expect(await tree.run(database.url, 'npm run migrate')).toMatchObject({ code: 0 });
    const after = await session`select * from fct_lead_conversions`;
    const keyOf = ({ user_id, client_conversion_event_filter }: postgres.Row) =>
      `${user_id} ${client_conversion_event_filter}`;
    const rows = new Map(before.map((row) => [keyOf(row), JSON.stringify(row)]));
    const changed = after.filter((row) => rows.get(keyOf(row)) !== JSON.stringify(row));
    expect(views[1].changed).toBe(changed.length);
    expect(await parsed()).toMatchObject({ code: 0, outcome: 'same' });
  });

  test('can be shown to a role that may only read', async () => {
    const role = `analyst_${process.pid}`;
    await session`create role ${session(role)} login`;
    try {
      await session`grant select on all tables in schema public to ${session(role)}`;
      const url = new URL(database.url);
      url.username = role;
      expect(await tree.run(url.href, 'npm run diff')).toMatchObject({ code: 2, stderr: '' });
    } finally {
      await session`drop owned by ${session(role)}`;
      await session`drop role ${session(role)}`;
    }
  });
});

test('what only a refresh would change is shown, too', async () => {
  await session`insert into dim_user (user_id) values ('new')`;
  const { code, views } = await parsed();
  expect(code).toBe(2);
  expect(views[0]).toMatchObject({ ...none, added: 1, byRefresh: { ...none, added: 1 } });
});

test('a column that the view does not have yet is named, and the others are compared', async () => {
  await addUserInitial(tree);
  const { code, views } = await parsed();
  expect(code).toBe(2);
  expect(views[0]).toMatchObject({ ...none, newColumns: ['user_initial'], droppedColumns: [] });
  expect(views[1]).toMatchObject({ ...none, newColumns: [], droppedColumns: [] });
  expect((await diff()).stdout).toContain('  user_initial: new, not compared\n');
});

test('a column that an input table does not have yet is named in the error', async () => {
  await addPhone(tree);
  await tree.edit(
    'views/fct_client_conversion_events.ts',
    [
      'dim_user.created_at,',
      'coalesce(dim_user.created_at, dim_user.phone::timestamptz) as created_at,',
    ],
    ['dimUser.createdAt,', 'dimUser.createdAt, dimUser.phone,'],
  );
  expect(await diff()).toEqual({
    code: 1,
    stdout: '',
    stderr:
      'The declared fct_client_conversion_events reads dim_user.phone, which this database does not have yet. Migrate a copy of the database, and compare there.\n',
  });
});

test('a row that a refresh would change to other values than declared does not count as changed by it', async () => {
  await session`
    update fct_membership_purchases set membership_purchase_details = '{"name": "Weekly"}'
    where user_id = 'one'`;
  const { views: before } = await parsed();
  expect(before[0]).toMatchObject({ changed: 1, byRefresh: { ...none, changed: 1 } });
  await tree.edit('views/fct_client_conversion_events.ts', [
    'membership_name as first_membership_name',
    `membership_name || '!' as first_membership_name`,
  ]);
  const { views } = await parsed();
  expect(views[0]).toMatchObject({ changed: 2, byRefresh: none });
  expect(views[0].columns).toContainEqual({
    column: 'first_membership_name',
    changed: 2,
    byRefresh: 0,
  });
});

describe('a second view that reads the first one', () => {
  test.each([
    [
      'if it spells the name in another way',
      [
        'from public.fct_client_conversion_events as',
        'from PUBLIC . "fct_client_conversion_events" as',
      ],
    ],
    [
      'if a CTE has that name, too',
      [
        '\nfiltered_conversions as (',
        '\nfct_client_conversion_events as (select 1 as one from public.fct_client_conversion_events limit 1),\n\nfiltered_conversions as (',
      ],
    ],
    [
      'if a string contains that name, too',
      [
        'order by\n    user_id asc,',
        `order by\n    length('public.fct_client_conversion_events'),\n    user_id asc,`,
      ],
    ],
  ])('is compared as the first view is declared, %s', async (_, edit) => {
    await changeTieRule();
    const [from = '', to = ''] = edit;
    await tree.edit('views/fct_lead_conversions.ts', [from, to]);
    const { views } = await parsed();
    expect(views[1]).toMatchObject({ ...none, changed: 2 });
  });

  test('may read columns that the database does not have yet', async () => {
    await addUserInitial(tree);
    await tree.edit(
      'views/fct_lead_conversions.ts',
      [
        '        events.branch_id,',
        '        coalesce(events.branch_id, events.user_initial) as branch_id,',
      ],
      [
        '      fctClientConversionEvents.branchId,',
        '      fctClientConversionEvents.branchId,\n      fctClientConversionEvents.userInitial,',
      ],
    );
    const { code, views } = await parsed();
    expect(code).toBe(2);
    expect(views[1]).toMatchObject({ ...none, changed: 4 * filters });
  });
});

test('a column with another type is named', async () => {
  await tree.edit(
    'views/fct_client_conversion_events.ts',
    [
      `firstMembershipName: varchar('first_membership_name')`,
      `firstMembershipName: text('first_membership_name')`,
    ],
    ['membership_name as first_membership_name', 'membership_name::text as first_membership_name'],
    ['import { varchar }', 'import { text, varchar }'],
  );
  const { code, views } = await parsed();
  expect(code).toBe(2);
  expect(views[0]).toMatchObject({
    ...none,
    retypedColumns: ['first_membership_name text, not varchar'],
  });
});

test('a view with two rows under one key is refused', async () => {
  await tree.edit('views/fct_client_conversion_events.ts', [
    '    left join first_memberships\n',
    '    left join public.fct_membership_purchases as first_memberships\n',
  ]);
  expect(await diff()).toEqual({
    code: 1,
    stdout: '',
    stderr:
      'The declared fct_client_conversion_events has 2 rows with the same user_id (two). It must have one row per user_id.\n',
  });
});

test('a view that is not populated cannot be compared', async () => {
  await session`refresh materialized view fct_lead_conversions with no data`;
  expect(await diff()).toMatchObject({
    code: 1,
    stderr:
      'fct_lead_conversions is not populated, so it has no rows to compare. Refresh it first.\n',
  });
});

test.each([
  [
    ['--view', 'dim_user'],
    '--view must be one of fct_client_conversion_events, fct_lead_conversions, not "dim_user".\n',
  ],
  [['--limit', 'some'], '--limit must be a whole number, not "some".\n'],
])('refuses %j', async (args, message) => {
  expect(await diff(...args)).toEqual({ code: 1, stdout: '', stderr: message });
});

test('ends at its statement timeout', async () => {
  await session`
    insert into dim_user (user_id) select 'user ' || generate_series(1, 20000)`;
  expect(await diff('--statement-timeout', '10ms', '--retries', '0')).toMatchObject({
    code: 1,
    stderr: expect.stringContaining('statement timeout'),
  });
});
