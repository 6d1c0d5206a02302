import { isDeepStrictEqual } from 'node:util';
import { Column, getTableName, getViewName, is, SQL, sql } from 'drizzle-orm';
import { getTableConfig, IndexedColumn, PgTable } from 'drizzle-orm/pg-core';
import { inputTables } from '../../schema/input_tables.ts';
import { readerRole } from '../../schema/properties.ts';
import { branchesOfUnknownZones, identify } from '../../views/basis.ts';
import { catalogView, declaredInputs } from '../../views/catalog.ts';
import {
  adviceOnCopies,
  adviceOnPrepared,
  differentCopies,
  onShards,
  readDistributed,
  readPrepared,
} from '../../views/citus.ts';
import { fctClientConversionEvents } from '../../views/fct_client_conversion_events.ts';
import { fctLeadConversions } from '../../views/fct_lead_conversions.ts';
import { viewsInOrder } from '../../views/refresh.ts';
import {
  causeOf,
  INSUFFICIENT_PRIVILEGE,
  once,
  pinned,
  QUERY_CANCELED,
  type Session,
  setLocally,
} from '../../views/session.ts';
import { horizonHolders } from '../../views/vacuum.ts';
import { conversionEventFilters } from '../../views/values.ts';
import { viewRefreshes } from '../../views/view_refreshes.ts';
import { declaredText, rowsOf, standalone, withoutCasts } from '../definitions.ts';
import { strangelyDistributed } from '../distribute/tables.ts';
import { literal } from '../generate/statements.ts';
import { compareMigrations, statementThatCreates } from '../migrations.ts';
import {
  type Comment,
  declarations,
  declaredRelations,
  type Grant,
  type Relation,
  readRelations,
} from '../relations.ts';

/** A finding: something that is not as it should be. */
export interface Finding {
  /** The finding itself, as a sentence. */
  finding: string;
  /** Up to five users, branches, indexes, tables … that it concerns. */
  keys: string[];
  /** The SQL or the command that fixes it. */
  remedy: string;
}

export interface Examination {
  findings: Finding[];
  /** Sentences about what is worth knowing, but is not a finding. */
  notes: string[];
}

interface Settings {
  /** How old a view may be, as an interval in Postgres' notation. */
  maxAge: string;
  statementTimeout: string;
  signal?: AbortSignal;
  /** Called with what is being examined. */
  onCheck?: (what: string) => void;
}

type Report = {
  find: (finding: string, keys: string[], remedy: string) => void;
  note: (note: string) => void;
};
type Check = (tx: Session, report: Report, settings: Settings) => Promise<void>;

/** How many users are recomputed for comparison. */
const sampleSize = 200;

/** How many keys a finding names. */
const shownKeys = 5;

const events = getViewName(fctClientConversionEvents);
const conversions = getViewName(fctLeadConversions);

/**
 * Examines whether a database is as it should be. It only reads. Each check has its own
 * transaction, so if this role may not run one check, the others still run.
 */
export async function examine(session: Session, settings: Settings): Promise<Examination> {
  const { maxAge, statementTimeout, signal, onCheck } = settings;
  const examination: Examination = { findings: [], notes: [] };
  const note = (text: string) => {
    examination.notes.push(text);
  };
  const report: Report = {
    find: (finding, keys, remedy) => {
      examination.findings.push({ finding, keys: keys.slice(0, shownKeys), remedy });
    },
    note,
  };
  const inTransaction = (check: Check) =>
    pinned(
      session,
      statementTimeout,
      async (tx) => {
        await tx.execute(setLocally({ row_security: 'off', lock_timeout: '10s' }));
        await check(tx, report, settings);
      },
      { isolationLevel: 'repeatable read', accessMode: 'read only' },
      signal,
    );
  await refuseAge(session, maxAge, statementTimeout);
  const run = async (checks: Record<string, Check>) => {
    for (const [what, check] of Object.entries(checks)) {
      onCheck?.(what);
      await inTransaction(check).catch((error) => {
        const { code = '', message } = causeOf(error);
        if (code === INSUFFICIENT_PRIVILEGE) {
          report.find(
            `This role may not examine ${what}: ${message}.`,
            [],
            'Run this as a role that has been granted pg_read_all_data and pg_read_all_stats.',
          );
        } else if (code === QUERY_CANCELED && !signal?.aborted) {
          report.find(
            `The statement timeout of ${statementTimeout} was too short to examine ${what}.`,
            [],
            'Run this with a longer --statement-timeout.',
          );
        } else if (/^(0A|22|42|55|XX)\w{3}$/.test(code)) {
          report.find(
            `Postgres could not examine ${what}: ${message}.`,
            [],
            'Fix the other findings, then run this again.',
          );
        } else {
          throw error;
        }
      });
    }
  };
  if (await isEmpty(session, statementTimeout)) {
    report.find('The database has not been migrated.', [], 'npx lead-conversions migrate');
    return examination;
  }
  await run({ 'the migrations': migrations, 'the catalog': drift });
  if (await hasAllRelations(session, statementTimeout)) {
    await run(checks);
  } else {
    note('The rows were not examined, because tables or views are missing or not populated.');
  }
  return examination;
}

/** Throws an Error if a text is not an age. */
async function refuseAge(session: Session, maxAge: string, timeout: string): Promise<void> {
  const isAge = await pinned(session, timeout, async (tx) => {
    const [found] = await tx
      .select({ isPositive: sql<boolean>`${maxAge}::interval >= interval '0'` })
      .from(once);
    return found?.isPositive === true && /[a-z]/i.test(maxAge);
  }).catch((error) => {
    if (/^22\w{3}$/.test(causeOf(error).code ?? '')) {
      return false;
    }
    throw error;
  });
  if (!isAge) {
    throw new Error(
      `--max-age must be an interval such as 26h or 2 days, not ${JSON.stringify(maxAge)}.`,
    );
  }
}

