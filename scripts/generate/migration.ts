import { isDeepStrictEqual } from 'node:util';
import { type SQL, sql } from 'drizzle-orm';
import {
  getMaterializedViewConfig,
  type PgDatabase,
  PgDialect,
  type PgQueryResultHKT,
} from 'drizzle-orm/pg-core';
import { pinSearchPath } from '../../schema/columns.ts';
import { readerRole, readerRoleComment } from '../../schema/properties.ts';
import { catalogView, lockHolders } from '../../views/catalog.ts';
import { viewsInOrder } from '../../views/refresh.ts';
import { explain } from '../command.ts';
import { migrationsTable } from '../database.ts';
import { type Comment, columnOrder, type Grant, type Relation, readRelations } from './catalog.ts';

/** What drizzle-kit says of a change. */
export interface Changes {
  /** The statements of its migration. */
  statements: string[];
  /** The statements that would create each view. */
  creations: string[];
}

/** Where the new views are until they take the places of the old ones. */
const scratch = 'lead_conversions_new';

/** Where drizzle-kit records what it has migrated. */
const records = `drizzle.${migrationsTable}`;

const render = (fragment: SQL) => new PgDialect().sqlToQuery(fragment).sql;

/** The statement with which every migration begins. */
export const firstStatement = `${render(pinSearchPath).replace(/^.* to /, 'SET LOCAL search_path TO ')};`;

/**
 * Makes a migration of what drizzle-kit says: with comments, grants and the
 * views' indexes as they are declared, and with every view that changes replaced
 * side by side. Returns its statements, none if there is nothing to change.
 *
 * Each statement is tried as it is made, in the given database, which has all
 * earlier migrations. Throws an Error with the statement that fails, or one that
 * names what would not become as it is declared.
 */
export async function completeMigration(
  database: PgDatabase<PgQueryResultHKT>,
  declared: Relation[],
  { statements, creations }: Changes,
): Promise<string[]> {
  const migration: string[] = [];
  let header = '';
  await database.transaction(async (db) => {
    const { add, addCompletion, addGrants } = writerOf(db, declared, migration);
    await db.execute(firstStatement);
    const changed = statements.filter(isOfView).map(viewOf);
    const reading = await viewsReading(db, changed);
    const old = reading.filter(
      (view) => changed.includes(view) || declared.some(({ name }) => name === view),
    );
    const created = viewNames().filter((name) => changed.includes(name) || old.includes(name));
    const replaced = created.filter((name) => old.includes(name));
    const place = old.length > 0 ? scratch : 'public';
    const newTables = statements.flatMap((it) => /^CREATE TABLE (\S+)/.exec(it)?.[1] ?? []);
    header = headerOf({ statements, changed, old, created });

    if (old.length > 0) {
      await add(
        lockRefreshes,
        'What is new is filled while the old can still be read, and takes its place at the end. No refresh runs meanwhile: this waits up to five minutes for one that does, and then names it.',
      );
    }
    const sequencesBefore = await sequences(db);
    for (const statement of statements.filter((it) => !isOfView(it) && !isLast(it))) {
      await add(statement);
    }
    const newSequences = (await sequences(db)).filter((it) => !sequencesBefore.includes(it));
    const standing = declared.filter(({ name }) => !created.includes(name));
    const surplus = surplusIndexes(standing, await readRelations(db));
    for (const { name } of standing) {
      await addCompletion(name, 'public');
    }

    if (old.length > 0) {
      await add(
        `CREATE SCHEMA "${scratch}";`,
        'The new views are in a schema of their own at first. REFRESH fills them, because transactions that began before see its rows too.',
      );
    }
    if (created.length > 0) {
      await add(takeAllRows, takeAllRowsNote);
    }
    for (const name of created) {
      await add(creationOf(name, creations, created, place));
      await add(`REFRESH MATERIALIZED VIEW "${place}"."${name}";`);
      await addCompletion(name, place);
      await add(`ANALYZE "${place}"."${name}";`);
    }
    if (replaced.length > 0) {
      await add(
        keepOwners(replaced),
        'The new views belong to whom the old ones belong to, whoever migrates.',
      );
    }
    const newRelations = [
      ...newTables,
      ...newSequences,
      ...created.map((name) => `"${place}"."${name}"`),
    ];
    if (newRelations.length > 0) {
      await add(revokeAll(newRelations), revokeNote);
    }
    for (const { name } of standing) {
      await addGrants(name, 'public');
    }
    for (const name of created) {
      await addGrants(name, place);
    }

    if (surplus.length > 0 || old.length > 0) {
      await add(
        dropOnceUnread(surplus, old),
        'The only time that readers wait. This waits 0.3 seconds for those who are reading, then lets everybody go on, and tries again a second later. A view of somebody else that reads what is dropped is not dropped with it, but stops the migration and is named.',
      );
    }
    if (old.length > 0) {
      for (const name of created) {
        await add(`ALTER MATERIALIZED VIEW "${scratch}"."${name}" SET SCHEMA "public";`);
      }
      await add(`DROP SCHEMA "${scratch}";`);
    }
    for (const statement of statements.filter(isLast)) {
      await add(statement.replace(/ CASCADE;$/, ';'));
    }
    refuseDifferences(declared, await readRelations(db));
    await refuseUndeclaredReads(db);
  });
  return beginning(header, migration);
}

