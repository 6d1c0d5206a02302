import { getTableName } from 'drizzle-orm';
import type { PgTable } from 'drizzle-orm/pg-core';
import postgres from 'postgres';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import * as schema from '../schema/index.ts';
import { type PostgresServer, startPostgres } from '../scripts/postgres_server.ts';
import { type Result, run } from './support/commands.ts';
import { addNotes, addUserInitial, scratchTree } from './support/scratch_tree.ts';
import { filters, sessionsThatWait } from './support/sessions.ts';

/** A separate server, because roles belong to a whole server. */
let server: PostgresServer;
let admin: postgres.Sql;
beforeAll(async () => {
  server = await startPostgres();
  admin = postgres(server.url('postgres'), { max: 2, onnotice: () => {} });
});
afterAll(async () => {
  await admin.end();
  await server.remove();
});

/** The URL of the database for one of its roles. */
function urlAs(role: string): string {
  const url = new URL(server.url('gym'));
  url.username = role;
  return url.href;
}

beforeEach(async () => {
  await admin`create role owner login`;
  await admin`create database gym owner owner`;
});
afterEach(async () => {
  await admin`drop database gym with (force)`;
  await admin`drop role owner`;
  await admin`drop role if exists lead_conversions_reader`;
});

describe('the migrations', () => {
  test('create the role for readers if the owner may create roles', async () => {
    await admin`alter role owner createrole`;
    expect(await run(urlAs('owner'), 'drizzle-kit migrate')).toMatchObject({ code: 0 });
    expect(
      await admin`
        select rolcanlogin, rolsuper, shobj_description(oid, 'pg_authid') as comment
        from pg_roles
        where rolname = 'lead_conversions_reader'`,
    ).toEqual([
      {
        rolcanlogin: false,
        rolsuper: false,
        comment: expect.stringMatching(/^Members may read these objects of lead-conversions/),
      },
    ]);
  });

  test('say what to do if that role is missing and the owner may not create roles', async () => {
    const { code, stdout, stderr } = await run(urlAs('owner'), 'drizzle-kit migrate');
    expect(code).toBe(1);
    expect(stdout + stderr).toContain(
      'The role lead_conversions_reader does not exist, and the role owner may not create roles. Have an administrator run "create role lead_conversions_reader", then migrate again.',
    );
    await admin`create role lead_conversions_reader`;
    expect(await run(urlAs('owner'), 'drizzle-kit migrate')).toMatchObject({ code: 0 });
  });

  test('say what to do if the owner may not let readers use the schema', async () => {
    await admin`alter role owner createrole`;
    const gym = postgres(server.url('gym'), { max: 1 });
    await gym`alter schema public owner to postgres`;
    await gym`revoke all on schema public from public`;
    await gym`grant usage, create on schema public to owner`;
    const { code, stdout, stderr } = await run(urlAs('owner'), 'drizzle-kit migrate');
    expect(code).toBe(1);
    expect(stdout + stderr).toContain(
      'The role owner may not grant usage on the schema public. Have its owner run "grant usage on schema public to lead_conversions_reader", then migrate again.',
    );
    await gym`create role lead_conversions_reader`;
    await gym`grant usage on schema public to lead_conversions_reader`;
    expect(await run(urlAs('owner'), 'drizzle-kit migrate')).toMatchObject({ code: 0 });
    await gym.end();
  });

  test('accept a role that another database creates at the same moment', async () => {
    await admin`alter role owner createrole`;
    let migrate: Promise<Result> | undefined;
    const gym = postgres(server.url('gym'), { max: 1 });
    await admin.begin(async (other) => {
      await other`create role lead_conversions_reader`;
      migrate = run(urlAs('owner'), 'drizzle-kit migrate');
      await sessionsThatWait(gym);
    });
    expect(await migrate).toMatchObject({ code: 0 });
    await gym.end();
  });
});

