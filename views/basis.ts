import { getTableName, type SQL, sql } from 'drizzle-orm';
import type { PgDatabase, PgQueryResultHKT } from 'drizzle-orm/pg-core';
import type { Input } from './catalog.ts';
import { purchaseKinds } from './purchase_kinds.ts';

// Decides whether a view, and everything it was computed from, is unchanged since it was last
// computed. The decision is never a guess: in doubt the answer is no.

/**
 * What one statement of a refresh saw of a table or view. Later on the rows are still the same if
 * there are as many of them and none was written since: every row that is there was there before,
 * and with the same number of rows none is missing. A changed row counts as written, because
 * Postgres writes it anew.
 * https://www.postgresql.org/docs/16/mvcc.html
 */
export interface Look {
  /** The oid of the table or view. */
  relation: number;
  rows: number;
  /**
   * The id of the oldest transaction that had not ended (the xmin of the snapshot), as text. Rows
   * written by this transaction or a later one may not have been seen.
   */
  snapshotXmin: string;
  /** The id of the transaction that looked, as text. It saw the rows that it wrote itself. */
  transaction: string;
}

/** Everything that determines the rows of a view, as it was when the view was last up to date. */
export interface Basis {
  /**
   * The oid of the database. It tells the database from a copy on the same server, which has the
   * same history.
   */
  database: number;
  /** A hash of the time zones in use and their clocks. */
  zones: string;
  inputs: Look[];
  view: Look;
}

type Transaction = PgDatabase<PgQueryResultHKT>;

/** A look, and whether the rows are the same as in the look before. */
interface Comparison {
  look: Look;
  isSame: boolean;
}

/**
 * Looks at a table or view, and compares it with the look before. Throws an Error if it could not
 * be counted.
 */
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
 * Returns whether the ages of rows are meaningful between two looks. Postgres computes an age from
 * the last 32 bits of a transaction id, so ages are right only for the last two billion
 * transactions.
 * https://www.postgresql.org/docs/16/routine-vacuuming.html#VACUUM-FOR-WRAPAROUND
 */
function isComparable(before: Look, look: Look): boolean {
  const elapsed = BigInt(look.transaction) - BigInt(before.snapshotXmin);
  return elapsed >= 0n && elapsed < 2n ** 30n;
}

/**
 * Looks at everything that a view reads, and compares it with the looks before. Returns undefined
 * if the view reads something that cannot be looked at. A view that this refresh has just left
 * alone is not looked at again if it would be compared with the same earlier look.
 */
export async function lookAtInputs(
  tx: Transaction,
  inputs: Input[],
  before: Look[] = [],
  leftAlone: { before: Look; look: Look }[] = [],
): Promise<{ looks: Look[]; isSame: boolean } | undefined> {
  const looks: Look[] = [];
  let isSame = inputs.length === before.length;
  for (const { oid, schema, name, isReadable, isExact } of inputs) {
    if (!isReadable || !isExact || schema === null || name === null) {
      return undefined;
    }
    const earlier = before.find(({ relation }) => relation === oid);
    const known = leftAlone.find((view) => isSameLook(view.before, earlier));
    const comparison = known
      ? { look: known.look, isSame: true }
      : await lookAt(tx, { oid, schema, name }, earlier);
    looks.push(comparison.look);
    isSame &&= comparison.isSame;
  }
  return { looks, isSame };
}

const isSameLook = (one: Look, other: Look | undefined): boolean =>
  one.relation === other?.relation &&
  one.rows === other.rows &&
  one.snapshotXmin === other.snapshotXmin &&
  one.transaction === other.transaction;

/**
 * Returns which transactions had ended, as text. While the text stays the same, no transaction has
 * ended, so every statement in between has seen the same rows.
 */
export async function snapshotOf(tx: Transaction): Promise<string | undefined> {
  const [current] = await tx
    .select({ snapshot: sql<string>`pg_current_snapshot()::text` })
    .from(sql`(values (1)) as once`);
  return current?.snapshot;
}

/**
 * Returns whether the first view shows only users, purchases and clocks that the looks before its
 * REFRESH saw.
 *
 * The REFRESH reads a little later than the looks. The next look finds the rows that were committed
 * in between, unless they were deleted again by then: only the REFRESH saw those. So the view
 * counts as computed from what the looks saw if it has one row for each user that they counted, and
 * if every row that it refers to still exists and was written before the looks.
 */
