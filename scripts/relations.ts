import { getTableColumns, getTableName, is, type SQL, sql } from 'drizzle-orm';
import {
  getMaterializedViewConfig,
  getTableConfig,
  type PgColumn,
  type PgDatabase,
  PgMaterializedView,
  type PgQueryResultHKT,
  PgTable,
} from 'drizzle-orm/pg-core';
import * as schema from '../schema/index.ts';
import { type Properties, propertiesOf } from '../schema/properties.ts';
import * as views from '../views/index.ts';
import { viewsInOrder } from '../views/refresh.ts';

/** A table or view, as it is in Postgres or as it is declared. */
export interface Relation {
  name: string;
  kind: 'TABLE' | 'MATERIALIZED VIEW' | 'VIEW';
  /**
   * Such as `user_id varchar COLLATE "C" NOT NULL`. For a view in the order of its columns, for a
   * table by name.
   */
  columns: string[];
  /** By name, including the indexes of keys. */
  indexes: Index[];
  /** On the relation and its columns, and on its CHECKs and its indexes by name. */
  comments: Comment[];
  /** Grants to roles other than the owner, by role and column. */
  grants: Grant[];
}

export interface Index {
  name: string;
  /**
   * For a view, what CREATE INDEX says about it, without names: `UNIQUE btree (user_id)`. Null for
   * a table, because drizzle-kit handles the indexes of tables.
   */
  definition: string | null;
}

export interface Comment {
  on: 'RELATION' | 'COLUMN' | 'CONSTRAINT' | 'INDEX';
  name: string;
  text: string | null;
}

export interface Grant {
  role: string;
  privilege: string;
  /** The column that the grant is for, or null if it is for the whole relation. */
  column: string | null;
}

/** What drizzle-kit reads: everything that schema/ and views/ export. */
export const declarations = { ...schema, ...views };

/**
 * Returns the declared tables and views, by name. Throws an Error if something has no comment, or
 * if a view is not in viewsInOrder. The Error names it.
 */
export function declaredRelations(): Relation[] {
  const relations = Object.values(declarations).flatMap((declaration) => {
    if (is(declaration, PgTable)) {
      return [declaredTable(declaration)];
    }
    return is(declaration, PgMaterializedView) ? [declaredView(declaration)] : [];
  });
  return relations.sort(byName);
}

/** Returns the names of the columns of a declared table, in the order of their declaration. */
export function columnOrder(table: string): string[] {
  const declaration = Object.values(declarations).find(
    (it) => is(it, PgTable) && getTableName(it) === table,
  );
  return is(declaration, PgTable)
    ? Object.values(getTableColumns(declaration)).map(({ name }) => name)
    : [];
}

function declaredTable(table: PgTable): Relation {
  const { name, schema, columns, checks, indexes, primaryKeys, uniqueConstraints } =
    getTableConfig(table);
  refuseOtherSchemas(name, schema);
  const properties = propertiesOf(table) ?? undeclared(name);
  const constraints: (string | undefined)[] = [
    ...columns.map(({ primary }) => (primary ? `${name}_pkey` : undefined)),
    ...columns.map(({ isUnique, uniqueName }) => (isUnique ? uniqueName : undefined)),
    ...primaryKeys.map((key) => key.getName()),
    ...uniqueConstraints.map((unique) => unique.getName()),
  ];
  const indexComments: Comment[] = [
    ...constraints
      .filter((constraint) => constraint !== undefined)
      .map((constraint): Comment => ({ on: 'INDEX', name: constraint, text: null })),
    ...indexes.map(
      ({ config }): Comment => ({
        on: 'INDEX',
        name: config.name ?? undeclared(`An index of ${name} without a name`),
        text:
          properties.indexes?.[config.name ?? ''] ??
          undeclared(`The index ${config.name} of ${name}`),
      }),
    ),
  ].sort(byName);
  return {
    name,
    kind: 'TABLE',
    columns: columns
      .toSorted(byName)
      .map((column) =>
        [column.name, typeOf(column), column.notNull && 'NOT NULL'].filter(Boolean).join(' '),
      ),
    indexes: indexComments.map((index) => ({ name: index.name, definition: null })),
    comments: [
      ...columnComments(
        name,
        Object.entries(getTableColumns(table)).sort(([, one], [, other]) => byName(one, other)),
        properties,
      ),
      ...checks
        .map(
          (check): Comment => ({
            on: 'CONSTRAINT',
            name: check.name,
            text:
              properties.checks?.[check.name] ?? undeclared(`The check ${check.name} of ${name}`),
          }),
        )
        .sort(byName),
      ...indexComments,
    ],
    grants: grantsOf(properties, (key) => getTableColumns(table)[key]?.name ?? key),
  };
}

