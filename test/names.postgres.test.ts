import postgres from 'postgres';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { type PostgresServer, startPostgres } from '../scripts/postgres_server.ts';
import { run } from './support/commands.ts';
import { addUserInitial, type ScratchTree, scratchTree } from './support/scratch_tree.ts';

// A name always means our object, whatever others have created and whatever the search_path of the
// session is.

/** A separate server, because roles belong to a whole server. */
let server: PostgresServer;
let admin: postgres.Sql;
/** A tree with a changed view, and the migration generated. */
let tree: ScratchTree;
beforeAll(async () => {
  server = await startPostgres();
  admin = postgres(server.url('postgres'), { max: 1, onnotice: () => {} });
  await admin`create role owner login createrole`;
  await admin`create role mallory login`;
  tree = await scratchTree();
  await addUserInitial(tree);
  expect(await tree.run('', 'npm run generate', ['--name', 'user_initial'])).toMatchObject({
    code: 0,
  });
}, 120_000);
afterAll(async () => {
  await tree.remove();
  await admin.end();
  await server.remove();
});

const urlAs = (role: string) => {
  const url = new URL(server.url('gym'));
  url.username = role;
  return url.href;
};

/** A session of a superuser on the database. */
let session: postgres.Sql;
beforeEach(async () => {
  await admin`create database gym owner owner template template0`;
  session = postgres(urlAs('postgres'), { max: 1, onnotice: () => {} });
});
afterEach(async () => {
  await session.end();
  await admin`drop database gym with (force)`;
});

/**
 * Migrates, loads and refreshes (both twice), migrates to a changed view, adds a user, refreshes.
 */
async function everything() {
  const succeed = async (command: Parameters<typeof run>[1], args: string[] = []) =>
    expect(await tree.run(urlAs('owner'), command, args), command).toMatchObject({ code: 0 });
  expect(await run(urlAs('owner'), 'drizzle-kit migrate')).toMatchObject({ code: 0 });
  for (const folder of ['test/sample', 'test/sample']) {
    expect(await run(urlAs('owner'), 'npm run load', [folder])).toMatchObject({ code: 0 });
    expect(await run(urlAs('owner'), 'npm run refresh')).toMatchObject({ code: 0, stderr: '' });
  }
  await succeed('drizzle-kit migrate');
  await session`insert into public.dim_user (user_id) values ('zoe')`;
  await succeed('npm run refresh');
  const rows = async (relation: string, order: string) =>
    session.unsafe(`select * from public.${relation} order by ${order}`);
  return {
    events: [...(await rows('fct_client_conversion_events', 'user_id'))],
    conversions: [
      ...(await rows('fct_lead_conversions', 'user_id, client_conversion_event_filter')),
    ],
    history: [
      ...(await session`
        select view, mode, rows::int, inserted::int, deleted::int
        from public.view_refreshes
        order by started_at, view`),
    ],
  };
}

let expected: Awaited<ReturnType<typeof everything>>;
test('migrate, load and refresh succeed if nobody interferes', async () => {
  expected = await everything();
  expect(expected.events).toHaveLength(14);
  expect(expected.conversions).toHaveLength(42);
  expect(expected.history).toHaveLength(6);
}, 60_000);

/** Operators with a better match than those of pg_catalog, if the search_path has public. */
const comparisons = [
  ...['=', '<>', '<', '>', '<=', '>=', '~', '~*', '!~', '!~*'].flatMap((operator) =>
    [
      ['varchar', 'varchar'],
      ['varchar', 'text'],
      ['text', 'varchar'],
      ['varchar', 'name'],
      ['name', 'varchar'],
    ].map((types) => [operator, ...types]),
  ),
  ...['=', '<>'].flatMap((operator) =>
    [
      ['oid', 'regclass'],
      ['regclass', 'oid'],
      ['bigint', 'oid'],
      ['oid', 'bigint'],
    ].map((types) => [operator, ...types]),
  ),
];

