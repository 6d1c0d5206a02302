import { type SQL, sql } from 'drizzle-orm';
import { PgDialect } from 'drizzle-orm/pg-core';
import { pinSearchPath } from '../../schema/columns.ts';
import { readerRole, readerRoleComment } from '../../schema/properties.ts';
import { lockHolders } from '../../views/catalog.ts';
import { refreshDefaults } from '../../views/refresh.ts';
import { endWhenGone, isKnownSetting } from '../../views/session.ts';
import { migrationsTable } from '../database.ts';
import type { Relation } from './catalog.ts';

/** Where the new views are until they take the places of the old ones. */
export const scratch = 'lead_conversions_new';

/** Where it is noted meanwhile what the new views are to have of the old ones. */
const notes = 'lead_conversions_kept';

/** Where Drizzle records what it has migrated. */
export const records = `drizzle.${migrationsTable}`;

const render = (fragment: SQL) => new PgDialect().sqlToQuery(fragment).sql;

export const literal = (text: string | null) =>
  text === null ? 'NULL' : `'${text.replaceAll("'", "''")}'`;

const literals = (texts: string[]) => texts.map(literal).join(', ');

const array = (texts: string[]) => `ARRAY[${literals(texts)}]::text[]`;

/** The sessions that have locked these relations, or wait to, in a mode that the condition picks. */
const holdersOf = (relations: string[], mode = 'true') =>
  render(
    lockHolders(
      sql.raw(
        `pg_locks.relation IN (${relations.map((it) => `${literal(it)}::regclass`).join(', ')}) AND ${mode}`,
      ),
    ),
  );

/** Modes of locks that are in the way of SHARE UPDATE EXCLUSIVE. */
const isInTheWay = `pg_locks.mode !~ '^(Access|Row)Share|^RowExclusive'`;

/** The statement with which every migration begins. */
export const firstStatement = `${render(pinSearchPath).replace(/^.* to /, 'SET LOCAL search_path TO ')};`;

/** How long a statement may wait for a lock, unless it says otherwise. */
export const lockTimeout = '10s';

/** Whatever the settings of the role and the database are. */
export const bounds = [
  'SET LOCAL statement_timeout TO 0;',
  `SET LOCAL lock_timeout TO '${lockTimeout}';`,
  // Names are quoted where they must be, as in what is compared with them.
  'SET LOCAL quote_all_identifiers TO off;',
  // A deploy that is gone or frozen holds nobody off.
  `SELECT set_config(name, value, true)
FROM (VALUES
	${Object.entries(endWhenGone)
    .map((setting) => `(${literals(setting)})`)
    .join(',\n\t')}
) AS settings (name, value)
WHERE ${render(isKnownSetting)};`,
  // Only the extension Citus knows this one. Where it is not installed, it is a name that nobody reads.
  `SET LOCAL citus.multi_shard_modify_mode TO 'sequential';`,
];

/** Has deploys take turns, to the end of the transaction. */
export const lockRecords = `LOCK TABLE ${records} IN SHARE UPDATE EXCLUSIVE MODE;`;

export const holdersOfRecords = holdersOf([records], isInTheWay);

/** Stops a migration which another deploy has applied while this one was about to. */
export const takeTurn = (createdAt: number) => `DO $$
BEGIN
	SET LOCAL lock_timeout TO '10min';
	${lockRecords}
	SET LOCAL lock_timeout TO '${lockTimeout}';
	IF EXISTS (SELECT FROM ${records} WHERE created_at >= ${createdAt}) THEN
		RAISE EXCEPTION 'Another deploy has applied this migration at this moment, as ${records} says. Nothing was migrated twice. Migrate again to see that nothing is left to do.';
	END IF;
END
$$;`;

