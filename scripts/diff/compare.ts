import { getTableName, getViewName, type SQL, sql } from 'drizzle-orm';
import {
  getMaterializedViewConfig,
  type PgColumn,
  type PgMaterializedView,
} from 'drizzle-orm/pg-core';
import { propertiesOf } from '../../schema/properties.ts';
import { missing } from '../../views/catalog.ts';
import { readDistributed, untilSettled } from '../../views/citus.ts';
import { viewsInOrder } from '../../views/refresh.ts';
import { once, pinned, type Session, setLocally } from '../../views/session.ts';
import { declaredText, rowsOf, standalone } from '../definitions.ts';
import { declaredRelations, type Relation, readRelations } from '../relations.ts';

/** How many rows of a view would be added, be gone and be changed. */
export interface RowCounts {
  added: number;
  gone: number;
  changed: number;
}

/** What the declared form of a view would change in its present rows. */
export interface ViewDiff extends RowCounts {
  /** The view's name. */
  view: string;
  /** Rows that it has now, and rows that it would have. */
  rows: number;
  declaredRows: number;
  /** How much of this a refresh would do anyway, with the deployed definition. */
  byRefresh: RowCounts;
  /**
   * In how many of the changed rows each column differs, and in how many of these a refresh would
   * set it to the same value.
   */
  columns: { column: string; changed: number; byRefresh: number }[];
  /** Declared columns that the view does not have yet, and columns that are no longer declared. */
  newColumns: string[];
  droppedColumns: string[];
  /** Columns whose declared type differs from their present one. */
  retypedColumns: string[];
  examples: Example[];
}

/** A row that would be added, be gone or be changed. */
export interface Example {
  kind: keyof RowCounts;
  /** The values of the columns that identify the row. */
  key: Record<string, unknown>;
  /**
   * The columns that differ, with the present value and the declared value as texts. Columns whose
   * values are not shown have neither.
   */
  columns: { column: string; now?: string | null; declared?: string | null }[];
}

export interface DiffOptions {
  /** The name of the view to compare. All views if undefined. */
  view?: string | undefined;
  /** How many examples of each kind to return. */
  limit: number;
  /** Whether to show all values, not only identifiers and times. */
  showsValues: boolean;
  statementTimeout: string;
  workMem: string;
  signal?: AbortSignal;
  /** Called with the name of the view that is being compared. */
  onView?: (view: string) => void;
}

/**
 * Compares the rows of the views with the rows that their declared SELECTs return for the current
 * input. All of it happens in one snapshot of a read-only transaction.
 *
 * Throws an Error that says what to do if a view cannot be compared: it does not exist, is not
 * populated, or its declared SELECT reads something that the database does not have.
 */
export async function diffViews(session: Session, options: DiffOptions): Promise<ViewDiff[]> {
  const { view: only, statementTimeout, workMem, signal, onView } = options;
  const names = viewsInOrder.map((view) => getViewName(view));
  if (only !== undefined && !names.includes(only)) {
    throw new Error(`--view must be one of ${names.join(', ')}, not ${JSON.stringify(only)}.`);
  }
  const work = async (tx: Session) => {
    await tx.execute(setLocally({ work_mem: workMem, row_security: 'off' }));
    if ((await readDistributed(tx)).length > 0) {
      await untilSettled(tx, signal);
    }
    const deployed: string[] = [];
    const declared: string[] = [];
    const diffs: ViewDiff[] = [];
    for (const view of viewsInOrder) {
      const name = getViewName(view);
      const found = await lookUp(tx, view);
      deployed.push(standalone(found.definition, deployed));
      declared.push(standalone(declaredText(view), declared));
      if (only === undefined || name === only) {
        onView?.(name);
        const [deployedQuery = '', declaredQuery = ''] = [deployed.at(-1), declared.at(-1)];
        diffs.push(await compare(tx, view, found.columns, deployedQuery, declaredQuery, options));
      }
    }
    return diffs;
  };
  return await pinned(
    session,
    statementTimeout,
    work,
    { isolationLevel: 'repeatable read', accessMode: 'read only' },
    signal,
  );
}

