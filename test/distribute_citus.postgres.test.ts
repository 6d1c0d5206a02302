import { cp, mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import postgres from 'postgres';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { buy, generate } from '../scripts/benchmark/data.ts';
import { declaredText } from '../scripts/definitions.ts';
import { fctClientConversionEvents, fctLeadConversions } from '../views/index.ts';
import { type Result, run, start } from './support/commands.ts';
import { addPhone, addUserInitial, type ScratchTree, scratchTree } from './support/scratch_tree.ts';

/**
 * The URL of the coordinator of a Citus cluster, for a superuser who may connect to the workers in
 * the same way. Citus is in no package registry, so these tests are skipped without the variable.
 */
const { CITUS_TEST_URL } = process.env;
if (!CITUS_TEST_URL) {
  console.warn('Not tested on Citus, for CITUS_TEST_URL names no coordinator of a cluster.');
}

const size = { users: 100_000, purchasesPerUser: 5 };
const [distributed, single] = ['distributed', 'single'].map(
  (name) => `lead_conversions_${name}_${process.pid}`,
) as [string, string];

const urlOf = (database: string, server = CITUS_TEST_URL) => {
  const url = new URL(server ?? '');
  url.pathname = `/${database}`;
  return url.href;
};
const connect = (url: string) => postgres(url, { max: 4, onnotice: () => {} });

// The tests form a sequence: each one starts from the state that the one before has left.
describe.skipIf(!CITUS_TEST_URL)(
  'on a Citus cluster, compared with one server,',
  { timeout: 600_000 },
  () => {
    let workers: string[];
    let admin: postgres.Sql;
    let gym: postgres.Sql;
    let other: postgres.Sql;
    let folder: string;
    const milliseconds: Record<string, [distributed: number, single: number]> = {};

    const onAll = async (statement: string) => {
      for (const server of [...workers, CITUS_TEST_URL]) {
        const session = connect(server ?? '');
        await session.unsafe(statement);
        await session.end();
      }
    };

    beforeAll(async () => {
      admin = connect(CITUS_TEST_URL ?? '');
      const nodes = await admin<{ nodename: string; nodeport: number; groupid: number }[]>`
      select nodename, nodeport, groupid from pg_dist_node where isactive order by nodeid`;
      const nodeUrl = ({ nodename, nodeport }: { nodename: string; nodeport: number }) => {
        const url = new URL(CITUS_TEST_URL ?? '');
        url.hostname = nodename;
        url.port = String(nodeport);
        return url.href;
      };
      workers = nodes.filter(({ groupid }) => groupid !== 0).map(nodeUrl);
      await onAll(`create database ${distributed}`);
      await admin.unsafe(`create database ${single}`);
      for (const server of [...workers, CITUS_TEST_URL]) {
        const session = connect(urlOf(distributed, server));
        await session`create extension citus`;
        await session.end();
      }
      gym = connect(urlOf(distributed));
      other = connect(urlOf(single));
      for (const { nodename, nodeport, groupid } of nodes) {
        await (groupid === 0
          ? gym`select citus_set_coordinator_host(${nodename}, ${nodeport})`
          : gym`select citus_add_node(${nodename}, ${nodeport})`);
      }
      for (const session of [gym, other]) {
        const url = urlOf(session === gym ? distributed : single);
        await run(url, 'npm run migrate');
        const comments = await session<{ restore: string }[]>`
        select format('comment on index %s is %L', indexrelid::regclass, obj_description(indexrelid, 'pg_class')) as restore
        from pg_index
        where indrelid::regclass::text ~ '^fct_.*_purchases$' and not indisprimary`;
        await generate(session, size);
        for (const { restore } of comments) {
          await session.unsafe(restore); // generate has dropped the indexes
        }
        expect(await run(url, 'npm run refresh')).toMatchObject({ code: 0 });
      }
      folder = await mkdtemp(join(tmpdir(), 'lead-conversions-citus-'));
    }, 600_000);
    afterAll(async () => {
      console.log(milliseconds);
      await rm(folder, { recursive: true });
      await gym.end();
      await other.end();
      await admin.unsafe(`drop database ${single} with (force)`);
      await onAll(`drop database ${distributed} with (force)`);
      await admin.end();
    });

    /** A checksum of all rows of each view. */
    const rowsOf = async (session: postgres.Sql) => [
      ...(await session`
      select
        (select md5(string_agg(view::text, ';' order by user_id)) from fct_client_conversion_events as view),
        (select md5(string_agg(view::text, ';' order by user_id, client_conversion_event_filter))
         from fct_lead_conversions as view)`),
    ];
    const expectSameRows = async () => expect(await rowsOf(gym)).toEqual(await rowsOf(other));

    /**
     * Runs a command on both databases. Expects the same result, except for durations and for notes
     * on distributed tables.
     */
    const runBoth = async (
      command: Parameters<typeof run>[1],
      args: string[] = [],
    ): Promise<Result> => {
      const plain = ({ code, stdout, stderr }: Result) => ({
        ...{ code, stderr },
        stdout: stdout
          .replaceAll(/, \d+ ms\b/g, '')
          .replaceAll(', always recomputed, because its tables are distributed', ''),
      });
      const started = performance.now();
      const ofDistributed = await run(urlOf(distributed), command, args);
      const between = performance.now();
      const ofSingle = await run(urlOf(single), command, args);
      milliseconds[`${command} ${args}`] = [between - started, performance.now() - between].map(
        Math.round,
      ) as [number, number];
      expect(plain(ofDistributed)).toEqual(plain(ofSingle));
      return ofDistributed;
    };

    test('the tables are distributed while others read the views and wait to write', async () => {
      const before = await rowsOf(gym);
      const { process: running, result } = start(urlOf(distributed), 'npm run distribute');
      let reads = 0;
      let written: Promise<unknown> | undefined;
      while (running.exitCode === null) {
        await gym`select count(*) from fct_lead_conversions where branch_id = 'nowhere'`;
        reads += 1;
        const [waits] = await gym`
        select from pg_locks
        where relation = 'dim_user'::regclass and mode = 'AccessExclusiveLock' and granted`;
        written ??= waits && gym`insert into dim_user (user_id) values ('meanwhile')`.execute();
      }
      expect(await result).toEqual({
        code: 0,
        stdout: [
          'dim_branch: 2000 rows, complete on every server',
          `dim_user: ${size.users} rows, 32 shards`,
          `fct_credit_pack_purchases: ${size.users * 2.5} rows, 32 shards`,
          `fct_membership_purchases: ${size.users * 2.5} rows, 32 shards`,
          '',
        ].join('\n'),
        stderr: '',
      });
      expect(reads).toBeGreaterThan(10);
      expect(written).toBeDefined();
      await written;
      await other`insert into dim_user (user_id) values ('meanwhile')`;
      expect(await rowsOf(gym)).toEqual(before);
      expect(await run(urlOf(distributed), 'npm run distribute')).toMatchObject({
        code: 0,
        stdout: expect.stringContaining('\nNothing to do: the tables are already distributed.\n'),
      });
      expect(await run(urlOf(distributed, workers[0]), 'npm run distribute')).toEqual({
        ...{ code: 1, stdout: '' },
        stderr:
          'DATABASE_URL names a worker of the Citus cluster. Set it to the URL of the coordinator.\n',
      });
      // The rows are only on the workers.
      const [local] = await gym`
      select sum(pg_relation_size(oid))::int as bytes from pg_class
      where oid in ('dim_user'::regclass, 'fct_credit_pack_purchases'::regclass, 'fct_membership_purchases'::regclass)`;
      expect(local?.bytes).toBe(0);
    });

    test('refreshes give the same rows, also after changes and after a shard has moved', async () => {
      await runBoth('npm run refresh');
      await expectSameRows();
      for (const session of [gym, other]) {
        await buy(session, size, 1);
      }
      expect((await runBoth('npm run refresh', ['--force'])).stdout).toMatch(
        /^fct_client_conversion_events: \d+ rows, [1-9]\d* inserted/,
      );
      await expectSameRows();
      const [shard] = await gym`
      select shardid, nodename, nodeport from pg_dist_shard_placement
      inner join pg_dist_shard using (shardid)
      where logicalrelid = 'dim_user'::regclass limit 1`;
      const [place] = await gym`
      select nodename, nodeport from pg_dist_node
      where groupid <> 0 and (nodename, nodeport) <> (${shard?.nodename}, ${shard?.nodeport})`;
      await gym`
      select citus_move_shard_placement(
        ${shard?.shardid}, ${shard?.nodename}, ${shard?.nodeport}, ${place?.nodename},
        ${place?.nodeport}, shard_transfer_mode => 'block_writes'
      )`;
      for (const session of [gym, other]) {
        await buy(session, size, 2);
      }
      await runBoth('npm run refresh');
      await expectSameRows();
    });

    test('the first view is computed on the workers alone', async () => {
      const lines = await gym.unsafe(
        `explain (costs off) ${declaredText(fctClientConversionEvents)}`,
      );
      const plan = lines.map((line) => line['QUERY PLAN']).join('\n');
      expect(plan).toMatch(
        /^Sort\n {2}Sort Key: remote_scan\.user_id COLLATE "C"\n {2}-> {2}Custom Scan \(Citus Adaptive\)\n/,
      );
      expect(plan).not.toMatch(/Subplan|intermediate_result/);
    });

    test('load, diff, doctor and report give the same output, also when a load is refused', async () => {
      const files = join(folder, 'files');
      await cp('test/sample', files, { recursive: true });
      const edit = async (file: string, from: string | RegExp, to: string) => {
        const path = join(files, file);
        const text = await readFile(path, 'utf8');
        expect(text.split(from).length).toBeGreaterThan(1);
        await writeFile(path, text.replace(from, to));
      };
      expect(await runBoth('npm run load', [files])).toMatchObject({ code: 0, stderr: '' });
      expect(await runBoth('npm run load', [files])).toMatchObject({ code: 0 });
      await edit('dim_user.csv', /\d{4}-/, '2023-');
      await edit('fct_membership_purchases.csv', /Z\b/, '.5Z');
      expect(await runBoth('npm run load', [files])).toMatchObject({
        ...{ code: 0, stdout: expect.stringContaining('1 updated') },
      });
      await runBoth('npm run refresh');
      await expectSameRows();
      expect(await runBoth('npm run load', [files, '--snapshot'])).toMatchObject({ code: 1 });
      await edit('fct_credit_pack_purchases.csv', /Z\b/, 'Z-yesterday');
      await edit('fct_membership_purchases.csv', 'only-membership', 'nobody');
      expect(await runBoth('npm run load', [files])).toMatchObject({ code: 1 });
      expect(await runBoth('npm run diff')).toMatchObject({ code: 0 });
      expect(await runBoth('npm run doctor')).toEqual({
        ...{ code: 0, stdout: 'The database is healthy.\n', stderr: '' },
      });
      const out = join(folder, 'report.html');
      expect(await runBoth('npm run report', ['--out', out])).toMatchObject({
        ...{ code: 0, stdout: expect.stringContaining('users') },
      });
    });

    /** Ends everything that the coordinator does on one worker, as soon as it does anything there. */
    const interrupt = async (running: Promise<Result>): Promise<number> => {
      const worker = connect(urlOf(distributed, workers[0]));
      let isOver = false;
      running.finally(() => {
        isOver = true;
      });
      let ended = 0;
      while (!isOver && ended === 0) {
        const sessions = await worker`
        select pg_terminate_backend(pid) from pg_stat_activity
        where datname = ${distributed} and application_name like 'citus_internal%'
          and state <> 'idle' and pid <> pg_backend_pid()
and query ~* '^(select|insert|with|declare)' and query !~ 'pg_prepared_xacts'`;
        ended += sessions.length;
      }
      await worker.end();
      return ended;
    };

    test.each([
      ['npm run refresh', ['--force']],
      ['npm run load', ['test/sample']],
    ] as const)('%s succeeds although a worker was lost in its middle', async (command, args) => {
      for (const session of [gym, other]) {
        await buy(session, size, command === 'npm run load' ? 4 : 3);
      }
      await run(urlOf(single), command, [...args]);
      const running = run(urlOf(distributed), command, [...args]);
      expect(await interrupt(running)).toBeGreaterThan(0);
      expect(await running).toMatchObject({ code: 0 });
      await runBoth('npm run refresh', ['--force']);
      await expectSameRows();
    });

    test('migrations change a view and add a column to a table', async () => {
      const tree: ScratchTree = await scratchTree();
      try {
        await addUserInitial(tree);
        await tree.run('', 'npm run generate', ['--name', 'user_initial']);
        await addPhone(tree);
        await tree.run('', 'npm run generate', ['--name', 'phone']);
        for (const database of [distributed, single]) {
          expect(await tree.run(urlOf(database), 'npm run migrate')).toMatchObject({ code: 0 });
          expect(await tree.run(urlOf(database), 'npm run refresh')).toMatchObject({ code: 0 });
        }
        await expectSameRows();
        expect(await tree.run(urlOf(distributed), 'npm run doctor')).toEqual({
          ...{ code: 0, stdout: 'The database is healthy.\n', stderr: '' },
        });
      } finally {
        await tree.remove();
      }
    });

    test('doctor finds shards whose server is disabled', async () => {
      await gym`
      update pg_dist_node set isactive = false
      where groupid = (select max(groupid) from pg_dist_node)`;
      const { code, stdout } = await run(urlOf(distributed), 'npm run doctor');
      await gym`update pg_dist_node set isactive = true`;
      expect({ code, stdout }).toEqual({
        ...{ code: 1, stdout: expect.stringContaining('dim_user has shards on no server.\n') },
      });
    });

    test('refresh and doctor find what differs on a single server', async () => {
      const [branches] = await gym<{ shard: string }[]>`
      select shardid::text as shard from pg_dist_shard where logicalrelid = 'dim_branch'::regclass`;
      const [users] = await gym<{ shard: string; port: number }[]>`
      select shardid::text as shard, nodeport as port
      from pg_dist_shard
      inner join pg_dist_placement using (shardid)
      inner join pg_dist_node using (groupid)
      where logicalrelid = 'dim_user'::regclass
      order by shardid
      limit 1`;
      const worker = connect(
        workers
          .map((url) => urlOf(distributed, url))
          .find((url) => new URL(url).port === `${users?.port}`) ?? '',
      );
      await worker.unsafe(`
      set citus.enable_manual_changes_to_shards = on;
      update dim_branch_${branches?.shard} set timezone_id = 'Asia/Tokyo'
      where branch_id = (select min(branch_id) from dim_branch_${branches?.shard});
      insert into dim_user_${users?.shard} (user_id) select 'stray-' || i from generate_series(1, 20) as i;
      drop index if exists dim_user_branch_id_${users?.shard};
      do $$ declare name text; begin
        for name in select conname from pg_constraint
                    where conrelid = 'dim_user_${users?.shard}'::regclass and contype = 'f' loop
          execute format('alter table dim_user_${users?.shard} drop constraint %I', name);
        end loop;
      end $$`);
      await worker.end();
      expect(await run(urlOf(distributed), 'npm run refresh', ['--retries', '0'])).toMatchObject({
        code: 1,
        stderr: expect.stringMatching(/^The servers have different copies of dim_branch: /),
      });
      const { code, stdout } = await run(urlOf(distributed), 'npm run doctor');
      expect(code).toBe(1);
      for (const finding of [
        'The servers have different copies of dim_branch: ',
        'Shards of dim_user differ from the table.',
        'Shards of dim_user have rows that belong to other shards.',
      ]) {
        expect(stdout).toContain(finding);
      }
    });

    test('doctor finds a view with another definition', async () => {
      const text = declaredText(fctClientConversionEvents);
      const changed = text.replace(
        /membership_purchased_at asc nulls last/,
        'membership_purchased_at desc',
      );
      expect(changed).not.toBe(text);
      await gym.unsafe(`
      drop materialized view fct_client_conversion_events cascade;
      create materialized view fct_client_conversion_events as ${changed};
      create unique index on fct_client_conversion_events (user_id);
      create materialized view fct_lead_conversions as ${declaredText(fctLeadConversions)};
      create unique index on fct_lead_conversions (user_id, client_conversion_event_filter)`);
      expect((await run(urlOf(distributed), 'npm run doctor')).stdout).toContain(
        'fct_client_conversion_events is defined differently than declared.\n',
      );
    });
  },
);
