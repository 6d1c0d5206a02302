import { mkdtemp, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import postgres from 'postgres';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { run, start } from './support/commands.ts';
import { useServerDatabase } from './support/database.ts';
import { sessionsThatWait } from './support/sessions.ts';

// distribute_citus.postgres.test.ts tests what Citus itself does, on a cluster. The tests here use
// stubs: tables like those of Citus, and functions that record each call with the foreign keys and
// locks at that moment.

const database = useServerDatabase();
let session: postgres.Sql;

beforeEach(() => {
  session = postgres(database.url, { max: 2, onnotice: () => {} });
});
afterEach(() => session.end());

const tables = ['dim_branch', 'dim_user', 'fct_credit_pack_purchases', 'fct_membership_purchases'];

const distribute = (...args: string[]) => run(database.url, 'npm run distribute', args);

const fill = async () => {
  await run(database.url, 'npm run load', ['test/sample']);
  await run(database.url, 'npm run refresh');
};

/** Creates stubs of the tables and functions of Citus, as in a cluster with one worker. */
const createStubs = () =>
  session.unsafe(`
    set allow_system_table_mods to on;
    create table pg_catalog.pg_dist_partition (
      logicalrelid regclass, partmethod "char", partkey text, colocationid int, repmodel "char"
    );
    create table pg_catalog.pg_dist_shard (
      logicalrelid regclass, shardid bigint, shardminvalue text, shardmaxvalue text
    );
    create table pg_catalog.pg_dist_node (
      nodeid int, groupid int, nodename text, nodeport int, noderole text,
      isactive boolean, shouldhaveshards boolean
    );
    create table pg_catalog.pg_dist_placement (shardid bigint, groupid int, shardstate int);
    grant select on pg_dist_partition, pg_dist_shard, pg_dist_node, pg_dist_placement to public;
    insert into pg_dist_node values
      (1, 0, 'coordinator', 5432, 'primary', true, false),
      (2, 1, 'worker', 5432, 'primary', true, true);
    create table public.calls (
      number int generated always as identity, call text, foreign_keys bigint, mode text, locked bigint
    );
    create function pg_catalog.note(call text) returns void language sql as $$
      insert into public.calls (call, foreign_keys, mode, locked)
      select
        call,
        (select count(*) from pg_constraint where contype = 'f'),
        current_setting('citus.multi_shard_modify_mode'),
        (select count(*) from pg_locks
         where pid = pg_backend_pid() and mode = 'AccessExclusiveLock'
           and relation = any ('{${tables.map((table) => `public.${table}`)}}'::regclass[]))
    $$;
    create function pg_catalog.citus_is_coordinator() returns boolean language sql as 'select true';
    create function pg_catalog.column_to_column_name(regclass, text) returns text
      language sql as 'select $2';
    create function pg_catalog.distribute(relation regclass, method "char", key text, place int)
    returns void language sql as $$
      insert into pg_dist_partition
      values (relation, method, key, place, case method when 'n' then 't' else 's' end);
      insert into pg_dist_shard
      select
        relation, 100 * relation::oid::bigint + shard,
        (-2147483648 + shard * 2147483648)::text, (-1 + shard * 2147483648)::text
      from generate_series(0::bigint, case method when 'n' then 0 else 1 end) as shard;
      insert into pg_dist_placement
      select shardid, groupid, 1
      from pg_dist_shard
      cross join pg_dist_node
      where logicalrelid = relation
        and (method = 'n' or shouldhaveshards)
    $$;
    create function pg_catalog.run_command_on_workers(
      text, out nodename text, out nodeport int, out success boolean, out result text
    ) returns setof record language sql as $$ select 'worker', 5432, true, '[]' $$;
    create function pg_catalog.run_command_on_placements(
      relation regclass, command text,
      out nodename text, out nodeport int, out shardid bigint, out success boolean, out result text
    ) returns setof record language plpgsql as $$ begin
      execute format(command, relation) into result;
      return query
        select node.nodename, node.nodeport, placement.shardid, true, result
        from pg_dist_shard as shard
        inner join pg_dist_placement as placement on placement.shardid = shard.shardid
        inner join pg_dist_node as node on node.groupid = placement.groupid
        where logicalrelid = relation;
    end $$;
    create function pg_catalog.get_shard_id_for_distribution_column(regclass, "any") returns bigint
      language internal as 'pg_backend_pid';
    create function pg_catalog.create_reference_table(regclass) returns void language sql as $$
      select note(format('create_reference_table(%s)', $1));
      select distribute($1, 'n', null, 1)
    $$;
    create function pg_catalog.create_distributed_table(regclass, text, colocate_with text)
    returns void language sql as $$
      select note(format('create_distributed_table(%s, %s, %s)', $1, $2, $3));
      select distribute($1, 'h', $2, 2)
    $$;
    create function pg_catalog.truncate_local_data_after_distributing_table(regclass)
    returns void language sql as $$ select note(format('truncate_local_data(%s)', $1)) $$;
    reset allow_system_table_mods`);

/** Everything that must stay the same: what the catalog says, and the rows. */
const readAll = async () =>
  await session.unsafe(`
    select
      relname, oid::text, relowner, relacl::text, reloptions, obj_description(oid, 'pg_class'),
      (select json_agg(pg_get_indexdef(indexrelid) order by indexrelid) from pg_index
       where indrelid = pg_class.oid) as indexes,
      (select json_agg(col_description(attrelid, attnum) order by attnum) from pg_attribute
       where attrelid = pg_class.oid) as comments,
      (select json_agg(conname || pg_get_constraintdef(oid) || coalesce(obj_description(oid, 'pg_constraint'), '') order by conname) from pg_constraint
       where conrelid = pg_class.oid) as constraints,
      query_to_xml(format('select * from %s order by 1', oid::regclass), true, true, '')::text as rows
    from pg_class
    where relnamespace = 'public'::regnamespace and relkind in ('r', 'm') and relname <> 'calls'
    order by relname`);

const foreignKeys = async (): Promise<number> =>
  (await session`select from pg_constraint where contype = 'f'`).length;

test('distributes the tables in the order that Citus needs, and changes nothing else', async () => {
  await fill();
  await createStubs();
  await session`
    comment on constraint dim_user_branch_id_dim_branch_branch_id_fk on dim_user is 'It''s ours.'`;
  const before = await readAll();
  const keys = await foreignKeys();
  expect(await distribute()).toEqual({
    code: 0,
    stdout: [
      'dim_branch: 3 rows, complete on every server',
      'dim_user: 13 rows, 2 shards',
      'fct_credit_pack_purchases: 11 rows, 2 shards',
      'fct_membership_purchases: 11 rows, 2 shards',
      '',
    ].join('\n'),
    stderr: '',
  });
  const calls = await session`select call, foreign_keys, mode, locked from calls order by number`;
  const call = (text: string, foreignKeys: number) => ({
    ...{ call: text, foreign_keys: String(foreignKeys), mode: 'sequential', locked: '4' },
  });
  const [branch, user, creditPacks, memberships] = tables.map((table) => `public.${table}`);
  expect([...calls]).toEqual([
    call(`create_reference_table(${branch})`, 0),
    call(`create_distributed_table(${user}, user_id, none)`, 0),
    call(`create_distributed_table(${creditPacks}, user_id, ${user})`, 0),
    call(`create_distributed_table(${memberships}, user_id, ${user})`, 0),
    call(`truncate_local_data(${memberships})`, keys),
    call(`truncate_local_data(${creditPacks})`, keys),
    call(`truncate_local_data(${user})`, keys),
    call(`truncate_local_data(${branch})`, keys),
  ]);
  expect(await readAll()).toEqual(before);
  const { code, stdout } = await distribute('--json');
  expect({ code, ...JSON.parse(stdout) }).toMatchObject({
    ...{ code: 0, outcome: 'distributed', reason: null },
    tables: [
      { table: 'dim_branch', rows: 3, distributedBy: null, shards: 1 },
      { table: 'dim_user', rows: 13, distributedBy: 'user_id', shards: 2 },
      ...[{ table: 'fct_credit_pack_purchases' }, { table: 'fct_membership_purchases' }],
    ],
  });
  expect(await session`select from calls`).toHaveLength(8);
});

test('says that there is nothing to do if the tables are already distributed', async () => {
  await fill();
  await createStubs();
  await distribute();
  expect(await distribute()).toMatchObject({
    code: 0,
    stdout: expect.stringMatching(/\nNothing to do: the tables are already distributed\.\n$/),
  });
});

/** Databases that are refused: what to run to get each, and the reason that is given. */
const refusals: Record<string, { make: string | undefined; reason: string | RegExp }> = {
  'without Citus': {
    make: undefined,
    reason:
      /^The database lead_conversions_test_\w+ does not have the extension Citus\. Install it on all servers of the cluster, run "create extension citus" in the database on each, and add the workers: https:\S+\n$/,
  },
  'on a worker': {
    make: `create or replace function pg_catalog.citus_is_coordinator() returns boolean
           language sql as 'select false'`,
    reason:
      'DATABASE_URL names a worker of the Citus cluster. Set it to the URL of the coordinator.',
  },
  'that is not migrated': {
    make: 'drop table dim_branch, dim_user, fct_credit_pack_purchases, fct_membership_purchases cascade',
    reason: 'The database has not been migrated: it has no dim_branch. Migrate it first.',
  },
  ...Object.fromEntries(
    [
      'delete from pg_dist_node where groupid = 1',
      'update pg_dist_node set shouldhaveshards = false',
      'update pg_dist_node set isactive = false',
    ].map((make) => [
      `of a cluster without a worker (${make})`,
      {
        make: `set allow_system_table_mods to on; ${make}`,
        reason:
          'The Citus cluster has no worker that takes shards, so all rows would stay on this server. Add a worker: "select citus_add_node(\'HOST\', 5432)".',
      },
    ]),
  ),
  'with objects that Citus does not support': {
    make: `
      create table visits (user_id varchar collate "C" constraint visits_key references dim_user);
      create table lapsed () inherits (dim_user);
      create unique index by_email on dim_user (email);
      create unique index by_name on dim_user (name, user_id);
      create rule spread as on insert to dim_user do also select 1;
      create trigger noted before insert on dim_branch
        for each row execute function suppress_redundant_updates_trigger();
      alter table dim_user
        add referred_by varchar collate "C" constraint referred references dim_user,
        add constraint alone exclude (name with =)`,
    reason:
      'Nothing was distributed. Citus does not support these on distributed tables: the exclusion constraint alone on public.dim_user; the foreign key referred of public.dim_user; the foreign key visits_key of public.visits; the inheritance of public.lapsed from public.dim_user; the rule spread on public.dim_user; the trigger noted on public.dim_branch; the unique index public.by_email on public.dim_user, which lacks the column user_id. Drop them first.',
  },
  'with one table distributed': {
    make: `select distribute('dim_user', 'h', 'user_id', 2)`,
    reason:
      'Nothing was changed, because Citus already manages some of these tables differently: dim_branch is not a reference table, fct_credit_pack_purchases is not distributed by user_id, colocated with dim_user, fct_membership_purchases is not distributed by user_id, colocated with dim_user. Load the rows into a new database, and distribute that one.',
  },
  'with a table distributed by another column': {
    make: `
      select distribute('dim_branch', 'n', null, 1), distribute('dim_user', 'h', 'branch_id', 2),
        distribute('fct_credit_pack_purchases', 'h', 'user_id', 2),
        distribute('fct_membership_purchases', 'h', 'user_id', 2)`,
    reason: /differently: dim_user is not distributed by user_id\./,
  },
  'with tables distributed apart from each other': {
    make: `
      select distribute('dim_branch', 'n', null, 1), distribute('dim_user', 'h', 'user_id', 2),
        distribute('fct_credit_pack_purchases', 'h', 'user_id', 2),
        distribute('fct_membership_purchases', 'h', 'user_id', 3)`,
    reason:
      /differently: fct_membership_purchases is not distributed by user_id, colocated with dim_user\./,
  },
  'with branches split into shards': {
    make: `
      select distribute('dim_branch', 'h', 'branch_id', 2), distribute('dim_user', 'h', 'user_id', 2),
        distribute('fct_credit_pack_purchases', 'h', 'user_id', 2),
        distribute('fct_membership_purchases', 'h', 'user_id', 2)`,
    reason: /differently: dim_branch is not a reference table\./,
  },
};

test.each(Object.keys(refusals))('refuses a database %s, and changes nothing', async (name) => {
  const { make, reason } = refusals[name] as (typeof refusals)[string];
  if (make !== undefined) {
    await createStubs();
    await session.unsafe(make);
  }
  const [before, keys] = [await readAll(), await foreignKeys()];
  expect(await distribute()).toEqual({
    ...{ code: 1, stdout: '' },
    stderr: typeof reason === 'string' ? `${reason}\n` : expect.stringMatching(reason),
  });
  expect(await readAll()).toEqual(before);
  expect(await foreignKeys()).toBe(keys);
});

test('refuses an embedded database, and a role that does not own the tables', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'lead-conversions-distribute-'));
  const embedded = `pglite:${join(folder, 'database')}`;
  await run(embedded, 'npm run migrate');
  expect(await run(embedded, 'npm run distribute')).toEqual({
    ...{ code: 1, stdout: '' },
    stderr:
      'DATABASE_URL names an embedded database, which cannot be distributed. Set it to the URL of the coordinator of a Citus cluster.\n',
  });
  await rm(folder, { recursive: true });
  await createStubs();
  const role = `distributes_${process.pid}`;
  await session.unsafe(
    `create role ${role} login; grant all on all tables in schema public to ${role}`,
  );
  try {
    const url = new URL(database.url);
    url.username = role;
    expect(await run(url.href, 'npm run distribute')).toEqual({
      ...{ code: 1, stdout: '' },
      stderr: expect.stringMatching(
        `^The role ${role} may not distribute the tables: their owner is \\w+\\. Connect as \\w+ or a member of that role\\.\n$`,
      ),
    });
  } finally {
    await session.unsafe(`drop owned by ${role}; drop role ${role}`);
  }
});