/** Returns the columns of a view, with their types, and its definition. */
async function lookUp(tx: Session, view: PgMaterializedView) {
  const name = getViewName(view);
  const [found] = await tx
    .select({
      isPopulated: sql<boolean>`relispopulated`,
      definition: sql<string>`pg_get_viewdef(oid)`,
      columns: sql<{ name: string; type: string }[]>`(
        select json_agg(json_build_object(
          'name', attname, 'type', format_type(atttypid, atttypmod)
        ) order by attnum)
        from pg_attribute
        where attrelid = pg_class.oid and attnum > 0 and not attisdropped
      )`,
    })
    .from(sql`pg_class`)
    .where(sql`oid = to_regclass(${`public.${name}`}) and relkind = 'm'`);
  if (!found) {
    throw missing(name, undefined);
  }
  if (!found.isPopulated) {
    throw new Error(`${name} is not populated, so it has no rows to compare. Refresh it first.`);
  }
  const views = viewsInOrder.map((other) => getViewName(other));
  const inputs = (propertiesOf(view)?.reads ?? []).filter(
    ({ table }) => !views.includes(getTableName(table)),
  );
  for (const { table, name: column } of inputs) {
    const [known] = await tx
      .select({
        isThere: sql<boolean>`exists (
          select from pg_attribute
          where attrelid = to_regclass(${`public.${getTableName(table)}`})
            and attname = ${column} and not attisdropped
        )`,
      })
      .from(once);
    if (!known?.isThere) {
      throw new Error(
        `The declared ${name} reads ${getTableName(table)}.${column}, which this database does not have yet. Migrate a copy of the database, and compare there.`,
      );
    }
  }
  return found;
}

/**
 * Returns the columns of a view whose declared type differs from the present one, with both types.
 */
async function retyped(tx: Session, view: string): Promise<string[]> {
  const named = (relations: Relation[]) =>
    relations.find(({ name }) => name === view)?.columns ?? [];
  const stored = named(await readRelations(tx));
  return named(declaredRelations())
    .filter((column) => !stored.includes(column))
    .flatMap((column) => {
      const [name = ''] = column.split(' ');
      const other = stored.find((it) => it.startsWith(`${name} `));
      return other ? [`${column}, not ${other.slice(name.length + 1)}`] : [];
    });
}

/** Throws an Error if a query that must read only the input tables reads one of our views. */
async function refuseViews(tx: Session, view: string, query: string): Promise<void> {
  const [plan] = await rowsOf<{ 'QUERY PLAN': unknown }>(
    tx,
    sql.raw(`explain (format json) ${query}`),
  );
  const read = viewsInOrder
    .map((other) => getViewName(other))
    .find((name) => JSON.stringify(plan).includes(`"Relation Name":"${name}"`));
  if (read) {
    throw new Error(
      `diff cannot find the reference to ${read} in the declared ${view}. Write it as "from public.${read} as events".`,
    );
  }
}