/**
 * Makes the one migration of an empty database: table by table and view by view,
 * each with all that is declared of it. Tries every statement as it is made, in
 * the given database, which drizzle-kit has prepared for its records. Throws as
 * completeMigration does.
 */
export async function completeBaseline(
  database: PgDatabase<PgQueryResultHKT>,
  declared: Relation[],
  { statements, creations }: Changes,
  tables: string[],
): Promise<string[]> {
  const migration: string[] = [];
  const noteOf = (name: string) => named(name, declared)?.comments[0]?.text ?? '';
  await database.transaction(async (db) => {
    const { add, addCompletion, addGrants } = writerOf(db, declared, migration);
    await db.execute(firstStatement);
    await add(refuseOtherDatabases);
    for (const statement of statements.filter((it) => !isOfView(it) && !tableOf(it))) {
      await add(statement);
    }
    for (const table of tables) {
      const ofTable = statements.filter((statement) => tableOf(statement) === table);
      for (const statement of ofTable) {
        await add(
          // In a CHECK, columns need not be told from those of other tables.
          statement.replaceAll(`"public"."${table}"."`, '"'),
          statement === ofTable[0] ? noteOf(table) : undefined,
        );
      }
      await addCompletion(table, 'public');
    }
    const views = viewNames();
    await add(takeAllRows, takeAllRowsNote);
    for (const view of views) {
      await add(creationOf(view, creations, views, 'public'), noteOf(view));
      await add(`REFRESH MATERIALIZED VIEW "public"."${view}";`);
      await addCompletion(view, 'public');
      await add(`ANALYZE "public"."${view}";`);
    }
    await add(
      createReaderRole,
      'Roles belong to the whole server, so another database may have made this one before, or be making it at this moment.',
    );
    const relations = [...tables, ...views].map((name) => `"public"."${name}"`);
    await add(revokeAll([...relations, records], 'drizzle'), revokeNote);
    await add(`GRANT USAGE ON SCHEMA "public" TO "${readerRole}";`);
    await add(refuseUselessGrants);
    for (const name of [...tables, ...views]) {
      await addGrants(name, 'public');
    }
    refuseDifferences(declared, await readRelations(db));
    await refuseUndeclaredReads(db);
  });
  return beginning(
    'All that lead-conversions keeps in a database: the input tables, the history of the refreshes, the two reports, and the role that reads them. Written by "npm run generate -- --baseline" from what schema/ and views/ declare.',
    migration,
  );
}

const takeAllRows = 'SET LOCAL row_security TO off;';

const takeAllRowsNote =
  'Where row-level security would keep rows from the owner of a view, REFRESH then fails, rather than fill the view with what is left.';

const viewNames = () => viewsInOrder.map((view) => getMaterializedViewConfig(view).name);

/** A migration with the statement before it with which every one begins, if it does anything. */
const beginning = (header: string, migration: string[]) =>
  migration.length === 0
    ? []
    : [
        `${comment(header)}\n--\n${comment('Names in here are those of pg_catalog, or have their schema with them. What others have created under the same names, in a schema that everybody may write to, is never meant.')}\n${firstStatement}`,
        ...migration,
      ];

