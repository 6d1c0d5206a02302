import { type SQL, sql } from 'drizzle-orm';
import * as pgCore from 'drizzle-orm/pg-core';
import { type AnyPgColumn, customType, timestamp, varchar } from 'drizzle-orm/pg-core';

const { pgTableWithSchema, pgMaterializedViewWithSchema } = pgCore as unknown as Record<
  'pgTableWithSchema' | 'pgMaterializedViewWithSchema',
  (...args: unknown[]) => unknown
>;

/**
 * `pgTable`, but with the schema `public` named in every statement of Drizzle and
 * drizzle-kit, so that a table of the same name that comes earlier in somebody's
 * search_path is never taken for ours. Drizzle refuses pgSchema('public'), and
 * exports the function behind it at run time alone, not in its types.
 */
export const publicTable = ((name: string, columns: unknown, constraints?: unknown) =>
  pgTableWithSchema(name, columns, constraints, 'public')) as typeof pgCore.pgTable;

/** `pgMaterializedView`, but with the schema `public` named, as of tables. */
export const publicMaterializedView = ((name: string, columns: unknown) =>
  pgMaterializedViewWithSchema(name, columns, 'public')) as typeof pgCore.pgMaterializedView;

/**
 * The first statement of every transaction of ours: functions, operators and
 * types are those of Postgres, whatever others have created under the same names,
 * and relations are named with their schema. To put pg_catalog first would not be
 * enough: a function in a later schema is taken if its arguments fit better.
 * https://www.postgresql.org/docs/16/typeconv-func.html
 */
export const pinSearchPath = sql`set local search_path to pg_catalog, pg_temp`;

/**
 * An identifier from an upstream system: opaque, compared byte by byte, so that
 * order and ties are the same in every database whatever its locale.
 */
export const identifier = customType<{ data: string }>({
  dataType: () => 'varchar COLLATE "C"',
});

/**
 * A point in time, the same everywhere. In SQL it keeps microseconds; in
 * TypeScript it is a Date, which keeps milliseconds.
 */
export const instant = (name: string) => timestamp(name, { withTimezone: true });

/**
 * What the clock on the wall of the user's branch showed. A string in
 * TypeScript (`2024-03-31 09:30:00`), because a Date would claim an instant.
 */
export const localTime = (name: string) => timestamp(name, { mode: 'string' });

/**
 * The condition that an instant lies in the years 1 to 9999 (UTC). Instants at
 * the ends of Postgres' own range have no local time east or west of UTC: one
 * such row would make every refresh fail with "timestamp out of range".
 * https://www.postgresql.org/docs/16/datatype-datetime.html
 */
export const inCalendarRange = (column: AnyPgColumn): SQL =>
  sql`${column} >= '0001-01-01 00:00:00+00' and ${column} < '10000-01-01 00:00:00+00'`;

/** What that condition demands. */
export const calendarRangeRule = 'must be in the years 1 to 9999 (UTC)';

/** What upstream says of a purchase. Any key may be missing or null. */
export interface PurchaseDetails {
  /** Name of the product. */
  name?: string | null;
  /** Where the purchase came from, such as a till, the web or an app. */
  source?: string | null;
  [key: string]: unknown;
}

/**
 * The condition that purchase details are an object. JSON's own null passes: it
 * is how some exports write "no details". jsonb rather than json, because json
 * takes escapes (`\u0000`) that no text can hold and that a refresh trips over.
 */
export const isObjectOrNull = (column: AnyPgColumn): SQL =>
  sql`jsonb_typeof(${column}) in ('object', 'null')`;

/** What that condition demands. */
export const objectOrNullRule = 'must be a JSON object, or JSON null';

/**
 * What purchase details say under a key, as a column that Postgres keeps: NULL
 * where there are no details, the key is missing, or its value is null. Where the
 * value is no text, its JSON: `5`, `true`, `{"a": 1}`.
 * https://www.postgresql.org/docs/16/ddl-generated-columns.html
 */
export const detail = (name: string, details: string, key: 'name' | 'source') =>
  varchar(name).generatedAlwaysAs(sql.raw(`${details} ->> '${key}'`));

/**
 * The condition that an identifier is short: an index row holds 2,704 bytes, and
 * two identifiers, a name and a source are in one.
 * https://www.postgresql.org/docs/16/btree-implementation.html
 */
export const isShort = (column: AnyPgColumn): SQL => sql`octet_length(${column}) <= 255`;

/** What that condition demands. */
export const shortRule = 'must be at most 255 bytes long';

/** The condition that the name and the source in purchase details fit into an index row. */
export const hasShortDetails = (details: AnyPgColumn): SQL =>
  sql`octet_length(${details} ->> 'name') <= 1000 and octet_length(${details} ->> 'source') <= 1000`;

/** What that condition demands. */
export const shortDetailsRule = 'must not have a name or a source of more than 1,000 bytes';
