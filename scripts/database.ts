import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, realpath } from 'node:fs/promises';
import { createServer, type Socket } from 'node:net';
import { basename, dirname, join, resolve } from 'node:path';
import { Readable } from 'node:stream';
import { blob as readBlob } from 'node:stream/consumers';
import { pipeline } from 'node:stream/promises';
import { setImmediate } from 'node:timers/promises';
import type { Transaction as PGliteTransaction } from '@electric-sql/pglite';
import { type SQL, sql } from 'drizzle-orm';
import { type PgDatabase, PgDialect, type PgQueryResultHKT } from 'drizzle-orm/pg-core';
import type { PgliteDatabase } from 'drizzle-orm/pglite';
import { drizzle as drizzlePostgres } from 'drizzle-orm/postgres-js';
import postgres from 'postgres';
import { pinSearchPath } from '../schema/columns.ts';
import {
  cancellable,
  cancelTransaction,
  knowingOutcome,
  nameOfOwn,
  once,
  pinned,
} from '../views/session.ts';
import {
  type Connection,
  closedEarly,
  openSocket,
  readConnection,
  unreachable,
} from './connection.ts';
import { isCut } from './failure.ts';
import type { LoadTransaction } from './load/tables.ts';

/** The database that a script works on. */
export interface Database {
  db: PgDatabase<PgQueryResultHKT>;
  /**
   * Runs the work in one transaction. Rolls it back if the work throws or the signal is aborted. In
   * the second case it throws the signal's reason.
   */
  transaction<Result>(
    work: (transaction: LoadTransaction) => Promise<Result>,
    signal?: AbortSignal,
  ): Promise<Result>;
  close(): Promise<void>;
}

interface OpenOptions {
  /** Called with a warning about parameters of the URL that are ignored. */
  onWarning?: (message: string) => void;
  /** Called with the socket of each connection to a server. */
  onConnect?: (socket: Socket) => void;
  /** Called with each notice of the server. */
  onNotice?: (message: string) => void;
  /** Whether an embedded database may be new. If it is, it is created. */
  isNew?: boolean;
}

/**
 * Opens the database that DATABASE_URL names: `postgres://…` for a server, `pglite:PATH` for the
 * embedded database in that folder. Nothing is sent to a server before the first query, unless the
 * URL says what kind of server it has to be.
 *
 * Throws an Error that says what to do if the variable is not set, or names neither of the two. No
 * message contains the URL, which may hold a password.
 */
export async function openDatabase(
  url = process.env.DATABASE_URL,
  {
    onWarning = () => {},
    onConnect = () => {},
    onNotice = () => {},
    isNew = false,
  }: OpenOptions = {},
): Promise<Database> {
  if (!url) {
    throw new Error(
      'DATABASE_URL is not set. Set it to postgres://USER:PASSWORD@HOST:PORT/DATABASE, or to pglite:PATH for the embedded database.',
    );
  }
  if (url.startsWith('pglite:')) {
    const folder = url.slice('pglite:'.length);
    if (folder.trim() === '' || /^[a-z]+:\/\//i.test(folder)) {
      throw new Error(
        'DATABASE_URL does not name a folder. Set it to pglite:PATH, with the path of the folder of the embedded database.',
      );
    }
    if (!isNew && !existsSync(join(folder, 'PG_VERSION'))) {
      throw new Error(`There is no database in ${folder}. Create it with migrate.`);
    }
    return openPglite(folder);
  }
  if (!/^postgres(ql)?:\/\//.test(url.trim())) {
    throw new Error(
      'DATABASE_URL is neither postgres://USER:PASSWORD@HOST:PORT/DATABASE nor pglite:PATH.',
    );
  }
  const connection = readConnection(url);
  if (connection.ignored.length > 0) {
    onWarning(
      `DATABASE_URL has parameters that Postgres does not know. They are ignored: ${connection.ignored.join(', ')}.`,
    );
  }
  const database = openServer(connection, onConnect, onNotice);
  await refuseOtherServers(database.db, connection).catch(async (error) => {
    await database.close();
    throw error;
  });
  return database;
}