/** What adds statements to a migration once they have been tried. */
function writerOf(db: PgDatabase<PgQueryResultHKT>, declared: Relation[], migration: string[]) {
  const add = async (statement: string, note?: string) => {
    await db.execute(sql.raw(statement)).catch((error) => {
      throw new Error(
        `A statement of the migration would fail: ${explain(error)}\n${placeOf(error, statement)}`,
      );
    });
    const text = statement.trimEnd();
    migration.push(note ? `${comment(note)}\n${text}` : text);
  };
  const addAll =
    (what: typeof completing) =>
    async (name: string, inSchema: string): Promise<void> => {
      const relation = named(name, declared);
      if (relation) {
        const actual = named(name, await readRelations(db, inSchema));
        for (const statement of what(relation, actual, inSchema)) {
          await add(statement);
        }
      }
    };
  return { add, addCompletion: addAll(completing), addGrants: addAll(granting) };
}

/** The statement that creates a view, in a schema where it reads what is created there with it. */
function creationOf(
  name: string,
  creations: string[],
  created: string[],
  inSchema: string,
): string {
  const creation = creations.find((statement) => viewOf(statement) === name) ?? '';
  const names = created.map((other) => `(?="?${other}\\b)`).join('|');
  return creation
    .replaceAll(new RegExp(`"public"\\.(?:${names})`, 'g'), `"${inSchema}".`)
    .replaceAll(new RegExp(`\\bpublic\\.(?:${names})`, 'g'), `${inSchema}.`)
    .replace(/\)(?: WITH NO DATA)?;$/, ') WITH NO DATA;');
}

/** The text of a migration's file, whose statements Drizzle wants apart. What has a note begins a paragraph. */
export const textOf = (migration: string[]): string =>
  `${migration.join('--> statement-breakpoint\n').replaceAll('breakpoint\n--', 'breakpoint\n\n--')}\n`;

const ofView = /^(?:CREATE|DROP) MATERIALIZED VIEW "public"\."([^"]+)"/;

const isOfView = (statement: string) => ofView.test(statement);

const viewOf = (statement: string) => ofView.exec(statement)?.[1] ?? '';

/** The table that a statement is about. */
const tableOf = (statement: string) => /(?:TABLE|ON) "public"\."([^"]+)"/.exec(statement)?.[1];

/** What an old view may still read, so that it is dropped after that. */
const isLast = (statement: string) => /^DROP TABLE |^ALTER TABLE \S+ DROP COLUMN /.test(statement);

/** Those of these views that there are, and all that read them: each before what it reads. */
async function viewsReading(db: PgDatabase<PgQueryResultHKT>, names: string[]): Promise<string[]> {
  const views = await db
    .select({ name: sql<string>`relname` })
    .from(sql`pg_class`)
    .where(sql`
      relkind = 'm' and oid in (
        with recursive readers (oid) as (
          select to_regclass(format('public.%I', name))
          from json_array_elements_text(${JSON.stringify(names)}::json) as names (name)
          union
          select pg_rewrite.ev_class
          from readers
          inner join pg_depend
            on pg_depend.refclassid = 'pg_class'::regclass
            and pg_depend.refobjid = readers.oid
          inner join pg_rewrite
            on pg_depend.classid = 'pg_rewrite'::regclass
            and pg_depend.objid = pg_rewrite.oid
        )
        select oid from readers
      )`)
    .orderBy(sql`oid desc`);
  return views.map(({ name }) => name);
}

/** The sequences of the schema public, by name. */
async function sequences(db: PgDatabase<PgQueryResultHKT>): Promise<string[]> {
  const rows = await db
    .select({ name: sql<string>`format('%I.%I', schemaname, sequencename)` })
    .from(sql`pg_sequences`)
    .where(sql`schemaname = 'public'`);
  return rows.map(({ name }) => name);
}

/** What a migration does, in sentences. */
function headerOf({
  statements,
  changed,
  old,
  created,
}: {
  statements: string[];
  changed: string[];
  old: string[];
  created: string[];
}): string {
  const list = (names: string[]) => [...new Set(names)].join(' and ');
  const tables = statements.flatMap((it) => tableOf(it) ?? []);
  const replaced = created.filter((name) => old.includes(name) && changed.includes(name));
  const readers = created.filter((name) => old.includes(name) && !changed.includes(name));
  const added = created.filter((name) => !old.includes(name));
  const removed = old.filter((name) => !created.includes(name));
  const sentences = [
    tables.length > 0 && `Changes ${list(tables)}.`,
    removed.length > 0 && `Removes ${list(removed)}.`,
    replaced.length > 0 &&
      `Replaces ${[list(replaced), ...readers.map((name) => `${name}, which reads it`)].join(', and ')}.`,
    added.length > 0 && `Adds ${list(added)}.`,
  ].filter(Boolean);
  return sentences.join(' ') || 'Says in the database what is declared of its tables and views.';
}