/** Returns whether a database has none of our tables and views, and no record of migrations. */
async function isEmpty(session: Session, statementTimeout: string): Promise<boolean> {
  return await pinned(session, statementTimeout, async (tx) => {
    const [found] = await tx
      .select({
        isEmpty: sql<boolean>`
          not exists (select from pg_class where ${ours()})
          and not exists (
            select from pg_class
            where relname = 'lead_conversions_migrations'
              and relnamespace = to_regnamespace('drizzle')
          )`,
      })
      .from(once);
    return found?.isEmpty ?? false;
  });
}

async function hasAllRelations(session: Session, statementTimeout: string): Promise<boolean> {
  const names = declaredRelations().map(({ name }) => name);
  return await pinned(session, statementTimeout, async (tx) => {
    const [found] = await tx
      .select({
        areThere: sql<boolean>`not exists (
          select from json_array_elements_text(${JSON.stringify(names)}::json) as names (name)
          left join pg_class on oid = to_regclass(format('public.%I', name))
          where oid is null or (relkind = 'm' and not relispopulated)
        )`,
      })
      .from(once);
    return found?.areThere ?? false;
  });
}

const migrations: Check = async (tx, { find, note }) => {
  const [records] = await tx
    .select({
      areThere: sql<boolean>`to_regclass('drizzle.lead_conversions_migrations') is not null`,
    })
    .from(once);
  const { pending, changed, recorded, unknown } = records?.areThere
    ? await compareMigrations(tx)
    : { pending: [], changed: [], recorded: 0, unknown: 0 };
  if (recorded === 0) {
    find(
      'The records of the migrations are missing, although there are tables or views.',
      ['drizzle.lead_conversions_migrations'],
      'Restore that table from a backup. Without it, no migration can be applied.',
    );
  } else if (pending.length > 0) {
    find('The database lacks migrations of this version.', pending, 'npx lead-conversions migrate');
  }
  if (changed.length > 0) {
    find(
      'Migrations were changed after they were applied to this database.',
      changed,
      'Restore their files, and put the change into a new migration.',
    );
  }
  if (unknown > 0) {
    note(
      `The database has migrations that this version does not know (${unknown}). Examine it with the version that last migrated it.`,
    );
  }
};

/** Finds where the catalog differs from the declarations. It reads both as `generate` does. */
const drift: Check = async (tx, { find, note }) => {
  const found = await readRelations(tx);
  for (const declared of declaredRelations()) {
    const { name, kind } = declared;
    const actual = found.find((relation) => relation.name === name);
    if (!actual) {
      find(
        `The ${kind.toLowerCase()} ${name} is missing.`,
        [name],
        'If it was renamed, rename it back. Otherwise, create it again with its statements in schema/migrations.',
      );
      continue;
    }
    compareColumns(declared, actual, find);
    compareIndexes(declared, actual, find, note);
    compareComments(declared, actual, find);
    compareGrants(declared, actual, find, note);
  }
  await examineIndexes(tx, find);
  await examineOwners(tx, find);
  await examineConstraints(tx, find);
  await examineColumns(tx, find);
  await examineKinds(tx, find, note);
};

function compareColumns(declared: Relation, actual: Relation, find: Report['find']): void {
  const { name, kind } = declared;
  const nameOf = (column: string) => column.split(' ')[0] ?? '';
  const missing = declared.columns.filter(
    (column) => !actual.columns.some((other) => nameOf(other) === nameOf(column)),
  );
  const extra = actual.columns.filter(
    (column) => !declared.columns.some((other) => nameOf(other) === nameOf(column)),
  );
  const different = declared.columns.filter(
    (column) => !missing.includes(column) && !actual.columns.includes(column),
  );
  const migrate =
    'npx lead-conversions migrate. If there is nothing to migrate, create the view again with its statements in schema/migrations.';
  if (missing.length > 0) {
    find(`${name} lacks declared columns.`, missing, migrate);
  }
  if (extra.length > 0) {
    find(
      `${name} has columns that are not declared.`,
      extra.map(nameOf),
      kind === 'TABLE'
        ? `alter table public.${name} ${extra.map((column) => `drop column ${quoted(nameOf(column))}`).join(', ')};`
        : migrate,
    );
  }
  if (different.length > 0) {
    const shown = different.map((column) => {
      const other = actual.columns.find((it) => nameOf(it) === nameOf(column));
      return `${column}, not ${other}`;
    });
    const mended = different.map((column) => {
      const quotedName = quoted(nameOf(column));
      const [, type = '', notNull] = /^\S+ (.*?)( NOT NULL)?$/.exec(column) ?? [];
      return `alter column ${quotedName} type ${type}, alter column ${quotedName} ${notNull ? 'set' : 'drop'} not null`;
    });
    find(
      `${name} has columns that differ from their declaration.`,
      shown,
      kind === 'TABLE' ? `alter table public.${name} ${mended.join(', ')};` : migrate,
    );
  }
  const isInOrder =
    kind === 'TABLE' || `${declared.columns.map(nameOf)}` === `${actual.columns.map(nameOf)}`;
  if (missing.length + extra.length === 0 && !isInOrder) {
    find(`${name} has its columns in a different order than declared.`, [name], migrate);
  }
}

