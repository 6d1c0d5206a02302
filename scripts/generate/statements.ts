import { type SQL, sql } from 'drizzle-orm';
import { PgDialect } from 'drizzle-orm/pg-core';
import { pinSearchPath } from '../../schema/columns.ts';
import { migrations } from '../../schema/migrations.ts';
import { readerRole, readerRoleComment } from '../../schema/properties.ts';
import { selectLockHolders } from '../../views/catalog.ts';
import { purchaseKinds } from '../../views/purchase_kinds.ts';
import { refreshDefaults } from '../../views/refresh.ts';
import { endWhenGone, isKnownSetting } from '../../views/session.ts';

/** The schema of the new views until they replace the old ones. */
export const scratch = 'lead_conversions_new';

/** The schema in which a migration notes what the new views must keep of the old ones. */
export const notes = 'lead_conversions_kept';

/** The table in which Drizzle records migrations. */
export const records = `drizzle.${migrations.migrationsTable}`;

const render = (fragment: SQL) => new PgDialect().sqlToQuery(fragment).sql;

export const literal = (text: string | null) =>
  text === null ? 'NULL' : `'${text.replaceAll("'", "''")}'`;

export const literals = (texts: string[]) => texts.map(literal).join(', ');

export const array = (texts: string[]) => `ARRAY[${literals(texts)}]::text[]`;

/**
 * Returns a query for the sessions that have locked these relations, or wait to, in a mode that the
 * condition selects.
 */
const holdersOf = (relations: string[], mode = 'true') =>
  render(
    selectLockHolders(
      sql.raw(
        `pg_locks.relation IN (${relations.map((it) => `${literal(it)}::regclass`).join(', ')}) AND ${mode}`,
      ),
    ),
  );

/** The condition for lock modes that conflict with SHARE UPDATE EXCLUSIVE. */
const isInTheWay = `pg_locks.mode !~ '^(Access|Row)Share|^RowExclusive'`;

/** The first statement of every migration. */
export const firstStatement = `${render(pinSearchPath).replace(/^.* to /, 'SET LOCAL search_path TO ')};`;

/** How long a statement may wait for a lock, unless it says otherwise. */
export const lockTimeout = '10s';

/** Settings that do not depend on those of the role and the database. */
export const bounds = [
  'SET LOCAL statement_timeout TO 0;',
  `SET LOCAL lock_timeout TO '${lockTimeout}';`,
  // Quotes names only where necessary, like the texts that are compared with them.
  'SET LOCAL quote_all_identifiers TO off;',
  // Ends the transaction of a deploy that is gone or frozen, so it blocks nobody.
  `SELECT set_config(name, value, true)
FROM (VALUES
	${Object.entries(endWhenGone)
    .map((setting) => `(${literals(setting)})`)
    .join(',\n\t')}
) AS settings (name, value)
WHERE ${render(isKnownSetting)};`,
  // Only the extension Citus knows this setting. Without Citus, nothing reads it.
  `SET LOCAL citus.multi_shard_modify_mode TO 'sequential';`,
];

/** Makes a change of a column's type mean the same, whatever the time zone of the database. */
export const pinTimeZone = `SET LOCAL TimeZone TO 'UTC';`;

/** Makes deploys take turns, until the end of the transaction. */
export const lockRecords = `LOCK TABLE ${records} IN SHARE UPDATE EXCLUSIVE MODE;`;

export const holdersOfRecords = holdersOf([records], isInTheWay);

/** Returns a statement that stops a migration if another deploy has just applied it. */
export const takeTurn = (createdAt: number) => `DO $$
BEGIN
	SET LOCAL lock_timeout TO '10min';
	${lockRecords}
	SET LOCAL lock_timeout TO '${lockTimeout}';
	IF EXISTS (SELECT FROM ${records} WHERE created_at >= ${createdAt}) THEN
		RAISE EXCEPTION 'Nothing was migrated, because another deploy has just applied this migration, according to ${records}. Migrate again, in case other migrations are pending.';
	END IF;
END
$$;`;

