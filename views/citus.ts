import { type SQL, sql } from 'drizzle-orm';
import { once, type Session } from './session.ts';

// What the extension Citus knows of distributed tables: https://docs.citusdata.com/en/stable/develop/api_metadata.html

/** Whether the database has Citus. Without it, the tables that the queries below read are not there. */
export const hasCitus = sql<boolean>`to_regclass('pg_catalog.pg_dist_partition') is not null`;

/**
 * One row per table that Citus manages: `name`, its `column` of distribution, its group of
 * colocation, and whether it is a reference table. (The view citus_tables waits for locks.)
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

/** The oids of the tables in `public` whose rows are on other servers. */
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

/** How often, and after how many seconds each time, to look whether a commit has arrived. */
const looks = 10;
const pauseSeconds = 0.5;

/**
 * Waits for what has been committed to be visible on all workers: a transaction that writes
 * to several is prepared on each, and then committed on one after the other. If a worker was
 * lost in between, that comes later, by itself.
 *
 * Throws an Error that says so, with the code of what may succeed in a moment, if it takes long.
 */
export async function untilCommitted(tx: Session, signal: AbortSignal | undefined): Promise<void> {
  const prepared = `
    select coalesce(json_agg(gid), '[]')
    from pg_prepared_xacts
    where database = current_database() and gid like 'citus\\_%'`;
  let waitedFor: string[] | undefined;
  for (let look = 1; ; look += 1) {
    signal?.throwIfAborted();
    const workers = await tx
      .select({
        worker: sql<string>`format('%s:%s', nodename, nodeport)`,
        isAsked: sql<boolean>`success`,
        result: sql<string>`result`,
      })
      .from(sql`run_command_on_workers(${prepared})`);
    const lost = workers.find(({ isAsked }) => !isAsked);
    if (lost) {
      throw Object.assign(new Error(`The worker ${lost.worker} did not answer: ${lost.result}`), {
        code: CONNECTION_FAILURE,
      });
    }
    const open = workers.flatMap(({ worker, result }) =>
      (JSON.parse(result) as string[]).map((gid) => `${gid} on ${worker}`),
    );
    // Whatever was prepared later is a transaction of others, which writes to no loaded rows.
    const before = waitedFor ?? open;
    waitedFor = open.filter((gid) => before.includes(gid));
    if (waitedFor.length === 0) {
      return;
    }
    if (look === looks) {
      throw Object.assign(
        new Error(
          `Some workers have not committed a transaction yet: ${waitedFor.join(', ')}. Citus commits it within a minute after a lost worker is back.`,
        ),
        { code: OBJECT_IN_USE },
      );
    }
    await tx.select({ paused: sql`pg_sleep(${pauseSeconds})::text` }).from(once);
  }
}

/** Both may pass: https://www.postgresql.org/docs/16/errcodes-appendix.html */
const CONNECTION_FAILURE = '08006';
const OBJECT_IN_USE = '55006';