function compareIndexes(
  declared: Relation,
  actual: Relation,
  find: Report['find'],
  note: Report['note'],
): void {
  for (const index of declared.indexes) {
    const other = actual.indexes.find(({ name }) => name === index.name);
    const unique = index.definition?.startsWith('UNIQUE ') ? 'unique ' : '';
    const create = index.definition
      ? `create ${unique}index ${index.name} on public.${declared.name} using ${index.definition.replace('UNIQUE ', '')};`
      : (statementThatCreates(index.name, declared.name) ?? 'its statement in schema/migrations');
    const remedy = `${create} ${commentOn(declared, 'INDEX', index.name)}`.trim();
    if (!other) {
      find(`${declared.name} lacks the index ${index.name}.`, [index.name], remedy);
    } else if (index.definition !== (other.definition?.replace(/ WITH \(.*?\)/, '') ?? null)) {
      find(
        `The index ${index.name} of ${declared.name} differs from its declaration.`,
        [index.name],
        `drop index public.${index.name}; ${remedy}`,
      );
    }
  }
  const extra = actual.indexes.filter(
    ({ name }) => !declared.indexes.some((index) => index.name === name),
  );
  if (extra.length > 0) {
    note(
      `${declared.name} has indexes that are not declared: ${extra.map(({ name }) => name).join(', ')}.`,
    );
  }
}

function compareComments(declared: Relation, actual: Relation, find: Report['find']): void {
  const wrong = declared.comments.filter((comment) => {
    const other = actual.comments.find(
      ({ on, name }) => on === comment.on && name === comment.name,
    );
    return other && other.text !== comment.text;
  });
  if (wrong.length > 0) {
    find(
      `${declared.name} has comments that differ from their declaration.`,
      wrong.map(({ name }) => name),
      wrong.map((comment) => commentStatement(declared, comment)).join(' '),
    );
  }
}

function commentStatement({ name: relation, kind }: Relation, { on, name, text }: Comment): string {
  const object = {
    RELATION: `${kind.toLowerCase()} public.${relation}`,
    COLUMN: `column public.${relation}.${name}`,
    CONSTRAINT: `constraint ${name} on public.${relation}`,
    INDEX: `index public.${name}`,
  };
  return `comment on ${object[on]} is ${literal(text)};`;
}

/**
 * Returns the statement for the declared comment on an index or a constraint, or an empty text if
 * none is declared.
 */
function commentOn(relation: Relation, on: Comment['on'], name: string): string {
  const comment = relation.comments.find((it) => it.on === on && it.name === name);
  return comment?.text ? commentStatement(relation, comment) : '';
}

function compareGrants(
  declared: Relation,
  actual: Relation,
  find: Report['find'],
  note: Report['note'],
): void {
  const isSame = (one: Grant) => (other: Grant) =>
    one.role === other.role && one.privilege === other.privilege && one.column === other.column;
  const missing = declared.grants.filter((grant) => !actual.grants.some(isSame(grant)));
  const extra = actual.grants.filter((grant) => !declared.grants.some(isSame(grant)));
  const privilege = ({ privilege, column }: Grant, quote = (name: string) => name) =>
    `${privilege.toLowerCase()}${column ? ` (${quote(column)})` : ''} on public.${declared.name}`;
  if (missing.length > 0) {
    find(
      `${declared.name} lacks declared grants.`,
      missing.map((grant) => `${privilege(grant)} to ${grant.role}`),
      missing
        .map((grant) => `grant ${privilege(grant, quoted)} to ${quoted(grant.role)};`)
        .join(' '),
    );
  }
  const isView = declared.kind === 'MATERIALIZED VIEW';
  const isHarmless = ({ role }: Grant) => isView && role !== 'PUBLIC' && role !== readerRole;
  const refused = extra.filter((grant) => !isHarmless(grant));
  if (refused.length > 0) {
    find(
      `${declared.name} has grants that are not declared.`,
      refused.map((grant) => `${privilege(grant)} to ${grant.role}`),
      refused
        .map(
          (grant) =>
            `revoke ${privilege(grant, quoted)} from ${grant.role === 'PUBLIC' ? 'public' : quoted(grant.role)};`,
        )
        .join(' '),
    );
  }
  const mentioned = extra.filter(isHarmless);
  if (mentioned.length > 0) {
    note(
      `${declared.name} has grants to other roles: ${mentioned.map((grant) => `${privilege(grant)} to ${grant.role}`).join(', ')}.`,
    );
  }
}

/** Returns a name as a quoted identifier of SQL. */
const quoted = (name: string): string => `"${name.replaceAll('"', '""')}"`;

const names = () => JSON.stringify(declaredRelations().map(({ name }) => name));

/** The condition for our tables and views in pg_class. */
const ours = () =>
  sql`relnamespace = to_regnamespace('public')
    and relname in (select name from json_array_elements_text(${names()}::json) as names (name))`;

async function examineIndexes(tx: Session, find: Report['find']): Promise<void> {
  await examineTableIndexes(tx, find);
  const invalid = await tx
    .select({
      name: sql<string>`(select relname from pg_class as index where index.oid = indexrelid)`,
    })
    .from(sql`pg_index inner join pg_class on indrelid = pg_class.oid`)
    .where(sql`${ours()} and not (indisvalid and indisready)`)
    .orderBy(sql`1`);
  for (const { name } of invalid) {
    find(
      `The index ${name} is not valid, so no query uses it.`,
      [name],
      `reindex index concurrently public.${name};`,
    );
  }
}

