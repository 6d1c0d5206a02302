import type postgres from 'postgres';
import { vi } from 'vitest';
import { conversionEventFilters } from '../../views/index.ts';

/** The number of rows that the second view has for each user. */
export const filters = conversionEventFilters.length;

export const patience = { timeout: 30_000, interval: 20 };

/** Resolves as soon as this many sessions on the database wait for a lock. */
export const sessionsThatWait = (observer: postgres.Sql, count = 1): Promise<unknown> =>
  vi.waitUntil(async () => {
    const waiting = await observer`
      select from pg_stat_activity
      where datname = current_database() and wait_event_type = 'Lock'`;
    return waiting.length >= count;
  }, patience);

/** Resolves with the pid of a session that runs a statement like this, as soon as there is one. */
export const sessionThatRuns = (observer: postgres.Sql, statement: string): Promise<number> =>
  vi.waitUntil(async () => {
    const [running] = await observer<{ pid: number }[]>`
      select pid
      from pg_stat_activity
      where datname = current_database() and state = 'active' and query ilike ${statement}
        and pid <> pg_backend_pid()`;
    return running?.pid;
  }, patience) as Promise<number>;

/** Resolves once no session of a command is left on the database. */
export const sessionsEnded = (observer: postgres.Sql): Promise<unknown> =>
  vi.waitUntil(async () => {
    const left = await observer`
      select from pg_stat_activity
      where datname = current_database() and application_name = 'lead-conversions'`;
    return left.length === 0;
  }, patience);

/** What readers see: users in the first view, rows in the second, and rows in the history. */
export async function seenBy(reader: postgres.Sql): Promise<unknown> {
  const [counts] = await reader`
    select
      (select count(*)::int from fct_client_conversion_events) as users,
      (select count(*)::int from fct_lead_conversions) as rows,
      (select count(*)::int from view_refreshes) as refreshes`;
  return counts;
}
