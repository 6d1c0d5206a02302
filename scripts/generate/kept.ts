import type { Relation } from '../relations.ts';
import {
  array,
  literal,
  literals,
  lockTable,
  lockTableQuietly,
  lockViewQuietly,
  notes,
  oncePossible,
  scratch,
  type TableLock,
} from './statements.ts';

/**
 * Selects the settings of columns that differ from Postgres' defaults for their types: how they are
 * sampled and stored. Each has the action of ALTER TABLE that sets it.
 */
const settingsOfColumns = `	SELECT
		columns.*, setting, action
	FROM columns
	INNER JOIN pg_type ON pg_type.oid = atttypid
	CROSS JOIN LATERAL (
		VALUES
			(attstattarget >= 0, 'statistics target', format('SET STATISTICS %s', attstattarget)),
			(attoptions IS NOT NULL, 'options', format('SET (%s)', array_to_string(attoptions, ', '))),
			(attstorage <> typstorage, 'storage', format('SET STORAGE %s', CASE attstorage
				WHEN 'p' THEN 'PLAIN' WHEN 'e' THEN 'EXTERNAL' WHEN 'm' THEN 'MAIN' ELSE 'EXTENDED'
			END)),
			(attcompression <> '', 'compression', format('SET COMPRESSION %s', CASE attcompression
				WHEN 'l' THEN 'lz4' ELSE 'pglz'
			END))
	) AS settings (is_set, setting, action)
	WHERE is_set`;

/**
 * Selects what others have put on views that are about to be replaced, as statements that put it on
 * the new views: their owner, options, statistics, indexes and grants. It leaves out what earlier
 * migrations have made. Of the declared indexes, it selects only how they are stored.
 * https://www.postgresql.org/docs/16/sql-altermaterializedview.html
 */