async function compare(
  tx: Session,
  view: PgMaterializedView,
  stored: { name: string; type: string }[],
  deployedQuery: string,
  declaredQuery: string,
  { limit, showsValues }: DiffOptions,
): Promise<ViewDiff> {
  const { name, selectedFields } = getMaterializedViewConfig(view);
  const fields = selectedFields as Record<string, PgColumn>;
  const declared = Object.values(fields);
  const keys = (propertiesOf(view)?.uniqueKey ?? []).map((key) => fields[key]?.name ?? key);
  const common = declared.filter((column) => stored.some((it) => it.name === column.name));
  const others = common.filter((column) => !keys.includes(column.name));
  const shown = (column: PgColumn) =>
    showsValues || /timestamp|COLLATE "C"/.test(column.getSQLType());

  const columnOf = (of: string, column: string) => sql`${sql.raw(of)}.${sql.identifier(column)}`;
  const differs = (one: string, other: string, { name: column }: PgColumn) =>
    // Compared as text, because their types may differ.
    sql`(${columnOf(one, column)}::text is distinct from ${columnOf(other, column)}::text)`;
  const anyDiffers = (one: string, other: string) =>
    sql`(${sql.join([sql`false`, ...others.map((column) => differs(one, other, column))], sql` or `)})`;
  const isThere = (of: string) => sql.raw(`${of}.lead_conversions_is_there`);
  const kinds = (one: string, other: string): Record<keyof RowCounts, SQL> => ({
    added: sql`${isThere(one)} is null and ${isThere(other)}`,
    gone: sql`${isThere(one)} and ${isThere(other)} is null`,
    changed: sql`${isThere(one)} and ${isThere(other)} and ${anyDiffers(one, other)}`,
  });
  const total = kinds('stored', 'declared');
  // If the deployed definition gives the same row, a refresh alone would make the change.
  const isAlike = sql`(
    ${isThere('deployed')} is not distinct from ${isThere('declared')}
    and not ${anyDiffers('deployed', 'declared')}
  )`;
  const byRefresh = Object.values(total).map((is) => sql`${is} and ${isAlike}`);
  const rows = sql`
    with
    stored as (select *, true as lead_conversions_is_there from public.${sql.identifier(name)}),
    deployed as (select *, true as lead_conversions_is_there from (\n${sql.raw(deployedQuery)}\n) as deployed_rows),
    declared as (select *, true as lead_conversions_is_there from (\n${sql.raw(declaredQuery)}\n) as declared_rows)`;
  const list = sql.join(
    keys.map((key) => sql.identifier(key)),
    sql`, `,
  );
  const joined = sql`
    from stored
    full join declared using (${list})
    full join deployed using (${list})`;
  const count = (condition: SQL) => sql`count(*) filter (where ${condition})`;
  const counts = [
    ...[isThere('stored'), isThere('declared')],
    ...Object.values(total),
    ...byRefresh,
    ...others.flatMap((column) => [
      sql`${isThere('stored')} and ${isThere('declared')} and ${differs('stored', 'declared', column)}`,
      sql`${isThere('stored')} and ${isThere('declared')} and ${differs('stored', 'declared', column)}
        and not ${differs('deployed', 'declared', column)}`,
    ]),
  ];
  await refuseViews(tx, name, declaredQuery);
  await refuseViews(tx, name, deployedQuery);
  const [repeated] = await rowsOf<{ key: string; count: number }>(
    tx,
    sql`
      with declared as (\n${sql.raw(declaredQuery)}\n)
      select concat_ws(', ', ${list}) as key, count(*)::int as count
      from declared
      group by ${list}
      having count(*) > 1
      limit 1`,
  );
  if (repeated) {
    throw new Error(
      `The declared ${name} has ${repeated.count} rows with the same ${keys.join(' and ')} (${repeated.key}). It must have one row per ${keys.join(' and ')}.`,
    );
  }
  const [counted] = await rowsOf<{ counts: number[] }>(
    tx,
    sql`${rows} select json_build_array(${sql.join(counts.map(count), sql`, `)}) as counts ${joined}`,
  );
  const [now = 0, then = 0, added = 0, gone = 0, changed = 0, ...rest] = counted?.counts ?? [];
  const [addedByRefresh = 0, goneByRefresh = 0, changedByRefresh = 0, ...ofColumns] = rest;

  const valuesOf = (column: PgColumn) =>
    shown(column)
      ? sql`,
          'now', ${columnOf('stored', column.name)}::text,
          'declared', ${columnOf('declared', column.name)}::text`
      : sql``;
  const examples =
    limit > 0 && added + gone + changed > 0
      ? await rowsOf<{
          kind: keyof RowCounts;
          key: Record<string, unknown>;
          columns: Example['columns'];
        }>(
          tx,
          sql`
            ${rows},
            found as (
              select
                case ${sql.join(
                  Object.entries(total).map(([kind, is]) => sql`when ${is} then ${kind}`),
                  sql` `,
                )} end as kind,
                ${list},
                json_build_array(${sql.join(
                  others.map(
                    (column) => sql`case when ${differs('stored', 'declared', column)} then
                      json_build_object(
                        'column', ${column.name}::text ${valuesOf(column)}
                      ) end`,
                  ),
                  sql`, `,
                )}) as columns
              ${joined}
            ),
            numbered as (
              select *, row_number() over (partition by kind order by ${list}) as number
              from found
              where kind is not null
            )
            select
              kind,
              json_build_object(${sql.join(
                keys.map((key) => sql`${key}::text, ${sql.identifier(key)}`),
                sql`, `,
              )}) as key,
              columns
            from numbered
            where number <= ${limit}
            order by array_position(array['changed', 'added', 'gone'], kind), number`,
        )
      : [];
  return {
    view: name,
    rows: now,
    declaredRows: then,
    ...{ added, gone, changed },
    byRefresh: { added: addedByRefresh, gone: goneByRefresh, changed: changedByRefresh },
    columns: others
      .map(({ name: column }, index) => ({
        column,
        changed: ofColumns[2 * index] ?? 0,
        byRefresh: ofColumns[2 * index + 1] ?? 0,
      }))
      .filter(({ changed }) => changed > 0),
    newColumns: declared.filter((column) => !common.includes(column)).map(({ name }) => name),
    droppedColumns: stored
      .filter(({ name }) => !declared.some((column) => column.name === name))
      .map(({ name }) => name),
    retypedColumns: await retyped(tx, name),
    examples: examples.map(({ columns, ...example }) => ({
      ...example,
      columns: columns.filter((column) => column !== null),
    })),
  };
}