test.each([
  [
    'a row is lost',
    `delete from public.fct_membership_purchases where user_id = 'same-instant'`,
    'Nothing was distributed, because fct_membership_purchases would change: its rows would be 10 instead of 11.',
  ],
  [
    'a value changes',
    'update public.fct_membership_purchases set branch_id = null',
    'Nothing was distributed, because fct_membership_purchases would change: its hash would be ',
  ],
  [
    'an index of a view is lost',
    'drop index if exists public.fct_lead_conversions_branch_id_local_user_created_at_idx',
    'Nothing was distributed, because fct_lead_conversions would change: its indexes would be ',
  ],
  [
    'a comment on a view is lost',
    `comment on column public.fct_lead_conversions.user_id is null`,
    'Nothing was distributed, because fct_lead_conversions would change: its comments would be ',
  ],
  [
    'a grant on a view is lost',
    'revoke select on public.fct_lead_conversions from lead_conversions_reader',
    'Nothing was distributed, because fct_lead_conversions would change: its grants would be ',
  ],
])('rolls back if %s', async (_, statement, reason) => {
  await fill();
  await createStubs();
  const before = await readAll();
  await session.unsafe(`
    set allow_system_table_mods to on;
    create or replace function pg_catalog.truncate_local_data_after_distributing_table(regclass)
    returns void language plpgsql as $body$ begin execute $text$${statement}$text$; end $body$`);
  expect(await distribute()).toEqual({
    ...{ code: 1, stdout: '', stderr: expect.stringContaining(reason) },
  });
  expect(await readAll()).toEqual(before);
});