/** Stops a migration that cannot be the first one of its database. */
export const refuseOtherDatabases = `DO $$
BEGIN
	IF to_regclass('${records}') IS NULL THEN
		RAISE EXCEPTION 'The migrations of lead-conversions must be recorded in ${records}, apart from those of other apps. Migrate with migrationsTable: ''${migrations.migrationsTable}''.';
	END IF;
	SET LOCAL lock_timeout TO '10min';
	${lockRecords}
	SET LOCAL lock_timeout TO '${lockTimeout}';
	IF EXISTS (SELECT FROM pg_trigger WHERE tgrelid = '${records}'::regclass) THEN
		RAISE EXCEPTION 'Nothing was migrated, because there is a trigger on ${records}. Drop it, and migrate again.';
	END IF;
	IF to_regclass('public.dim_branch') IS NOT NULL THEN
		IF EXISTS (SELECT FROM ${records}) THEN
			RAISE EXCEPTION 'This database has already been migrated, according to ${records}. If another deploy did this just now, migrate again. If an earlier baseline did, create a new database. If you call the migrator of Drizzle, do it with the schema drizzle and migrationsTable: ''${migrations.migrationsTable}''.';
		END IF;
		RAISE EXCEPTION 'This database was migrated by an earlier, unreleased version. Create a new database and load it again.'
			USING HINT = 'If public.dim_branch is your own table, use a database without a table of that name.';
	END IF;
END
$$;`;

export const createReaderRole = `DO $$
BEGIN
	IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '${readerRole}') THEN
		IF NOT (SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user) THEN
			RAISE EXCEPTION 'The role ${readerRole} does not exist, and the role % may not create roles. Have an administrator run "create role ${readerRole}", then migrate again.', current_user
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

/**
 * Stops the migration if the grant on the schema public had no effect. Postgres only warns if the
 * role may not make a grant.
 */
export const refuseUselessGrants = `DO $$
BEGIN
	IF NOT has_schema_privilege('${readerRole}', 'public', 'USAGE') THEN
		RAISE EXCEPTION 'The role % may not grant usage on the schema public. Have its owner run "grant usage on schema public to ${readerRole}", then migrate again.', current_user
			USING ERRCODE = 'insufficient_privilege';
	END IF;
END
$$;`;

export const revokeNote =
  'The default privileges of a database may give other roles privileges on new objects. This revokes them all. The declared grants follow.';

/**
 * Returns a statement that revokes all rights on relations and their sequences from everybody but
 * the owners. It does the same for the given schema, if that has no other tables.
 */
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

/** Waits for a running refresh, and keeps others from starting until the commit. */
export const lockRefreshes = `DO $$
BEGIN
	SET LOCAL lock_timeout TO '5min';
	-- ROW SHARE marks a refresh or a migration. A VACUUM of the table takes only the second lock.
	LOCK TABLE "public"."view_refreshes" IN ROW SHARE MODE;
	LOCK TABLE "public"."view_refreshes" IN SHARE UPDATE EXCLUSIVE MODE;
	SET LOCAL lock_timeout TO '${lockTimeout}';
EXCEPTION
	WHEN lock_not_available THEN
		RAISE EXCEPTION 'Nothing was migrated, because the refresh lock was held for 5 minutes: %. Migrate again once it is free.', (
			SELECT string_agg(holder, ', ')
			FROM (${holdersOf(['public.view_refreshes'], isInTheWay)}) AS holders
		);
END
$$;`;

/**
 * Returns a statement that runs `work` under locks. It requests the locks again and again, for 0.3
 * seconds each time, so nobody queues behind them for longer. Before that, the quiet statements
 * take locks with which only a vacuum or the like conflicts, and behind which no reader or writer
 * queues. An automatic vacuum gives way to them after deadlock_timeout.
 * https://www.postgresql.org/docs/16/routine-vacuuming.html#AUTOVACUUM
 */
export function oncePossible(quiet: string[], work: string[], names: string[]): string {
  const lines = (statements: string[]) => statements.map((it) => `\t\t\t${it}`).join('\n');
  return `DO $$
DECLARE
	deadlock_timeout int := (SELECT setting FROM pg_settings WHERE name = 'deadlock_timeout');
	dependents text;
	later text;
BEGIN
	FOR attempt IN 1..100 LOOP
		BEGIN
			PERFORM set_config('lock_timeout', (deadlock_timeout + 300)::text, true);