describe('whatever the default privileges of the database,', () => {
  /** The rights of all roles but the owner on what the migrations have created, however given. */
  const rights = () => gym<{ right: string }[]>`
    select format('%s %s %s', coalesce(rolname, 'PUBLIC'), privilege_type, what) as right
    from (
      select relname::text as what, relowner as owner, relacl as acl from pg_class
      where relnamespace in ('public'::regnamespace, 'drizzle'::regnamespace)
      union all
      select format('%s.%s', relname, attname), relowner, attacl
      from pg_attribute inner join pg_class on attrelid = pg_class.oid
      where relnamespace in ('public'::regnamespace, 'drizzle'::regnamespace)
      union all
      select nspname, nspowner, nspacl from pg_namespace where nspname = 'drizzle'
    ) as acls
    cross join aclexplode(acl)
    left join pg_roles on grantee = pg_roles.oid
    where grantee <> owner
    order by 1`;

  const declared = [
    ...['branch_id', 'city', 'country', 'name', 'timezone_id'].map(
      (column) => `lead_conversions_reader SELECT dim_branch.${column}`,
    ),
    'lead_conversions_reader SELECT fct_client_conversion_events',
    'lead_conversions_reader SELECT fct_lead_conversions',
    'lead_conversions_reader SELECT view_refreshes',
  ].map((right) => ({ right }));

  let gym: postgres.Sql;
  beforeEach(async () => {
    gym = postgres(server.url('gym'), { max: 1, onnotice: () => {} });
    await admin`create role analyst login`;
    await admin`create role lead_conversions_reader`;
    for (const kind of ['tables', 'sequences', 'schemas']) {
      await gym.unsafe(`
        alter default privileges for role owner grant all on ${kind} to analyst with grant option;
        alter default privileges for role owner grant all on ${kind} to public`);
    }
    await gym`
      alter default privileges for role owner in schema public
      grant all on tables to pg_monitor, lead_conversions_reader`;
  });
  afterEach(async () => {
    await gym`drop owned by analyst`;
    await gym.end();
    await admin`drop role analyst`;
  });

  test('a migration gives the declared rights on what it creates, and no others', async () => {
    expect(await run(urlAs('owner'), 'drizzle-kit migrate')).toMatchObject({ code: 0 });
    expect([...(await rights())]).toEqual(declared);
  });

  test('a later migration does so, too, and leaves rights alone that were granted in between', async () => {
    await run(urlAs('owner'), 'drizzle-kit migrate');
    await gym`grant select on dim_user to analyst`;
    await gym`grant select (email) on dim_branch to analyst`;
    const tree = await scratchTree();
    try {
      await addUserInitial(tree);
      await addNotes(tree);
      await tree.edit(
        'schema/dim_user.ts',
        [`import { check, varchar }`, `import { bigint, check, varchar }`],
        [
          `      email: varchar('email'),`,
          `      email: varchar('email'),
      number: bigint('number', { mode: 'number' }).generatedAlwaysAsIdentity(),`,
        ],
        [`      email: 'E-mail`, `      number: 'A number.',\n      email: 'E-mail`],
      );
      await tree.run('', 'npm run generate', ['--name', 'notes']);
      expect(await tree.run(urlAs('owner'), 'drizzle-kit migrate')).toMatchObject({ code: 0 });
    } finally {
      await tree.remove();
    }
    expect([...(await rights())]).toEqual(
      [
        { right: 'analyst SELECT dim_branch.email' },
        { right: 'analyst SELECT dim_user' },
        ...declared,
        { right: 'lead_conversions_reader SELECT notes.note' },
      ].toSorted((one, other) => (one.right < other.right ? -1 : 1)),
    );
    expect(await gym`select nspname from pg_namespace where nspname ~ '^lead'`).toEqual([]);
  });
});

describe('a member of lead_conversions_reader', () => {
  const tables = Object.values(schema as Record<string, PgTable>).map((table) =>
    getTableName(table),
  );
  const readable = ['fct_client_conversion_events', 'fct_lead_conversions', 'view_refreshes'];
  let member: postgres.Sql;
  beforeEach(async () => {
    await admin`alter role owner createrole`;
    await run(urlAs('owner'), 'drizzle-kit migrate');
    await run(urlAs('owner'), 'npm run load', ['test/sample']);
    await run(urlAs('owner'), 'npm run refresh');
    await admin`create role analyst login in role lead_conversions_reader`;
    member = postgres(urlAs('analyst'), { max: 1 });
  });
  afterEach(async () => {
    await member.end();
    await admin`drop role analyst`;
  });

  const refused = (statement: string) =>
    expect(member.unsafe(statement), statement).rejects.toMatchObject({
      code: expect.stringMatching(/^42501$/),
    });

  test('reads both views and their history', async () => {
    expect(await member`select user_id from fct_client_conversion_events`).toHaveLength(13);
    expect(await member`select user_id from fct_lead_conversions`).toHaveLength(13 * filters);
    expect(await member`select view from view_refreshes`).toHaveLength(2);
  });

  test('reads the columns that describe a branch, but not its e-mail address', async () => {
    expect(
      await member`select branch_id, name, city, country, timezone_id from dim_branch`,
    ).toHaveLength(3);
    await refused('select email from dim_branch');
    await refused('select created_at from dim_branch');
  });

  test('may not read all columns of any input table or of the history of loads', async () => {
    expect(tables).toHaveLength(5);
    for (const table of tables) {
      await refused(`select * from ${table}`);
    }
  });

  test('may neither write nor run REFRESH', async () => {
    for (const table of [...tables, 'view_refreshes']) {
      await refused(`insert into ${table} default values`);
      await refused(`delete from ${table}`);
      await refused(`truncate ${table} cascade`);
    }
    await refused(`update view_refreshes set rows = 0`);
    await refused('drop table view_refreshes');
    await refused('create table notes (note text)');
    for (const view of ['fct_client_conversion_events', 'fct_lead_conversions']) {
      await refused(`refresh materialized view ${view}`);
      await refused(`refresh materialized view concurrently ${view}`);
      await refused(`drop materialized view ${view} cascade`);
    }
    expect(await run(urlAs('analyst'), 'npm run refresh')).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(
        /^The role analyst may not refresh fct_client_conversion_events: its owner is owner\. /,
      ),
    });
  });

  test('has no privilege on any other table or view', async () => {
    const granted = await member`
      select relname, privilege
      from pg_class
      cross join unnest(array[
        'select', 'insert', 'update', 'delete', 'truncate', 'references', 'trigger'
      ]) as privilege
      where relnamespace in ('public'::regnamespace, 'drizzle'::regnamespace)
        and relkind in ('r', 'v', 'm', 'p', 'f')
        and has_table_privilege(oid, privilege)
      order by relname`;
    expect(granted).toEqual(readable.map((relname) => ({ relname, privilege: 'select' })));
  });
});
