import { DrizzleQueryError } from 'drizzle-orm';

/** Runs a script's work. What goes wrong ends on stderr in a sentence, with exit code 1. */
export async function run(work: () => Promise<void>): Promise<void> {
  try {
    await work();
  } catch (error) {
    console.error(explain(error));
    process.exitCode = 1;
  }
}

function explain(error: unknown): string {
  // Drizzle puts what the database said behind the statement that failed.
  const reason = error instanceof DrizzleQueryError ? error.cause : error;
  if (!(reason instanceof Error)) {
    return String(reason);
  }
  const { code, syscall, detail, hint } = reason as Error & Partial<Record<string, string>>;
  if (code === undefined && reason.constructor !== Error) {
    return String(reason.stack); // a TypeError and its like: a bug, not a mistake
  }
  if (code === 'CONNECTION_CLOSED') {
    return `The connection to the database was lost (${reason.message}). Run this again once its server is back.`;
  }
  if (syscall === 'connect' || syscall === 'getaddrinfo' || code === 'CONNECT_TIMEOUT') {
    return `The database cannot be reached: ${reason.message}. Check that its server is running and that DATABASE_URL names it.`;
  }
  if (code === '3D000' || code?.startsWith('28')) {
    return `The database cannot be opened: ${reason.message}. Check DATABASE_URL.`;
  }
  return [reason.message, detail, hint].filter(Boolean).join('\n');
}