/** The statements that give a relation the indexes and comments that drizzle-kit has no words for. */
function completing(declared: Relation, actual: Relation | undefined, inSchema: string): string[] {
  const relation = `"${inSchema}"."${declared.name}"`;
  const objectOf = ({ on, name }: Comment) =>
    ({
      RELATION: `${declared.kind} ${relation}`,
      COLUMN: `COLUMN ${relation}."${name}"`,
      CONSTRAINT: `CONSTRAINT "${name}" ON ${relation}`,
      INDEX: `INDEX "${inSchema}"."${name}"`,
    })[on];
  // As a reader of the migration expects them, and not by name.
  const order = columnOrder(declared.name);
  const byPosition = (one: Comment, other: Comment) =>
    one.on === 'COLUMN' && other.on === 'COLUMN'
      ? order.indexOf(one.name) - order.indexOf(other.name)
      : 0;
  return [
    ...without(indexesOf(declared), indexesOf(actual)).map(({ name, definition }) => {
      const [, unique = '', columns = ''] =
        /^(UNIQUE )?btree \((.*)\)$/.exec(definition ?? '') ?? [];
      return `CREATE ${unique}INDEX "${name}" ON ${relation} USING btree ("${columns.split(', ').join('","')}");`;
    }),
    ...without(declared.comments.toSorted(byPosition), actual?.comments)
      .filter(({ text }) => text !== null || actual)
      .map((comment) => `COMMENT ON ${objectOf(comment)} IS ${literal(comment.text)};`),
  ];
}

/**
 * The statements that give others the rights on a relation that are declared. They
 * come after those that take rights away, because to revoke a privilege on a
 * relation revokes it on all of its columns.
 */
function granting(declared: Relation, actual: Relation | undefined, inSchema: string): string[] {
  const relation = `"${inSchema}"."${declared.name}"`;
  return [
    ...grouped(without(actual?.grants, declared.grants)).map(
      ({ privilege, role }) =>
        `REVOKE ${privilege} ON ${relation} FROM ${role === 'PUBLIC' ? role : `"${role}"`};`,
    ),
    ...grouped(without(declared.grants, actual?.grants)).map(
      ({ privilege, role }) => `GRANT ${privilege} ON ${relation} TO "${role}";`,
    ),
  ];
}

/** Grants, with one for all columns of the same role and privilege, as SQL has it. */
function grouped(grants: Grant[]): { role: string; privilege: string }[] {
  const groups = new Map<string, { role: string; privilege: string; columns: string[] }>();
  for (const { role, privilege, column } of grants) {
    const key = [role, privilege, column === null].join();
    const group = groups.get(key) ?? { role, privilege, columns: [] };
    group.columns.push(...(column === null ? [] : [`"${column}"`]));
    groups.set(key, group);
  }
  return [...groups.values()].map(({ role, privilege, columns }) => ({
    role,
    privilege: columns.length > 0 ? `${privilege} (${columns.join(', ')})` : privilege,
  }));
}

/** drizzle-kit knows those of tables. */
const indexesOf = (relation?: Relation) =>
  relation?.kind === 'MATERIALIZED VIEW' ? relation.indexes : [];

/** The indexes of views that are not declared any more. */
const surplusIndexes = (declared: Relation[], actual: Relation[]): string[] =>
  declared
    .flatMap((view) => without(indexesOf(named(view.name, actual)), indexesOf(view)))
    .map(({ name }) => name);

const named = <Item extends { name: string }>(name: string, items: Item[]): Item | undefined =>
  items.find((item) => item.name === name);

/** The items of a list that are not, exactly so, in another. */
const without = <Item>(items: Item[] = [], others: Item[] = []): Item[] =>
  items.filter((item) => !others.some((other) => isDeepStrictEqual(item, other)));

const literal = (text: string | null) =>
  text === null ? 'NULL' : `'${text.replaceAll("'", "''")}'`;

/** A comment of SQL, in lines of 80 characters. */
const comment = (text: string): string =>
  text.replace(/(\S{78,}|.{1,77})(?:\s+|$)/g, '-- $1\n').trimEnd();

