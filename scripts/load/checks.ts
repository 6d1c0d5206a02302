import { getTableName, type SQL, sql } from 'drizzle-orm';
import { getTableConfig, type PgTable } from 'drizzle-orm/pg-core';
import { inputTables } from '../../schema/input_tables.ts';
import type { InputFile } from './files.ts';
import { columnNames } from './header.ts';
import { type Problems, shownProblems } from './problems.ts';
import { differ, keyNames, type LoadTransaction, list, loadingOf } from './tables.ts';

/** The files of a load, divided by whether all of their records could be read. */
export interface Loading {
  complete: InputFile[];
  incomplete: InputFile[];
  /** Whether each file is the whole of its table. */
  isSnapshot: boolean;
}

const fileOf = (files: InputFile[], table: PgTable): InputFile | undefined =>
  files.find((file) => file.table === table);

/**
 * Adds the problems of the rows of a file: rules of its table that they break, and conflicts with
 * other rows of the file and of the other tables.
 */
export async function addProblemsOfRows(
  transaction: LoadTransaction,
  { table }: InputFile,
  problems: Problems,
  loading: Loading,
): Promise<void> {
  for (const query of [
    ...(await brokenRules(transaction, table)),
    contradictions(table),
    ...unknownReferences(table, loading),
    ...(loading.isSnapshot ? lostReferences(table, loading) : []),
  ]) {
    const rows = await transaction.query(sql`
      select *, count(*) over () as total
      from (${query}) as problems
      order by file_line
      limit ${sql.raw(String(shownProblems))}`);
    for (const { file_line: line, column, text } of rows) {
      problems.add({
        line: line === null ? undefined : Number(line),
        column: (column as string | null) ?? undefined,
        text: text as string,
      });
    }
    problems.addUnseen(Math.max(0, Number(rows[0]?.total ?? 0) - rows.length));
  }
}

/**
 * Returns one query for each CHECK of a table. It selects the rows that the CHECK refuses, with the
 * comment on the CHECK. Returns no queries if no row is refused.
 */
async function brokenRules(transaction: LoadTransaction, table: PgTable): Promise<SQL[]> {
  const checks = await transaction.query(sql`
    select
      pg_attribute.attname as column,
      pg_get_expr(pg_constraint.conbin, pg_constraint.conrelid) as condition,
      coalesce(
        obj_description(pg_constraint.oid, 'pg_constraint'),
        'is refused by ' || pg_constraint.conname
      ) as rule
    from pg_constraint
    inner join pg_attribute
      on pg_constraint.conrelid = pg_attribute.attrelid
      and pg_attribute.attnum = pg_constraint.conkey[1]
    where pg_constraint.conrelid = to_regclass(${`public.${getTableName(table)}`})
      and pg_constraint.contype = 'c'
      -- The rows have no derived columns yet. Their rules are checked when rows are stored.
      and not exists (
        select from pg_attribute as derived
        where derived.attrelid = pg_constraint.conrelid
          and derived.attnum = any (pg_constraint.conkey)
          and derived.attgenerated <> ''
      )
    order by pg_constraint.conname`);
  const rules = checks.map(({ column, condition, rule }) => {
    const value = sql.identifier(String(column));
    const isBroken = sql`not (${sql.raw(String(condition))})`;
    return {
      ...{ column, rule, value },
      isRefused: column === 'timezone_id' ? unlessUnknownZone(value, isBroken) : isBroken,
    };
  });
  // All rules are checked in one pass, because it is rare that any is broken.
  const anyRefused = sql.join([sql`false`, ...rules.map(({ isRefused }) => isRefused)], sql` or `);
  const [found] = await transaction.query(
    sql`select exists (select from ${loadingOf(table)} where ${anyRefused}) as any`,
  );
  return found?.any
    ? rules.map(
        ({ column, rule, value, isRefused }) => sql`
          select file_line, ${column}::text as column, ${quoted(value)} || ' ' || ${rule} as text
          from ${loadingOf(table)}
          where ${isRefused}`,
      )
    : [];
}

/**
 * The condition that a time zone is unknown or refused. It looks the zone up first, because
 * Postgres raises an error for an unknown one.
 */
const unlessUnknownZone = (zone: ReturnType<typeof sql.identifier>, isRefused: SQL) => sql`
  case
    when lower(${zone}) in (select lower(name) from pg_timezone_names) then ${isRefused}
    else ${zone} is not null
  end`;