function declaredView(view: PgMaterializedView): Relation {
  const { name, schema, selectedFields } = getMaterializedViewConfig(view);
  refuseOtherSchemas(name, schema);
  if (!viewsInOrder.includes(view)) {
    throw new Error(
      `${name} is not in viewsInOrder of views/refresh.ts, so nothing refreshes it. Add it there.`,
    );
  }
  const properties = propertiesOf(view) ?? undeclared(name);
  const columns = selectedFields as Record<string, PgColumn>;
  const nameOf = (key: string) => columns[key]?.name ?? key;
  const indexes = [
    {
      on: properties.uniqueKey,
      unique: true,
      comment: keyComment(properties.uniqueKey.map(nameOf)),
    },
    ...(properties.indexes ?? []).map((declared) => ({ ...declared, unique: false })),
  ].map(({ on, unique, comment }) => ({
    name: indexName([name, ...on.map(nameOf)], unique ? 'key' : 'idx'),
    on,
    unique,
    comment,
  }));
  return {
    name,
    kind: 'MATERIALIZED VIEW',
    columns: Object.values(columns).map((column) => `${column.name} ${typeOf(column)}`),
    indexes: indexes
      .map(({ name, on, unique }) => ({
        name,
        definition: `${unique ? 'UNIQUE ' : ''}btree (${on.map(nameOf).join(', ')})`,
      }))
      .sort(byName),
    comments: [
      ...columnComments(name, Object.entries(columns), properties),
      ...indexes
        .map(({ name, comment }): Comment => ({ on: 'INDEX', name, text: comment }))
        .sort(byName),
    ],
    grants: grantsOf(properties, nameOf),
  };
}

/** Returns the type of a column as Postgres writes it: `numeric(10,2)`. */
const typeOf = (column: PgColumn) => column.getSQLType().replaceAll(', ', ',');

/** Returns a name in Postgres' own style, cut to the 63 bytes that Postgres keeps of a name. */
const indexName = (parts: string[], suffix: string) =>
  `${parts.join('_').slice(0, 62 - suffix.length)}_${suffix}`;

const keyComment = (columns: string[]) =>
  `One row per ${columns.join(' and ')}. REFRESH MATERIALIZED VIEW CONCURRENTLY needs it.`;

/** Returns the comments on a relation and its columns. */
const columnComments = (
  name: string,
  entries: [string, PgColumn][],
  { comment, columns }: Properties,
): Comment[] => [
  { on: 'RELATION', name, text: comment },
  ...entries.map(
    ([key, column]): Comment => ({
      on: 'COLUMN',
      name: column.name,
      text: columns[key] || undeclared(`The column ${column.name} of ${name}`),
    }),
  ),
];

const grantsOf = ({ grants = {} }: Properties, nameOf: (key: string) => string): Grant[] =>
  Object.keys(grants)
    .sort()
    .flatMap((role) => {
      const select = grants[role]?.select ?? [];
      const columns = select === 'all' ? [null] : select.map(nameOf).sort();
      return columns.map((column) => ({ role, privilege: 'SELECT', column }));
    });

const byName = (one: { name: string }, other: { name: string }) => (one.name < other.name ? -1 : 1);

