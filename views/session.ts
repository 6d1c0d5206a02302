import { DrizzleQueryError, sql } from 'drizzle-orm';
import type { PgDatabase, PgQueryResultHKT, PgTransactionConfig } from 'drizzle-orm/pg-core';
import { pinSearchPath } from '../schema/columns.ts';

export type Session = PgDatabase<PgQueryResultHKT>;

/** https://www.postgresql.org/docs/16/errcodes-appendix.html */
export const INVALID_PARAMETER_VALUE = '22023';
export const INSUFFICIENT_PRIVILEGE = '42501';
export const LOCK_NOT_AVAILABLE = '55P03';
export const QUERY_CANCELED = '57014';

/** What to select from to compute values once. */
export const once = sql`(values (1)) as once`;

/**
 * Whatever the defaults of the database, statements that follow a lock see what others committed
 * before it.
 */
export const readCommitted: PgTransactionConfig = {
  isolationLevel: 'read committed',
  accessMode: 'read write',
};

/**
 * Settings with which Postgres ends a transaction, and releases its locks, within seconds after the
 * client process, its machine or the network is gone.
 * https://www.postgresql.org/docs/16/runtime-config-connection.html#RUNTIME-CONFIG-TCP-SETTINGS
 */
export const endWhenGone = {
  idle_in_transaction_session_timeout: '15s',
  tcp_keepalives_idle: '10s',
  tcp_keepalives_interval: '5s',
  tcp_keepalives_count: '3',
  client_connection_check_interval: '2s',
};

/** Settings with which Citus counts and sorts all rows, not only some of them. */
const exact = {
  'citus.count_distinct_error_rate': '0',
  'citus.limit_clause_row_fetch_count': '-1',
};

/** Whether the database has Citus, and so the tables of its metadata. */
export const hasCitus = sql<boolean>`to_regclass('pg_catalog.pg_dist_partition') is not null`;

/**
 * The condition that the server accepts the setting `name`. A server on Windows does not accept all
 * of them.
 */
export const isKnownSetting = sql`name <> 'client_connection_check_interval' or version() !~* 'visual c|mingw'`;

/** Sets parameters for the current transaction, but only those that the server knows. */
export const setLocally = (settings: Record<string, string>) => {
  const values = Object.entries(settings).map(([name, value]) => sql`(${name}, ${value})`);
  return sql`
    select set_config(name, value, true)
    from (values ${sql.join(values, sql`, `)}) as settings (name, value)
    where (${isKnownSetting}) and (name not like 'citus.%' or ${hasCitus})`;
};

/**
 * Runs work in a transaction in which a name without a schema means what Postgres defines, never
 * what others have created under that name. No statement takes longer than the timeout, and Citus
 * does not estimate. All of this is set for the transaction only, because its connection may belong
 * to a pool.
 *
 * Throws the signal's reason once that is aborted. Then nothing has changed.
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
 * Runs a transaction, which calls `onDone` when only its commit is left. If the connection is lost
 * from then on, throws an Error that says so: the transaction may have been committed or not.
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

/** Returns whether an error leaves unknown if the work was committed. */
export const isUnknown = (error: unknown): boolean =>
  error instanceof Error && 'isUnknown' in error;

/** The name of the current transaction, with which another session can cancel what it is doing. */
export const nameOfOwn = sql<string>`(
  select virtualtransaction
  from pg_locks
  where pid = pg_backend_pid() and locktype = 'virtualxid'
)`;

/**
 * Cancels what a transaction is doing, unless it has ended: its session may have begun another one.
 */
export const cancelTransaction = (name: string) => sql`(
  select pg_cancel_backend(pid)
  from pg_locks
  where virtualtransaction = ${name} and locktype = 'virtualxid'
)`;

/**
 * Runs work until it is done or the signal is aborted. An abort cancels on the server what the work
 * waits for. Then throws the signal's reason.
 */
export async function cancellable<Result>(
  work: () => Promise<Result>,
  cancel: () => PromiseLike<unknown>,
  signal: AbortSignal | undefined,
): Promise<Result> {
  signal?.throwIfAborted();
  // If the server cannot be asked to cancel, the work ends by itself.
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

/** Returns the error of the driver, which Drizzle wraps in its own. */
export const causeOf = (
  error: unknown,
): Error & { code?: string; severity?: string; detail?: string } =>
  error instanceof DrizzleQueryError && error.cause ? error.cause : (error as Error);