/** Throws an Error if the server is not of the kind that `target_session_attrs` asks for. */
async function refuseOtherServers(db: Database['db'], { target }: Connection): Promise<void> {
  if (target === 'any' || target === 'prefer-standby') {
    return;
  }
  const [server] = await pinned(db, '10s', (tx) =>
    tx
      .select({
        isStandby: sql<boolean>`pg_is_in_recovery()`,
        isReadOnly: sql<boolean>`current_setting('transaction_read_only')::boolean`,
      })
      .from(once),
  );
  const is = server?.isStandby ? 'a standby' : server?.isReadOnly ? 'read-only' : 'a primary';
  const isTarget = {
    primary: !server?.isStandby,
    standby: server?.isStandby,
    'read-write': !server?.isReadOnly,
    'read-only': server?.isReadOnly,
  }[target];
  if (!isTarget) {
    throw Object.assign(
      new Error(`The server is ${is}, but target_session_attrs asks for ${target}.`),
      { code: CANNOT_CONNECT_NOW },
    );
  }
}

/** https://www.postgresql.org/docs/16/errcodes-appendix.html */
const OBJECT_IN_USE = '55006';
const CANNOT_CONNECT_NOW = '57P03';

const dialect = new PgDialect();

function openServer(
  connection: Connection,
  onConnect: (socket: Socket) => void,
  onNotice: (message: string) => void,
): Database {
  const { host, port, user, password, database, applicationName, options, timeout } = connection;
  let parameters = 0;
  let wasClosedEarly = false;
  const socket = async () => {
    if (wasClosedEarly) {
      wasClosedEarly = false;
      // Otherwise postgres.js would retry forever.
      throw unreachable(connection, closedEarly);
    }
    const opened = Object.assign(await openSocket(connection), { host, port });
    onConnect(opened);
    const before = parameters;
    return opened.once('close', () => {
      wasClosedEarly = parameters === before;
    });
  };
  const client = withoutTarget(() =>
    postgres({
      ...{ host, port, user, password, database, socket },
      onparameter: () => {
        parameters += 1; // a server that has accepted us sends some
      },
      connect_timeout: timeout,
      ssl: false, // the socket has TLS already, and PGSSL would add it again
      max: 2, // the second one is for cancelling what the first one is doing
      // No arrays are read or written here, and nothing would catch an error of the query for their
      // types.
      fetch_types: false,
      onnotice: ({ message = '' }) => onNotice(message),
      connection: { application_name: applicationName, ...(options && { options }) },
    }),
  );
  const begin = client.begin.bind(client);
  client.begin = ((work: (session: postgres.TransactionSql) => Promise<unknown>) =>
    begin((session) => unlessCut(work(session)))) as typeof client.begin;
  /**
   * Whatever the defaults of the database, statements that follow a lock see what others committed
   * before it.
   */
  const beginToLoad = <Result>(work: (session: postgres.TransactionSql) => Promise<Result>) =>
    begin('isolation level read committed read write', (session) => unlessCut(work(session)));
  const db = drizzlePostgres(client);
  return {
    db,
    transaction: (work, signal) => {
      let name = '';
      return cancellable(
        () =>
          knowingOutcome(
            (onDone) =>
              beginToLoad(async (session) => {
                const transaction = serverTransaction(session);
                await transaction.query(pinSearchPath);
                const [own] = await transaction.query(sql`select ${nameOfOwn} as name`);
                name = String(own?.name);
                signal?.throwIfAborted();
                const result = await work(transaction);
                signal?.throwIfAborted();
                onDone();
                return result;
              }) as ReturnType<typeof work>,
          ),
        () =>
          pinned(db, '10s', (other) =>
            other.select({ cancelled: cancelTransaction(name) }).from(once),
          ),
        signal,
      );
    },
    close: () => client.end({ timeout: 1 }),
  };
}

/**
 * Runs work without this environment variable. postgres.js reads it, and would ask a server of
 * another kind again and again, forever.
 */
function withoutTarget<Result>(work: () => Result): Result {
  const { PGTARGETSESSIONATTRS: target } = process.env;
  delete process.env.PGTARGETSESSIONATTRS;
  try {
    return work();
  } finally {
    Object.assign(process.env, target !== undefined && { PGTARGETSESSIONATTRS: target });
  }
}

/**
 * Returns the outcome of a transaction's work, but never settles if its connection was cut. After a
 * failure postgres.js sends ROLLBACK, which on a closed connection ends the process or waits
 * forever. Its begin() reports a cut connection with an error of its own.
 * https://github.com/porsager/postgres/issues/1154
 */
const unlessCut = <Result>(work: Promise<Result>): Promise<Result> =>
  work.catch((error) => {
    return isCut(error.cause ?? error) ? new Promise<never>(() => {}) : Promise.reject(error);
  });