/**
 * Checks that the keys and indexes of the tables are on the declared columns, in the declared
 * order, and have all rows.
 */
async function examineTableIndexes(tx: Session, find: Report['find']): Promise<void> {
  const declared = declaredTables().flatMap((table) => {
    const { name, columns, primaryKeys, indexes } = getTableConfig(table);
    const own = columns.filter(({ primary }) => primary);
    const keys = [
      ...(own.length > 0 ? [{ name: `${name}_pkey`, columns: own }] : []),
      ...primaryKeys.map((key) => ({ name: key.getName(), columns: key.columns })),
    ].map((key) => ({ ...key, isPrimary: true }));
    const others = indexes.map(({ config }) => ({
      name: config.name ?? '',
      columns: config.columns.filter((column) => is(column, IndexedColumn)),
      isPrimary: false,
    }));
    return [...keys, ...others].map((index) => ({
      table: name,
      ...index,
      columns: index.columns.map((column) => column.name ?? '').join(', '),
    }));
  });
  const wrong = await tx
    .select({
      table: sql<string>`declared."table"`,
      name: sql<string>`declared.name`,
      columns: sql<string>`declared.columns`,
      isPrimary: sql<boolean>`declared."isPrimary"`,
    })
    .from(sql`
      json_to_recordset(${JSON.stringify(declared)}::json)
        as declared ("table" text, name text, columns text, "isPrimary" boolean)
      inner join pg_class as index
        on index.relname = declared.name and index.relnamespace = to_regnamespace('public')
      inner join pg_index on pg_index.indexrelid = index.oid`)
    .where(sql`
      indrelid is distinct from to_regclass(format('public.%I', declared."table"))
      or indisprimary <> declared."isPrimary"
      or indpred is not null
      or declared.columns is distinct from (
        select string_agg(attname, ', ' order by place)
        from unnest(indkey::int2[]) with ordinality as keys (number, place)
        left join pg_attribute on attrelid = indrelid and attnum = number
      )`)
    .orderBy(sql`declared.name`);
  for (const { table, name, columns, isPrimary } of wrong) {
    find(
      `The index ${name} of ${table} differs from its declaration.`,
      [name],
      isPrimary
        ? `drop index public.${name}; alter table public.${table} add constraint ${name} primary key (${columns});`
        : `drop index public.${name}; ${statementThatCreates(name, table) ?? `create index ${name} on public.${table} (${columns});`}`,
    );
  }
}

/**
 * Checks the columns that Postgres fills in: derived ones, numbered ones, and those with a default.
 */
async function examineColumns(tx: Session, find: Report['find']): Promise<void> {
  const declared = declaredTables().flatMap((table) => {
    const { name, columns } = getTableConfig(table);
    return columns.map((column) => ({
      table: name,
      column: column.name,
      generated: column.generated ? 's' : '',
      identity: column.generatedIdentity ? 'a' : '',
    }));
  });
  const wrong = await tx
    .select({
      table: sql<string>`declared."table"`,
      columns: sql<string[]>`json_agg(declared."column" order by attnum)`,
    })
    .from(sql`
      json_to_recordset(${JSON.stringify(declared)}::json)
        as declared ("table" text, "column" text, generated text, identity text)
      inner join pg_attribute
        on attrelid = to_regclass(format('public.%I', declared."table"))
        and attname = declared."column" and not attisdropped`)
    .where(sql`
      attgenerated::text <> declared.generated
      or attidentity::text <> declared.identity
      or (atthasdef and declared.generated = '' and attgenerated = '')`)
    .groupBy(sql`declared."table"`)
    .orderBy(sql`declared."table"`);
  for (const { table, columns } of wrong) {
    find(
      `${table} has columns whose generated, identity or default clause differs from the declaration.`,
      columns,
      'Create these columns again as in their migration. If a column only has a default, drop the default: alter table … alter column … drop default;',
    );
  }
}

/**
 * Finds tables and views that are not populated, unlogged, or have inheriting tables. Notes
 * triggers and rules that are not declared.
 */
async function examineKinds(
  tx: Session,
  find: Report['find'],
  note: Report['note'],
): Promise<void> {
  const relations = await tx
    .select({
      name: sql<string>`relname`,
      isUnlogged: sql<boolean>`relpersistence <> 'p'`,
      hasChildren: sql<boolean>`exists (select from pg_inherits where inhparent = pg_class.oid)`,
      isPopulated: sql<boolean>`relispopulated`,
      meddlers: sql<string[]>`(
        select coalesce(json_agg(name order by name), '[]')
        from (
          select tgname as name from pg_trigger where tgrelid = pg_class.oid and not tgisinternal
          union all
          select rulename from pg_rewrite where ev_class = pg_class.oid and rulename <> '_RETURN'
        ) as meddlers
      )`,
    })
    .from(sql`pg_class`)
    .where(sql`${ours()} and relkind in ('r', 'p', 'm')`)
    .orderBy(sql`relname`);
  for (const { name, isUnlogged, hasChildren, isPopulated, meddlers } of relations) {
    if (!isPopulated) {
      find(
        `${name} is not populated, so nobody can read it.`,
        [name],
        'npx lead-conversions refresh',
      );
    }
    if (isUnlogged) {
      find(
        `${name} is unlogged: a crash of the server empties it.`,
        [name],
        `alter table public.${name} set logged;`,
      );
    }
    if (hasChildren) {
      find(
        `${name} has inheriting tables, whose rows are also in the views.`,
        [name],
        `Move their rows into it, and remove the inheritance: alter table … no inherit public.${name};`,
      );
    }
    if (meddlers.length > 0) {
      note(`${name} has triggers or rules that are not declared: ${meddlers.join(', ')}.`);
    }
  }
}