${lines(quiet)}
			SET LOCAL lock_timeout TO '300ms';
${lines(work)}
			SET LOCAL lock_timeout TO '${lockTimeout}';
			EXIT;
		EXCEPTION WHEN lock_not_available OR deadlock_detected THEN
			IF attempt = 100 THEN
				RAISE EXCEPTION 'Nothing was migrated, because other sessions kept using ${names.join(' and ')} for two minutes. Migrate again later.'
					USING DETAIL = (
						SELECT format('In use by: %s.', string_agg(holder, ', '))
						FROM (${holdersOf(names.map((name) => `public.${name}`))}) AS holders
					);
			END IF;
			PERFORM pg_sleep(1);
		WHEN dependent_objects_still_exist THEN
			GET STACKED DIAGNOSTICS dependents = PG_EXCEPTION_DETAIL;
			RAISE EXCEPTION 'Nothing was migrated, because other objects depend on what it replaces: %. Drop them, migrate, and create them again.', dependents
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

export const lockTable = ({ table, mode }: TableLock) =>
  `LOCK TABLE "public"."${table}" IN ${mode} MODE;`;

/** Returns a statement that locks a table in a mode that blocks no reader or writer. */
export const lockTableQuietly = ({ table }: TableLock) =>
  `LOCK TABLE "public"."${table}" IN SHARE UPDATE EXCLUSIVE MODE;`;

/**
 * Returns a statement that locks a view in that mode. LOCK TABLE does not accept views, so it sets
 * the comment of the view to the present one.
 */
export const lockViewQuietly = (view: string) =>
  `EXECUTE format('COMMENT ON MATERIALIZED VIEW public.%I IS %L', ${literal(view)}, obj_description('public.${view}'::regclass, 'pg_class'));`;

/** Returns a statement that locks tables at a moment when nobody is in the way. */
export const lockTablesOncePossible = (locks: TableLock[]) =>
  oncePossible(
    locks.map(lockTableQuietly),
    locks.map(lockTable),
    locks.map(({ table }) => table),
  );

/**
 * Returns a statement that gives new relations to the role that owns all others, whoever migrates.
 */
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

/**
 * Counts the users and clients of the first view in a schema, as a refresh does. An old view may
 * not have the columns of a new kind of purchase.
 */
const counts = (schema: string, hasColumn: (name: string) => boolean = () => true) => `SELECT
			${[
        'count(*) AS users',
        `count(*) FILTER (WHERE lead_status = 'CLIENT') AS clients`,
        ...Object.values(purchaseKinds)
          .filter(({ first }) => hasColumn(first.name))
          .map(({ name, first }) => `count(${first.name}) AS "clients by ${name}"`),
      ].join(',\n\t\t\t')}
		FROM "${schema}"."fct_client_conversion_events"`;

/** Counts the users and clients of the old first view, unless it is not populated. */
export const countBefore = (hasColumn: (name: string) => boolean) => `DO $$
BEGIN
	IF (SELECT relispopulated FROM pg_class WHERE oid = 'public.fct_client_conversion_events'::regclass) THEN
		CREATE TABLE "${notes}"."counts" AS
		${counts('public', hasColumn)};
	END IF;
END
$$;`;

/**
 * Stops the migration if the new first view has lost more users or clients than a refresh may take
 * away.
 */
export const refuseLoss = `DO $$
DECLARE
	setting text := coalesce(nullif(current_setting('lead_conversions.max_loss', true), ''), '${refreshDefaults.maxLoss}');
	counted record;
BEGIN
	IF setting !~ '^[0-9]+([.][0-9]+)? ?%$' OR rtrim(setting, ' %')::numeric > 100 THEN
		RAISE EXCEPTION 'The setting lead_conversions.max_loss must be a percentage from 0%% to 100%%, not "%".', setting;
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
				USING HINT = 'Check that the input tables are complete. If they are, migrate with --max-loss 100%. For drizzle-kit, have an administrator run "alter role ... set lead_conversions.max_loss = ''100%''" instead.';
		END IF;
	END LOOP;
	DROP TABLE "${notes}"."counts";
END
$$;`;