export async function isComputedFrom(
  tx: Transaction,
  rows: number,
  lookOf: (name: string) => Look | undefined,
): Promise<boolean> {
  const ageOf = (name: string) => sql`age((${lookOf(name)?.snapshotXmin ?? '0'}::text::xid8)::xid)`;
  const isOld = (name: string) =>
    sql`coalesce(age(${sql.identifier(name)}.xmin) > ${ageOf(name)}, false)`;
  const newPurchases = Object.values(purchaseKinds).map(({ table, key, first }) => {
    const name = getTableName(table);
    const firstId = sql`events.${sql.identifier(first.name)}`;
    return sql`exists (
      select
      from public.fct_client_conversion_events as events
      left join ${table}
        on events.user_id = ${sql.identifier(name)}.user_id
        and ${firstId} = ${key}
      where ${firstId} is not null and not ${isOld(name)}
    )`;
  });
  const [strangers] = await tx
    .select({
      areShown: sql<boolean>`
        exists (
          select
          from public.fct_client_conversion_events as events
          left join public.dim_branch using (branch_id)
          where events.branch_id is not null and not ${isOld('dim_branch')}
        )
        or ${sql.join(newPurchases, sql` or `)}`,
    })
    .from(sql`(values (1)) as once`);
  return lookOf('dim_user')?.rows === rows && strangers?.areShown === false;
}

/**
 * Returns a hash of when, to the minute, the clocks of all time zones in use change from 1900 to
 * 2040, and of the offsets that they change to. The hash changes when an upgrade of the time zone
 * data moves local times. A change is found if it lasts for four weeks, or, before 1970, for a
 * quarter of a year. Its instant is found by halving the period.
 *
 * Throws Postgres' error 22023 if the server does not know a zone.
 */
export async function hashClocks(tx: Transaction): Promise<string> {
  const offsetAt = (instant: string): SQL =>
    sql.raw(`date_part('epoch', to_timestamp(${instant}) at time zone zone)::bigint - ${instant}`);
  // Read in a query of its own: Citus runs queries on its tables on other servers, and cannot run
  // every correct query.
  const zones = await tx
    .selectDistinct({ zone: sql<string>`coalesce(timezone_id, 'UTC')` })
    .from(sql`public.dim_branch`);
  const names = JSON.stringify(zones.map(({ zone }) => zone));
  const [clocks] = await tx.select({ hash: sql<string>`hash` }).from(sql`(
      with recursive
      zones as (
        select zone collate "C" as zone
        from json_array_elements_text(${names}::json) as zones (zone)
      ),
      -- In seconds since 1970: quarters from 1900 to 1969, then every four weeks to 2040.
      periods (since, until) as (
        select since, since + 7889400
        from generate_series(-2208988800::bigint, -1, 7889400) as since
        union all
        select since, since + 2419200
        from generate_series(0::bigint, 2208988800, 2419200) as since
      ),
      clocks as (
        select
          zone, since, until,
          ${offsetAt('since')} as offset_since,
          ${offsetAt('until')} as offset_until
        from zones
        cross join periods
      ),
      changes as (
        select * from clocks where offset_since <> offset_until
        union all
        select
          zone,
          case when offset_middle = offset_since then middle else since end,
          case when offset_middle = offset_since then until else middle end,
          offset_since,
          case when offset_middle = offset_since then offset_until else offset_middle end
        from (
          select *, ${offsetAt('middle')} as offset_middle
          from (
            select *, (since + until) / 2 as middle from changes where until - since > 60
          ) as halved
          -- For speed: the offset is computed once.
          offset 0
        ) as halves
      )
      select coalesce(
        md5(string_agg(concat_ws(' ', zone, until, offset_until), ',' order by zone, until)), ''
      ) as hash
      from (
        select zone, until, offset_until from changes where until - since <= 60
        union all
        (select distinct on (zone) zone, since, offset_since from clocks order by zone, since)
      ) as known
    ) as hashed`);
  return clocks?.hash ?? '';
}

/**
 * Returns each zone that the server does not know, with the number of its branches and the ids of
 * up to five of them.
 */
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

/** Returns what identifies this database: its server, and its oid on that server. */
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
