import type { PgColumn, PgMaterializedView, PgTable } from 'drizzle-orm/pg-core';

/** The role whose members may read the reports, and what is needed to understand them. */
export const readerRole = 'lead_conversions_reader';

/** The comment on that role in the database. */
export const readerRoleComment =
  'Members may read these objects of lead-conversions in every database of this server, and no others: fct_client_conversion_events, fct_lead_conversions, view_refreshes, and the columns of dim_branch that name a branch.';

/**
 * Properties of a relation that Postgres keeps, but Drizzle cannot express. They are declared with
 * the relation, and `npm run generate` writes them into migrations.
 */
export interface Properties<Column extends string = string> {
  /** What one row is. Begins with "One row per". */
  comment: string;
  /** What each column holds: its unit, its time zone, what NULL means. */
  columns: Record<Column, string>;
  /**
   * What each role, other than the owner, may read: all columns or some of them. It may do nothing
   * else.
   */
  grants?: Record<string, { select: 'all' | readonly [Column, ...Column[]] }>;
}

export interface TableProperties<Column extends string = string> extends Properties<Column> {
  /**
   * What each CHECK demands, by the name of the CHECK, as the end of a sentence. `load` uses it in
   * its message on a bad row.
   */
  checks?: Record<string, string>;
  /** The purpose of each index, by the name of the index. */
  indexes?: Record<string, string>;
}

export interface ViewProperties<Column extends string = string, Key extends string = string>
  extends Properties<Column> {
  /**
   * The columns that identify a row. REFRESH … CONCURRENTLY needs a unique index on them. None may
   * be NULL, because it silently merges duplicates that have a NULL. The index is named after the
   * view and the columns, with the suffix `_key`.
   */
  uniqueKey: readonly [Key, ...Key[]];
  /**
   * The columns that the view reads. A refresh checks that the view still reads these columns, and
   * not others that had their names when the view was created.
   */
  reads: readonly PgColumn[];
  /**
   * Indexes for readers, with the purpose of each. They are named after the view and the columns,
   * with the suffix `_idx`.
   */
  indexes?: readonly { on: readonly [Column, ...Column[]]; comment: string }[];
}

type Row<Relation extends PgTable | PgMaterializedView> = Relation['$inferSelect'];

type ColumnOf<Relation extends PgTable | PgMaterializedView> = keyof Row<Relation> & string;

/** The columns that are never NULL. */
type KeyOf<Relation extends PgTable | PgMaterializedView> = {
  [Column in ColumnOf<Relation>]: null extends Row<Relation>[Column] ? never : Column;
}[ColumnOf<Relation>];

type PropertiesOf<Relation extends PgTable | PgMaterializedView> =
  Relation extends PgMaterializedView
    ? ViewProperties<ColumnOf<Relation>, KeyOf<Relation>>
    : TableProperties<ColumnOf<Relation>>;

const declared = new WeakMap<object, Properties>();

/** Declares the properties of a relation, and returns it. */
export function withProperties<Relation extends PgTable | PgMaterializedView>(
  relation: Relation,
  properties: PropertiesOf<Relation>,
): Relation {
  declared.set(relation, properties);
  return relation;
}

/** Returns the declared properties of a relation, or undefined if it has none. */
export const propertiesOf = <Relation extends PgTable | PgMaterializedView>(
  relation: Relation,
): PropertiesOf<Relation> | undefined =>
  declared.get(relation) as PropertiesOf<Relation> | undefined;
