import type { PgColumn, PgMaterializedView, PgTable } from 'drizzle-orm/pg-core';

/** The role whose members may read the reports, and what it takes to understand them. */
export const readerRole = 'lead_conversions_reader';

/** What the database says of that role. */
export const readerRoleComment =
  'Members may read these objects of lead-conversions in every database of this server, and no others: fct_client_conversion_events, fct_lead_conversions, view_refreshes, and the columns of dim_branch that name a branch.';

/**
 * What Postgres keeps of a relation and Drizzle has no words for. It is declared
 * beside the relation, and `npm run generate` writes it into migrations.
 */
export interface Properties<Column extends string = string> {
  /** What one row is. Begins with "One row per". */
  comment: string;
  /** What each column holds: its unit, its time zone, what NULL means. */
  columns: Record<Column, string>;
  /** What others than the owner may read, by role: all of it, or some columns. They may do nothing else. */
  grants?: Record<string, { select: 'all' | readonly [Column, ...Column[]] }>;
}

export interface TableProperties<Column extends string = string> extends Properties<Column> {
  /** What a CHECK demands, by its name, as the end of a sentence: `load` tells it of a bad row. */
  checks?: Record<string, string>;
  /** What an index is for, by its name. */
  indexes?: Record<string, string>;
}

export interface ViewProperties<Column extends string = string, Key extends string = string>
  extends Properties<Column> {
  /**
   * The columns that tell one row from another. REFRESH … CONCURRENTLY needs a
   * unique index on them, and none may be NULL: of duplicates with a NULL it
   * silently makes one. The index is named after view and columns, `…_key`.
   */
  uniqueKey: readonly [Key, ...Key[]];
  /**
   * The columns that it reads. A refresh sees to it that the view still reads these,
   * and not what had their names when the view was created.
   */
  reads: readonly PgColumn[];
  /** Indexes for readers, and what each is for. They are named after view and columns, `…_idx`. */
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

/** The declared properties of a relation, undefined if it has none. */
export const propertiesOf = <Relation extends PgTable | PgMaterializedView>(
  relation: Relation,
): PropertiesOf<Relation> | undefined =>
  declared.get(relation) as PropertiesOf<Relation> | undefined;
