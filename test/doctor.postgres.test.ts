import { setTimeout as sleep } from 'node:timers/promises';
import postgres from 'postgres';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { readerRole } from '../schema/properties.ts';
import { generate } from '../scripts/benchmark/data.ts';
import { run } from './support/commands.ts';
import { truncateInputTables, useServerDatabase } from './support/database.ts';
import { landedMigrations } from './support/scratch_tree.ts';

const database = useServerDatabase();

let session: postgres.Sql;
beforeEach(async () => {
  session = postgres(database.url, { max: 2, onnotice: () => {} });
  await run(database.url, 'npm run load', ['test/sample']);
  await run(database.url, 'npm run refresh');
});
afterEach(() => session.end());

async function doctor(url = database.url, ...args: string[]) {
  const { code, stdout, stderr } = await run(url, 'npm run doctor', ['--json', ...args]);
  const { outcome, reason, findings, notes } = JSON.parse(stdout);
  return { code, stderr, outcome, reason, findings, notes };
}

const healthy = { code: 0, stderr: '', outcome: 'healthy', reason: null, findings: [] };

test('finds nothing in a healthy database', async () => {
  expect(await doctor()).toEqual({ ...healthy, notes: [] });
});

test.each([2000, 100_000])(
  'finds nothing in a healthy database of %i users, for which Postgres uses other plans',
  { timeout: 120_000 },
  async (users) => {
    await session.unsafe(truncateInputTables);
    await generate(session, { users, purchasesPerUser: 5 });
    await run(database.url, 'npm run refresh', ['--max-loss', '100%']);
    for (const { remedy } of (await doctor()).findings) {
      expect(remedy).toMatch(/^comment on index /); // generate has created that index anew
      await session.unsafe(remedy);
    }
    expect(await doctor()).toMatchObject(healthy);
    await session`vacuum analyze`;
    expect(await doctor()).toMatchObject(healthy);
  },
);

/** The role to which these tests give rights, and which they drop afterwards. */
const role = `somebody_${process.pid}`;