/**
 * Functions with a better match than those of pg_catalog, or preferred for a parameter of unknown
 * type.
 */
const functions = [
  ['hashtextextended(text, int)', 'bigint'],
  ['pg_try_advisory_xact_lock(int)', 'boolean'],
  ['timezone(varchar, timestamptz)', 'timestamp'],
  ['timezone(varchar, timestamp)', 'timestamptz'],
  ['to_timestamp(int)', 'timestamptz'],
  ['to_char(timestamp, varchar)', 'text'],
  ['to_regclass(varchar)', 'regclass'],
  ['set_config(text, varchar, boolean)', 'text'],
  ['set_config(varchar, varchar, boolean)', 'text'],
  ['concat_ws(text, name, text)', 'text'],
  ['format(text, int, text)', 'text'],
  ['has_table_privilege(regclass, text)', 'boolean'],
  ['pg_has_role(oid, varchar)', 'boolean'],
  ['pg_cancel_backend(text)', 'boolean'],
  ['pg_stat_get_xact_tuples_inserted(text)', 'bigint'],
  ['pg_stat_get_xact_tuples_deleted(text)', 'bigint'],
  ['pg_stat_get_last_vacuum_time(regclass)', 'timestamptz'],
  ['num_nulls(varchar)', 'int'],
  ['num_nulls(varchar, varchar)', 'int'],
  ['obj_description(oid, text)', 'text'],
  ['current_setting(varchar)', 'text'],
  ['array_position(text[], text)', 'int'],
] as const;

test.each([`"$user", public`, 'public, pg_catalog'])(
  'functions and operators of others are never called, with the search_path %s',
  async (searchPath) => {
    await session.unsafe(`alter database gym set search_path = ${searchPath}`);
    await session`grant create on schema public to public`;
    const mallory = postgres(urlAs('mallory'), { max: 1 });
    await mallory.unsafe(`
    create table public.caught (what text);
    grant all on public.caught to public;
    create function public.catch(what text) returns void language sql as $$
      insert into public.caught values (what) $$`);
    const body = (what: string) =>
      `language plpgsql as $$ begin perform public.catch('${what}'); return null; end $$`;
    for (const [signature, type] of functions) {
      await mallory.unsafe(
        `create function public.${signature} returns ${type} ${body(signature)}`,
      );
    }
    for (const [index, [operator, left, right]] of comparisons.entries()) {
      await mallory.unsafe(`
      create function public.compare_${index}(${left}, ${right}) returns boolean
        ${body(`${left} ${operator} ${right}`)};
      create operator public.${operator} (function = public.compare_${index}, leftarg = ${left}, rightarg = ${right})`);
    }
    await mallory.end();
    expect(await everything()).toEqual(expected);
    expect(await session`select distinct what from public.caught`).toEqual([]);
  },
  60_000,
);

describe('tables with our names are left alone in', () => {
  const tables = ['dim_branch', 'dim_user', 'fct_membership_purchases', 'view_refreshes'];

  test.each([
    ['a schema with the name of the role', 'owner', `"$user", public`],
    ['a schema that is first in the search_path', 'gym', 'gym, public'],
  ])(
    '%s',
    async (_, schema, searchPath) => {
      await session.unsafe(`create schema ${schema} authorization owner`);
      for (const table of [...tables, 'loading']) {
        await session.unsafe(`create table ${schema}.${table} (user_id varchar, view varchar)`);
        await session.unsafe(`alter table ${schema}.${table} owner to owner`);
      }
      await session.unsafe(`alter database gym set search_path = ${searchPath}`);
      expect(await everything()).toEqual(expected);
      for (const table of tables) {
        expect(await session.unsafe(`select from ${schema}.${table}`)).toHaveLength(0);
      }
    },
    60_000,
  );
});

test.each([`''`, 'gym'])(
  'the search_path of the session changes nothing: %s',
  async (searchPath) => {
    await session.unsafe(`alter database gym set search_path = ${searchPath}`);
    expect(await everything()).toEqual(expected);
  },
  60_000,
);