const declaredTables = (): PgTable[] =>
  Object.values(declarations).flatMap((declaration: unknown) =>
    is(declaration, PgTable) ? [declaration] : [],
  );

async function examineOwners(tx: Session, find: Report['find']): Promise<void> {
  const history = getTableName(viewRefreshes);
  const relations = await tx
    .select({
      name: sql<string>`relname`,
      kind: sql<string>`case relkind when 'm' then 'materialized view' else 'table' end`,
      owner: sql<string>`pg_get_userbyid(relowner)`,
    })
    .from(sql`pg_class`)
    .where(ours())
    .orderBy(sql`relname`);
  const owner = relations.find(({ name }) => name === history)?.owner;
  const others = relations.filter((relation) => owner && relation.owner !== owner);
  if (others.length > 0) {
    find(
      `Not all tables and views belong to ${owner}, who owns ${history}.`,
      others.map((relation) => `${relation.name} (${relation.owner})`),
      others
        .map(({ kind, name }) => `alter ${kind} public.${name} owner to ${quoted(owner ?? '')};`)
        .join(' '),
    );
  }
}

/** Checks that foreign keys and CHECKs exist, and hold for all rows. */
async function examineConstraints(tx: Session, find: Report['find']): Promise<void> {
  const declared = declaredTables().flatMap((table) => {
    const { name, foreignKeys, checks } = getTableConfig(table);
    const namesOf = (columns: { name: string }[]) => columns.map((column) => column.name).sort();
    const references = foreignKeys.map((key) => ({
      name: key.getName(),
      kind: 'f',
      columns: namesOf(key.reference().columns).join(', '),
    }));
    const rules = checks.map((rule) => ({
      name: rule.name,
      kind: 'c',
      columns: [...new Set(namesOf(columnsIn(rule.value)))].join(', '),
    }));
    return [...references, ...rules].map((constraint) => ({ table: name, ...constraint }));
  });
  const broken = await tx
    .select({
      table: sql<string>`declared."table"`,
      name: sql<string>`declared.name`,
      isThere: sql<boolean>`pg_constraint.oid is not null`,
      isOther: sql<boolean>`
        pg_constraint.oid is not null
        and (contype::text <> declared.kind or constrained.columns <> declared.columns)`,
    })
    .from(sql`
      json_to_recordset(${JSON.stringify(declared)}::json)
        as declared ("table" text, name text, kind text, columns text)
      left join pg_constraint
        on conname = declared.name
        and conrelid = to_regclass(format('public.%I', declared."table"))
      left join lateral (
        select coalesce(string_agg(attname, ', ' order by attname collate "C"), '') as columns
        from pg_attribute
        where attrelid = conrelid and attnum = any (conkey)
      ) as constrained on true`)
    .where(sql`
      pg_constraint.oid is null
      or not convalidated
      or contype::text <> declared.kind
      or constrained.columns <> declared.columns`)
    .orderBy(sql`declared."table"`, sql`declared.name`);
  for (const { table, name, isThere, isOther } of broken) {
    const relation = declaredRelations().find((it) => it.name === table);
    const comment = relation ? commentOn(relation, 'CONSTRAINT', name) : '';
    const create = statementThatCreates(name, table) ?? 'its statement in schema/migrations';
    if (isOther) {
      find(
        `The constraint ${name} of ${table} differs from its declaration.`,
        [name],
        `alter table public.${table} drop constraint ${name}; ${create} ${comment}`.trim(),
      );
      continue;
    }
    find(
      isThere
        ? `The constraint ${name} of ${table} was never checked for the existing rows.`
        : `${table} lacks the constraint ${name}.`,
      [name],
      isThere
        ? `alter table public.${table} validate constraint ${name};`
        : `${create} ${comment}`.trim(),
    );
  }
  const disabled = await tx
    .select({
      table: sql<string>`relname`,
      triggers: sql<string[]>`json_agg(tgname order by tgname)`,
    })
    .from(sql`pg_trigger inner join pg_class on tgrelid = pg_class.oid`)
    .where(sql`${ours()} and tgisinternal and tgenabled not in ('O', 'A')`)
    .groupBy(sql`relname`)
    .orderBy(sql`relname`);
  if (disabled.length > 0) {
    find(
      'Foreign keys are not enforced, because their triggers are disabled.',
      disabled.map(({ table }) => table),
      disabled
        .flatMap(({ table, triggers }) =>
          triggers.map((name) => `alter table public.${table} enable trigger ${quoted(name)};`),
        )
        .join(' '),
    );
  }
}

/** Returns the columns that a fragment of SQL names. */
const columnsIn = (fragment: SQL): { name: string }[] =>
  fragment.queryChunks.flatMap((chunk: unknown) =>
    is(chunk, SQL) ? columnsIn(chunk) : is(chunk, Column) ? [chunk] : [],
  );

const remedyForShards =
  'Load the rows into a new database, and distribute that one: npx lead-conversions distribute';

/**
 * Checks that the shards of a table have as many valid constraints, not-null columns and valid
 * indexes as the table, and only rows that belong to them.
 */