/** Stops where a migration cannot be the first of its database. */
const refuseOtherDatabases = `DO $$
BEGIN
	IF to_regclass('${records}') IS NULL THEN
		RAISE EXCEPTION 'The migrations of lead-conversions are recorded in ${records}, apart from those of other apps. Migrate with migrationsTable: ''${migrationsTable}''.';
	END IF;
	IF EXISTS (SELECT FROM pg_trigger WHERE tgrelid = '${records}'::regclass) THEN
		RAISE EXCEPTION 'Somebody has put a trigger on ${records}. Nothing is migrated while it is there.';
	END IF;
	IF to_regclass('public.dim_branch') IS NOT NULL THEN
		IF EXISTS (SELECT FROM ${records}) THEN
			RAISE EXCEPTION 'This database is migrated already, as ${records} says: by another deploy at this moment, or by an earlier baseline, which needs a new database. Migrate with the schema drizzle and migrationsTable: ''${migrationsTable}''.';
		END IF;
		RAISE EXCEPTION 'This database was migrated by an earlier, unreleased version. Create a new database and load it again.'
			USING HINT = 'If public.dim_branch is a table of your own, lead-conversions needs a database without one.';
	END IF;
END
$$;`;

const createReaderRole = `DO $$
BEGIN
	IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '${readerRole}') THEN
		IF NOT (SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user) THEN
			RAISE EXCEPTION 'The role ${readerRole} is not there, and the role % may not create roles. Have an administrator run "create role ${readerRole}", then migrate again.', current_user
				USING ERRCODE = 'insufficient_privilege';
		END IF;
		CREATE ROLE "${readerRole}" NOLOGIN;
		COMMENT ON ROLE "${readerRole}" IS ${literal(readerRoleComment)};
	END IF;
EXCEPTION
	WHEN duplicate_object OR unique_violation THEN
		IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '${readerRole}') THEN
			RAISE;
		END IF;
END
$$;`;

/** Postgres only warns of a grant that the role may not make. */
const refuseUselessGrants = `DO $$
BEGIN
	IF NOT has_schema_privilege('${readerRole}', 'public', 'USAGE') THEN
		RAISE EXCEPTION 'The role % may not grant the use of the schema public. Have its owner run "grant usage on schema public to ${readerRole}", then migrate again.', current_user
			USING ERRCODE = 'insufficient_privilege';
	END IF;
END
$$;`;

const revokeNote =
  'The default privileges of a database may give others rights on all that is created in it. Nobody but the owner keeps any here, and what is declared is granted after this.';

/** Takes all rights on relations and their sequences from all but the owners, and on a schema that has no others in it. */
function revokeAll(relations: string[], schema?: string): string {
  return `DO $$
DECLARE
	relations regclass[] := ARRAY[
		${relations.map(literal).join(',\n\t\t')}
	];
	granted record;
BEGIN
	FOR granted IN
		WITH created AS (
			SELECT oid, relkind, relowner, relacl
			FROM pg_class
			WHERE oid = ANY (relations)
				OR relkind = 'S' AND oid IN (
					SELECT objid
					FROM pg_depend
					WHERE classid = 'pg_class'::regclass
						AND refclassid = 'pg_class'::regclass
						AND refobjid = ANY (relations)
				)
		)
		SELECT
			format('%s %s', CASE relkind WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, oid::regclass) AS object,
			grantee
		FROM created, aclexplode(relacl)
		WHERE grantee <> relowner
		UNION
		SELECT format('TABLE %s', oid::regclass), grantee
		FROM created INNER JOIN pg_attribute ON attrelid = oid, aclexplode(attacl)
		WHERE grantee <> relowner${
      schema
        ? `
		UNION
		SELECT format('SCHEMA %I', nspname), grantee
		FROM pg_namespace, aclexplode(nspacl)
		WHERE nspname = '${schema}'
			AND nspowner = current_user::regrole
			AND grantee <> nspowner
			AND NOT EXISTS (
				SELECT FROM pg_class
				WHERE relnamespace = pg_namespace.oid AND relkind = 'r' AND oid <> ALL (relations)
			)`
        : ''
    }
	LOOP
		EXECUTE format(
			'REVOKE ALL ON %s FROM %s${schema ? ' CASCADE' : ''}',
			granted.object,
			CASE granted.grantee WHEN 0 THEN 'PUBLIC' ELSE granted.grantee::regrole::text END
		);
	END LOOP;
END
$$;`;
}

