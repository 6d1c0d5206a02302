import { readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { drizzle } from 'drizzle-orm/postgres-js';
import postgres from 'postgres';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import { generate } from '../scripts/benchmark/data.ts';
import { type PostgresServer, startPostgres } from '../scripts/postgres_server.ts';
import { readRelations } from '../scripts/relations.ts';
import { type Result, run, start } from './support/commands.ts';
import {
  addNotes,
  addPhone,
  addUserInitial,
  deriveSourceAnew,
  dropEmail,
  laterMigration,
  retypeBranchId,
  type ScratchTree,
  scratchTree,
} from './support/scratch_tree.ts';
import { filters, patience, sessionsThatWait, sessionThatRuns } from './support/sessions.ts';

/** A separate server, because roles belong to a whole server. */
let server: PostgresServer;
let admin: postgres.Sql;
/** A tree with a column added to the first view, and the migration generated. */
let tree: ScratchTree;
let migration: string;

const urlAs = (role: string, database = 'gym') => {
  const url = new URL(server.url(database));
  url.username = role;
  return url.href;
};

const switchAutovacuum = async (to: 'on' | 'off') => {
  await admin`alter system set autovacuum = ${admin.unsafe(to)}`;
  await admin`select pg_reload_conf()`;
};

beforeAll(async () => {
  server = await startPostgres({ autovacuum_naptime: '1s' });
  admin = postgres(server.url('postgres'), { max: 1, onnotice: () => {} });
  await switchAutovacuum('off'); // it would get in the way of the vacuum after a refresh
  await admin`create role owner login createrole`;
  await admin`create database template owner owner`;
  await run(urlAs('owner', 'template'), 'drizzle-kit migrate');
  const client = postgres(urlAs('owner', 'template'), { max: 1, onnotice: () => {} });
  await generate(client, { users: 60_000, purchasesPerUser: 5 });
  await client.end();
  await run(urlAs('owner', 'template'), 'npm run refresh');

  tree = await scratchTree();
  await addUserInitial(tree);
  await tree.run('', 'npm run generate', ['--name', 'user_initial']);
  migration = join(tree.folder, 'schema/migrations', (await tree.migrations()).at(-1) ?? '');
}, 180_000);
afterAll(async () => {
  await tree.remove();
  await admin.end();
  await server.remove();
});

/** Sessions of the owner on a database with 60,000 users, whose views are up to date. */
let owner: postgres.Sql;
let text: string;
beforeEach(async () => {
  await admin`create database gym template template owner owner strategy file_copy`;
  owner = postgres(urlAs('owner'), { max: 4, onnotice: () => {} });
  text = await readFile(migration, 'utf8');
});
afterEach(async () => {
  await writeFile(migration, text);
  await owner.end({ timeout: 1 });
  await admin`drop database gym with (force)`;
});

/** Everything that a migration might change. */
async function state() {
  const views = await owner<{ name: string }[]>`
    select matviewname as name, matviewowner as owner, ispopulated, definition,
      (select count(*)::int from fct_lead_conversions) as rows
    from pg_matviews
    order by matviewname`;
  const checksum = async (view: string) =>
    owner`select md5(string_agg(md5(row::text), '' order by user_id)) from ${owner(view)} as row`;
  return {
    relations: await readRelations(drizzle(owner)),
    schemas: await owner`
      select nspname from pg_namespace where nspname !~ '^pg_' order by nspname`,
    views: [...views],
    rows: [await checksum('fct_client_conversion_events'), await checksum('fct_lead_conversions')],
    migrations: await owner`select hash from drizzle.lead_conversions_migrations order by id`,
  };
}

describe('migrating to a changed view', () => {
  test('makes it and the view that reads it match their declarations, ready for a refresh', async () => {
    const before = await state();
    expect(await tree.run(urlAs('owner'), 'drizzle-kit migrate')).toMatchObject({ code: 0 });
    const after = await state();

    const [branches, users, events, creditPacks, conversions, ...others] = before.relations;
    expect(after.relations).toEqual([
      branches,
      users,
      {
        ...events,
        columns: events?.columns.toSpliced(
          events.columns.indexOf('first_credit_pack_source varchar'),
          0,
          'user_initial varchar COLLATE "C"',
        ),
        comments: events?.comments.toSpliced(
          events.comments.findIndex(({ name }) => name === 'first_credit_pack_source'),
          0,
          {
            on: 'COLUMN',
            name: 'user_initial',
            text: 'First character of user_id.',
          },
        ),
      },
      creditPacks,
      conversions,
      ...others,
    ]);
    expect([events?.name, conversions?.name]).toEqual([
      'fct_client_conversion_events',
      'fct_lead_conversions',
    ]);
    expect(after.schemas).toEqual(before.schemas);
    expect(after.views).toEqual([
      { ...before.views[0], definition: expect.stringContaining('user_initial') },
      before.views[1],
    ]);
    expect(after.rows[1]).toEqual(before.rows[1]);
    expect(
      await owner`
        select count(*)::int as users from fct_client_conversion_events
        where user_initial = substr(user_id, 1, 1)`,
    ).toEqual([{ users: 60_000 }]);

    await owner`insert into dim_user (user_id) values ('new')`;
    expect(await tree.run(urlAs('owner'), 'npm run refresh')).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(
        new RegExp(
          `^fct_client_conversion_events: 60001 rows, 1 inserted, 0 deleted, \\d+ ms\nfct_lead_conversions: ${60_001 * filters} rows, ${filters} inserted, 0 deleted, \\d+ ms\n$`,
        ),
      ),
      stderr: '',
    });
    expect(await tree.run(urlAs('owner'), 'drizzle-kit migrate')).toMatchObject({ code: 0 });
  });

  test('keeps the owner of the views when a superuser migrates', async () => {
    expect(await tree.run(urlAs('postgres'), 'drizzle-kit migrate')).toMatchObject({ code: 0 });
    expect(await owner`select distinct matviewowner from pg_matviews`).toEqual([
      { matviewowner: 'owner' },
    ]);
    expect(await tree.run(urlAs('owner'), 'npm run refresh')).toMatchObject({ code: 0 });
  });

  test('keeps the owner of the views when a member of that role migrates', async () => {
    await admin`create role deploy login in role owner`;
    await admin`grant create on database gym to deploy`;
    const { code, stdout } = await tree.run(urlAs('deploy'), 'drizzle-kit migrate');
    expect([code, stdout]).toEqual([0, expect.any(String)]);
    expect(await owner`select distinct matviewowner from pg_matviews`).toEqual([
      { matviewowner: 'owner' },
    ]);
    expect(await tree.run(urlAs('owner'), 'npm run refresh')).toMatchObject({ code: 0 });
  });
});