describe('finds, and mends with its own remedies,', () => {
  afterEach(async () => {
    await session`drop owned by ${session(role)}`.catch(() => {});
    await session`drop role if exists ${session(role)}`;
  });

  const refresh = 'npx lead-conversions refresh';
  const cases: { what: string; sabotage: string; finding: string; keys: string[] }[] = [
    {
      what: 'a missing index',
      sabotage: 'drop index fct_lead_conversions_branch_id_local_user_created_at_idx',
      finding:
        'fct_lead_conversions lacks the index fct_lead_conversions_branch_id_local_user_created_at_idx.',
      keys: ['fct_lead_conversions_branch_id_local_user_created_at_idx'],
    },
    {
      what: 'a missing index of an input table',
      sabotage: 'drop index fct_membership_purchases_first',
      finding: 'fct_membership_purchases lacks the index fct_membership_purchases_first.',
      keys: ['fct_membership_purchases_first'],
    },
    {
      what: 'an invalid index',
      sabotage: `update pg_index set indisvalid = false where indexrelid = 'dim_user_pkey'::regclass`,
      finding: 'The index dim_user_pkey is not valid, so no query uses it.',
      keys: ['dim_user_pkey'],
    },
    {
      what: 'a grant to everybody',
      sabotage: 'grant select on fct_lead_conversions to public',
      finding: 'fct_lead_conversions has grants that are not declared.',
      keys: ['select on public.fct_lead_conversions to PUBLIC'],
    },
    {
      what: 'a grant on an input table',
      sabotage: `create role ${role}; grant select (name) on dim_user to ${role}`,
      finding: 'dim_user has grants that are not declared.',
      keys: [`select (name) on public.dim_user to ${role}`],
    },
    {
      what: 'a grant on the history',
      sabotage: `create role ${role}; grant insert on view_refreshes to ${role}`,
      finding: 'view_refreshes has grants that are not declared.',
      keys: [`insert on public.view_refreshes to ${role}`],
    },
    {
      what: 'a missing grant',
      sabotage: `revoke select on fct_lead_conversions from ${readerRole}`,
      finding: 'fct_lead_conversions lacks declared grants.',
      keys: [`select on public.fct_lead_conversions to ${readerRole}`],
    },
    {
      what: 'a changed comment',
      sabotage: `comment on column dim_user.name is 'Who.'`,
      finding: 'dim_user has comments that differ from their declaration.',
      keys: ['name'],
    },
    {
      what: 'an undeclared column',
      sabotage: 'alter table dim_user add column phone varchar',
      finding: 'dim_user has columns that are not declared.',
      keys: ['phone'],
    },
    {
      what: 'a table with another owner',
      sabotage: `create role ${role}; grant create on schema public to ${role}; alter table dim_branch owner to ${role}`,
      finding: 'Not all tables and views belong to postgres, who owns view_refreshes.',
      keys: [`dim_branch (${role})`],
    },
    {
      what: 'a missing foreign key',
      sabotage: 'alter table dim_user drop constraint dim_user_branch_id_dim_branch_branch_id_fk',
      finding: 'dim_user lacks the constraint dim_user_branch_id_dim_branch_branch_id_fk.',
      keys: ['dim_user_branch_id_dim_branch_branch_id_fk'],
    },
    {
      what: 'a missing check',
      sabotage: 'alter table dim_user drop constraint dim_user_user_id_check',
      finding: 'dim_user lacks the constraint dim_user_user_id_check.',
      keys: ['dim_user_user_id_check'],
    },
    {
      what: 'disabled foreign keys',
      sabotage: 'alter table fct_membership_purchases disable trigger all',
      finding: 'Foreign keys are not enforced, because their triggers are disabled.',
      keys: ['fct_membership_purchases'],
    },
    {
      what: 'row-level security',
      sabotage: 'alter table dim_user enable row level security',
      finding: 'Row-level security may hide rows from refreshes and loads.',
      keys: ['dim_user'],
    },
    {
      what: 'a user who was deleted after the refresh',
      sabotage: `delete from dim_user where user_id = 'never-bought'`,
      finding: 'fct_client_conversion_events has rows for 1 user that are not in dim_user.',
      keys: ['never-bought'],
    },
    {
      what: 'a user who was added after the refresh',
      sabotage: `insert into dim_user (user_id) values ('new')`,
      finding: 'fct_client_conversion_events has no row for 1 user of dim_user.',
      keys: ['new'],
    },
    {
      what: 'a purchase that is not in the views',
      sabotage: `insert into fct_membership_purchases (user_id, user_membership_id) values ('never-bought', '1')`,
      finding:
        'fct_client_conversion_events differs from what the input tables give now, for 1 of 13 users picked at random.',
      keys: ['never-bought'],
    },
    {
      what: 'a last refresh that is days old',
      sabotage: `update view_refreshes set started_at = started_at - interval '3 days' where view = 'fct_lead_conversions'`,
      finding: 'fct_lead_conversions is older than 26h: its last refresh began 72 hours ago.',
      keys: ['fct_lead_conversions'],
    },
    {
      what: 'a missing history',
      sabotage: 'delete from view_refreshes',
      finding: 'fct_lead_conversions has not been refreshed on this server.',
      keys: ['fct_lead_conversions'],
    },
  ];

  test.each(cases)('$what', async ({ sabotage, finding, keys }) => {
    await session.unsafe(sabotage);
    const found = await doctor();
    expect(found).toMatchObject({ code: 1, outcome: 'findings', reason: null });
    expect(found.findings).toContainEqual({ finding, keys, remedy: expect.any(String) });

    // Its remedies resolve all findings.
    for (const { remedy } of found.findings) {
      await (remedy.startsWith(refresh)
        ? run(database.url, 'npm run refresh', ['--force'])
        : session.unsafe(remedy.split('; or ')[0]));
    }
    expect((await doctor()).findings).toEqual([]);
  });
});

test('finds a time zone that the server does not know, and names its branches', async () => {
  await session`alter table dim_branch drop constraint dim_branch_timezone_id_check`;
  await session`update dim_branch set timezone_id = 'Mars/Olympus' where branch_id = 'sydney'`;
  const { findings } = await doctor();
  expect(findings).toContainEqual({
    finding:
      'The server does not know the time zone Mars/Olympus of 1 branch, so no refresh succeeds.',
    keys: ['sydney'],
    remedy: `update public.dim_branch set timezone_id = <the current name> where timezone_id = 'Mars/Olympus';`,
  });
});

test('finds changed and missing records of migrations, and mentions unknown migrations', async () => {
  await session`insert into drizzle.lead_conversions_migrations (hash, created_at) values ('x', 1)`;
  const { findings, notes } = await doctor();
  expect(findings).toEqual([]);
  expect(notes).toEqual([
    'The database has migrations that this version does not know (1). Examine it with the version that last migrated it.',
  ]);
  await session`update drizzle.lead_conversions_migrations set hash = 'y'`;
  expect((await doctor()).findings).toMatchObject([
    {
      finding: 'Migrations were changed after they were applied to this database.',
      keys: landedMigrations.slice(0, 5),
    },
  ]);
  await session`delete from drizzle.lead_conversions_migrations`;
  expect((await doctor()).findings).toMatchObject([
    { finding: 'The records of the migrations are missing, although there are tables or views.' },
  ]);
});

