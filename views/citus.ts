import { getTableColumns, getTableName, type SQL, sql } from 'drizzle-orm';
import type { PgTable } from 'drizzle-orm/pg-core';
import { dimBranch } from '../schema/index.ts';
import { hasCitus, once, type Session } from './session.ts';

// What the extension Citus records about distributed tables:
// https://docs.citusdata.com/en/stable/develop/api_metadata.html

/**
 * One row per table in `public` that Citus manages: its `oid` and `name`, its distribution
 * `column`, whether it is distributed or a reference table, and its colocation group. (The view
 * citus_tables is not used, because it waits for locks.)
 */
export const citusTables: SQL = sql`
  select
    logicalrelid::oid::bigint as oid,
    relname as name,
    column_to_column_name(logicalrelid, partkey) as "column",
    partmethod = 'h' as is_distributed,
    repmodel = 't' as is_reference,
    colocationid as colocation
  from pg_dist_partition
  inner join pg_class on pg_class.oid = logicalrelid
  where relnamespace = to_regnamespace('public')`;

/**
 * Returns the oids of the tables in `public` that Citus manages, whose rows are on other servers.
 */
export async function readDistributed(tx: Session): Promise<number[]> {
  const [found] = await tx.select({ hasCitus }).from(once);
  if (!found?.hasCitus) {
    return [];
  }
  const tables = await tx
    .select({ oid: sql`oid`.mapWith(Number) })
    .from(sql`(${citusTables}) as tables`);
  return tables.map(({ oid }) => oid);
}

/**
 * Returns the transactions that Citus has prepared on a server, and not committed there yet. If a
 * transaction writes to several servers, Citus commits it on one after the other. If a server is
 * lost in between, Citus commits there later, by itself.
 *
 * If a worker does not answer, throws an Error with the code CONNECTION_FAILURE, which callers
 * retry.
 */
export async function readPrepared(tx: Session): Promise<string[]> {
  const prepared = `
    select coalesce(json_agg(gid order by gid), '[]')
    from pg_prepared_xacts
    where database = current_database() and gid like 'citus\\_%'`;
  const answers = await tx
    .select({
      server: sql<string>`server`,
      isAnswered: sql<boolean>`is_answered`,
      result: sql<string>`result`,
    })
    .from(
      sql`(
        select 'the coordinator' as server, true as is_answered, (${sql.raw(prepared)})::text as result
        union all
        select format('%s:%s', nodename, nodeport), success, result
        from run_command_on_workers(${prepared})
      ) as answers`,
    );
  const lost = answers.find(({ isAnswered }) => !isAnswered);
  if (lost) {
    throw Object.assign(new Error(`The worker ${lost.server} did not answer: ${lost.result}`), {
      code: CONNECTION_FAILURE,
    });
  }
  return answers.flatMap(({ server, result }) =>
    (JSON.parse(result) as string[]).map((gid) => `${gid} on ${server}`),
  );
}

/** What to do if a prepared transaction stays. */
export const adviceOnPrepared =
  'Once a lost server is back, Citus commits such a transaction within a minute. If one remains, run "select recover_prepared_transactions()" on the coordinator, and check that max_worker_processes is high enough: Citus needs one background process per database.';

/** How often to check whether a commit has arrived, and the pause after each check, in seconds. */
const looks = 10;
const pauseSeconds = 0.5;

/**
 * Waits until everything that was committed is visible on all servers.
 *
 * Throws an Error with the code OBJECT_IN_USE, which callers retry, if that takes too long, or if
 * the servers have different copies of a table that each of them has. The Error names the reason.
 */
export async function untilSettled(tx: Session, signal: AbortSignal | undefined): Promise<void> {
  await untilCommitted(tx, signal);
  const different = await differentCopies(tx);
  if (different) {
    // Somebody may be changing them at this moment, on one server after the other.
    throw Object.assign(new Error(`${different} ${adviceOnCopies}`), { code: OBJECT_IN_USE });
  }
}

async function untilCommitted(tx: Session, signal: AbortSignal | undefined): Promise<void> {
  let waitedFor: string[] | undefined;
  for (let look = 1; ; look += 1) {
    signal?.throwIfAborted();
    const open = await readPrepared(tx);
    // A transaction that was prepared later belongs to others, and writes no loaded rows.
    const before = waitedFor ?? open;
    waitedFor = open.filter((gid) => before.includes(gid));
    if (waitedFor.length === 0) {
      return;
    }
    if (look === looks) {
      throw Object.assign(
        new Error(
          `Some servers have not committed a transaction yet: ${waitedFor.join(', ')}. ${adviceOnPrepared}`,
        ),
        { code: OBJECT_IN_USE },
      );
    }
    await tx.select({ paused: sql`pg_sleep(${pauseSeconds})::text` }).from(once);
  }
}

/**
 * A query that runs a command on each shard of a table, and returns what its server answers. In the
 * command, %s is the name of the shard.
 */
export const onShards = (table: PgTable, command: string): SQL => sql`
  select format('%s:%s', nodename, nodeport) as server, shardid as shard, success, result
  from run_command_on_placements(${`public.${getTableName(table)}`}::regclass, ${command})`;

/**
 * Returns a sentence on how the servers' copies of dim_branch differ, or undefined if they are the
 * same. Each user is joined with the copy on the server that has the user.
 */
export async function differentCopies(tx: Session): Promise<string | undefined> {
  const columns = Object.values(getTableColumns(dimBranch)).map(({ name }) => `"${name}"`);
  const command = `
    select count(*) || ' rows, hash ' || coalesce(sum(hash_record_extended(row(${columns}), 0)::numeric), 0)
    from %s`;
  const copies = await tx
    .select({
      server: sql<string>`server`,
      isAnswered: sql<boolean>`success`,
      result: sql<string>`result`,
    })
    .from(sql`(${onShards(dimBranch, command)}) as copies`)
    .orderBy(sql`server`);
  const unread = copies.find(({ isAnswered }) => !isAnswered);
  if (unread) {
    return `The copy of dim_branch on ${unread.server} cannot be read: ${unread.result}.`;
  }
  return new Set(copies.map(({ result }) => result)).size > 1
    ? `The servers have different copies of dim_branch: ${copies.map(({ server, result }) => `${server} has ${result}`).join(', ')}.`
    : undefined;
}

export const adviceOnCopies =
  'Correct the rows of dim_branch on the server whose copy is wrong, or load the rows into a new database.';

/** Failures with these codes may pass: https://www.postgresql.org/docs/16/errcodes-appendix.html */
const CONNECTION_FAILURE = '08006';
const OBJECT_IN_USE = '55006';
