import { getTableName, sql } from 'drizzle-orm';
import { relationOf } from './catalog.ts';
import { LOCK_NOT_AVAILABLE, once, type Session } from './session.ts';
import { viewRefreshes } from './view_refreshes.ts';

/** The condition for rows of pg_locks: locks on the history, held or waited for. */
const isOnHistory = sql`
  pg_locks.locktype = 'relation'
  and pg_locks.relation = ${relationOf(getTableName(viewRefreshes))}
  and pg_locks.database = (select oid from pg_database where datname = current_database())`;

/** How long to wait for the lock before looking who holds it, in milliseconds. */
const firstWaitMs = 1000;

/**
 * Takes the lock of a refresh: SHARE UPDATE EXCLUSIVE on the history. One session at a time can
 * have it, and only a role that may write to the history can keep it.
 *
 * Returns undefined once it has the lock. Returns the reason not to refresh if another refresh or a
 * migration has the lock, or if somebody holds off refreshes with it. Waits up to the lock timeout
 * for anything else that has locked the history, such as a VACUUM, and then throws an Error with
 * the code LOCK_NOT_AVAILABLE.
 *
 * It waits a moment before it looks, because some statements take the lock before Postgres refuses
 * them (COMMENT ON TABLE by a role that does not own the table). The first session in the queue
 * gets the lock after them.
 */
export async function takeLock(tx: Session, lockTimeoutMs: number): Promise<string | undefined> {
  const isUnlimited = lockTimeoutMs === 0;
  const waitMs = isUnlimited ? firstWaitMs : Math.min(firstWaitMs, lockTimeoutMs);
  if (await lockHistory(tx, waitMs)) {
    return undefined;
  }
  const reason = await reasonNotToRefresh(tx);
  if (reason) {
    return reason;
  }
  const restMs = lockTimeoutMs - waitMs;
  if ((isUnlimited || restMs > 0) && (await lockHistory(tx, isUnlimited ? 0 : restMs))) {
    return undefined;
  }
  const laterReason = await reasonNotToRefresh(tx);
  if (laterReason) {
    return laterReason;
  }
  throw Object.assign(new Error('The history is locked.'), { code: LOCK_NOT_AVAILABLE });
}

/**
 * Locks the history, and returns whether that was possible in time. A PL/pgSQL block catches the
 * failure on the server. To catch it here would take a savepoint, which the driver may leave open,
 * and with which rows get the id of a subtransaction.
 */
async function lockHistory(tx: Session, timeoutMs: number): Promise<boolean> {
  // ROW SHARE blocks none of these sessions. It marks the holder as a refresh or a migration.
  await tx.execute(sql`
    do $$
    declare
      lock_timeout_before text := current_setting('lock_timeout');
    begin
      perform set_config('lock_timeout', '${sql.raw(String(timeoutMs))}', true);
      lock table ${viewRefreshes} in row share mode;
      lock table ${viewRefreshes} in share update exclusive mode;
      perform set_config('lock_timeout', lock_timeout_before, true);
      perform set_config('lead_conversions.locked', 'yes', true);
    exception when lock_not_available then
      perform set_config('lead_conversions.locked', 'no', true);
    end
    $$`);
  const [setting] = await tx
    .select({ isLocked: sql<boolean>`current_setting('lead_conversions.locked') = 'yes'` })
    .from(once);
  return setting?.isLocked ?? false;
}

/**
 * Returns the reason not to refresh, judged by who has the lock, or undefined. A session that holds
 * off refreshes has locked nothing else, except other tables that it reads. A VACUUM, an ANALYZE or
 * a change of the history is different: it locks the indexes of the history, writes to the catalog,
 * or reports its progress.
 */
async function reasonNotToRefresh(tx: Session): Promise<string | undefined> {
  const isRefresh = sql<boolean>`exists (
    select from pg_locks as marks
    where marks.pid = pg_locks.pid
      and marks.relation = pg_locks.relation
      and marks.mode = 'RowShareLock'
  )`;
  const [holder] = await tx
    .select({
      pid: sql`pg_locks.pid`.mapWith(Number),
      who: sql<string>`concat_ws(', ', usename, nullif(application_name, ''))`,
      // Hidden if the session belongs to a role that this role is not a member of.
      since: sql<
        string | null
      >`to_char(xact_start at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')`,
      isRefresh,
      holdsOff: sql<boolean>`not exists (
        select from pg_locks as others
        where others.pid = pg_locks.pid
          and others.locktype = 'relation'
          and others.relation <> pg_locks.relation
          and (
            others.mode <> 'AccessShareLock'
            or others.relation in (
              select indexrelid from pg_index where indrelid = pg_locks.relation
            )
          )
      ) and pg_locks.pid not in (
        select pid from pg_stat_progress_vacuum
        union all select pid from pg_stat_progress_analyze
        union all select pid from pg_stat_progress_create_index
      )`,
    })
    .from(sql`pg_locks left join pg_stat_activity on pg_locks.pid = pg_stat_activity.pid`)
    .where(sql`
      ${isOnHistory}
      and pg_locks.mode = 'ShareUpdateExclusiveLock'
      and pg_locks.granted
      and pg_locks.pid <> pg_backend_pid()`);
  if (!holder?.isRefresh && !holder?.holdsOff) {
    return undefined;
  }
  const since = holder.since ? `, since ${holder.since}` : '';
  return holder.isRefresh
    ? `a refresh or a migration is already running (pid ${holder.pid}${since})`
    : `somebody is holding off refreshes (pid ${holder.pid}, ${holder.who}${since})`;
}