/** Waits for a refresh that runs, and keeps others from beginning until the commit. */
const lockRefreshes = `DO $$
BEGIN
	SET LOCAL lock_timeout = '5min';
	-- This one marks a refresh or a migration; somebody's VACUUM has the next one alone.
	LOCK TABLE "public"."view_refreshes" IN ROW SHARE MODE;
	LOCK TABLE "public"."view_refreshes" IN SHARE UPDATE EXCLUSIVE MODE;
	SET LOCAL lock_timeout TO DEFAULT;
EXCEPTION
	WHEN lock_not_available THEN
		RAISE EXCEPTION 'Nothing was migrated, because the lock of refreshes could not be taken within 5 minutes: %. Migrate again once that is over.', (
			SELECT string_agg(holder, ', ')
			FROM (${render(
        lockHolders(
          sql.raw(
            `pg_locks.relation = 'public.view_refreshes'::regclass and pg_locks.mode !~ '^(Access|Row)Share|^RowExclusive'`,
          ),
        ),
      )}) AS holders
		);
END
$$;`;

function keepOwners(views: string[]): string {
  return `DO $$
DECLARE
	replaced record;
BEGIN
	FOR replaced IN
		SELECT relname AS view, relowner::regrole AS owner
		FROM pg_class
		WHERE relnamespace = 'public'::regnamespace AND relname IN (${views.map(literal).join(', ')})
	LOOP
		EXECUTE format('GRANT CREATE ON SCHEMA "${scratch}" TO %s', replaced.owner);
		EXECUTE format('ALTER MATERIALIZED VIEW "${scratch}".%I OWNER TO %s', replaced.view, replaced.owner);
	END LOOP;
END
$$;`;
}

/** Drops indexes and views of public at a moment when nobody is using them. */
function dropOnceUnread(indexes: string[], views: string[]): string {
  const names = [...indexes, ...views];
  const drops = [
    ...indexes.map((name) => `DROP INDEX "public"."${name}";`),
    ...views.map((name) => `DROP MATERIALIZED VIEW "public"."${name}";`),
  ];
  return `DO $$
DECLARE
	dependents text;
BEGIN
	FOR attempt IN 1..100 LOOP
		BEGIN
			SET LOCAL lock_timeout = '300ms';
${drops.map((drop) => `			${drop}`).join('\n')}
			SET LOCAL lock_timeout TO DEFAULT;
			EXIT;
		EXCEPTION WHEN lock_not_available THEN
			IF attempt = 100 THEN
				RAISE EXCEPTION 'Nothing was migrated, because others were using ${names.join(' and ')} all the time. Migrate again later.'
					USING DETAIL = (
						SELECT format('In use by: %s.', string_agg(holder, ', '))
						FROM (${render(lockHolders(sql.raw(`pg_locks.relation in (${names.map((name) => `'public.${name}'::regclass`).join(', ')})`)))}) AS holders
					);
			END IF;
			PERFORM pg_sleep(1);
		WHEN dependent_objects_still_exist THEN
			GET STACKED DIAGNOSTICS dependents = PG_EXCEPTION_DETAIL;
			RAISE EXCEPTION 'Nothing was migrated, because what it replaces is in use: %. Drop that, migrate, and create it again.', dependents
				USING ERRCODE = 'dependent_objects_still_exist';
		END;
	END LOOP;
END
$$;`;
}

/** The line of a statement in which Postgres has found an error, or else the first one. */
function placeOf(error: unknown, statement: string): string {
  const { position } = (error as { cause?: { position?: string } }).cause ?? {};
  const before = statement.slice(0, Number(position ?? 1)).split('\n').length;
  return `line ${before}: ${statement.split('\n')[before - 1]?.trim()}`;
}

/** Throws an Error that names what a view reads although it is not declared to. */
async function refuseUndeclaredReads(db: PgDatabase<PgQueryResultHKT>): Promise<void> {
  for (const view of viewsInOrder) {
    await catalogView(db, view).catch((error) => {
      throw new Error(
        `Declare in "reads" what the view reads. A refresh would say: ${error.message}`,
      );
    });
  }
}

/** Throws an Error that names what is not as it is declared. */
function refuseDifferences(declared: Relation[], actual: Relation[]): void {
  for (const relation of declared) {
    const made = named(relation.name, actual);
    const properties = ['comments', 'grants', 'columns', 'indexes'] as const;
    // The columns and indexes of a table are as drizzle-kit has made them.
    for (const property of properties.slice(0, relation.kind === 'TABLE' ? 2 : 4)) {
      const [is, wanted] = [made?.[property], relation[property]];
      if (!isDeepStrictEqual(is, wanted)) {
        throw new Error(
          `The migrations would not make ${relation.name} as it is declared: its ${property} would be ${JSON.stringify(is)} and not ${JSON.stringify(wanted)}.`,
        );
      }
    }
  }
}