test('waits for a writer and names it, while the views can still be read', async () => {
  await fill();
  await createStubs();
  await session.begin(async (writer) => {
    await writer`update dim_user set name = name`;
    expect(await distribute('--lock-timeout', '500ms', '--retries', '0')).toEqual({
      ...{ code: 1, stdout: '' },
      stderr: expect.stringMatching(
        /^Nothing was distributed, because these tables were locked for longer than 500ms: pid \d+ \(.+\) holds RowExclusiveLock on dim_user\.\n$/,
      ),
    });
    const { process, result } = start(database.url, 'npm run distribute');
    await sessionsThatWait(session);
    expect(await session`select from fct_lead_conversions`).toHaveLength(39);
    process.kill('SIGTERM');
    expect(await result).toMatchObject({
      ...{ code: 143, stderr: 'Cancelled by SIGTERM. The tables have not changed.\n' },
    });
  });
});

test('is skipped while a refresh is running', async () => {
  await createStubs();
  await session.begin(async (holder) => {
    await holder`lock table view_refreshes in row share mode`;
    await holder`lock table view_refreshes in share update exclusive mode`;
    expect(await distribute('--retries', '0')).toEqual({
      ...{ code: 75, stdout: '' },
      stderr: expect.stringMatching(/^skipped: a refresh or a migration is already running/),
    });
  });
});

