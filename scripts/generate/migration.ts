import { isDeepStrictEqual } from 'node:util';
import { sql } from 'drizzle-orm';
import {
  getMaterializedViewConfig,
  type PgDatabase,
  PgDialect,
  type PgQueryResultHKT,
} from 'drizzle-orm/pg-core';
import { refreshLock, viewsInOrder } from '../../views/refresh.ts';
import { explain } from '../command.ts';
import { type Comment, declaredRelations, type Relation, readRelations } from './catalog.ts';

/** What drizzle-kit says of a change. */
export interface Changes {
  /** The statements of its migration. */
  statements: string[];
  /** The statements that would create each view. */
  creations: string[];
}

/** Where the new views are until they take the places of the old ones. */
const scratch = 'lead_conversions_new';

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
  { statements, creations }: Changes,
): Promise<string[]> {
  const declared = declaredRelations();
  const migration: string[] = [];
  await database.transaction(async (db) => {
    const changed = statements.filter(isOfView).map(viewOf);
    const reading = await viewsReading(db, changed);
    const old = reading.filter(
      (view) => changed.includes(view) || declared.some(({ name }) => name === view),
    );
    const created = viewsInOrder
      .map((view) => getMaterializedViewConfig(view).name)
      .filter((name) => changed.includes(name) || old.includes(name));
    const replaced = created.filter((name) => old.includes(name));
    const place = old.length > 0 ? scratch : 'public';
    const header = headerOf({ statements, changed, old, created });

    const add = async (statement: string, note?: string) => {
      await db.execute(sql.raw(statement)).catch((error) => {
        throw new Error(
          `A statement of the migration would fail: ${explain(error)}\n${placeOf(error, statement)}`,
        );
      });
      const notes = [migration.length === 0 && header, note].filter(Boolean).join(' ');
      migration.push(notes ? `${comment(notes)}\n${statement}` : statement);
    };
    const complete = async (names: string[], inSchema: string) => {
      const actual = await readRelations(db, inSchema);
      for (const relation of declared.filter(({ name }) => names.includes(name))) {
        for (const statement of completing(relation, named(relation.name, actual), inSchema)) {
          await add(statement);
        }
      }
    };

    if (old.length > 0) {
      await add(
        `SELECT pg_advisory_xact_lock(${new PgDialect().sqlToQuery(refreshLock).sql});`,
        'What is new is filled while the old can still be read, and takes its place at the end. No refresh runs meanwhile: this waits for one that does.',
      );
    }
    for (const statement of statements.filter((it) => !isOfView(it) && !isLast(it))) {
      await add(statement);
    }
    const standing = declared.filter(({ name }) => !created.includes(name));
    const surplus = surplusIndexes(standing, await readRelations(db));
    await complete(
      standing.map(({ name }) => name),
      'public',
    );

    if (old.length > 0) {
      await add(
        `CREATE SCHEMA "${scratch}";`,
        'The new views are in a schema of their own at first, where they find each other. REFRESH fills them, because transactions that began before see its rows too.',
      );
      await add(`SET LOCAL search_path TO "${scratch}", "public";`);
    }
    for (const name of created) {
      const creation = creations.find((statement) => viewOf(statement) === name) ?? '';
      await add(
        creation
          .replace('VIEW "public".', `VIEW "${place}".`)
          .replace(/\)(?: WITH NO DATA)?;$/, ') WITH NO DATA;'),
      );
      await add(`REFRESH MATERIALIZED VIEW "${place}"."${name}";`);
      await complete([name], place);
      await add(`ANALYZE "${place}"."${name}";`);
    }

    if (old.length > 0) {
      await add('SET LOCAL search_path TO DEFAULT;');
      if (replaced.length > 0) {
        await add(
          keepOwners(replaced),
          'The new views belong to whom the old ones belong to, whoever migrates.',
        );
      }
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
  });
  return migration;
}

/** The text of a migration's file, whose statements Drizzle wants apart. */
export const textOf = (migration: string[]): string =>
  `${migration.join('--> statement-breakpoint\n')}\n`;

const ofView = /^(?:CREATE|DROP) MATERIALIZED VIEW "public"\."([^"]+)"/;

const isOfView = (statement: string) => ofView.test(statement);

const viewOf = (statement: string) => ofView.exec(statement)?.[1] ?? '';

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
  const tables = statements.flatMap((it) => /(?:TABLE|ON) "([^"]+)"/.exec(it)?.[1] ?? []);
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

/** The statements that give a relation what is declared of it and drizzle-kit has no words for. */
function completing(declared: Relation, actual: Relation | undefined, inSchema: string): string[] {
  const relation = `"${inSchema}"."${declared.name}"`;
  const objectOf = ({ on, name }: Comment) =>
    ({
      RELATION: `${declared.kind} ${relation}`,
      COLUMN: `COLUMN ${relation}."${name}"`,
      CONSTRAINT: `CONSTRAINT "${name}" ON ${relation}`,
      INDEX: `INDEX "${inSchema}"."${name}"`,
    })[on];
  return [
    ...without(indexesOf(declared), indexesOf(actual)).map(({ name, definition }) => {
      const [, unique = '', columns = ''] =
        /^(UNIQUE )?btree \((.*)\)$/.exec(definition ?? '') ?? [];
      return `CREATE ${unique}INDEX "${name}" ON ${relation} USING btree ("${columns.split(', ').join('","')}");`;
    }),
    ...without(declared.comments, actual?.comments)
      .filter(({ text }) => text !== null || actual)
      .map((comment) => `COMMENT ON ${objectOf(comment)} IS ${literal(comment.text)};`),
    ...without(declared.grants, actual?.grants).map(
      ({ privilege, role }) => `GRANT ${privilege} ON ${relation} TO "${role}";`,
    ),
    ...without(actual?.grants, declared.grants).map(
      ({ privilege, role }) =>
        `REVOKE ${privilege} ON ${relation} FROM ${role === 'PUBLIC' ? role : `"${role}"`};`,
    ),
  ];
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
const comment = (text: string): string => text.replace(/(.{1,77})(?:\s+|$)/g, '-- $1\n').trimEnd();

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
						SELECT format('Sessions that use them: %s. See pg_stat_activity.', string_agg(DISTINCT pid::text, ', '))
						FROM pg_locks
						WHERE relation IN (${names.map((name) => `'public.${name}'::regclass`).join(', ')})
							AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
							AND pid <> pg_backend_pid()
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