test('finds a view that reads another table than declared, and a missing view', async () => {
  await session`alter table dim_branch rename to dim_branch_old`;
  await session`create table dim_branch (like dim_branch_old including all)`;
  expect((await doctor()).findings).toContainEqual(
    expect.objectContaining({
      finding: expect.stringMatching(
        /^fct_client_conversion_events does not read dim_branch\. A view keeps reading /,
      ),
    }),
  );
  await session`drop materialized view fct_lead_conversions`;
  const { findings, notes } = await doctor();
  expect(findings).toContainEqual(
    expect.objectContaining({
      finding: 'The materialized view fct_lead_conversions is missing.',
      keys: ['fct_lead_conversions'],
    }),
  );
  expect(notes).toContain(
    'The rows were not examined, because tables or views are missing or not populated.',
  );
});

test('finds dead rows that no vacuum removes, and names the session that keeps them', async () => {
  await session.begin('isolation level repeatable read', async (reader) => {
    await reader`select from dim_user`;
    const [{ pid } = { pid: 0 }] = await reader<{ pid: number }[]>`select pg_backend_pid() as pid`;
    await session`insert into dim_user (user_id) values ('new')`;
    await session`update dim_user set name = 'Lea L.' where user_id = 'never-bought'`;
    await session`delete from fct_credit_pack_purchases where user_id = 'several-purchases'`;
    await run(database.url, 'npm run refresh', ['--max-loss', '100%']);
    await sleep(1000); // until the counts of dead rows are flushed
    const { findings } = await doctor();
    expect(findings).toContainEqual({
      finding: expect.stringMatching(
        new RegExp(
          `^fct_lead_conversions has \\d+ dead rows that no vacuum can remove, because pid ${pid} \\(postgres, postgres\\.js\\) might still read them\\.$`,
        ),
      ),
      keys: ['fct_lead_conversions'],
      remedy: 'End them, then run: vacuum public.fct_lead_conversions;',
    });
  });
});

test('mentions a grant on a view, and finds that its own role may not read the rows', async () => {
  await session`create role ${session(role)} login`;
  try {
    await session`grant select on fct_lead_conversions to ${session(role)}`;
    expect(await doctor()).toEqual({
      ...healthy,
      notes: [
        `fct_lead_conversions has grants to other roles: select on public.fct_lead_conversions to ${role}.`,
      ],
    });
    const url = new URL(database.url);
    url.username = role;
    const { code, findings } = await doctor(url.href);
    expect(code).toBe(1);
    expect(findings).toContainEqual({
      finding:
        'This role may not examine the rows of the views: permission denied for table dim_user.',
      keys: [],
      remedy: 'Run this as a role that has been granted pg_read_all_data and pg_read_all_stats.',
    });
    await session`grant pg_read_all_data, pg_read_all_stats to ${session(role)}`;
    expect(await doctor(url.href)).toMatchObject({ code: 0, findings: [] });
  } finally {
    await session`drop owned by ${session(role)}`;
    await session`drop role ${session(role)}`;
  }
});

test('prints a finding with its keys and its remedy', async () => {
  await session`grant select on dim_user to public`;
  expect(await run(database.url, 'npm run doctor')).toEqual({
    code: 1,
    stdout: [
      'dim_user has grants that are not declared.\n',
      '  select on public.dim_user to PUBLIC\n',
      '  revoke select on public.dim_user from public;\n',
      '1 finding.\n',
    ].join(''),
    stderr: '',
  });
});

test.each([
  ['1h', 0],
  ['0s', 1],
])('applies --max-age %s', async (maxAge, code) => {
  expect(await doctor(database.url, '--max-age', maxAge)).toMatchObject({ code });
});

test('reports a check for which its statement timeout was too short, beside the other findings', async () => {
  const { code, outcome, findings } = await session.begin(async (locked) => {
    await locked`lock table fct_membership_purchases in access exclusive mode`;
    return await doctor(database.url, '--statement-timeout', '1s');
  });
  expect({ code, outcome }).toEqual({ code: 1, outcome: 'findings' });
  expect(findings).toContainEqual({
    finding: 'The statement timeout of 1s was too short to examine a sample of users.',
    keys: [],
    remedy: 'Run this with a longer --statement-timeout.',
  });
});

test('refuses a --max-age that is not an interval', async () => {
  expect(await run(database.url, 'npm run doctor', ['--max-age', 'old'])).toEqual({
    code: 1,
    stdout: '',
    stderr: '--max-age must be an interval such as 26h or 2 days, not "old".\n',
  });
});

test('reports only that an empty database has not been migrated', async () => {
  await session`drop schema public cascade`;
  await session`create schema public`;
  await session`drop schema drizzle cascade`;
  expect((await doctor()).findings).toEqual([
    {
      finding: 'The database has not been migrated.',
      keys: [],
      remedy: 'npx lead-conversions migrate',
    },
  ]);
});

