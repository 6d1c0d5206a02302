import { DrizzleQueryError } from 'drizzle-orm';

/** What a driver, Node.js or Postgres has thrown. */
type Reason = Error & Partial<Record<'code' | 'syscall' | 'detail' | 'hint', string>>;

export function reasonOf(error: unknown): Reason {
  // Drizzle puts what the database said behind the statement that failed.
  const reason = error instanceof DrizzleQueryError ? error.cause : error;
  if (reason instanceof AggregateError) {
    // A host of several addresses (localhost is ::1 and 127.0.0.1), none of which answers.
    const messages = reason.errors.map(({ message }) => message);
    return Object.assign(new Error(messages.join(', ')), { syscall: 'connect' });
  }
  return reason as Reason;
}

/** What went wrong and what to do, for people. */
export function explain(error: unknown, variable = 'DATABASE_URL'): string {
  const reason = reasonOf(error);
  if (!(reason instanceof Error)) {
    return String(reason);
  }
  const { code, message, detail, hint } = reason;
  if (code === undefined && reason.constructor !== Error) {
    return String(reason.stack); // a TypeError and its like: a bug, not a mistake
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
  // On what depends on what is dropped, Postgres advises to drop that as well (CASCADE).
  const advice = code === '2BP01' ? undefined : hint;
  return [message, detail, advice].filter(Boolean).join('\n');
}

/**
 * Whether the same work may succeed in a moment: the server or the way to it was
 * interrupted, the server is full, or Postgres has ended the transaction in
 * favour of another, or because a lock was not to be had, or an embedded database is in
 * use by another process. https://www.postgresql.org/docs/16/errcodes-appendix.html
 */
export function isTransient(error: unknown): boolean {
  const reason = reasonOf(error);
  return (
    (isUnreachable(reason) && reason.code !== 'ENOTFOUND') ||
    isCut({ code: codeOf(reason) }) ||
    // Two have changed the same in the catalog of Postgres, which has no better code for it.
    /^tuple concurrently (updated|deleted)$/.test(reason.message) ||
    // 08P01: the server, or a proxy before it, does not understand what it is asked for.
    /^(08(?!P01)...|40001|40P01|53300|55006|55P03|57P0[123])$/.test(codeOf(reason))
  );
}

/** The code of what Postgres has said, also where that was put in other words. */
export const codeOf = ({ code, cause }: Reason): string =>
  code ?? (cause as Reason | undefined)?.code ?? '';

const isUnreachable = ({ syscall, code }: Reason) =>
  syscall === 'connect' || syscall === 'getaddrinfo' || code === 'CONNECT_TIMEOUT';

/** Whether a connection ended before its work did. */
export const isCut = ({ code = '' }: Pick<Reason, 'code'>): boolean =>
  ['CONNECTION_CLOSED', 'ECONNRESET', 'EPIPE', 'ETIMEDOUT'].includes(code);