test('doctor accepts a distributed database, and finds what is wrong with its shards', async () => {
  await fill();
  await createStubs();
  await distribute();
  const doctor = async () => (await run(database.url, 'npm run doctor')).stdout;
  expect(await doctor()).toBe('The database is healthy.\n');
  await session.unsafe(`
    set allow_system_table_mods to on;
    update pg_dist_partition set colocationid = 9 where logicalrelid = 'dim_user'::regclass;
    delete from pg_dist_shard where logicalrelid = 'fct_membership_purchases'::regclass and shardminvalue = '0';
    delete from pg_dist_placement where shardid in (
      select shardid from pg_dist_shard where logicalrelid = 'fct_credit_pack_purchases'::regclass
    );
    insert into pg_dist_node values (3, 2, 'new', 5432, 'primary', true, true)`);
  const found = await doctor();
  expect(found).toContain(
    'By Citus, fct_credit_pack_purchases is not distributed by user_id, colocated with dim_user.\n',
  );
  expect(found).toContain('fct_membership_purchases lacks shards.\n');
  expect(found).toContain('fct_credit_pack_purchases has shards on no server.\n');
  expect(found).toContain('dim_branch is not on all servers.\n  new:5432\n');
});

test('refresh, diff and doctor fail if servers differ or have not committed', async () => {
  await fill();
  await createStubs();
  await distribute();
  const stub = async (name: string, columns: string, query: string) =>
    session.unsafe(`
      create or replace function pg_catalog.${name}, ${columns} out success boolean, out result text)
      returns setof record language sql as $$ ${query} $$`);
  const outcomes = async () => {
    const commands = ['npm run refresh', 'npm run diff', 'npm run doctor'] as const;
    const results: Record<string, string> = {};
    for (const command of commands) {
      const args = ['--retries', '0'];
      const { code, stdout, stderr } = await run(database.url, command, args);
      expect(code).toBe(1);
      results[command] = stderr || stdout;
    }
    return Object.values(results);
  };

  await stub(
    'run_command_on_workers(text, out nodename text',
    'out nodeport int,',
    `select 'worker', 5432, true, '["citus_1_2"]'`,
  );
  const pending = expect.stringContaining('citus_1_2 on worker:5432');
  expect(await outcomes()).toEqual([pending, pending, pending]);

  await stub(
    'run_command_on_workers(text, out nodename text',
    'out nodeport int,',
    `select 'worker', 5432, true, '[]'`,
  );
  const placements = [
    'run_command_on_placements(relation regclass, command text, out nodename text',
    'out nodeport int, out shardid bigint,',
  ] as const;
  await stub(
    ...placements,
    `select 'worker', port, 7::bigint, false, 'refused' from generate_series(1, 2) as port`,
  );
  const unread = expect.stringContaining(
    'The copy of dim_branch on worker:1 cannot be read: refused.',
  );
  expect(await outcomes()).toEqual([unread, unread, unread]);

  await stub(
    ...placements,
    `select 'worker', port, 7::bigint, true, port || ' rows' from generate_series(1, 2) as port`,
  );
  const different = expect.stringContaining(
    'The servers have different copies of dim_branch: worker:1 has 1 rows, worker:2 has 2 rows.',
  );
  const found = await outcomes();
  expect(found).toEqual([different, different, different]);
  for (const finding of [
    'Shards of dim_user differ from the table.\n  7 on worker:1: 1 rows, not ',
    'Shards of dim_user have rows that belong to other shards.\n  7 on worker:1: 1 rows',
  ]) {
    expect(found[2]).toContain(finding);
  }
});