async function examineShards(tx: Session, table: PgTable, find: Report['find']): Promise<void> {
  const name = getTableName(table);
  const described = (relation: string) => `
    select
      (select count(*) from pg_constraint
       where conrelid = relation and contype = 'f' and convalidated) || ' foreign keys, '
      || (select count(*) from pg_constraint
          where conrelid = relation and contype in ('c', 'p', 'u') and convalidated)
      || ' other constraints, '
      || (select count(*) from pg_attribute
          where attrelid = relation and attnum > 0 and attnotnull and not attisdropped)
      || ' columns that are not null, '
      || (select count(*) from pg_index where indrelid = relation and indisvalid and indisready)
      || ' indexes'
    from (select ${relation}::regclass as relation) as described`;
  const findShards = async (finding: string, query: SQL) => {
    const shards = await rowsOf<{ key: string }>(tx, sql`${query} order by shard, server`);
    if (shards.length > 0) {
      const keys = shards.map(({ key }) => key);
      find(finding, keys, remedyForShards);
    }
  };
  await findShards(
    `Shards of ${name} differ from the table.`,
    sql`
      select format('%s on %s: %s, not %s', shard, server, result, expected) as key
      from (${onShards(table, described("'%s'"))}) as shards
      cross join (${sql.raw(described(`'public.${name}'`))}) as declared (expected)
      where not success or result <> expected`,
  );
  if (!('userId' in table)) {
    return;
  }
  // The name of a shard ends with its number.
  const strayRows = `
    select count(*) || ' rows' from %s as shard
    where get_shard_id_for_distribution_column('public.${name}', user_id)
      <> substring(shard.tableoid::regclass::text from '[0-9]+$')::bigint`;
  await findShards(
    `Shards of ${name} have rows that belong to other shards.`,
    sql`
      select format('%s on %s: %s', shard, server, result) as key
      from (${onShards(table, strayRows)}) as shards
      where not success or result <> '0 rows'`,
  );
}

