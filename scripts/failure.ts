import { DrizzleQueryError } from 'drizzle-orm';

/** What a driver, Node.js or Postgres has thrown. */
type Reason = Error & Partial<Record<'code' | 'syscall' | 'detail' | 'hint', string>>;

export function reasonOf(error: unknown): Reason {
  // Drizzle wraps the error of the database in one that shows the failed statement.
  const reason = error instanceof DrizzleQueryError ? error.cause : error;
  if (reason instanceof AggregateError) {
    // None of the addresses of a host answers (localhost is ::1 and 127.0.0.1).
    const messages = reason.errors.map(({ message }) => message);
    return Object.assign(new Error(messages.join(', ')), { syscall: 'connect' });
  }
  return reason as Reason;
}

/** Returns what went wrong and what to do, for people. */
export function explain(error: unknown, variable = 'DATABASE_URL'): string {
  const reason = reasonOf(error);
  if (!(reason instanceof Error)) {
    return String(reason);
  }
  const { code, message, detail, hint } = reason;
  if (code === undefined && reason.constructor !== Error) {
    return String(reason.stack); // a TypeError or the like is a bug, not a mistake of the user
  }
  if (isUnreachable(reason)) {
    return `The database cannot be reached: ${message}. Check that its server is running and that ${variable} names it.`;
  }
  if (isCut(reason)) {
    return `The connection to the database was lost (${message}). Run this again once the server is back.`;
  }
  if (code === '3D000' || code?.startsWith('28')) {
    return `The database cannot be opened: ${message}. Check ${variable}.`;
  }
  // If other objects depend on a dropped one, Postgres advises to drop them as well (CASCADE).
  const advice = code === '2BP01' ? undefined : hint;
  return [message, detail, advice].filter(Boolean).join('\n');
}

/**
 * Returns whether the same work may succeed in a moment. This is so if the server, or the way to
 * it, was interrupted, if the server is full, if Postgres has ended the transaction in favor of
 * another or because it got no lock, or if another process uses the embedded database.
 * https://www.postgresql.org/docs/16/errcodes-appendix.html
 */
export function isTransient(error: unknown): boolean {
  const reason = reasonOf(error);
  return (
    (isUnreachable(reason) && reason.code !== 'ENOTFOUND') ||
    isCut({ code: codeOf(reason) }) ||
    // Two sessions have changed the same row of the catalog. Postgres has no better code for that.
    /^tuple concurrently (updated|deleted)$/.test(reason.message) ||
    // Not 08P01: the server, or a proxy before it, does not understand the request.
    /^(08(?!P01)...|40001|40P01|53300|55006|55P03|57P0[123])$/.test(codeOf(reason))
  );
}

/** Returns the code of Postgres' error, even if another error was made from it. */
export const codeOf = ({ code, cause }: Reason): string =>
  code ?? (cause as Reason | undefined)?.code ?? '';

const isUnreachable = ({ syscall, code }: Reason) =>
  syscall === 'connect' || syscall === 'getaddrinfo' || code === 'CONNECT_TIMEOUT';

/** Returns whether a connection ended before its work did. */
export const isCut = ({ code = '' }: Pick<Reason, 'code'>): boolean =>
  ['CONNECTION_CLOSED', 'ECONNRESET', 'EPIPE', 'ETIMEDOUT'].includes(code);
