import { sql } from 'drizzle-orm';
import { relationOf } from './catalog.ts';
import { cancellable, causeOf, once, pinned, QUERY_CANCELED, type Session } from './session.ts';

export interface VacuumBounds {
  /** In Postgres' own notation. 0 sets no limit. */
  statementTimeout: string;
  signal?: AbortSignal | undefined;
  /** The transaction whose deleted rows must be gone afterwards. */
  deletedBy?: string;
}

/**
 * Vacuums and analyzes one of our tables or views after it was refreshed, loaded or distributed. So
 * it does not grow from night to night, and index-only scans need not look into the table. Returns
 * a warning if that was not possible. Readers do not wait: only the step that gives space at the
 * end of the file back to the system would lock them out, and that step (TRUNCATE) is switched off.
 * https://www.postgresql.org/docs/16/sql-vacuum.html
 *
 * VACUUM cannot run in a transaction, so no statement timeout can be set for it alone. Instead it
 * is cancelled from another connection.
 */
export async function vacuum(
  session: Session,
  view: string,
  done: 'refreshed' | 'loaded' | 'distributed',
  { statementTimeout, signal, deletedBy }: VacuumBounds,
): Promise<string[]> {
  const statement = `vacuum (analyze, truncate false, skip_locked) "public"."${view}"`;
  const look = () =>
    pinned(session, statementTimeout, async (tx) => {
      const [state] = await tx
        .select({
          vacuumedAt: sql<string | null>`pg_stat_get_last_vacuum_time(${relationOf(view)})::text`,
          deadRows: sql`pg_stat_get_dead_tuples(${relationOf(view)})`.mapWith(Number),
          statementTimeoutMs: sql`(
            select setting from pg_settings where name = 'statement_timeout'
          )`.mapWith(Number),
        })
        .from(once);
      const holders = state?.deadRows && deletedBy ? await horizonHolders(tx, deletedBy) : [];
      return { ...state, holders };
    });
  const cancel = () =>
    pinned(session, statementTimeout, (tx) =>
      tx
        .select({ cancelled: sql`pg_cancel_backend(pid)` })
        .from(sql`pg_stat_activity`)
        .where(sql`
          datname = current_database()
          and usename = current_user
          and state = 'active'
          and query = ${statement}`),
    );
  const tooLong = new Error(`it took longer than the statement timeout of ${statementTimeout}`);
  const overdue = new AbortController();
  let timer: NodeJS.Timeout | undefined;
  try {
    const before = await look();
    if (before.statementTimeoutMs) {
      timer = setTimeout(() => overdue.abort(tooLong), before.statementTimeoutMs);
    }
    const stop = AbortSignal.any([overdue.signal, ...(signal ? [signal] : [])]);
    await cancellable(() => session.execute(sql.raw(statement)), cancel, stop);
    const after = await look();
    if (after.vacuumedAt === before.vacuumedAt) {
      return [
        `${view} was ${done}, but not vacuumed: another session has locked it, or this role may not vacuum it. Run VACUUM as its owner.`,
      ];
    }
    if (after.deadRows && deletedBy) {
      const holders = after.holders.join(', ') || 'a session that has ended since';
      const rows =
        after.deadRows === 1 ? '1 dead row remains' : `${after.deadRows} dead rows remain`;
      return [
        `${view} was ${done} and vacuumed, but ${rows} in it, because ${holders} might still read them. Until that ends, the view grows with every refresh.`,
      ];
    }
    if (overdue.signal.aborted) {
      return [
        `${view} was ${done} and vacuumed, but the vacuum took longer than the statement timeout of ${statementTimeout}. It could not be cancelled, because the pool has no second connection.`,
      ];
    }
    return [];
  } catch (error) {
    const { code, message } = causeOf(error);
    const advice =
      code === QUERY_CANCELED
        ? ' The statement_timeout of the role, the database or the server ended it. Raise it with "alter role".'
        : '';
    return [`${view} was ${done}, but not vacuumed: ${message}.${advice}`];
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Returns, in words, what keeps a vacuum from removing the rows that a transaction has deleted:
 * sessions and others that began before it ended, and so may still see those rows.
 * https://www.postgresql.org/docs/16/routine-vacuuming.html#VACUUM-FOR-SPACE-RECOVERY
 */
export async function horizonHolders(tx: Session, transaction: string): Promise<string[]> {
  const age = sql`age((${transaction}::text::xid8)::xid)`;
  const holders = await tx.select({ holder: sql<string>`holder` }).from(sql`(
    select format(
      'pid %s (%s)', pid, concat_ws(', ', usename, nullif(application_name, ''))
    ) as holder
    from pg_stat_activity
    where datname = current_database()
      and pid <> pg_backend_pid()
      and greatest(age(backend_xmin), age(backend_xid)) >= ${age}
    union all
    select format('the prepared transaction %L of %s', gid, owner)
    from pg_prepared_xacts
    where database = current_database() and age(transaction) >= ${age}
    union all
    select format('the replication slot %s', slot_name)
    from pg_replication_slots
    where age(xmin) >= ${age}
    union all
    select format('the standby %s', coalesce(nullif(application_name, ''), client_addr::text))
    from pg_stat_replication
    where age(backend_xmin) >= ${age}
  ) as holders`);
  return holders.map(({ holder }) => holder);
}