/** Selects the rows whose key is also in an earlier line, with other values. */
function contradictions(table: PgTable): SQL {
  const keys = keyNames(table);
  const others = columnNames(table).filter((name) => !keys.includes(name));
  const loading = loadingOf(table);
  return sql`
    select
      later.file_line,
      null::text as column,
      concat_ws(', ', ${sql.join(
        keys.map((key) => sql`${`${key} `}::text || ${quoted(sql`later.${sql.identifier(key)}`)}`),
        sql`, `,
      )}) || ' is already in line ' || first.file_line || ', with different values' as text
    from (
      select ${list(keys)}, min(file_line) as first_line
      from ${loading}
      group by ${list(keys)}
      having count(*) > 1
    ) as repeated_keys
    inner join ${loading} as first
      on repeated_keys.first_line = first.file_line
      and (${list(keys, 'repeated_keys')}) = (${list(keys, 'first')})
    inner join ${loading} as later
      on (${list(keys, 'repeated_keys')}) = (${list(keys, 'later')})
    where ${differ(table, others, 'first', 'later')}`;
}

/**
 * Returns one query for each foreign key. It selects the rows that name a branch or user that is
 * neither in the file nor in the table of branches or users. If that file is the whole table, only
 * the file counts. If some of its records could not be read, the foreign key is not checked.
 *
 * Citus refuses to join a temporary table with a distributed one. So a materialized CTE is always
 * between the two.
 */
function unknownReferences(table: PgTable, { complete, incomplete, isSnapshot }: Loading): SQL[] {
  return getTableConfig(table)
    .foreignKeys.map((foreignKey) => foreignKey.reference())
    .filter(({ foreignTable }) => !fileOf(incomplete, foreignTable))
    .map(({ columns, foreignTable, foreignColumns }) => {
      const [name = '', foreignName = ''] = [columns[0]?.name, foreignColumns[0]?.name];
      const [value, foreignValue] = [sql.identifier(name), sql.identifier(foreignName)];
      const file = fileOf(complete, foreignTable);
      const unlessInFile = file
        ? sql`and not exists (
            select from ${loadingOf(foreignTable)} as other
            where other.${foreignValue} = loading.${value}
          )`
        : sql``;
      const isWhole = isSnapshot && file !== undefined;
      const found = isWhole
        ? sql`select null::varchar as key where false`
        : sql`
          select known.${foreignValue} as key
          from ${foreignTable} as known
          inner join named on known.${foreignValue} = named.key`;
      const where = isWhole
        ? `${file.name}, which with --snapshot is the whole table,`
        : getTableName(foreignTable);
      return sql`
        with
        named as materialized (
          select distinct ${value} as key
          from ${loadingOf(table)} as loading
          where ${value} is not null ${unlessInFile}
        ),
        found as materialized (${found})
        select
          file_line,
          ${name}::text as column,
          ${`${where} has no ${foreignName} `}::text || ${quoted(value)} as text
        from ${loadingOf(table)} as loading
        inner join named on loading.${value} = named.key
        where not exists (select from found where found.key = named.key)`;
    });
}

/**
 * Returns queries for keys that a table would lose because its file does not have them, although
 * rows of a table without a file refer to them. Those rows stay, so the keys must stay, too.
 */
function lostReferences(table: PgTable, { complete, incomplete }: Loading): SQL[] {
  if (!fileOf(complete, table)) {
    return [];
  }
  return inputTables
    .filter((other) => !fileOf([...complete, ...incomplete], other))
    .flatMap((other) =>
      getTableConfig(other)
        .foreignKeys.map((foreignKey) => foreignKey.reference())
        .filter(({ foreignTable }) => foreignTable === table)
        .map(({ columns, foreignColumns }) => {
          const [name = '', key = ''] = [columns[0]?.name, foreignColumns[0]?.name];
          const otherName = getTableName(other);
          return sql`
            with
            kept as materialized (select distinct ${sql.identifier(key)} as key from ${loadingOf(table)}),
            referring as materialized (
              select distinct ${sql.identifier(name)} as key from ${other}
            )
            select
              null::bigint as file_line,
              null::text as column,
              'the file does not have ' || ${key}::text || ' '
                || array_to_string((array_agg(${quoted(sql`key`)} order by key))[1:3], ', ')
                || case when count(*) > 3 then ' and ' || count(*) - 3 || ' more' else '' end
                || ', which ' || ${otherName}::text || ' refers to. --snapshot would delete '
                || case when count(*) > 1 then 'them' else 'it' end || ' from '
                || ${getTableName(table)}::text || '. Load ' || ${otherName}::text
                || '.csv as well, or complete the file' as text
            from referring
            where key is not null
              and not exists (select from kept where kept.key = referring.key)
            having count(*) > 0`;
        }),
    );
}

/**
 * A value as messages show it, shortened if it is long. It is in ASCII, because the database may
 * have another encoding.
 */
const quoted = (value: SQL | ReturnType<typeof sql.identifier>): SQL =>
  sql`to_json(left(${value}::text, 80))::text || case when length(${value}::text) > 80 then '...' else '' end`;