/** Stops where a migration cannot be the first of its database. */
export const refuseOtherDatabases = `DO $$
BEGIN
	IF to_regclass('${records}') IS NULL THEN
		RAISE EXCEPTION 'The migrations of lead-conversions are recorded in ${records}, apart from those of other apps. Migrate with migrationsTable: ''${migrationsTable}''.';
	END IF;
	SET LOCAL lock_timeout TO '10min';
	${lockRecords}
	SET LOCAL lock_timeout TO '${lockTimeout}';
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

export const createReaderRole = `DO $$
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
export const refuseUselessGrants = `DO $$
BEGIN
	IF NOT has_schema_privilege('${readerRole}', 'public', 'USAGE') THEN
		RAISE EXCEPTION 'The role % may not grant the use of the schema public. Have its owner run "grant usage on schema public to ${readerRole}", then migrate again.', current_user
			USING ERRCODE = 'insufficient_privilege';
	END IF;
END
$$;`;

export const revokeNote =
  'The default privileges of a database may give others rights on all that is created in it. Nobody but the owner keeps any here, and what is declared is granted after this.';

/** Takes all rights on relations and their sequences from all but the owners, and on a schema that has no others in it. */
export function revokeAll(relations: string[], schema?: string): string {
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
export const lockRefreshes = `DO $$
BEGIN
	SET LOCAL lock_timeout TO '5min';
	-- This one marks a refresh or a migration; somebody's VACUUM has the next one alone.
	LOCK TABLE "public"."view_refreshes" IN ROW SHARE MODE;
	LOCK TABLE "public"."view_refreshes" IN SHARE UPDATE EXCLUSIVE MODE;
	SET LOCAL lock_timeout TO '${lockTimeout}';
EXCEPTION
	WHEN lock_not_available THEN
		RAISE EXCEPTION 'Nothing was migrated, because the lock of refreshes could not be taken within 5 minutes: %. Migrate again once that is over.', (
			SELECT string_agg(holder, ', ')
			FROM (${holdersOf(['public.view_refreshes'], isInTheWay)}) AS holders
		);
END
$$;`;

/** Does work under locks that are asked for again and again, 0.3 seconds each time, so that nobody queues behind them for longer. */
function oncePossible(work: string[], names: string[]): string {
  return `DO $$
DECLARE
	dependents text;
	later text;
BEGIN
	FOR attempt IN 1..100 LOOP
		BEGIN
			SET LOCAL lock_timeout TO '300ms';
${work.map((statement) => `			${statement}`).join('\n')}
			SET LOCAL lock_timeout TO '${lockTimeout}';
			EXIT;
		EXCEPTION WHEN lock_not_available THEN
			IF attempt = 100 THEN
				RAISE EXCEPTION 'Nothing was migrated, because others were using ${names.join(' and ')} all the time. Migrate again later.'
					USING DETAIL = (
						SELECT format('In use by: %s.', string_agg(holder, ', '))
						FROM (${holdersOf(names.map((name) => `public.${name}`))}) AS holders
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

/** A lock on a table that statements of a migration need. */
export interface TableLock {
  table: string;
  mode: 'ACCESS EXCLUSIVE' | 'SHARE ROW EXCLUSIVE' | 'SHARE';
}

const lockTable = ({ table, mode }: TableLock) => `LOCK TABLE "public"."${table}" IN ${mode} MODE;`;

/** Locks tables at a moment when nobody is in the way. */
export const lockTablesOncePossible = (locks: TableLock[]) =>
  oncePossible(
    locks.map(lockTable),
    locks.map(({ table }) => table),
  );

/**
 * Drops indexes and views of public, and locks tables, at a moment when nobody is
 * using them. Of those that are replaced it was written down before what they have.
 */
export const dropOnceUnread = (
  indexes: string[],
  views: string[],
  replaced: string[],
  locks: TableLock[],
) =>
  oncePossible(
    [
      ...locks.map(lockTable),
      ...(replaced.length > 0 ? refuseWhatCameLater(replaced) : []),
      ...indexes.map((name) => `DROP INDEX "public"."${name}";`),
      ...views.map((name) => `DROP MATERIALIZED VIEW "public"."${name}";`),
    ],
    [...locks.map(({ table }) => table), ...indexes, ...views],
  );

/**
 * What others have put on views that are about to be replaced, as statements that
 * put it on the new ones: their owner, options, statistics, indexes and grants. What
 * earlier migrations have made of the views is not among that, and of the indexes
 * that are declared only how they are stored.
 * https://www.postgresql.org/docs/16/sql-altermaterializedview.html
 */
const found = (views: string[], made: Relation[], declared: Relation[]): string => {
  const target = `'${scratch}', view`;
  const alter = `'ALTER MATERIALIZED VIEW %I.%I`;
  const of = (relations: Relation[]) => relations.filter(({ name }) => views.includes(name));
  const indexesOf = (relations: Relation[]) =>
    of(relations).flatMap(({ indexes }) => indexes.map(({ name }) => name));
  const [madeIndexes, declaredIndexes] = [indexesOf(made), indexesOf(declared)];
  const madeGrants = of(made).flatMap(({ name, grants }) =>
    grants.map(({ role, privilege, column }) =>
      JSON.stringify([name, role, privilege, column ?? null]),
    ),
  );
  return `WITH
views AS (
	SELECT oid, relname AS view, relowner, relacl, reloptions, reltablespace, reltoastrelid
	FROM pg_class
	WHERE relnamespace = 'public'::regnamespace
		AND relkind = 'm'
		AND relname IN (${literals(views)})
),
columns AS (
	SELECT view, relowner, pg_attribute.*, format('column %I of %s', attname, view) AS column_of
	FROM views INNER JOIN pg_attribute ON attrelid = views.oid
	WHERE attnum > 0 AND NOT attisdropped
),
indexes AS (
	SELECT
		view, index.relname AS index, indexrelid, indisclustered, spcname, index.reloptions,
		CASE WHEN indisunique THEN 'UNIQUE ' ELSE '' END AS uniqueness,
		index.relname = ANY (${array(declaredIndexes)}) AS is_declared,
		index.relname = ANY (${array(madeIndexes)}) AS is_made,
		obj_description(indexrelid, 'pg_class') AS comment
	FROM views
	INNER JOIN pg_index ON indrelid = views.oid
	INNER JOIN pg_class AS index ON index.oid = indexrelid
	LEFT JOIN pg_tablespace ON pg_tablespace.oid = index.reltablespace
),
statistics AS (
	SELECT
		view, stxname, stxowner, nspname,
		pg_get_statisticsobjdef(pg_statistic_ext.oid) AS definition,
		format('CREATE STATISTICS %I.%I', nspname, stxname) AS prefix,
		format(' FROM public.%I', view) AS suffix,
		(to_jsonb(pg_statistic_ext) ->> 'stxstattarget')::int AS target,
		obj_description(pg_statistic_ext.oid, 'pg_statistic_ext') AS comment
	FROM views
	INNER JOIN pg_statistic_ext ON stxrelid = views.oid
	INNER JOIN pg_namespace ON pg_namespace.oid = stxnamespace
),
options AS (
	SELECT view, unnest(reloptions) AS option
	FROM views
	UNION ALL
	SELECT view, 'toast.' || unnest(toast.reloptions)
	FROM views INNER JOIN pg_class AS toast ON toast.oid = views.reltoastrelid
),
grants AS (
	SELECT view, column_name, privilege_type, is_grantable,
		CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END AS grantee
	FROM (
		SELECT view, relowner, NULL::name AS column_name, relacl AS acl
		FROM views
		UNION ALL
		SELECT view, relowner, attname, attacl
		FROM columns
	) AS acls, aclexplode(acl)
	WHERE grantee <> relowner
)
SELECT *
FROM (
	SELECT
		1 AS rank, view AS name, NULL AS object,
		format('GRANT CREATE ON SCHEMA %I TO %s', '${scratch}', relowner::regrole) AS statement,
		false AS goes_with_column, false AS is_last
	FROM views
	UNION ALL
	SELECT
		2, view, NULL,
		format(${alter} OWNER TO %s', ${target}, relowner::regrole),
		false, false
	FROM views
	UNION ALL
	SELECT
		3, view, format('the tablespace of %s', view),
		format(${alter} SET TABLESPACE %I', ${target}, spcname),
		false, false
	FROM views INNER JOIN pg_tablespace ON pg_tablespace.oid = views.reltablespace
	UNION ALL
	SELECT
		4, option, format('the option %s of %s', option, view),
		format(
			${alter} SET (%s = %L)', ${target},
			split_part(option, '=', 1), substr(option, strpos(option, '=') + 1)
		),
		false, false
	FROM options
	UNION ALL
	SELECT
		5, attname, format('the statistics target of %s', column_of),
		format(${alter} ALTER COLUMN %I SET STATISTICS %s', ${target}, attname, attstattarget),
		true, false
	FROM columns
	WHERE attstattarget >= 0
	UNION ALL
	SELECT
		5, attname, format('the options of %s', column_of),
		format(
			${alter} ALTER COLUMN %I SET (%s)', ${target},
			attname, array_to_string(attoptions, ', ')
		),
		true, false
	FROM columns
	WHERE attoptions IS NOT NULL
	UNION ALL
	SELECT
		5, attname, format('the storage of %s', column_of),
		format(
			${alter} ALTER COLUMN %I SET STORAGE %s', ${target},
			attname,
			CASE attstorage WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN' ELSE 'EXTENDED' END
		),
		true, false
	FROM columns INNER JOIN pg_type ON pg_type.oid = atttypid
	WHERE attstorage <> typstorage
	UNION ALL
	SELECT
		5, attname, format('the compression of %s', column_of),
		format(
			${alter} ALTER COLUMN %I SET COMPRESSION %s', ${target},
			attname, CASE attcompression WHEN 'l' THEN 'lz4' ELSE 'pglz' END
		),
		true, false
	FROM columns
	WHERE attcompression <> ''
	UNION ALL
	SELECT
		6, index, format('the index %s of %s', index, view),
		concat_ws(
			'; ',
			format('CREATE %sINDEX %I ON %I.%I', uniqueness, index, ${target}) || substr(
				pg_get_indexdef(indexrelid),
				length(format('CREATE %sINDEX %I ON public.%I', uniqueness, index, view)) + 1
			),
			format('COMMENT ON INDEX %I.%I IS ', '${scratch}', index) || quote_literal(comment)
		),
		false, false
	FROM indexes
	WHERE NOT is_made AND NOT is_declared
	UNION ALL
	SELECT
		7, index, format('the tablespace of the index %s of %s', index, view),
		format('ALTER INDEX %I.%I SET TABLESPACE %I', '${scratch}', index, spcname),
		false, false
	FROM indexes
	WHERE spcname IS NOT NULL AND (is_declared OR NOT is_made)
	UNION ALL
	SELECT
		7, index, format('the option %s of the index %s of %s', option, index, view),
		format(
			'ALTER INDEX %I.%I SET (%s = %L)', '${scratch}', index,
			split_part(option, '=', 1), substr(option, strpos(option, '=') + 1)
		),
		false, false
	FROM indexes, unnest(reloptions) AS option
	WHERE is_declared
	UNION ALL
	SELECT
		7, index, format('the statistics target of column %s of the index %s of %s', attnum, index, view),
		format(
			'ALTER INDEX %I.%I ALTER COLUMN %s SET STATISTICS %s', '${scratch}', index,
			attnum, attstattarget
		),
		false, false
	FROM indexes INNER JOIN pg_attribute ON attrelid = indexrelid
	WHERE attstattarget >= 0 AND (is_declared OR NOT is_made)
	UNION ALL
	SELECT
		7, index, format('the order of %s by the index %s', view, index),
		format(${alter} CLUSTER ON %I', ${target}, index),
		false, false
	FROM indexes
	WHERE indisclustered AND (is_declared OR NOT is_made)
	UNION ALL
	SELECT
		8, stxname, format('the statistics %s of %s', stxname, view),
		concat_ws(
			'; ',
			format('CREATE STATISTICS %I.%I', '${scratch}', stxname)
				|| substr(definition, length(prefix) + 1, length(definition) - length(prefix) - length(suffix))
				|| format(' FROM %I.%I', ${target}),
			format('ALTER STATISTICS %I.%I OWNER TO %s', '${scratch}', stxname, stxowner::regrole),
			CASE
				WHEN target >= 0
				THEN format('ALTER STATISTICS %I.%I SET STATISTICS %s', '${scratch}', stxname, target)
			END,
			format('COMMENT ON STATISTICS %I.%I IS ', '${scratch}', stxname) || quote_literal(comment)
		),
		false, false
	FROM statistics
	UNION ALL
	SELECT
		9, stxname, format('the statistics %s of %s', stxname, view),
		format('ALTER STATISTICS %I.%I SET SCHEMA %I', '${scratch}', stxname, nspname),
		false, true
	FROM statistics
	UNION ALL
	SELECT
		10, privilege_type,
		format('%s on %s for %s', privilege_type, concat_ws('.', view, column_name), grantee),
		format(
			'GRANT %s%s ON %I.%I TO %s%s',
			privilege_type, ' (' || quote_ident(column_name) || ')', ${target},
			grantee, CASE WHEN is_grantable THEN ' WITH GRANT OPTION' END
		),
		column_name IS NOT NULL, false
	FROM grants
	WHERE is_grantable
		OR jsonb_build_array(view, grantee, privilege_type, column_name)
			<> ALL (${array(madeGrants)}::jsonb[])
) AS found`;
};

/** Writes down what others have put on views, and how much the first view holds, if that is replaced. */
export const writeDown = (views: string[], made: Relation[], declared: Relation[]): string[] => [
  `CREATE SCHEMA "${notes}";`,
  `CREATE VIEW "${notes}"."found" AS
${found(views, made, declared)};`,
  `CREATE TABLE "${notes}"."kept" AS SELECT * FROM "${notes}"."found";`,
];

/**
 * Stops where somebody has put something on a view since that was written down. To
 * change the owner to what it is takes a lock under which nobody can do that.
 */
const refuseWhatCameLater = (views: string[]) =>
  views
    .flatMap((view) => [
      `EXECUTE format('ALTER MATERIALIZED VIEW "public".${literal(view).slice(1, -1)} OWNER TO %s', (SELECT relowner::regrole FROM pg_class WHERE oid = 'public.${view}'::regclass));`,
    ])
    .concat(
      `SELECT string_agg(coalesce(object, 'the owner of ' || name), ', ' ORDER BY rank, name, object) INTO later FROM (
				(TABLE "${notes}"."found" EXCEPT TABLE "${notes}"."kept")
				UNION ALL (TABLE "${notes}"."kept" EXCEPT TABLE "${notes}"."found")
			) AS differences;`,
      `IF later IS NOT NULL THEN
				RAISE EXCEPTION 'Nothing was migrated, because somebody has changed this meanwhile: %. Migrate again.', later;
			END IF;`,
    );

/** Puts on the new views what was written down, or stops and names what cannot be kept. */
export const putBack = `DO $$
DECLARE
	kept record;
BEGIN
	FOR kept IN SELECT * FROM "${notes}"."kept" WHERE NOT is_last ORDER BY rank, name, object LOOP
		BEGIN
			EXECUTE kept.statement;
			IF kept.object IS NOT NULL THEN
				RAISE NOTICE 'Kept %.', kept.object;
			END IF;
		EXCEPTION
			WHEN OTHERS THEN
				IF NOT (kept.goes_with_column AND SQLSTATE = '42703') THEN
					RAISE EXCEPTION 'Nothing was migrated, because the new view cannot have %: %. Drop that, migrate, and make it again if it fits the new view.', coalesce(kept.object, 'its owner'), SQLERRM;
				END IF;
				RAISE NOTICE 'Gone with its column: %.', kept.object;
		END;
	END LOOP;
END
$$;`;

/** Drop what was only for the time of the migration. */
export const dropNotes = [
  `DROP VIEW "${notes}"."found";`,
  `DROP TABLE "${notes}"."kept";`,
  `DROP SCHEMA "${notes}";`,
];

/** Gives new relations to the role that all others belong to, whoever migrates. */
export const giveToOwner = (relations: string[]) => `DO $$
DECLARE
	relation regclass;
BEGIN
	FOREACH relation IN ARRAY ARRAY[${literals(relations)}]::regclass[] LOOP
		EXECUTE format('ALTER TABLE %s OWNER TO %s', relation, (
			SELECT relowner::regrole FROM pg_class WHERE oid = 'public.view_refreshes'::regclass
		));
	END LOOP;
END
$$;`;

/** Does what was written down for the time after the exchange. */
export const putBackLast = `DO $$
DECLARE
	kept record;
BEGIN
	FOR kept IN SELECT * FROM "${notes}"."kept" WHERE is_last ORDER BY rank, name, object LOOP
		EXECUTE kept.statement;
	END LOOP;
END
$$;`;

/** How the users and clients of a first view are counted, as in a refresh. */
const counts = (schema: string) => `SELECT
			count(*) AS users,
			count(*) FILTER (WHERE lead_status = 'CLIENT') AS clients,
			count(first_user_membership_id) AS "clients by membership",
			count(first_credit_pack_id) AS "clients by credit pack"
		FROM "${schema}"."fct_client_conversion_events"`;

/** Counts the users and clients of the old first view, unless it is not populated. */
export const countBefore = `DO $$
BEGIN
	IF (SELECT relispopulated FROM pg_class WHERE oid = 'public.fct_client_conversion_events'::regclass) THEN
		CREATE TABLE "${notes}"."counts" AS
		${counts('public')};
	END IF;
END
$$;`;

/** Stops where the new first view has lost more users or clients than a refresh may take away. */
export const refuseLoss = `DO $$
DECLARE
	setting text := coalesce(nullif(current_setting('lead_conversions.max_loss', true), ''), '${refreshDefaults.maxLoss}');
	counted record;
BEGIN
	IF setting !~ '^[0-9]+([.][0-9]+)? ?%$' OR rtrim(setting, ' %')::numeric > 100 THEN
		RAISE EXCEPTION 'The setting lead_conversions.max_loss is a percentage from 0%% to 100%%, not "%".', setting;
	END IF;
	IF to_regclass('${notes}.counts') IS NULL THEN
		RETURN;
	END IF;
	FOR counted IN
		SELECT name, was::bigint, now::bigint
		FROM (SELECT to_jsonb(counts) AS before FROM "${notes}"."counts") AS old
		CROSS JOIN (SELECT to_jsonb(counts) AS after FROM (
			${counts(scratch)}
		) AS counts) AS new
		CROSS JOIN LATERAL jsonb_each_text(before) AS befores (name, was)
		INNER JOIN LATERAL jsonb_each_text(after) AS afters (name, now) USING (name)
	LOOP
		IF (counted.was - counted.now) * 100 > counted.was * rtrim(setting, ' %')::numeric THEN
			RAISE EXCEPTION 'Nothing was migrated, because the new fct_client_conversion_events would have % % instead of %, a loss of more than % %%.', counted.now, counted.name, counted.was, rtrim(setting, ' %')
				USING HINT = 'Check that the input tables are complete. If they are, allow the loss with "npm run migrate -- --max-loss 100%", or for drizzle-kit have an administrator run "alter role ... set lead_conversions.max_loss = ''100%''".';
		END IF;
	END LOOP;
	DROP TABLE "${notes}"."counts";
END
$$;`;
