import { type SQL, sql } from 'drizzle-orm';
import * as pgCore from 'drizzle-orm/pg-core';
import { type AnyPgColumn, customType, timestamp, varchar } from 'drizzle-orm/pg-core';

const { pgTableWithSchema, pgMaterializedViewWithSchema } = pgCore as unknown as Record<
  'pgTableWithSchema' | 'pgMaterializedViewWithSchema',
  (...args: unknown[]) => unknown
>;

/**
 * `pgTable`, but Drizzle and drizzle-kit name the schema `public` in every statement, so a table of
 * the same name earlier in somebody's search_path is never used instead. Drizzle refuses
 * pgSchema('public'). It exports the function behind it only at run time, not in its types.
 */
export const publicTable = ((name: string, columns: unknown, constraints?: unknown) =>
  pgTableWithSchema(name, columns, constraints, 'public')) as typeof pgCore.pgTable;

/** `pgMaterializedView`, but with the schema `public` named in every statement. */
export const publicMaterializedView = ((name: string, columns: unknown) =>
  pgMaterializedViewWithSchema(name, columns, 'public')) as typeof pgCore.pgMaterializedView;

/**
 * The first statement of each of our transactions. Functions, operators and types are then those of
 * Postgres, whatever others have created under the same names. Relations are named with their
 * schema. It would not be enough to put pg_catalog first: Postgres prefers a function in a later
 * schema if its arguments fit better.
 * https://www.postgresql.org/docs/16/typeconv-func.html
 */
export const pinSearchPath = sql`set local search_path to pg_catalog, pg_temp`;

/**
 * An identifier from an upstream system. It is opaque, and compared byte by byte, so order and ties
 * are the same in every database, whatever its locale.
 */
export const identifier = customType<{ data: string }>({
  dataType: () => 'varchar COLLATE "C"',
});

/**
 * An instant: a point in time, the same everywhere. SQL keeps microseconds. In TypeScript it is a
 * Date, which keeps milliseconds.
 */
export const instant = (name: string) => timestamp(name, { withTimezone: true });

/**
 * A local time: what the wall clock of the user's branch showed. In TypeScript it is a string
 * (`2024-03-31 09:30:00`), because a Date would be an instant.
 */
export const localTime = (name: string) => timestamp(name, { mode: 'string' });

/**
 * The condition that an instant is in the years 1 to 9999 (UTC). Instants at the ends of Postgres'
 * own range have no local time east or west of UTC: one such row would make every refresh fail with
 * "timestamp out of range".
 * https://www.postgresql.org/docs/16/datatype-datetime.html
 */
export const inCalendarRange = (column: AnyPgColumn): SQL =>
  sql`${column} >= '0001-01-01 00:00:00+00' and ${column} < '10000-01-01 00:00:00+00'`;

/** What `inCalendarRange` demands. */
export const calendarRangeRule = 'must be in the years 1 to 9999 (UTC)';

/** What the upstream system records about a purchase. Any key may be missing or null. */
export interface PurchaseDetails {
  /** Name of the product. */
  name?: string | null;
  /** Where the purchase came from, such as a till, the web or an app. */
  source?: string | null;
  [key: string]: unknown;
}

/**
 * The condition that purchase details are an object. JSON null passes, because some exports write
 * it for "no details". The type is jsonb, because json accepts escapes (`\u0000`) that no text can
 * hold, and they would make a refresh fail.
 */
export const isObjectOrNull = (column: AnyPgColumn): SQL =>
  sql`jsonb_typeof(${column}) in ('object', 'null')`;

/** What `isObjectOrNull` demands. */
export const objectOrNullRule = 'must be a JSON object, or JSON null';

/**
 * A generated column with the value of one key in purchase details. It is NULL if there are no
 * details, if the key is missing, or if its value is null. If the value is not a string, it is the
 * JSON of the value: `5`, `true`, `{"a": 1}`.
 * https://www.postgresql.org/docs/16/ddl-generated-columns.html
 */
export const detail = (name: string, details: string, key: 'name' | 'source') =>
  varchar(name).generatedAlwaysAs(sql.raw(`${details} ->> '${key}'`));

/**
 * The condition that an identifier is short. An index row holds at most 2,704 bytes, and one index
 * row has two identifiers, a name and a source.
 * https://www.postgresql.org/docs/16/btree-implementation.html
 */
export const isShort = (column: AnyPgColumn): SQL => sql`octet_length(${column}) <= 255`;

/** What `isShort` demands. */
export const shortRule = 'must be at most 255 bytes long';

/** The condition that the name and the source in purchase details fit into an index row. */
export const hasShortDetails = (details: AnyPgColumn): SQL =>
  sql`octet_length(${details} ->> 'name') <= 1000 and octet_length(${details} ->> 'source') <= 1000`;

/** What `hasShortDetails` demands. */
export const shortDetailsRule = 'must not have a name or a source of more than 1,000 bytes';