function refuseOtherSchemas(name: string, schema: string | undefined): void {
  if (schema !== 'public') {
    throw new Error(
      `${name} is not declared in the schema public. Declare it with publicTable or publicMaterializedView of schema/columns.ts.`,
    );
  }
}

function undeclared(what: string): never {
  throw new Error(
    `${what} has no comment. Declare one with withProperties of schema/properties.ts.`,
  );
}

/**
 * Returns the tables and views in a schema of the database, by name, without those of extensions.
 */
export async function readRelations(
  db: PgDatabase<PgQueryResultHKT>,
  inSchema = 'public',
): Promise<Relation[]> {
  const list = <Item>(items: SQL) => sql<Item[]>`coalesce((${items}), '[]')`;
  return await db
    .select({
      name: sql<string>`relname`,
      kind: sql<Relation['kind']>`
        case relkind when 'm' then 'MATERIALIZED VIEW' when 'v' then 'VIEW' else 'TABLE' end`,
      columns: list<string>(sql`
        select json_agg(concat_ws(' ',
          attname,
          replace(replace(format_type(atttypid, atttypmod),
            'character varying', 'varchar'),
            'timestamp without time zone', 'timestamp'),
          case when attcollation = '"C"'::regcollation then 'COLLATE "C"' end,
          case when attnotnull then 'NOT NULL' end
        ) order by case relkind when 'm' then attnum end, attname)
        from pg_attribute
        where attrelid = pg_class.oid and attnum > 0 and not attisdropped`),
      indexes: list<Index>(sql`
        select json_agg(json_build_object(
          'name', index.relname,
          'definition', case pg_class.relkind when 'm' then
            case when indisunique then 'UNIQUE ' else '' end
            || replace(regexp_replace(pg_get_indexdef(index.oid), '^.* USING ', ''), '"', '')
          end
        ) order by index.relname)
        from pg_index inner join pg_class as index on indexrelid = index.oid
        where indrelid = pg_class.oid`),
      comments: list<Comment>(sql`
        select json_agg(
          json_build_object('on', kind, 'name', name, 'text', text)
          order by rank, position, name
        )
        from (
          select 1 as rank, 'RELATION' as kind, 0 as position, relname as name,
            obj_description(pg_class.oid, 'pg_class') as text
          union all
          select 2, 'COLUMN', case relkind when 'm' then attnum end, attname, col_description(attrelid, attnum)
          from pg_attribute
          where attrelid = pg_class.oid and attnum > 0 and not attisdropped
          union all
          select 3, 'CONSTRAINT', 0, conname, obj_description(pg_constraint.oid, 'pg_constraint')
          from pg_constraint
          where conrelid = pg_class.oid and contype = 'c'
          union all
          select 4, 'INDEX', 0, index.relname, obj_description(index.oid, 'pg_class')
          from pg_index inner join pg_class as index on indexrelid = index.oid
          where indrelid = pg_class.oid
        ) as objects`),
      grants: list<Grant>(sql`
        select json_agg(
          json_build_object('role', role, 'privilege', privilege_type, 'column', attname)
          order by role, privilege_type, attname nulls first
        )
        from (
          select coalesce(rolname, 'PUBLIC') as role, privilege_type, attname
          from (
            select null as attname, relacl as acl
            union all
            select attname, attacl
            from pg_attribute
            where attrelid = pg_class.oid and not attisdropped
          ) as acls
          cross join aclexplode(acl)
          left join pg_roles on grantee = pg_roles.oid
          where grantee <> relowner
        ) as granted`),
    })
    .from(sql`pg_class`)
    .where(
      sql`relnamespace = to_regnamespace(${inSchema}) and relkind in ('r', 'p', 'f', 'm', 'v')
        and not exists (
          select from pg_depend
          where classid = 'pg_class'::regclass and objid = pg_class.oid and deptype = 'e'
        )`,
    )
    .orderBy(sql`relname`);
}
