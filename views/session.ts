import { DrizzleQueryError, sql } from 'drizzle-orm';
import type { PgDatabase, PgQueryResultHKT, PgTransactionConfig } from 'drizzle-orm/pg-core';
import { pinSearchPath } from '../schema/columns.ts';

export type Session = PgDatabase<PgQueryResultHKT>;

/** https://www.postgresql.org/docs/16/errcodes-appendix.html */
export const INVALID_PARAMETER_VALUE = '22023';
export const INSUFFICIENT_PRIVILEGE = '42501';
export const LOCK_NOT_AVAILABLE = '55P03';
export const QUERY_CANCELED = '57014';

/** What to select from, to have values computed once. */
export const once = sql`(values (1)) as once`;

/** What others have committed is seen once a lock is there, whatever the defaults of the database. */
export const readCommitted: PgTransactionConfig = {
  isolationLevel: 'read committed',
  accessMode: 'read write',
};

/**
 * Settings with which Postgres ends a transaction within seconds, and every lock
 * with it, when the process that began it, its machine or the network between is gone.
 * https://www.postgresql.org/docs/16/runtime-config-connection.html#RUNTIME-CONFIG-TCP-SETTINGS
 */
export const endWhenGone = {
  idle_in_transaction_session_timeout: '15s',
  tcp_keepalives_idle: '10s',
  tcp_keepalives_interval: '5s',
  tcp_keepalives_count: '3',
  client_connection_check_interval: '2s',
};

/** Settings of Citus with which it counts and sorts all rows, and not a part of them. */
const exact = {
  'citus.count_distinct_error_rate': '0',
  'citus.limit_clause_row_fetch_count': '-1',
};

/** Whether the database has Citus, and so the tables in which Citus keeps its metadata. */
export const hasCitus = sql<boolean>`to_regclass('pg_catalog.pg_dist_partition') is not null`;

/** The condition that the server takes the setting of this `name`. One on Windows does not take each. */
export const isKnownSetting = sql`name <> 'client_connection_check_interval' or version() !~* 'visual c|mingw'`;

/** Sets parameters for the transaction in which this runs, those that the server knows. */
export const setLocally = (settings: Record<string, string>) => {
  const values = Object.entries(settings).map(([name, value]) => sql`(${name}, ${value})`);
  return sql`
    select set_config(name, value, true)
    from (values ${sql.join(values, sql`, `)}) as settings (name, value)
    where (${isKnownSetting}) and (name not like 'citus.%' or ${hasCitus})`;
};

/**
 * Works in a transaction in which no name means what others have created under
 * it, no statement takes longer than the timeout, and Citus estimates nothing. All of this is
 * set for the transaction alone, since its connection may belong to a pool.
 *
 * Throws the reason of the signal once that is aborted, and has changed nothing then.
 */
export const pinned = <Result>(
  session: Session,
  statementTimeout: string,
  work: (tx: Session) => PromiseLike<Result>,
  config?: PgTransactionConfig,
  signal?: AbortSignal,
): Promise<Result> => {
  let transaction = '';
  return cancellable(
    () =>
      knowingOutcome((onDone) =>
        session.transaction(async (tx) => {
          await tx.execute(pinSearchPath);
          await tx.execute(setLocally({ statement_timeout: statementTimeout, ...exact }));
          if (signal) {
            const [own] = await tx.select({ transaction: nameOfOwn }).from(once);
            transaction = own?.transaction ?? '';
            signal.throwIfAborted();
          }
          const result = await work(tx);
          signal?.throwIfAborted();
          onDone();
          return result;
        }, config),
      ),
    () =>
      pinned(session, statementTimeout, (other) =>
        other.select({ cancelled: cancelTransaction(transaction) }).from(once),
      ),
    signal,
  );
};

/**
 * Runs a transaction, which tells when it only has to be committed. Throws an Error that
 * says so if it was lost from there on: then it may have been committed, or not.
 */
export async function knowingOutcome<Result>(
  run: (onDone: () => void) => Promise<Result>,
): Promise<Result> {
  let isDone = false;
  try {
    return await run(() => {
      isDone = true;
    });
  } catch (error) {
    const cause = causeOf(error);
    if (!isDone || cause.severity === 'ERROR') {
      throw error;
    }
    throw Object.assign(
      new Error(
        `The connection was lost during the commit (${cause.message}), so it is not known whether the work is done. Run this again: work that is already done is not done twice.`,
        { cause },
      ),
      { isUnknown: true },
    );
  }
}

/** Whether it is not known if the work that has failed was committed. */
export const isUnknown = (error: unknown): boolean =>
  error instanceof Error && 'isUnknown' in error;

/** Names the transaction that asks, for another session to cancel what it is doing. */
export const nameOfOwn = sql<string>`(
  select virtualtransaction
  from pg_locks
  where pid = pg_backend_pid() and locktype = 'virtualxid'
)`;

/** Cancels what a transaction is doing, if it has not ended: its session may have begun another. */
export const cancelTransaction = (name: string) => sql`(
  select pg_cancel_backend(pid)
  from pg_locks
  where virtualtransaction = ${name} and locktype = 'virtualxid'
)`;

/**
 * Does work until it is done or the signal is aborted, which cancels on the
 * server what the work waits for. Throws the signal's reason then.
 */
export async function cancellable<Result>(
  work: () => Promise<Result>,
  cancel: () => PromiseLike<unknown>,
  signal: AbortSignal | undefined,
): Promise<Result> {
  signal?.throwIfAborted();
  // Where the server cannot be asked to, the work ends by itself.
  const onAbort = () => cancel().then(undefined, () => {});
  signal?.addEventListener('abort', onAbort);
  try {
    return await work();
  } catch (error) {
    if (!isUnknown(error)) {
      signal?.throwIfAborted();
    }
    throw error;
  } finally {
    signal?.removeEventListener('abort', onAbort);
  }
}

/** What the driver has thrown, which Drizzle puts behind the statement that failed. */
export const causeOf = (
  error: unknown,
): Error & { code?: string; severity?: string; detail?: string } =>
  error instanceof DrizzleQueryError && error.cause ? error.cause : (error as Error);