function serverTransaction(session: postgres.TransactionSql): LoadTransaction {
  return {
    query: (statement) => {
      const { sql: text, params } = dialect.sqlToQuery(statement);
      return session.unsafe(text, params as string[]);
    },
    copy: async (into, lines) => {
      const query = session.unsafe(copyStatement(into, 'stdin'));
      const target = await query.writable();
      // postgres.js does not pass on to the stream an error that comes after the last byte, or with
      // the end of the connection. The stream then waits forever:
      // https://github.com/porsager/postgres/issues/1173
      const failure = new Promise<never>((_, reject) => Object.assign(query, { reject }));
      await Promise.race([pipeline(lines, target), failure]);
    },
  };
}

/**
 * Opens the embedded database in a folder, or a new one in memory.
 *
 * Throws an Error that says what to do if PGlite, an optional peer dependency, is not installed, if
 * another process uses the database, or if the database cannot be opened.
 */
export async function openPglite(
  folder?: string,
): Promise<Omit<Database, 'db'> & { db: PgliteDatabase }> {
  const [{ PGlite }, { drizzle }] = await Promise.all([
    import('@electric-sql/pglite'),
    import('drizzle-orm/pglite'),
  ]).catch((error) => {
    throw new Error(
      'A pglite: database needs PGlite, which is not installed. Install it with "npm install @electric-sql/pglite@0.5".',
      { cause: error },
    );
  });
  const unlock = folder === undefined ? () => {} : await lockFolder(folder);
  const client = await PGlite.create(folder).catch((error) => {
    unlock();
    throw new Error(
      `The embedded database in ${folder} cannot be opened: ${error?.message ?? 'PGlite gives no reason'}. Check that the path names a folder, and that the database in it is not damaged.`,
      { cause: error },
    );
  });
  return {
    db: drizzle(client),
    transaction: (work, signal) =>
      client.transaction(async (session) => {
        await session.query('set transaction isolation level read committed, read write');
        const transaction = pgliteTransaction(session, signal);
        await transaction.query(pinSearchPath);
        const result = await work(transaction);
        signal?.throwIfAborted();
        return result;
      }),
    close: () => client.close().finally(unlock),
  };
}

/**
 * Keeps other processes from opening the embedded database in a folder, until the returned function
 * is called or this process ends. Two processes at once would ruin the database, because each keeps
 * parts of it in memory. The lock is a socket whose name is made from the path of the folder. The
 * system lets only one process have it, and frees it when that process ends. Only Linux and Windows
 * have such sockets, so elsewhere nothing is locked.
 * https://nodejs.org/docs/latest-v20.x/api/net.html#identifying-paths-for-ipc-connections
 */
async function lockFolder(folder: string): Promise<() => void> {
  const prefix = { linux: '\0', win32: '\\\\.\\pipe\\' }[process.platform as string];
  if (prefix === undefined) {
    return () => {};
  }
  await mkdir(dirname(resolve(folder)), { recursive: true });
  const path = await realpath(folder).catch(async () =>
    join(await realpath(dirname(resolve(folder))), basename(folder)),
  );
  const name = createHash('sha256').update(path).digest('hex');
  const lock = createServer().unref();
  await new Promise<void>((taken, failed) => {
    lock.once('error', failed).listen(`${prefix}lead-conversions-${name}`, taken);
  }).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'EADDRINUSE') {
      throw error;
    }
    throw Object.assign(
      new Error(
        `The embedded database in ${folder} is in use by another process. Wait until that process has ended.`,
      ),
      { code: OBJECT_IN_USE },
    );
  });
  return () => lock.close();
}

/** Returns a transaction on PGlite, which reads copied data into memory, like all of its data. */
function pgliteTransaction(session: PGliteTransaction, signal?: AbortSignal): LoadTransaction {
  return {
    query: async (statement) => {
      await setImmediate(); // lets signals in, because PGlite runs in this process and never waits
      signal?.throwIfAborted();
      const { sql: text, params } = dialect.sqlToQuery(statement);
      return (await session.query<Record<string, unknown>>(text, params)).rows;
    },
    copy: async (into, lines) => {
      const blob = await readBlob(Readable.from(lines));
      await session.query(copyStatement(into, `'/dev/blob'`), [], { blob: blob as Blob });
    },
  };
}

const copyStatement = (into: SQL, source: string): string =>
  dialect.sqlToQuery(sql`copy ${into} from ${sql.raw(source)} with (encoding 'UTF8')`).sql;
