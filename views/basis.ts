import { type SQL, sql } from 'drizzle-orm';
import type { PgDatabase, PgQueryResultHKT } from 'drizzle-orm/pg-core';
import type { Input } from './catalog.ts';

// Whether a view is what it was when it was last computed, and all that it was
// computed from. That is known here, never guessed: in doubt the answer is no.

/**
 * What a refresh has seen of a table or view in one statement. Its rows are the
 * same later on if there are as many, and none of them was written since: every
 * row that is there then was there before, so that with the same number of rows
 * none is missing. A changed row counts as written, since Postgres writes it anew.
 * https://www.postgresql.org/docs/16/mvcc.html
 */
export interface Look {
  /** The oid of the table or view. */
  relation: number;
  rows: number;
  /**
   * The id of the oldest transaction that had not ended (the xmin of the snapshot),
   * as text. What a transaction from there on has written may not have been seen.
   */
  snapshotXmin: string;
  /** The id of the transaction that looked, as text. It has seen what it wrote itself. */
  transaction: string;
}

/** All that decides over the rows of a view, as it was when the view was last found up to date. */
export interface Basis {
  /** The oid of the database: a copy of it has the history, too. */
  database: number;
  /** The time zones in use and their clocks, as a hash. */
  zones: string;
  inputs: Look[];
  view: Look;
}

type Transaction = PgDatabase<PgQueryResultHKT>;

/** A look, and whether the rows are the same as at the one before. */
interface Comparison {
  look: Look;
  isSame: boolean;
}

/** Looks at a table or view of the schema public, or another, and compares it with the look before. */
export async function lookAt(
  tx: Transaction,
  { oid, schema, name }: { oid: number; schema: string; name: string },
  before?: Look,
): Promise<Comparison> {
  const asXid = (id: string | undefined): SQL => sql`(${id ?? '0'}::text::xid8)::xid`;
  const [seen] = await tx
    .select({
      rows: sql`count(*)`.mapWith(Number),
      ageOfYoungest: sql<
        number | null
      >`min(age(xmin)) filter (where xmin <> ${asXid(before?.transaction)})`,
      ageOfSnapshot: sql<number>`age(${asXid(before?.snapshotXmin)})`,
      snapshotXmin: sql<string>`pg_snapshot_xmin(pg_current_snapshot())::text`,
      transaction: sql<string>`pg_current_xact_id()::text`,
    })
    .from(sql`${sql.identifier(schema)}.${sql.identifier(name)}`);
  if (!seen) {
    throw new Error(`${name} could not be counted.`);
  }
  const { ageOfYoungest, ageOfSnapshot, ...counted } = seen;
  const look: Look = { relation: oid, ...counted };
  const isSame =
    before?.relation === oid &&
    before.rows === look.rows &&
    isComparable(before, look) &&
    (ageOfYoungest === null || ageOfYoungest > ageOfSnapshot);
  return { look, isSame };
}

/**
 * Whether the ages of rows say anything about the time between two looks. They are
 * computed from the last 32 bits of an id, so that they are true for the last two
 * billion transactions. https://www.postgresql.org/docs/16/routine-vacuuming.html#VACUUM-FOR-WRAPAROUND
 */
function isComparable(before: Look, look: Look): boolean {
  const elapsed = BigInt(look.transaction) - BigInt(before.snapshotXmin);
  return elapsed >= 0n && elapsed < 2n ** 30n;
}

/**
 * Looks at all that a view reads, and compares it with the looks before. Returns
 * undefined if there is something that cannot be looked at.
 */
export async function lookAtInputs(
  tx: Transaction,
  inputs: Input[],
  before: Look[] = [],
): Promise<{ looks: Look[]; isSame: boolean } | undefined> {
  const looks: Look[] = [];
  let isSame = inputs.length === before.length;
  for (const { oid, schema, name, isVisible } of inputs) {
    if (!isVisible || schema === null || name === null) {
      return undefined;
    }
    const earlier = before.find(({ relation }) => relation === oid);
    const comparison = await lookAt(tx, { oid, schema, name }, earlier);
    looks.push(comparison.look);
    isSame &&= comparison.isSame;
  }
  return { looks, isSame };
}

/**
 * A hash of what the clocks of all time zones in use show at the start of every
 * week from 1970 to 2040, and of every quarter from 1900 on. It is another one
 * after an upgrade of the time zone data that moves local times, also where a
 * change of the clocks moves by a week.
 *
 * Throws what Postgres says of a zone that it does not know (22023).
 */
export async function hashClocks(tx: Transaction): Promise<string> {
  const [clocks] = await tx
    .select({ hash: sql<string>`coalesce(md5(string_agg(zone || hash, ',' order by zone)), '')` })
    .from(sql`(
      select distinct coalesce(timezone_id, 'UTC') collate "C" as zone
      from public.dim_branch
    ) as zones
    cross join lateral (
      select md5(string_agg(timestamp_send(instant at time zone zone), '' order by instant)) as hash
      from (
        select generate_series(timestamp '1900-01-01', '1969-10-01', '3 months') at time zone 'UTC'
        union all
        select generate_series(timestamp '1970-01-01', '2040-01-01', '7 days') at time zone 'UTC'
      ) as instants (instant)
    ) as hashes`);
  return clocks?.hash ?? '';
}

/** How many branches, and up to five of them, are in each zone that the server does not know. */
export const branchesOfUnknownZones = (
  tx: Transaction,
): PromiseLike<{ zone: string; branches: number; some: string[] }[]> =>
  tx
    .select({
      zone: sql<string>`timezone_id`,
      branches: sql`count(*)`.mapWith(Number),
      some: sql<string[]>`to_json((array_agg(branch_id order by branch_id))[1:5])`,
    })
    .from(sql`public.dim_branch`)
    .where(sql`timezone_id is not null and not exists (
      select from pg_timezone_names where lower(name) = lower(timezone_id)
    )`)
    .groupBy(sql`timezone_id`)
    .orderBy(sql`timezone_id`);

/** What tells this database from others: its server, and its oid there. */
export async function identify(tx: Transaction): Promise<{ server: string; database: number }> {
  const [identity] = await tx
    .select({
      server: sql<string>`system_identifier::text`,
      database: sql`(select oid from pg_database where datname = current_database())`.mapWith(
        Number,
      ),
    })
    .from(sql`pg_control_system()`);
  return identity ?? { server: '', database: 0 };
}