test('a refresh always recomputes views of distributed tables, and waits for a running load', async () => {
  await fill();
  await createStubs();
  await distribute();
  const recomputed =
    /^fct_client_conversion_events: 13 rows, 0 inserted, 0 deleted, always recomputed, because its tables are distributed, \d+ ms\n/;
  const refresh = (...args: string[]) => run(database.url, 'npm run refresh', args);
  for (let time = 0; time < 2; time += 1) {
    expect(await refresh()).toMatchObject({ code: 0, stdout: expect.stringMatching(recomputed) });
  }
  await session.begin(async (loader) => {
    await loader`lock table input_loads in share update exclusive mode`;
    expect(await refresh('--lock-timeout', '1500ms', '--retries', '0')).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(
        /^fct_client_conversion_events was not refreshed: it got no lock within 1500ms, because pid \d+ \(.+\) holds ShareUpdateExclusiveLock on input_loads\.\n$/,
      ),
    });
  });
});

test.each([
  [
    `select 'worker', 5432, true, '["citus_0_1"]'`,
    'Some servers have not committed a transaction yet: citus_0_1 on worker:5432.',
  ],
  [`select 'worker', 5432, false, 'refused'`, 'The worker worker:5432 did not answer: refused\n'],
])(
  'a refresh does not read workers that are behind or do not answer (%s)',
  async (answer, reason) => {
    await fill();
    await createStubs();
    await session.unsafe(`
    set allow_system_table_mods to on;
    create or replace function pg_catalog.run_command_on_workers(text, out nodename text, out nodeport int, out success boolean, out result text)
    returns setof record language sql as $$ ${answer} $$`);
    await distribute();
    const { code, stderr } = await run(database.url, 'npm run refresh', ['--retries', '1']);
    expect(code).toBe(1);
    expect(stderr).toContain(reason);
    expect(stderr).toContain('Trying again in 1 s (1 of 1).');
  },
);