let endLoops: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  await Promise.allSettled(endLoops.map((end) => end()));
  endLoops = [];
});

/** A client that reads again and again, at most a hundred times a second. */
function readInLoop(work: (reader: postgres.Sql) => PromiseLike<unknown[]>, rows = filters + 1) {
  const reader = postgres(urlAs('owner'), { max: 1 });
  const reads: { at: number; took: number }[] = [];
  let isOver = false;
  const loop = async () => {
    while (!isOver) {
      const at = performance.now();
      expect(await work(reader)).toHaveLength(rows);
      reads.push({ at, took: performance.now() - at });
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  };
  const running = loop().finally(() => reader.end());
  running.catch(() => {}); // end throws it
  /** Throws if a read has failed or has not seen the rows. */
  const end = async () => {
    isOver = true;
    await running;
    return {
      longest: Math.max(...reads.map(({ took }) => took)),
      readsIn: ({ from, to }: Period) => reads.filter(({ at }) => at > from && at < to).length,
    };
  };
  endLoops.push(end);
  return { end };
}

/** In milliseconds. */
interface Period {
  from: number;
  to: number;
}

/** From the first to the last moment at which a migration is seen filling a view. */
async function fillingOf(migrated: Promise<unknown>): Promise<Period> {
  const seen: number[] = [];
  let isOver = false;
  migrated.finally(() => {
    isOver = true;
  });
  while (!isOver) {
    const filling = await owner`
      select from pg_stat_activity
      where datname = current_database() and state = 'active'
        and query ilike '_refresh materialized view%'`;
    if (filling.length > 0) {
      seen.push(performance.now());
    }
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  return { from: Math.min(...seen), to: Math.max(...seen) };
}

/** Resolves once the exchange of the views has failed this many times. */
async function attempts(count: number): Promise<void> {
  const isPausing = async () => {
    const [pausing] = await owner`
      select from pg_stat_activity
      where datname = current_database() and wait_event = 'PgSleep'`;
    return pausing !== undefined;
  };
  for (let attempt = 0; attempt < count; attempt += 1) {
    await vi.waitUntil(isPausing, patience);
    await vi.waitUntil(async () => !(await isPausing()), patience);
  }
}

const one = { userId: '' };
beforeEach(async () => {
  const [user] = await owner<{ user_id: string }[]>`select user_id from dim_user limit 1`;
  one.userId = user?.user_id ?? '';
});
const eventsOf = (reader: postgres.ISql) =>
  reader`select lead_status from fct_client_conversion_events where user_id = ${one.userId}`;
const conversionsOf = (reader: postgres.ISql) =>
  reader`select lead_status from fct_lead_conversions where user_id = ${one.userId}`;

/** Readers of every kind: both views in one statement, or in one transaction in either order. */
const readers = {
  statement: (reader: postgres.Sql) => reader`
    select lead_status from fct_client_conversion_events where user_id = ${one.userId}
    union all
    select lead_status from fct_lead_conversions where user_id = ${one.userId}`,
  upwards: (reader: postgres.Sql) =>
    reader.begin(async (session) => [
      ...(await eventsOf(session)),
      ...(await conversionsOf(session)),
    ]),
  downwards: (reader: postgres.Sql) =>
    reader.begin(async (session) => [
      ...(await conversionsOf(session)),
      ...(await eventsOf(session)),
    ]),
};

describe('readers during a migration', () => {
  test('are never refused, and wait only while the views are exchanged', async () => {
    const loops = Object.values(readers).map((work) => readInLoop(work));
    const migrated = tree.run(urlAs('owner'), 'drizzle-kit migrate');
    const filling = await fillingOf(migrated);
    expect(await migrated).toMatchObject({ code: 0 });
    for (const loop of loops) {
      const { longest, readsIn } = await loop.end();
      expect(readsIn(filling)).toBeGreaterThan(10);
      expect(longest).toBeLessThan((filling.to - filling.from) / 2);
    }
  });

  test('see the rows of the new views, even in a transaction that began before', async () => {
    const counts = await owner.begin('isolation level repeatable read', async (session) => {
      await session`select from dim_user limit 1`;
      expect(await tree.run(urlAs('owner'), 'drizzle-kit migrate')).toMatchObject({ code: 0 });
      return await session`
        select
          (select count(*)::int from fct_client_conversion_events) as events,
          (select count(*)::int from fct_lead_conversions) as conversions`;
    });
    expect([...counts]).toEqual([{ events: 60_000, conversions: 60_000 * filters }]);
  });

  test('get through while a long report delays the exchange', async () => {
    const loops = Object.values(readers).map((work) => readInLoop(work));
    let migrated: Promise<unknown> | undefined;
    const report = { from: 0, to: 0 };
    await owner.begin(async (session) => {
      await session`select from fct_lead_conversions limit 1`;
      report.from = performance.now();
      migrated = tree.run(urlAs('owner'), 'drizzle-kit migrate');
      await attempts(3);
      report.to = performance.now();
    });
    expect(await migrated).toMatchObject({ code: 0 });
    for (const loop of loops) {
      const { longest } = await loop.end();
      expect(longest).toBeLessThan((report.to - report.from) / 2);
    }
  });
});

const change = async (...replacements: [from: string, to: string][]) => {
  let changed = text;
  for (const [from, to] of replacements) {
    expect(changed).toContain(from);
    changed = changed.replace(from, () => to);
  }
  await writeFile(migration, changed);
};

describe('a migration that cannot be completed leaves everything as it was', () => {
  test("if somebody else's view, which the error names, reads a view that it replaces", async () => {
    await owner`create view sales_report as select * from fct_lead_conversions`;
    const before = await state();
    const { code, stdout, stderr } = await tree.run(urlAs('owner'), 'drizzle-kit migrate');
    expect(code).toBe(1);
    expect(stdout + stderr).toContain(
      'Nothing was migrated, because other objects depend on what it replaces: view public.sales_report depends on materialized view public.fct_lead_conversions. Drop them, migrate, and create them again.',
    );
    expect(await state()).toEqual(before);
    expect(await owner`select count(*)::int as rows from sales_report`).toEqual([
      { rows: 60_000 * filters },
    ]);

    await owner`drop view sales_report`;
    expect(await tree.run(urlAs('owner'), 'drizzle-kit migrate')).toMatchObject({ code: 0 });
  });

  test('if the new view cannot be computed from the data', async () => {
    // The empty database on which the migration was tried could not show this.
    await change(['left(user_id, 1)', 'left(user_id, 60 / length(user_id))']);
    await owner`insert into dim_user (user_id) values ('')`;
    const before = await state();
    const { code, stdout, stderr } = await tree.run(urlAs('owner'), 'drizzle-kit migrate');
    expect(code).toBe(1);
    expect(stdout + stderr).toContain('division by zero');
    expect(await state()).toEqual(before);
  });

  test('if row-level security would keep rows from the new views', async () => {
    await owner`alter table dim_user enable row level security`;
    await owner`alter table dim_user force row level security`;
    const before = await state();
    const { code, stdout, stderr } = await tree.run(urlAs('owner'), 'drizzle-kit migrate');
    expect(code).toBe(1);
    expect(stdout + stderr).toContain(
      'query would be affected by row-level security policy for table "dim_user"',
    );
    expect(await state()).toEqual(before);
  });

  test('if it is killed while the new views are filled', async () => {
    const before = await state();
    const { process, result } = start(urlAs('owner'), 'drizzle-kit migrate', [], {}, tree.folder);
    await sessionThatRuns(owner, '_refresh materialized view%fct_lead_conversions%');
    process.kill('SIGKILL');
    expect(await result).toMatchObject({ code: 'SIGKILL' });
    await vi.waitUntil(async () => {
      const left = await owner`
        select from pg_stat_activity
        where datname = current_database() and query like '%lead_conversions_new%'
          and pid <> pg_backend_pid()`;
      return left.length === 0;
    }, patience);
    expect(await state()).toEqual(before);
    expect(await tree.run(urlAs('owner'), 'drizzle-kit migrate')).toMatchObject({ code: 0 });
  });

  test('if sessions, which the error names, are reading the views all the time', async () => {
    const before = await state();
    await change(['1..100', '1..2'], ['attempt = 100', 'attempt = 2']);
    await owner.begin(async (session) => {
      const [reader] = await session<{ pid: number }[]>`
        select pg_backend_pid() as pid from fct_lead_conversions limit 1`;
      const { code, stdout, stderr } = await tree.run(urlAs('owner'), 'drizzle-kit migrate');
      expect(code).toBe(1);
      expect(stdout + stderr).toContain(
        'Nothing was migrated, because other sessions kept using fct_lead_conversions and fct_client_conversion_events for two minutes. Migrate again later.',
      );
      expect(stdout + stderr).toContain(
        `In use by: pid ${reader?.pid} (owner, postgres.js) holds AccessShareLock on fct_lead_conversions`,
      );
    });
    expect(await state()).toEqual(before);
  });
});

describe('what others have put on a view', () => {
  /** Everything of that kind that Postgres records. */
  const extras = async () => ({
    indexes: await owner`
      select indexname, indexdef, obj_description(format('public.%I', indexname)::regclass) as comment
      from pg_indexes where tablename ~ '^fct_.*(events|conversions)$' order by indexname`,
    statistics: await owner`
      select pg_get_statisticsobjdef(pg_statistic_ext.oid) as definition, stxstattarget, stxowner::regrole::text,
        exists (select from pg_stats_ext where statistics_name = stxname and statistics_schemaname = (select nspname from pg_namespace where oid = stxnamespace) and dependencies is not null) as filled
      from pg_statistic_ext order by stxname, stxnamespace::regnamespace::text`,
    relations: await owner`
      select relname, relacl::text,
        (select array_agg(option order by option) from unnest(reloptions) as option) as options
      from pg_class
      where relkind = 'm' order by relname`,
    indexColumns: await owner`
      select relname, pg_class.reloptions, attnum, attstattarget
      from pg_attribute inner join pg_class on attrelid = pg_class.oid
      where relkind = 'i' and relnamespace = 'public'::regnamespace
      order by relname, attnum`,
    columns: await owner`
      select relname, attname, attstattarget, attoptions, attstorage, attcompression, attacl::text
      from pg_attribute inner join pg_class on attrelid = pg_class.oid
      where relkind = 'm' and attnum > 0 and attname <> 'user_initial'
      order by relname, attname`,
  });

  beforeEach(async () => {
    await admin`create role analyst`;
    await admin`create role other`;
    await owner`create schema analysts`;
    await owner.unsafe(`
      create index "By Source" on fct_lead_conversions (client_conversion_event_source, lower(client_conversion_event_name)) with (fillfactor = 80) where lead_status = 'CLIENT';
      comment on index "By Source" is 'Ours.';
      create statistics analysts.pairs (dependencies) on client_conversion_event_source, client_conversion_event_type from fct_lead_conversions;
      alter statistics analysts.pairs set statistics 50;
      alter materialized view fct_client_conversion_events set (fillfactor = 90, autovacuum_enabled = false, toast.autovacuum_enabled = false);
      alter materialized view fct_client_conversion_events alter column branch_id set statistics 1000;
      alter materialized view fct_client_conversion_events alter column branch_id set (n_distinct = -0.1);
      alter materialized view fct_client_conversion_events alter column first_membership_name set storage external;
      create index kept on fct_lead_conversions (lower(lead_status)) where user_id <> 'x ON public.fct_lead_conversions USING y';
      alter index kept alter column 1 set statistics 777;
      create unique index counts on fct_client_conversion_events (user_id) include (lead_status);
      create index found on fct_client_conversion_events using hash (branch_id);
      alter index fct_lead_conversions_branch_id_local_user_created_at_idx set (fillfactor = 70);
      create schema "other schema";
      create statistics "other schema"."two ON columns" on lead_status, branch_id from fct_lead_conversions;
      create statistics "other schema".pairs (dependencies) on lead_status, branch_id from fct_client_conversion_events;
      grant select on fct_lead_conversions to analyst with grant option;
      grant select (user_id, lead_status) on fct_client_conversion_events to other;
      grant select on fct_client_conversion_events to public;
      analyze fct_lead_conversions, fct_client_conversion_events`);
  });
  afterEach(async () => {
    await owner`drop owned by analyst, other`.catch(() => {});
    await admin`drop database gym with (force)`;
    await admin`drop role analyst, other`;
    await admin`create database gym template template owner owner strategy file_copy`;
  });

  test('is kept on the new view, and is listed', async () => {
    const before = await extras();
    const { code, stdout, stderr } = await tree.run(urlAs('owner'), 'npm run migrate');
    expect([code, stdout]).toEqual([0, expect.stringContaining('user_initial: migrated')]);
    expect(await extras()).toEqual(before);
    for (const kept of [
      'the index By Source of fct_lead_conversions',
      'the statistics pairs of fct_lead_conversions',
      'the option fillfactor=90 of fct_client_conversion_events',
      'the option toast.autovacuum_enabled=false of fct_client_conversion_events',
      'the statistics target of column branch_id of fct_client_conversion_events',
      'SELECT on fct_lead_conversions for analyst',
      'SELECT on fct_client_conversion_events.lead_status for other',
      'SELECT on fct_client_conversion_events for PUBLIC',
    ]) {
      expect(stderr).toContain(`Kept ${kept}.\n`);
    }
    expect(stderr).not.toContain('lead_conversions_reader');
  });

  test('is kept when a superuser migrates and when Postgres quotes all names', async () => {
    await admin`alter database gym set quote_all_identifiers = on`;
    const before = await extras();
    expect(await tree.run(urlAs('postgres'), 'drizzle-kit migrate')).toMatchObject({ code: 0 });
    expect(await extras()).toEqual(before);
  });

  test('stops the migration if it is added while the migration runs', async () => {
    const migrated = owner.begin(async (report) => {
      await report`select from fct_lead_conversions limit 1`;
      const result = tree.run(urlAs('owner'), 'npm run migrate');
      await attempts(1);
      await owner`create index late on fct_lead_conversions (lead_status)`;
      await owner`grant select on fct_client_conversion_events to analyst`;
      return { result };
    });
    const { result } = await migrated;
    expect(await result).toMatchObject({
      code: 1,
      stderr: expect.stringContaining(
        `${laterMigration('user_initial')}: Nothing was migrated, because somebody changed this at the same time: SELECT on fct_client_conversion_events for analyst, the index late of fct_lead_conversions. Migrate again.\n`,
      ),
    });
    expect(await tree.run(urlAs('owner'), 'npm run migrate')).toMatchObject({
      code: 0,
      stderr: expect.stringContaining('Kept the index late of fct_lead_conversions.\n'),
    });
  });

  test('stops the migration, which names it, if the new view cannot have it', async () => {
    await writeFile(
      migration,
      text.replace(
        /(CREATE VIEW "lead_conversions_kept"\."found")/,
        'ALTER MATERIALIZED VIEW "lead_conversions_new"."fct_client_conversion_events" RENAME COLUMN "branch_id" TO "branch";--> statement-breakpoint\n$1',
      ),
    );
    await owner`create index by_branch on fct_client_conversion_events (branch_id, user_id)`;
    const before = await state();
    const { code, stderr } = await tree.run(urlAs('owner'), 'npm run migrate');
    expect([code, stderr]).toEqual([
      1,
      expect.stringMatching(
        /Dropped with its column: the statistics target of column branch_id of fct_client_conversion_events\.\n(?:.*\n)*\S+: Nothing was migrated, because the new view cannot have the index by_branch of fct_client_conversion_events: column "branch_id" does not exist\. Drop it, migrate, and create one that fits the new view\.\n/,
      ),
    ]);
    expect(await state()).toEqual(before);
  });
});

describe('half-loaded input', () => {
  test('does not get into the new views, unless --max-loss allows it', async () => {
    await owner`truncate fct_credit_pack_purchases`;
    const before = await state();
    for (const command of ['npm run migrate', 'drizzle-kit migrate'] as const) {
      const { code, stdout, stderr } = await tree.run(urlAs('owner'), command);
      expect(code).toBe(1);
      expect(stdout + stderr).toMatch(
        /Nothing was migrated, because the new fct_client_conversion_events would have (24000 clients instead of 42000|0 clients by credit pack instead of 30000), a loss of more than 20 %\./,
      );
    }
    expect(await state()).toEqual(before);
    expect(await tree.run(urlAs('owner'), 'npm run migrate', ['--max-loss', '100%'])).toMatchObject(
      { code: 0 },
    );
    expect(
      await owner`select count(first_credit_pack_id)::int as clients from fct_client_conversion_events`,
    ).toEqual([{ clients: 0 }]);
  });

  test('is accepted with drizzle-kit if a setting of the role allows it', async () => {
    await owner`truncate fct_credit_pack_purchases`;
    await admin`alter role owner in database gym set lead_conversions.max_loss = '100%'`;
    expect(await tree.run(urlAs('owner'), 'drizzle-kit migrate')).toMatchObject({ code: 0 });
  });
});

describe('timeouts of the role', () => {
  test('do not end a migration', async () => {
    await owner`alter role owner in database gym set statement_timeout = '20ms'`;
    await owner`alter role owner in database gym set lock_timeout = '1ms'`;
    for (const command of ['npm run migrate', 'drizzle-kit migrate'] as const) {
      expect(await tree.run(urlAs('owner'), command)).toMatchObject({ code: 0 });
    }
    expect(await owner`select count(user_initial)::int from fct_client_conversion_events`).toEqual([
      { count: 60_000 },
    ]);
  });
});

describe('a migration that also changes tables', () => {
  /** Trees with changed tables, and the migration generated. */
  const trees: Record<string, ScratchTree> = {};
  const treeOf = (name: string) => trees[name] as ScratchTree;
  beforeAll(async () => {
    const edits = {
      phone: [addUserInitial, addPhone],
      retyped: [retypeBranchId],
      dropped: [dropEmail],
      derived: [deriveSourceAnew],
      notes: [addNotes],
    };
    for (const [name, changes] of Object.entries(edits)) {
      const changed = await scratchTree();
      trees[name] = changed;
      for (const edit of changes) {
        await edit(changed);
      }
      await changed.run('', 'npm run generate', ['--name', name]);
    }
  }, 120_000);
  afterAll(async () => {
    for (const changed of Object.values(trees)) {
      await changed.remove();
    }
  });

  test.each([
    {
      what: 'a dropped column',
      tree: 'dropped',
      put: [
        'create index theirs on dim_user (name) include (email)',
        'create index mail on dim_user (lower(email))',
        'create statistics pairs on name, email from dim_user',
        `alter table dim_user add constraint has_at check (email like '%@%')`,
        'create view mails as select email from dim_user',
      ],
      named: [
        'index public.mail',
        'index public.theirs',
        'statistics object public.pairs',
        'table constraint has_at on public.dim_user',
        'view public.mails',
      ],
    },
    {
      what: 'a table whose whole rows they use',
      tree: 'dropped',
      put: [
        'create table archive (member dim_user)',
        'create table dim_user_archive () inherits (dim_user)',
        'create view whole as select to_jsonb(dim_user) as member from dim_user',
        'create rule spread as on insert to archive do also update dim_user set email = null',
        'create function initial(dim_user) returns text language sql return left($1.name, 1)',
      ],
      named: [
        'function public.initial(public.dim_user)',
        'rule spread on public.archive',
        'table column public.archive.member',
        'table public.dim_user_archive',
        'view public.whole',
      ],
    },
    {
      what: 'a generated column that is created anew',
      tree: 'derived',
      put: [
        'create index theirs on fct_membership_purchases (membership_source)',
        'grant select (membership_source) on fct_membership_purchases to pg_monitor',
        'alter table fct_membership_purchases alter membership_source set statistics 500',
        'alter table fct_membership_purchases alter membership_source set (n_distinct = 3)',
      ],
      named: [
        'SELECT on public.fct_membership_purchases.membership_source for pg_monitor',
        'index public.theirs',
        'the options of public.fct_membership_purchases.membership_source',
        'the statistics target of public.fct_membership_purchases.membership_source',
      ],
    },
    {
      what: 'a column whose type changes',
      tree: 'retyped',
      put: ['create view branches as select branch_id from dim_user'],
      named: ['view public.branches'],
    },
  ])(
    'changes nothing, and names what others have put on $what',
    async ({ tree: name, put, named }) => {
      for (const statement of put) {
        await owner.unsafe(statement);
      }
      const before = await state();
      for (const command of ['npm run migrate', 'drizzle-kit migrate'] as const) {
        const { code, stdout, stderr } = await treeOf(name).run(urlAs('owner'), command);
        expect(code).toBe(1);
        expect(stdout + stderr).toContain(
          `Nothing was migrated, because it would drop or break objects that others have created: ${named.join(', ')}. Remove them, migrate, and create them again if they still fit.`,
        );
      }
      expect(await state()).toEqual(before);
    },
  );

  test('changes and drops columns if nothing that others have created is lost', async () => {
    await owner`create index theirs on dim_user (branch_id)`; // a change of the type keeps it
    for (const name of ['retyped', 'dropped', 'derived']) {
      expect(await treeOf(name).run(urlAs('owner'), 'npm run migrate')).toMatchObject({ code: 0 });
      expect(await treeOf(name).run(urlAs('owner'), 'npm run refresh')).toMatchObject({ code: 0 });
      await owner`delete from drizzle.lead_conversions_migrations where id > 1`;
    }
    expect(await owner`select from pg_indexes where indexname = 'theirs'`).toHaveLength(1);
  });

  test('does not block readers and writers of the tables while a report runs or views are filled', async () => {
    const reads = readInLoop(
      async (reader) => [
        ...(await readers.statement(reader)),
        ...(await reader`select from dim_user where user_id = ${one.userId}`),
        ...(await reader`select from dim_branch limit 1`),
      ],
      filters + 3,
    );
    const writes = readInLoop(async (writer) => [
      ...(await writer`
        update dim_user set name = name where user_id = ${one.userId}
        returning user_id`),
      ...Array(filters),
    ]);
    let migrated: Promise<Result> | undefined;
    const started = performance.now();
    await owner.begin(async (report) => {
      await report`select from fct_lead_conversions limit 1`;
      await report`select from dim_user limit 1`;
      migrated = treeOf('phone').run(urlAs('owner'), 'npm run migrate');
      await attempts(7); // nine seconds
    });
    const reportTook = performance.now() - started;
    expect(await migrated).toMatchObject({
      code: 0,
      stdout: expect.stringMatching(
        new RegExp(
          `^${laterMigration('phone_tables')}: migrated, \\d+ ms\n${laterMigration('phone', 2)}: migrated, \\d+ ms\n$`,
        ),
      ),
    });
    for (const loop of [reads, writes]) {
      const { longest } = await loop.end();
      expect(longest).toBeLessThan(reportTook / 8);
    }
  });

  test('makes an automatic vacuum give way', { timeout: 180_000 }, async () => {
    await owner`
      alter table dim_user set (
        autovacuum_vacuum_threshold = 1, autovacuum_vacuum_scale_factor = 0,
        autovacuum_vacuum_cost_delay = 100, autovacuum_vacuum_cost_limit = 1)`;
    await owner`update dim_user set name = name || '.'`;
    const isVacuumed = async () => {
      const running = await admin`
        select from pg_stat_activity
        where datname = 'gym' and query like 'autovacuum: VACUUM%public.dim_user%'`;
      return running.length > 0;
    };
    await switchAutovacuum('on');
    try {
      await vi.waitUntil(isVacuumed, patience);
      expect(await treeOf('phone').run(urlAs('owner'), 'npm run migrate')).toMatchObject({
        code: 0,
        stdout: expect.stringContaining(`${laterMigration('phone', 2)}: migrated`),
      });
    } finally {
      await switchAutovacuum('off');
    }
  });

  test('gives new objects to the owner of the others, whoever migrates', async () => {
    expect(await treeOf('notes').run(urlAs('postgres'), 'npm run migrate')).toMatchObject({
      code: 0,
    });
    expect(
      await owner`
        select relname, relowner::regrole::text as owner from pg_class
        where relname ~ '^notes' order by relname`,
    ).toEqual(
      ['notes', 'notes_id_seq', 'notes_pkey'].map((relname) => ({ relname, owner: 'owner' })),
    );
  });

  test('is ended by Postgres if its process is killed or stopped', async () => {
    const locks = () => owner`
      select from pg_locks
      where relation = 'drizzle.lead_conversions_migrations'::regclass
        and mode = 'ShareUpdateExclusiveLock' and granted`;
    for (const signal of ['SIGKILL', 'SIGSTOP'] as const) {
      const { process, result } = await owner.begin(async (report) => {
        await report`select from fct_lead_conversions limit 1`;
        const started = start(urlAs('owner'), 'npm run migrate', [], {}, tree.folder);
        await attempts(1);
        started.process.kill(signal);
        if (signal === 'SIGKILL') {
          // Even though the report that the migration waits for goes on.
          await vi.waitUntil(async () => (await locks()).length === 0, patience);
        }
        return started;
      });
      await vi.waitUntil(async () => (await locks()).length === 0, patience);
      expect(await eventsOf(owner)).toHaveLength(1);
      process.kill('SIGKILL');
      expect(await result).toMatchObject({ code: 'SIGKILL' });
    }
  });

  test('changes the type of a column that views read, and keeps what others have put on the views', async () => {
    await owner`create index by_source on fct_lead_conversions (client_conversion_event_source)`;
    await owner`grant select on fct_client_conversion_events to pg_monitor`;
    const before = await state();
    expect(await treeOf('retyped').run(urlAs('owner'), 'npm run migrate')).toMatchObject({
      code: 0,
    });
    const after = await state();
    expect(after.rows).toEqual(before.rows);
    expect(after.relations.map(({ columns: _, ...relation }) => relation)).toEqual(
      before.relations.map(({ columns: _, ...relation }) => relation),
    );
    expect(after.schemas).toEqual(before.schemas);
    expect(
      await owner`
        select format_type(atttypid, atttypmod) as type from pg_attribute
        where attrelid = 'dim_user'::regclass and attname = 'branch_id'`,
    ).toEqual([{ type: 'character varying(200)' }]);
    expect(await treeOf('retyped').run(urlAs('owner'), 'npm run refresh')).toMatchObject({
      code: 0,
    });
  });
});

describe('a migration beside a refresh', () => {
  test('waits for a running refresh', async () => {
    let migrated: Promise<Result> | undefined;
    await owner.begin(async (session) => {
      await session`lock table view_refreshes in share update exclusive mode`;
      migrated = tree.run(urlAs('owner'), 'drizzle-kit migrate');
      await sessionsThatWait(owner);
    });
    expect(await migrated).toMatchObject({ code: 0 });
  });

  test('changes nothing, and names the refresh, if that does not end in time', async () => {
    await change(["lock_timeout TO '5min'", "lock_timeout TO '1s'"]);
    const before = await state();
    await owner.begin(async (session) => {
      const [holder] = await session<{ pid: number }[]>`select pg_backend_pid() as pid`;
      await session`lock table view_refreshes in share update exclusive mode`;
      const { code, stdout, stderr } = await tree.run(urlAs('owner'), 'drizzle-kit migrate');
      expect(code).toBe(1);
      expect(stdout + stderr).toContain(
        `Nothing was migrated, because the refresh lock was held for 5 minutes: pid ${holder?.pid} (owner, postgres.js) holds ShareUpdateExclusiveLock on view_refreshes. Migrate again once it is free.`,
      );
    });
    expect(await state()).toEqual(before);
  });

  test('makes a refresh skip while it replaces the views', async () => {
    let migrated: Promise<Result> | undefined;
    await owner.begin(async (session) => {
      await session`select from fct_lead_conversions limit 1`;
      migrated = tree.run(urlAs('owner'), 'drizzle-kit migrate');
      await attempts(1);
      expect(await tree.run(urlAs('owner'), 'npm run refresh')).toEqual({
        code: 75,
        stdout: '',
        stderr: expect.stringMatching(
          /^skipped: a refresh or a migration is already running \(pid /,
        ),
      });
    });
    expect(await migrated).toMatchObject({ code: 0 });
  });
});