const checks: Record<string, Check> = {
  'the distribution': async (tx, { find }) => {
    if ((await readDistributed(tx)).length === 0) {
      return;
    }
    for (const strange of (await strangelyDistributed(tx)) ?? []) {
      find(`By Citus, ${strange}.`, [strange.replace(/ .*/, '')], remedyForShards);
    }
    const lacking = await rowsOf<{ name: string; what: 'hashes' | 'place' | 'node'; of: string[] }>(
      tx,
      sql`
        with shards as (
          select relname as name, shardid, shardminvalue, shardmaxvalue, partmethod
          from pg_dist_shard
          inner join pg_dist_partition on pg_dist_partition.logicalrelid = pg_dist_shard.logicalrelid
          inner join pg_class on pg_class.oid = pg_dist_shard.logicalrelid
          where relnamespace = to_regnamespace('public')
        )
        -- The shards of a table cover each 32-bit hash exactly once.
        select name, 'hashes' as what, '[]'::json as of
        from shards
        where partmethod = 'h'
        group by name
        having sum(shardmaxvalue::bigint - shardminvalue::bigint + 1) <> 4294967296
        union all
        select name, 'place', json_agg(shardid::text order by shardid)
        from shards
        where not exists (
          select from pg_dist_placement
          inner join pg_dist_node on pg_dist_node.groupid = pg_dist_placement.groupid
          where pg_dist_placement.shardid = shards.shardid and shardstate = 1 and isactive
        )
        group by name
        union all
        select name, 'node', json_agg(format('%s:%s', nodename, nodeport) order by nodeid)
        from shards
        cross join pg_dist_node
        where partmethod = 'n' and isactive and noderole = 'primary'
          and not exists (
            select from pg_dist_placement
            where pg_dist_placement.shardid = shards.shardid
              and pg_dist_placement.groupid = pg_dist_node.groupid and shardstate = 1
          )
        group by name`,
    );
    const about = {
      hashes: ['lacks shards', 'Restore the database, or load the rows into a new one.'],
      place: [
        'has shards on no server',
        'Bring the server back online, or restore the database from a backup.',
      ],
      node: ['is not on all servers', 'select replicate_reference_tables();'],
    };
    for (const { name, what, of } of lacking) {
      const [said = '', remedy = ''] = about[what];
      find(`${name} ${said}.`, of, remedy);
    }
    const prepared = await readPrepared(tx);
    if (prepared.length > 0) {
      find('Servers have not committed these transactions yet.', prepared, adviceOnPrepared);
    }
    const different = await differentCopies(tx);
    if (different) {
      find(different, ['dim_branch'], adviceOnCopies);
    }
    for (const table of inputTables) {
      await examineShards(tx, table, find);
    }
  },

  'what the views read': async (tx, { find }) => {
    for (const view of viewsInOrder) {
      await catalogView(tx, view, { isToRefresh: false }).catch((error) => {
        if (error.constructor !== Error) {
          throw error;
        }
        find(error.message, [getViewName(view)], 'Do what the finding says.');
      });
    }
    const texts: Record<'deployed' | 'declared', string[]> = { deployed: [], declared: [] };
    const isDistributed = (await readDistributed(tx)).length > 0;
    for (const view of viewsInOrder) {
      const name = getViewName(view);
      const [found] = await tx
        .select({
          definition: sql<string>`pg_get_viewdef(oid)`,
          owner: sql<string>`pg_get_userbyid(relowner)`,
          hidden: sql<string[]>`(
            select coalesce(json_agg(input order by input), '[]')
            from json_array_elements_text(${JSON.stringify(declaredInputs(view))}::json)
              as inputs (input)
            where not has_table_privilege(relowner, format('public.%I', input), 'select')
          )`,
        })
        .from(sql`pg_class`)
        .where(sql`oid = to_regclass(${`public.${name}`})`);
      if (found && found.hidden.length > 0) {
        find(
          `${found.owner}, the owner of ${name}, lacks the privilege to read some of the tables or views that it is computed from.`,
          found.hidden,
          `grant select on ${found.hidden.map((input) => `public.${input}`).join(', ')} to ${quoted(found.owner)};`,
        );
      }
      texts.deployed.push(standalone(found?.definition ?? '', texts.deployed));
      texts.declared.push(standalone(declaredText(view), texts.declared));
      const plans = [];
      for (const text of [texts.deployed.at(-1), texts.declared.at(-1)]) {
        const lines = await rowsOf<{ 'QUERY PLAN': string }>(
          tx,
          // Citus plans a join on a column with a cast differently from one without.
          sql.raw(
            `explain (verbose, costs off) ${isDistributed ? withoutCasts(text ?? '') : text}`,
          ),
        );
        // Compared without casts and parentheses, because a stored definition also has the implied
        // ones.
        plans.push(
          lines.map((line) => line['QUERY PLAN'].replace(/::(text|character varying)|[() ]/g, '')),
        );
      }
      if (!isDeepStrictEqual(plans[0], plans[1])) {
        find(
          `${name} is defined differently than declared.`,
          [name],
          'npx lead-conversions diff shows what differs. Migrate, or create it again with its statements in schema/migrations.',
        );
        break; // the views that read it differ as well
      }
    }
  },

  'the rows of the tables': async (tx, { find }) => {
    for (const table of declaredTables()) {
      const { name, foreignKeys, columns } = getTableConfig(table);
      for (const key of foreignKeys) {
        const { columns: own, foreignTable, foreignColumns } = key.reference();
        const [column = '', foreign = ''] = [own[0]?.name, foreignColumns[0]?.name];
        const [orphans] = await rowsOf<{ count: number; keys: string[] | null }>(
          tx,
          sql`
            select
              count(*)::int as count,
              to_json((array_agg(distinct orphan.value))[1:${sql.raw(String(shownKeys))}]) as keys
            from (
              select ${sql.identifier(column)} as value from ${table}
              where ${sql.identifier(column)} is not null
                and not exists (
                  select from ${foreignTable} as other
                  where other.${sql.identifier(foreign)} = ${table}.${sql.identifier(column)}
                )
            ) as orphan`,
        );
        if (orphans && orphans.count > 0) {
          find(
            `${name} has ${orphans.count} rows whose ${column} is not in ${getTableName(foreignTable)}.`,
            orphans.keys ?? [],
            `Load the missing rows, or delete these rows of public.${name}.`,
          );
        }
      }
      const derived = columns.flatMap((column) => {
        const as = column.generated?.as;
        return is(as, SQL)
          ? [sql`${sql.identifier(column.name)} is distinct from (${as})::varchar`]
          : [];
      });
      if (derived.length > 0) {
        const [wrong] = await rowsOf<{ count: number; keys: string[] | null }>(
          tx,
          sql`
            select
              count(*)::int as count,
              to_json((array_agg(distinct user_id))[1:${sql.raw(String(shownKeys))}]) as keys
            from ${table}
            where ${sql.join(derived, sql` or `)}`,
        );
        if (wrong && wrong.count > 0) {
          find(
            `${name} has ${wrong.count} rows whose name or source differs from their details.`,
            wrong.keys ?? [],
            `Create these derived columns again, as in the CREATE TABLE in schema/migrations.`,
          );
        }
      }
    }
  },

  'row-level security': async (tx, { find }) => {
    const secured = await tx
      .select({ name: sql<string>`relname` })
      .from(sql`pg_class`)
      .where(sql`${ours()} and relrowsecurity`)
      .orderBy(sql`relname`);
    if (secured.length > 0) {
      find(
        'Row-level security may hide rows from refreshes and loads.',
        secured.map(({ name }) => name),
        secured
          .map(({ name }) => `alter table public.${name} disable row level security;`)
          .join(' '),
      );
    }
  },

  'the time zones': async (tx, { find }) => {
    for (const { zone, some, branches } of await branchesOfUnknownZones(tx)) {
      find(
        `The server does not know the time zone ${zone} of ${branches === 1 ? '1 branch' : `${branches} branches`}, so no refresh succeeds.`,
        some,
        `update public.dim_branch set timezone_id = <the current name> where timezone_id = ${literal(zone)};`,
      );
    }
  },

  'the rows of the views': async (tx, { find }) => {
    const refresh = 'npx lead-conversions refresh --force';
    const listed = async (finding: (count: number) => string, query: ReturnType<typeof sql>) => {
      const [found] = await rowsOf<{ count: number; keys: string[] | null }>(
        tx,
        sql`select count(*)::int as count, to_json((array_agg(user_id order by user_id))[1:${sql.raw(String(shownKeys))}]) as keys
          from (${query}) as users`,
      );
      if (found && found.count > 0) {
        find(finding(found.count), found.keys ?? [], refresh);
      }
    };
    const users = (count: number) => (count === 1 ? '1 user' : `${count} users`);
    await listed(
      (count) => `${events} has no row for ${users(count)} of dim_user.`,
      sql`select user_id from public.dim_user except select user_id from public.${sql.identifier(events)}`,
    );
    await listed(
      (count) => `${events} has rows for ${users(count)} that are not in dim_user.`,
      sql`select user_id from public.${sql.identifier(events)} except select user_id from public.dim_user`,
    );
    const filters = conversionEventFilters.length;
    await listed(
      (count) =>
        `${conversions} does not have ${filters} rows, one per filter, for ${users(count)}.`,
      sql`
        select coalesce(events.user_id, counted.user_id) as user_id
        from public.${sql.identifier(events)} as events
        full join (
          select user_id, count(*) as rows
          from public.${sql.identifier(conversions)}
          group by user_id
        ) as counted using (user_id)
        where rows is distinct from ${filters}`,
    );
    await listed(
      (count) => `${conversions} under ALL differs from ${events} for ${users(count)}.`,
      sql`
        select events.user_id
        from public.${sql.identifier(events)} as events
        inner join public.${sql.identifier(conversions)} as conversions
          on events.user_id = conversions.user_id
          and conversions.client_conversion_event_filter = 'ALL'
        where (${sql.raw(sharedColumns('events'))}) is distinct from (${sql.raw(sharedColumns('conversions'))})`,
    );
  },

  'a sample of users': async (tx, { find }) => {
    const texts: string[] = [];
    for (const view of viewsInOrder) {
      texts.push(standalone(declaredText(view), texts));
      const name = getViewName(view);
      const columns = await rowsOf<{ name: string }>(
        tx,
        sql`
          select attname as name from pg_attribute
          where attrelid = to_regclass(${`public.${name}`}) and attnum > 0 and not attisdropped`,
      );
      const declared = declaredRelations().find((relation) => relation.name === name);
      const compared = columns
        .filter((column) => declared?.columns.some((it) => it.startsWith(`${column.name} `)))
        .map((column) => `"${column.name}"`);
      const [found] = await rowsOf<{ count: number; sampled: number; keys: string[] | null }>(
        tx,
        sql`
          with sample as materialized (
            select user_id from public.dim_user order by random() limit ${sampleSize}
          ),
          computed as (
            select ${sql.raw(`${compared}`)}
            from (\n${sql.raw(texts.at(-1) ?? '')}\n) as declared
            where user_id in (select user_id from sample)
          ),
          shown as (
            select ${sql.raw(`${compared}`)} from public.${sql.identifier(name)}
            where user_id in (select user_id from sample)
          ),
          differing as (
            (select * from computed except all select * from shown)
            union all
            (select * from shown except all select * from computed)
          )
          select
            count(distinct user_id)::int as count,
            (select count(*) from sample)::int as sampled,
            to_json((array_agg(distinct user_id))[1:${sql.raw(String(shownKeys))}]) as keys
          from differing`,
      );
      if (found && found.count > 0) {
        find(
          `${name} differs from what the input tables give now, for ${found.count} of ${found.sampled} users picked at random.`,
          found.keys ?? [],
          'npx lead-conversions refresh. If the finding remains, the definition of the view differs: npx lead-conversions diff',
        );
      }
    }
  },

  'the history of the refreshes': async (tx, { find }, { maxAge }) => {
    const { server } = await identify(tx);
    for (const view of viewsInOrder) {
      const name = getViewName(view);
      const [last] = await rowsOf<{ hours: number; isOld: boolean; isAhead: boolean }>(
        tx,
        sql`
          select
            floor(date_part('epoch', now() - started_at) / 3600)::int as hours,
            started_at > now() + interval '1 minute' as "isAhead",
            now() - started_at > ${maxAge}::interval as "isOld"
          from public.view_refreshes
          where view = ${name} and server = ${server}
          order by id desc
          limit 1`,
      );
      if (last?.isAhead) {
        find(
          `The last refresh of ${name} seems to have begun in the future: a clock is wrong.`,
          [name],
          'Correct the clock of the server, then run: npx lead-conversions refresh --force',
        );
      } else if (!last || last.isOld) {
        find(
          last
            ? `${name} is older than ${maxAge}: its last refresh began ${last.hours} hours ago.`
            : `${name} has not been refreshed on this server.`,
          [name],
          'npx lead-conversions refresh',
        );
      }
    }
  },

  'dead rows': async (tx, { find, note }) => {
    const { server } = await identify(tx);
    const [facts] = await tx
      .select({ seesOthers: sql<boolean>`pg_has_role(current_user, 'pg_read_all_stats', 'usage')` })
      .from(once);
    for (const view of viewsInOrder) {
      const name = getViewName(view);
      const [state] = await rowsOf<{ deadRows: number; transaction: string | null }>(
        tx,
        sql`
          select
            pg_stat_get_dead_tuples(to_regclass(${`public.${name}`}))::int as "deadRows",
            (
              select basis -> 'view' ->> 'transaction'
              from public.view_refreshes
              where view = ${name} and server = ${server} and inserted + deleted > 0
              order by id desc
              limit 1
            ) as transaction`,
      );
      const holders =
        state?.deadRows && state.transaction ? await horizonHolders(tx, state.transaction) : [];
      if (holders.length > 0) {
        find(
          `${name} has ${state?.deadRows} dead rows that no vacuum can remove, because ${holders.join(', ')} might still read them.`,
          [name],
          `End them, then run: vacuum public.${name};`,
        );
      }
    }
    if (!facts?.seesOthers) {
      note(
        'This role cannot see which sessions of other roles keep dead rows from being removed. Grant it pg_read_all_stats.',
      );
    }
  },
};

/** Returns the columns that both views have, as a list for SQL. */
const sharedColumns = (of: string): string => {
  const [first, second] = [events, conversions].map(
    (name) => declaredRelations().find((relation) => relation.name === name)?.columns ?? [],
  );
  return (first ?? [])
    .filter((column) => second?.includes(column))
    .map((column) => `${of}."${column.split(' ')[0]}"`)
    .join(', ');
};