describe('finds', () => {
  /** Creates the first view with another rule, and the second view on top of it. */
  const redefineViews = async (from: RegExp, to: string) => {
    const [first] = await session<{ definition: string }[]>`
      select pg_get_viewdef('fct_client_conversion_events'::regclass) as definition`;
    const [second] = await session<{ definition: string }[]>`
      select pg_get_viewdef('fct_lead_conversions'::regclass) as definition`;
    const changed = first?.definition.replace(from, to) ?? '';
    expect(changed).not.toBe(first?.definition);
    await session.unsafe(`
      drop materialized view fct_lead_conversions, fct_client_conversion_events;
      create materialized view fct_client_conversion_events as ${changed};
      create materialized view fct_lead_conversions as ${second?.definition};`);
  };

  test.each([
    [
      'a view that is not populated',
      'refresh materialized view fct_lead_conversions with no data',
      'fct_lead_conversions is not populated, so nobody can read it.',
    ],
    [
      'a generated column that has become a plain one',
      `alter table fct_membership_purchases alter column membership_name drop expression;
       update fct_membership_purchases set membership_name = 'Wrong'`,
      'fct_membership_purchases has 11 rows whose name or source differs from their details.',
    ],
    [
      'an index with the name of a key, but another definition',
      `alter table fct_membership_purchases drop constraint fct_membership_purchases_user_id_user_membership_id_pk;
       create index fct_membership_purchases_user_id_user_membership_id_pk
       on fct_membership_purchases (branch_id) where false`,
      'The index fct_membership_purchases_user_id_user_membership_id_pk of fct_membership_purchases differs from its declaration.',
    ],
    [
      'a check that checks nothing',
      `alter table dim_user drop constraint dim_user_user_id_check;
       alter table dim_user add constraint dim_user_user_id_check check (true)`,
      'The constraint dim_user_user_id_check of dim_user differs from its declaration.',
    ],
    [
      'a check with the name of a foreign key',
      `alter table dim_user drop constraint dim_user_branch_id_dim_branch_branch_id_fk;
       alter table dim_user add constraint dim_user_branch_id_dim_branch_branch_id_fk check (true)`,
      'The constraint dim_user_branch_id_dim_branch_branch_id_fk of dim_user differs from its declaration.',
    ],
    [
      'rows that refer to missing rows',
      `set session_replication_role = replica;
       insert into fct_membership_purchases (user_id, user_membership_id) values ('nobody', '1')`,
      'fct_membership_purchases has 1 rows whose user_id is not in dim_user.',
    ],
    [
      'an identity column that is no longer one',
      'alter table view_refreshes alter column id drop identity',
      'view_refreshes has columns whose generated, identity or default clause differs from the declaration.',
    ],
    [
      'an undeclared default',
      `alter table dim_branch alter column timezone_id set default 'Asia/Tokyo'`,
      'dim_branch has columns whose generated, identity or default clause differs from the declaration.',
    ],
    [
      'an unlogged table',
      'alter table view_refreshes set unlogged',
      'view_refreshes is unlogged: a crash of the server empties it.',
    ],
    [
      'an inheriting table',
      'create table kid () inherits (dim_user)',
      'dim_user has inheriting tables, whose rows are also in the views.',
    ],
    [
      'a refresh in the future',
      `update view_refreshes set started_at = now() + interval '3 years'`,
      'The last refresh of fct_lead_conversions seems to have begun in the future: a clock is wrong.',
    ],
  ])('%s', async (_, sabotage, finding) => {
    await session.unsafe(sabotage);
    const found = await doctor();
    expect(found.code).toBe(1);
    expect(found.findings).toContainEqual(expect.objectContaining({ finding }));
  });

  test('a view with another definition, even if its rows are the same', async () => {
    await redefineViews(/(membership_purchased_at, \S*user_membership_id)(?=\s*\))/, '$1 DESC');
    await run(database.url, 'npm run refresh');
    expect((await doctor()).findings).toContainEqual(
      expect.objectContaining({
        finding: 'fct_client_conversion_events is defined differently than declared.',
      }),
    );
  });

  test('an owner of the views who may not read their input', async () => {
    await session`create role ${session(role)}`;
    try {
      await session`grant create on schema public to ${session(role)}`;
      for (const view of ['fct_lead_conversions', 'fct_client_conversion_events']) {
        await session`alter materialized view ${session(view)} owner to ${session(role)}`;
      }
      expect((await doctor()).findings).toContainEqual(
        expect.objectContaining({
          finding: `${role}, the owner of fct_client_conversion_events, lacks the privilege to read some of the tables or views that it is computed from.`,
        }),
      );
    } finally {
      await session`reassign owned by ${session(role)} to postgres`;
      await session`drop owned by ${session(role)}`;
      await session`drop role ${session(role)}`;
    }
  });
});