const found = (views: string[], made: Relation[], declared: Relation[]): string => {
  const target = `'${scratch}', view`;
  const alter = `'ALTER MATERIALIZED VIEW %I.%I`;
  const of = (relations: Relation[]) => relations.filter(({ name }) => views.includes(name));
  const indexesOf = (relations: Relation[]) =>
    of(relations).flatMap(({ indexes }) => indexes.map(({ name }) => name));
  const madeIndexes = indexesOf(made);
  // An index with a name that is declared only now belongs to somebody else.
  const declaredIndexes = indexesOf(declared).filter((name) => madeIndexes.includes(name));
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
	SELECT view, relowner, pg_attribute.*
	FROM views INNER JOIN pg_attribute ON attrelid = views.oid
	WHERE attnum > 0 AND NOT attisdropped
),
settings AS (
${settingsOfColumns}
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
		view, stxname, stxowner, nspname, format('kept_%s', pg_statistic_ext.oid) AS new_name,
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
		5, attname, format('the %s of column %I of %s', setting, attname, view),
		format(${alter} ALTER COLUMN %I %s', ${target}, attname, action),
		true, false
	FROM settings
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
			format('CREATE STATISTICS %I.%I', '${scratch}', new_name)
				|| substr(definition, length(prefix) + 1, length(definition) - length(prefix) - length(suffix))
				|| format(' FROM %I.%I', ${target}),
			format('ALTER STATISTICS %I.%I OWNER TO %s', '${scratch}', new_name, stxowner::regrole),
			CASE
				WHEN target >= 0
				THEN format('ALTER STATISTICS %I.%I SET STATISTICS %s', '${scratch}', new_name, target)
			END,
			format('COMMENT ON STATISTICS %I.%I IS ', '${scratch}', new_name) || quote_literal(comment)
		),
		false, false
	FROM statistics
	UNION ALL
	SELECT
		9, stxname, format('the statistics %s of %s', stxname, view),
		concat_ws(
			'; ',
			format('ALTER STATISTICS %I.%I SET SCHEMA %I', '${scratch}', new_name, nspname),
			format('ALTER STATISTICS %I.%I RENAME TO %I', nspname, new_name, stxname)
		),
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

/** Returns the statements that write down what others have put on views. */
export const writeDown = (views: string[], made: Relation[], declared: Relation[]): string[] => [
  `CREATE SCHEMA "${notes}";`,
  `CREATE VIEW "${notes}"."found" AS
${found(views, made, declared)};`,
  `CREATE TABLE "${notes}"."kept" AS SELECT * FROM "${notes}"."found";`,
];

/**
 * Returns statements that stop the migration if somebody has put something on a view, or removed
 * it, since that was written down. They give each view to its present owner, which takes a lock
 * that keeps everybody from doing so afterwards.
 */
const refuseWhatCameLater = (views: string[]) => [
  ...views.map(
    (view) => `EXECUTE (
				SELECT format('ALTER MATERIALIZED VIEW %s OWNER TO %s', oid::regclass, relowner::regrole)
				FROM pg_class
				WHERE oid = 'public.${view}'::regclass
			);`,
  ),
  `SELECT string_agg(DISTINCT coalesce(object, 'the owner of ' || name) COLLATE "C", ', ')
			INTO later
			FROM (
				(TABLE "${notes}"."found" EXCEPT TABLE "${notes}"."kept")
				UNION ALL
				(TABLE "${notes}"."kept" EXCEPT TABLE "${notes}"."found")
			) AS differences;
			IF later IS NOT NULL THEN
				RAISE EXCEPTION 'Nothing was migrated, because somebody changed this at the same time: %. Migrate again.', later;
			END IF;`,
];

/** A column that a migration drops or changes, or, without a column, a table that it drops. */
export interface Touched {
  table: string;
  column: string | null;
  /** DERIVE drops the column, and adds it again as a derived one. */
  how: 'DROP' | 'DERIVE' | 'RETYPE';
}

/**
 * Selects, as texts, what others have put on tables and columns (dependent objects, column
 * settings, grants), if it would be lost or broken with them. This includes what this package has
 * made. It also includes inheriting tables, and everything that uses whole rows, because Postgres
 * does not record which columns that needs. For a new type (RETYPE), it includes only what Postgres
 * does not adapt itself.
 * https://www.postgresql.org/docs/16/catalog-pg-depend.html
 */
export const dependents = (touched: Touched[]) => `WITH
touched (relation, column_name, how) AS (
	VALUES
		${touched
      .map(({ table, column, how }) =>
        [`'public.${table}'::regclass`, literal(column), literal(how)].join(', '),
      )
      .map((row) => `(${row})`)
      .join(',\n\t\t')}
),
columns AS (
	SELECT how, relowner, pg_attribute.*, format('%s.%I', relation, attname) AS name
	FROM touched
	INNER JOIN pg_class ON pg_class.oid = relation
	INNER JOIN pg_attribute ON attrelid = relation AND attname = column_name
),
settings AS (
${settingsOfColumns}
)
SELECT format('%s %s', type, identity) AS object
FROM touched
LEFT JOIN pg_attribute ON attrelid = relation AND attname = column_name
INNER JOIN pg_type AS row_type ON row_type.typrelid = relation
INNER JOIN pg_depend ON
	refclassid = 'pg_class'::regclass
	AND refobjid = relation
	AND (
		column_name IS NULL
		OR refobjsubid = attnum
		OR (refobjsubid = 0 AND how <> 'RETYPE' AND classid = 'pg_rewrite'::regclass)
	)
	OR refclassid = 'pg_type'::regclass
	AND refobjid IN (row_type.oid, row_type.typarray)
LEFT JOIN pg_rewrite
	ON classid = 'pg_rewrite'::regclass
	AND pg_rewrite.oid = objid
	AND rulename = '_RETURN'
CROSS JOIN LATERAL pg_identify_object(
	CASE WHEN ev_class IS NULL THEN classid ELSE 'pg_class'::regclass END,
	coalesce(ev_class, objid),
	CASE WHEN ev_class IS NULL THEN objsubid ELSE 0 END
)
WHERE deptype IN ('a', 'n')
	AND (
		how <> 'RETYPE'
		OR refclassid = 'pg_type'::regclass
		OR classid IN ('pg_rewrite'::regclass, 'pg_policy'::regclass, 'pg_trigger'::regclass)
	)
UNION
SELECT format('table %s', inhrelid::regclass)
FROM touched INNER JOIN pg_inherits ON inhparent = relation
UNION
SELECT format('the %s of %s', setting, name)
FROM settings
WHERE how = 'DERIVE'
UNION
SELECT format(
	'%s on %s for %s', privilege_type, name,
	CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END
)
FROM columns, aclexplode(attacl)
WHERE how = 'DERIVE' AND grantee <> relowner`;

/**
 * Returns a statement that stops the migration if more than the known objects depend on tables and
 * columns. Its message names the others.
 */
export const refuseDependents = (touched: Touched[], known: string[]) => `DO $$
DECLARE
	others text;
BEGIN
	SELECT string_agg(object, ', ' ORDER BY object COLLATE "C") INTO others
	FROM (
${dependents(touched)}
	) AS dependents
	WHERE object <> ALL (${array(known)});
	IF others IS NOT NULL THEN
		RAISE EXCEPTION 'Nothing was migrated, because it would drop or break objects that others have created: %. Remove them, migrate, and create them again if they still fit.', others;
	END IF;
END
$$;`;

/**
 * Puts on the new views what was written down. Stops the migration if something cannot be kept, and
 * names it.
 */
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
					RAISE EXCEPTION 'Nothing was migrated, because the new view cannot have %: %. Drop it, migrate, and create one that fits the new view.', coalesce(kept.object, 'its owner'), SQLERRM;
				END IF;
				RAISE NOTICE 'Dropped with its column: %.', kept.object;
		END;
	END LOOP;
END
$$;`;

/** The statements that drop what was needed only during the migration. */
export const dropNotes = [
  `DROP VIEW "${notes}"."found";`,
  `DROP TABLE "${notes}"."kept";`,
  `DROP SCHEMA "${notes}";`,
];

/** Runs the statements that were written down for the time after the exchange of the views. */
export const putBackLast = `DO $$
DECLARE
	kept record;
BEGIN
	FOR kept IN SELECT * FROM "${notes}"."kept" WHERE is_last ORDER BY rank, name, object LOOP
		BEGIN
			EXECUTE kept.statement;
		EXCEPTION WHEN OTHERS THEN
			RAISE EXCEPTION 'Nothing was migrated, because the new view cannot have %: %. Drop it, migrate, and create one that fits the new view.', kept.object, SQLERRM;
		END;
	END LOOP;
END
$$;`;

/**
 * Returns a statement that drops indexes and views of public, and locks tables, at a moment when
 * nobody uses them. It stops the migration if somebody has changed what is on the replaced views
 * since that was written down.
 */
export const dropOnceUnread = (
  indexes: string[],
  views: string[],
  replaced: string[],
  locks: TableLock[],
) =>
  oncePossible(
    [...locks.map(lockTableQuietly), ...views.map(lockViewQuietly)],
    [
      ...locks.map(lockTable),
      ...(replaced.length > 0 ? refuseWhatCameLater(replaced) : []),
      ...indexes.map((name) => `DROP INDEX "public"."${name}";`),
      ...views.map((name) => `DROP MATERIALIZED VIEW "public"."${name}";`),
    ],
    [...locks.map(({ table }) => table), ...indexes, ...views],
  );
