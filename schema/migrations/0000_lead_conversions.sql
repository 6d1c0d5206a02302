-- Creates everything that lead-conversions keeps in a database: the input
-- tables, the history of loads and refreshes, the two views, and the role that
-- reads them. Written by "npm run generate -- --baseline" from the declarations
-- in schema/ and views/.
--
-- Every name in this file is in pg_catalog or is qualified with its schema. So
-- no name can mean an object that others have created under the same name in
-- another schema.
SET LOCAL search_path TO pg_catalog, pg_temp;--> statement-breakpoint
SET LOCAL statement_timeout TO 0;--> statement-breakpoint
SET LOCAL lock_timeout TO '10s';--> statement-breakpoint
SET LOCAL quote_all_identifiers TO off;--> statement-breakpoint
SELECT set_config(name, value, true)
FROM (VALUES
	('idle_in_transaction_session_timeout', '15s'),
	('tcp_keepalives_idle', '10s'),
	('tcp_keepalives_interval', '5s'),
	('tcp_keepalives_count', '3'),
	('client_connection_check_interval', '2s')
) AS settings (name, value)
WHERE name <> 'client_connection_check_interval' or version() !~* 'visual c|mingw';--> statement-breakpoint
SET LOCAL citus.multi_shard_modify_mode TO 'sequential';--> statement-breakpoint
DO $$
BEGIN
	IF to_regclass('drizzle.lead_conversions_migrations') IS NULL THEN
		RAISE EXCEPTION 'The migrations of lead-conversions must be recorded in drizzle.lead_conversions_migrations, apart from those of other apps. Migrate with migrationsTable: ''lead_conversions_migrations''.';
	END IF;
	SET LOCAL lock_timeout TO '10min';
	LOCK TABLE drizzle.lead_conversions_migrations IN SHARE UPDATE EXCLUSIVE MODE;
	SET LOCAL lock_timeout TO '10s';
	IF EXISTS (SELECT FROM pg_trigger WHERE tgrelid = 'drizzle.lead_conversions_migrations'::regclass) THEN
		RAISE EXCEPTION 'Nothing was migrated, because there is a trigger on drizzle.lead_conversions_migrations. Drop it, and migrate again.';
	END IF;
	IF to_regclass('public.dim_branch') IS NOT NULL THEN
		IF EXISTS (SELECT FROM drizzle.lead_conversions_migrations) THEN
			RAISE EXCEPTION 'This database has already been migrated, according to drizzle.lead_conversions_migrations. If another deploy did this just now, migrate again. If an earlier baseline did, create a new database. If you call the migrator of Drizzle, do it with the schema drizzle and migrationsTable: ''lead_conversions_migrations''.';
		END IF;
		RAISE EXCEPTION 'This database was migrated by an earlier, unreleased version. Create a new database and load it again.'
			USING HINT = 'If public.dim_branch is your own table, use a database without a table of that name.';
	END IF;
END
$$;--> statement-breakpoint

-- One row per branch of a gym.
CREATE TABLE "public"."dim_branch" (
	"branch_id" varchar COLLATE "C" PRIMARY KEY NOT NULL,
	"name" varchar,
	"email" varchar,
	"city" varchar,
	"country" varchar,
	"timezone_id" varchar,
	"created_at" timestamp with time zone,
	CONSTRAINT "dim_branch_timezone_id_check" CHECK ("timezone_id" is null or "timezone_id" ~* '^([a-z]+(/[a-z_-]+)+|Etc/GMT(0|[+-][0-9]|[+]1[0-2]|-1[0-4])|UTC|GMT|GMT[+-]?0|UCT|Greenwich|Universal|Zulu|CST6CDT|EST5EDT|MST7MDT|PST8PDT|Navajo|Cuba|Egypt|Eire|GB|GB-Eire|Hongkong|Iceland|Iran|Israel|Jamaica|Japan|Kwajalein|Libya|NZ|NZ-CHAT|Poland|Portugal|PRC|ROC|ROK|Singapore|Turkey|W-SU)$' and timezone("timezone_id", to_timestamp(0)) is not null),
	CONSTRAINT "dim_branch_created_at_check" CHECK ("created_at" >= '0001-01-01 00:00:00+00' and "created_at" < '10000-01-01 00:00:00+00'),
	CONSTRAINT "dim_branch_branch_id_check" CHECK (octet_length("branch_id") <= 255)
);--> statement-breakpoint
COMMENT ON TABLE "public"."dim_branch" IS 'One row per branch of a gym.';--> statement-breakpoint
COMMENT ON COLUMN "public"."dim_branch"."branch_id" IS 'Identifier of the branch.';--> statement-breakpoint
COMMENT ON COLUMN "public"."dim_branch"."name" IS 'Name of the branch.';--> statement-breakpoint
COMMENT ON COLUMN "public"."dim_branch"."email" IS 'E-mail address of the branch.';--> statement-breakpoint
COMMENT ON COLUMN "public"."dim_branch"."city" IS 'City where the branch is.';--> statement-breakpoint
COMMENT ON COLUMN "public"."dim_branch"."country" IS 'Country where the branch is.';--> statement-breakpoint
COMMENT ON COLUMN "public"."dim_branch"."timezone_id" IS 'IANA time zone of the branch, such as Europe/Dublin. All local times of its users are in this time zone. NULL counts as UTC.';--> statement-breakpoint
COMMENT ON COLUMN "public"."dim_branch"."created_at" IS 'Instant at which the branch was created.';--> statement-breakpoint
COMMENT ON CONSTRAINT "dim_branch_branch_id_check" ON "public"."dim_branch" IS 'must be at most 255 bytes long';--> statement-breakpoint
COMMENT ON CONSTRAINT "dim_branch_created_at_check" ON "public"."dim_branch" IS 'must be in the years 1 to 9999 (UTC)';--> statement-breakpoint
COMMENT ON CONSTRAINT "dim_branch_timezone_id_check" ON "public"."dim_branch" IS 'must be an IANA time zone name that Postgres knows, such as Europe/Dublin, not an abbreviation (CET) or an offset (FOO+3)';--> statement-breakpoint

-- One row per user of a gym, who is a lead until the first purchase of a
-- membership or credit pack.
CREATE TABLE "public"."dim_user" (
	"user_id" varchar COLLATE "C" PRIMARY KEY NOT NULL,
	"branch_id" varchar COLLATE "C",
	"name" varchar,
	"email" varchar,
	"created_at" timestamp with time zone,
	CONSTRAINT "dim_user_created_at_check" CHECK ("created_at" >= '0001-01-01 00:00:00+00' and "created_at" < '10000-01-01 00:00:00+00'),
	CONSTRAINT "dim_user_user_id_check" CHECK (octet_length("user_id") <= 255),
	CONSTRAINT "dim_user_branch_id_check" CHECK (octet_length("branch_id") <= 255)
);--> statement-breakpoint
ALTER TABLE "public"."dim_user" ADD CONSTRAINT "dim_user_branch_id_dim_branch_branch_id_fk" FOREIGN KEY ("branch_id") REFERENCES "public"."dim_branch"("branch_id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
COMMENT ON TABLE "public"."dim_user" IS 'One row per user of a gym, who is a lead until the first purchase of a membership or credit pack.';--> statement-breakpoint
COMMENT ON COLUMN "public"."dim_user"."user_id" IS 'Identifier of the user.';--> statement-breakpoint
COMMENT ON COLUMN "public"."dim_user"."branch_id" IS 'Branch that the user belongs to. All local times of the user are in its time zone.';--> statement-breakpoint
COMMENT ON COLUMN "public"."dim_user"."name" IS 'Name of the user.';--> statement-breakpoint
COMMENT ON COLUMN "public"."dim_user"."email" IS 'E-mail address of the user.';--> statement-breakpoint
COMMENT ON COLUMN "public"."dim_user"."created_at" IS 'Instant at which the user was created.';--> statement-breakpoint
COMMENT ON CONSTRAINT "dim_user_branch_id_check" ON "public"."dim_user" IS 'must be at most 255 bytes long';--> statement-breakpoint
COMMENT ON CONSTRAINT "dim_user_created_at_check" ON "public"."dim_user" IS 'must be in the years 1 to 9999 (UTC)';--> statement-breakpoint
COMMENT ON CONSTRAINT "dim_user_user_id_check" ON "public"."dim_user" IS 'must be at most 255 bytes long';--> statement-breakpoint

-- One row per credit pack that a user bought.
CREATE TABLE "public"."fct_credit_pack_purchases" (
	"user_id" varchar COLLATE "C" NOT NULL,
	"branch_id" varchar COLLATE "C",
	"credit_pack_id" varchar COLLATE "C" NOT NULL,
	"credit_pack_purchased_at" timestamp with time zone,
	"created_at" timestamp with time zone,
	"credit_pack_purchase_details" jsonb,
	"credit_pack_name" varchar GENERATED ALWAYS AS (credit_pack_purchase_details ->> 'name') STORED,
	"credit_pack_source" varchar GENERATED ALWAYS AS (credit_pack_purchase_details ->> 'source') STORED,
	CONSTRAINT "fct_credit_pack_purchases_user_id_credit_pack_id_pk" PRIMARY KEY("user_id","credit_pack_id"),
	CONSTRAINT "fct_credit_pack_purchases_credit_pack_purchased_at_check" CHECK ("credit_pack_purchased_at" >= '0001-01-01 00:00:00+00' and "credit_pack_purchased_at" < '10000-01-01 00:00:00+00'),
	CONSTRAINT "fct_credit_pack_purchases_created_at_check" CHECK ("created_at" >= '0001-01-01 00:00:00+00' and "created_at" < '10000-01-01 00:00:00+00'),
	CONSTRAINT "fct_credit_pack_purchases_credit_pack_purchase_details_check" CHECK (jsonb_typeof("credit_pack_purchase_details") in ('object', 'null')),
	CONSTRAINT "fct_credit_pack_purchases_details_check" CHECK (octet_length("credit_pack_purchase_details" ->> 'name') <= 1000 and octet_length("credit_pack_purchase_details" ->> 'source') <= 1000),
	CONSTRAINT "fct_credit_pack_purchases_user_id_check" CHECK (octet_length("user_id") <= 255),
	CONSTRAINT "fct_credit_pack_purchases_branch_id_check" CHECK (octet_length("branch_id") <= 255),
	CONSTRAINT "fct_credit_pack_purchases_credit_pack_id_check" CHECK (octet_length("credit_pack_id") <= 255)
);--> statement-breakpoint
ALTER TABLE "public"."fct_credit_pack_purchases" ADD CONSTRAINT "fct_credit_pack_purchases_user_id_dim_user_user_id_fk" FOREIGN KEY ("user_id") REFERENCES "public"."dim_user"("user_id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "public"."fct_credit_pack_purchases" ADD CONSTRAINT "fct_credit_pack_purchases_branch_id_dim_branch_branch_id_fk" FOREIGN KEY ("branch_id") REFERENCES "public"."dim_branch"("branch_id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
CREATE INDEX "fct_credit_pack_purchases_first" ON "public"."fct_credit_pack_purchases" USING btree ("user_id","credit_pack_purchased_at","credit_pack_id","credit_pack_name","credit_pack_source");--> statement-breakpoint
COMMENT ON TABLE "public"."fct_credit_pack_purchases" IS 'One row per credit pack that a user bought.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_credit_pack_purchases"."user_id" IS 'User who bought the credit pack.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_credit_pack_purchases"."branch_id" IS 'Branch that sold the credit pack. It can differ from the branch of the user.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_credit_pack_purchases"."credit_pack_id" IS 'Identifier of the purchased credit pack within its user.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_credit_pack_purchases"."credit_pack_purchased_at" IS 'Instant at which the credit pack was purchased. NULL counts as later than any time.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_credit_pack_purchases"."created_at" IS 'Instant at which the credit pack was created.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_credit_pack_purchases"."credit_pack_purchase_details" IS 'Details of the purchase from upstream: a JSON object with the name of the credit pack and the source of the purchase, each of at most 1,000 bytes, or JSON null.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_credit_pack_purchases"."credit_pack_name" IS 'Name of the credit pack. Derived from the key "name" of credit_pack_purchase_details, and NULL if the details have none. Write the details, not this column.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_credit_pack_purchases"."credit_pack_source" IS 'Source of the purchase. Derived from the key "source" of credit_pack_purchase_details, and NULL if the details have none. Write the details, not this column.';--> statement-breakpoint
COMMENT ON CONSTRAINT "fct_credit_pack_purchases_branch_id_check" ON "public"."fct_credit_pack_purchases" IS 'must be at most 255 bytes long';--> statement-breakpoint
COMMENT ON CONSTRAINT "fct_credit_pack_purchases_created_at_check" ON "public"."fct_credit_pack_purchases" IS 'must be in the years 1 to 9999 (UTC)';--> statement-breakpoint
COMMENT ON CONSTRAINT "fct_credit_pack_purchases_credit_pack_id_check" ON "public"."fct_credit_pack_purchases" IS 'must be at most 255 bytes long';--> statement-breakpoint
COMMENT ON CONSTRAINT "fct_credit_pack_purchases_credit_pack_purchase_details_check" ON "public"."fct_credit_pack_purchases" IS 'must be a JSON object, or JSON null';--> statement-breakpoint
COMMENT ON CONSTRAINT "fct_credit_pack_purchases_credit_pack_purchased_at_check" ON "public"."fct_credit_pack_purchases" IS 'must be in the years 1 to 9999 (UTC)';--> statement-breakpoint
COMMENT ON CONSTRAINT "fct_credit_pack_purchases_details_check" ON "public"."fct_credit_pack_purchases" IS 'must not have a name or a source of more than 1,000 bytes';--> statement-breakpoint
COMMENT ON CONSTRAINT "fct_credit_pack_purchases_user_id_check" ON "public"."fct_credit_pack_purchases" IS 'must be at most 255 bytes long';--> statement-breakpoint
COMMENT ON INDEX "public"."fct_credit_pack_purchases_first" IS 'The purchases of a user, ordered so the first purchase comes first, with all columns that the views show of it. The first purchase is read from the index alone.';--> statement-breakpoint

-- One row per membership that a user bought.
CREATE TABLE "public"."fct_membership_purchases" (
	"user_id" varchar COLLATE "C" NOT NULL,
	"branch_id" varchar COLLATE "C",
	"user_membership_id" varchar COLLATE "C" NOT NULL,
	"membership_purchased_at" timestamp with time zone,
	"created_at" timestamp with time zone,
	"membership_purchase_details" jsonb,
	"membership_name" varchar GENERATED ALWAYS AS (membership_purchase_details ->> 'name') STORED,
	"membership_source" varchar GENERATED ALWAYS AS (membership_purchase_details ->> 'source') STORED,
	CONSTRAINT "fct_membership_purchases_user_id_user_membership_id_pk" PRIMARY KEY("user_id","user_membership_id"),
	CONSTRAINT "fct_membership_purchases_membership_purchased_at_check" CHECK ("membership_purchased_at" >= '0001-01-01 00:00:00+00' and "membership_purchased_at" < '10000-01-01 00:00:00+00'),
	CONSTRAINT "fct_membership_purchases_created_at_check" CHECK ("created_at" >= '0001-01-01 00:00:00+00' and "created_at" < '10000-01-01 00:00:00+00'),
	CONSTRAINT "fct_membership_purchases_membership_purchase_details_check" CHECK (jsonb_typeof("membership_purchase_details") in ('object', 'null')),
	CONSTRAINT "fct_membership_purchases_details_check" CHECK (octet_length("membership_purchase_details" ->> 'name') <= 1000 and octet_length("membership_purchase_details" ->> 'source') <= 1000),
	CONSTRAINT "fct_membership_purchases_user_id_check" CHECK (octet_length("user_id") <= 255),
	CONSTRAINT "fct_membership_purchases_branch_id_check" CHECK (octet_length("branch_id") <= 255),
	CONSTRAINT "fct_membership_purchases_user_membership_id_check" CHECK (octet_length("user_membership_id") <= 255)
);--> statement-breakpoint
ALTER TABLE "public"."fct_membership_purchases" ADD CONSTRAINT "fct_membership_purchases_user_id_dim_user_user_id_fk" FOREIGN KEY ("user_id") REFERENCES "public"."dim_user"("user_id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "public"."fct_membership_purchases" ADD CONSTRAINT "fct_membership_purchases_branch_id_dim_branch_branch_id_fk" FOREIGN KEY ("branch_id") REFERENCES "public"."dim_branch"("branch_id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
CREATE INDEX "fct_membership_purchases_first" ON "public"."fct_membership_purchases" USING btree ("user_id","membership_purchased_at","user_membership_id","membership_name","membership_source");--> statement-breakpoint
COMMENT ON TABLE "public"."fct_membership_purchases" IS 'One row per membership that a user bought.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_membership_purchases"."user_id" IS 'User who bought the membership.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_membership_purchases"."branch_id" IS 'Branch that sold the membership. It can differ from the branch of the user.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_membership_purchases"."user_membership_id" IS 'Identifier of the purchased membership within its user.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_membership_purchases"."membership_purchased_at" IS 'Instant at which the membership was purchased. NULL counts as later than any time.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_membership_purchases"."created_at" IS 'Instant at which the membership was created.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_membership_purchases"."membership_purchase_details" IS 'Details of the purchase from upstream: a JSON object with the name of the membership and the source of the purchase, each of at most 1,000 bytes, or JSON null.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_membership_purchases"."membership_name" IS 'Name of the membership. Derived from the key "name" of membership_purchase_details, and NULL if the details have none. Write the details, not this column.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_membership_purchases"."membership_source" IS 'Source of the purchase. Derived from the key "source" of membership_purchase_details, and NULL if the details have none. Write the details, not this column.';--> statement-breakpoint
COMMENT ON CONSTRAINT "fct_membership_purchases_branch_id_check" ON "public"."fct_membership_purchases" IS 'must be at most 255 bytes long';--> statement-breakpoint
COMMENT ON CONSTRAINT "fct_membership_purchases_created_at_check" ON "public"."fct_membership_purchases" IS 'must be in the years 1 to 9999 (UTC)';--> statement-breakpoint
COMMENT ON CONSTRAINT "fct_membership_purchases_details_check" ON "public"."fct_membership_purchases" IS 'must not have a name or a source of more than 1,000 bytes';--> statement-breakpoint
COMMENT ON CONSTRAINT "fct_membership_purchases_membership_purchase_details_check" ON "public"."fct_membership_purchases" IS 'must be a JSON object, or JSON null';--> statement-breakpoint
COMMENT ON CONSTRAINT "fct_membership_purchases_membership_purchased_at_check" ON "public"."fct_membership_purchases" IS 'must be in the years 1 to 9999 (UTC)';--> statement-breakpoint
COMMENT ON CONSTRAINT "fct_membership_purchases_user_id_check" ON "public"."fct_membership_purchases" IS 'must be at most 255 bytes long';--> statement-breakpoint
COMMENT ON CONSTRAINT "fct_membership_purchases_user_membership_id_check" ON "public"."fct_membership_purchases" IS 'must be at most 255 bytes long';--> statement-breakpoint
COMMENT ON INDEX "public"."fct_membership_purchases_first" IS 'The purchases of a user, ordered so the first purchase comes first, with all columns that the views show of it. The first purchase is read from the index alone.';--> statement-breakpoint

-- One row per file that was loaded into an input table, written in the
-- transaction of the load. It shows how old the input is and what the loads
-- did. A load locks this table, so only one load runs at a time. Old rows may
-- be deleted.
CREATE TABLE "public"."input_loads" (
	"id" bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY (sequence name "public"."input_loads_id_seq" INCREMENT BY 1 MINVALUE 1 MAXVALUE 9223372036854775807 START WITH 1 CACHE 1),
	"input_table" varchar NOT NULL,
	"started_at" timestamp with time zone NOT NULL,
	"finished_at" timestamp with time zone NOT NULL,
	"is_snapshot" boolean NOT NULL,
	"rows" bigint NOT NULL,
	"inserted" bigint NOT NULL,
	"updated" bigint NOT NULL,
	"deleted" bigint NOT NULL,
	"package_version" varchar NOT NULL
);--> statement-breakpoint
COMMENT ON TABLE "public"."input_loads" IS 'One row per file that was loaded into an input table, written in the transaction of the load. It shows how old the input is and what the loads did. A load locks this table, so only one load runs at a time. Old rows may be deleted.';--> statement-breakpoint
COMMENT ON COLUMN "public"."input_loads"."id" IS 'Number of the row. A later load has a higher one.';--> statement-breakpoint
COMMENT ON COLUMN "public"."input_loads"."input_table" IS 'Name of the input table.';--> statement-breakpoint
COMMENT ON COLUMN "public"."input_loads"."started_at" IS 'Instant at which the load began, the same for all files of one load.';--> statement-breakpoint
COMMENT ON COLUMN "public"."input_loads"."finished_at" IS 'Instant at which the rows of the file were stored.';--> statement-breakpoint
COMMENT ON COLUMN "public"."input_loads"."is_snapshot" IS 'Whether the file was a snapshot of the whole table. Then rows that were not in the file were deleted.';--> statement-breakpoint
COMMENT ON COLUMN "public"."input_loads"."rows" IS 'Records in the file.';--> statement-breakpoint
COMMENT ON COLUMN "public"."input_loads"."inserted" IS 'Rows that were new to the table.';--> statement-breakpoint
COMMENT ON COLUMN "public"."input_loads"."updated" IS 'Rows whose key was in the table with different values.';--> statement-breakpoint
COMMENT ON COLUMN "public"."input_loads"."deleted" IS 'Rows that were in the table but not in the file. 0 if the file was not a snapshot.';--> statement-breakpoint
COMMENT ON COLUMN "public"."input_loads"."package_version" IS 'Version of lead-conversions that loaded the file.';--> statement-breakpoint

-- One row per view and refresh, written in the transaction of the refresh. It
-- shows how fresh each view is and what the refreshes did. The latest row of a
-- view is the one with the highest id for this server. The next refresh needs
-- it. Older rows may be deleted.
CREATE TABLE "public"."view_refreshes" (
	"id" bigint PRIMARY KEY GENERATED ALWAYS AS IDENTITY (sequence name "public"."view_refreshes_id_seq" INCREMENT BY 1 MINVALUE 1 MAXVALUE 9223372036854775807 START WITH 1 CACHE 1),
	"view" varchar NOT NULL,
	"started_at" timestamp with time zone NOT NULL,
	"finished_at" timestamp with time zone NOT NULL,
	"mode" varchar NOT NULL,
	"rows" bigint NOT NULL,
	"inserted" bigint NOT NULL,
	"deleted" bigint NOT NULL,
	"duration_ms" bigint NOT NULL,
	"package_version" varchar NOT NULL,
	"server" varchar NOT NULL,
	"basis" jsonb
);--> statement-breakpoint
COMMENT ON TABLE "public"."view_refreshes" IS 'One row per view and refresh, written in the transaction of the refresh. It shows how fresh each view is and what the refreshes did. The latest row of a view is the one with the highest id for this server. The next refresh needs it. Older rows may be deleted.';--> statement-breakpoint
COMMENT ON COLUMN "public"."view_refreshes"."id" IS 'Number of the row. A later refresh has a higher one.';--> statement-breakpoint
COMMENT ON COLUMN "public"."view_refreshes"."view" IS 'Name of the view.';--> statement-breakpoint
COMMENT ON COLUMN "public"."view_refreshes"."started_at" IS 'Instant at which the refresh began, the same for all views of one refresh. The view shows everything that was committed by then.';--> statement-breakpoint
COMMENT ON COLUMN "public"."view_refreshes"."finished_at" IS 'Instant at which this view had been brought up to date. Readers see the result after the commit, once all views are up to date.';--> statement-breakpoint
COMMENT ON COLUMN "public"."view_refreshes"."mode" IS 'How the view was brought up to date. concurrently: the rows that differed were changed. populate: a plain REFRESH filled a view that was not populated. unchanged: nothing was done, because nothing that the view reads had changed.';--> statement-breakpoint
COMMENT ON COLUMN "public"."view_refreshes"."rows" IS 'Rows in the view after the refresh.';--> statement-breakpoint
COMMENT ON COLUMN "public"."view_refreshes"."inserted" IS 'Rows that the refresh inserted. A changed row is one deleted and one inserted.';--> statement-breakpoint
COMMENT ON COLUMN "public"."view_refreshes"."deleted" IS 'Rows that the refresh deleted.';--> statement-breakpoint
COMMENT ON COLUMN "public"."view_refreshes"."duration_ms" IS 'How long the refresh of this view took, in milliseconds.';--> statement-breakpoint
COMMENT ON COLUMN "public"."view_refreshes"."package_version" IS 'Version of lead-conversions that refreshed the view.';--> statement-breakpoint
COMMENT ON COLUMN "public"."view_refreshes"."server" IS 'Server on which the refresh ran: system_identifier of pg_control_system(). Rows of another server came here with a copy of the data, and say nothing about the views here.';--> statement-breakpoint
COMMENT ON COLUMN "public"."view_refreshes"."basis" IS 'What the refresh saw of the view and of everything that the view reads. The next refresh compares it with what it sees, to know whether anything has changed. NULL if the refresh could not see everything: the next one then recomputes the view.';--> statement-breakpoint

-- With this setting, REFRESH fails if row-level security hides rows from the
-- owner of a view, instead of filling the view with the other rows.
SET LOCAL row_security TO off;--> statement-breakpoint

-- One row per user, leads included: the first membership, the first credit
-- pack, and, in the columns client_conversion_..., whichever of the two came
-- first. Local times are in the time zone of the branch in branch_id, or in UTC
-- if there is none.
CREATE MATERIALIZED VIEW "public"."fct_client_conversion_events" AS (
with

-- One row per user who ever bought a membership: the first one. The earliest
-- instant wins. A purchase without a time comes after every dated one and still
-- counts. Of purchases at the same instant, the lowest identifier in byte order
-- wins, so every refresh picks the same one.
first_memberships as (

    select distinct on (user_id)
        user_id,
        user_membership_id,
        membership_purchased_at,
        membership_name,
        membership_source
    from public.fct_membership_purchases
    order by
        user_id asc,
        membership_purchased_at asc nulls last,
        user_membership_id asc

),

-- One row per user who ever bought a credit pack: the first one, by the same
-- rule.
first_credit_packs as (

    select distinct on (user_id)
        user_id,
        credit_pack_id,
        credit_pack_purchased_at,
        credit_pack_name,
        credit_pack_source
    from public.fct_credit_pack_purchases
    order by
        user_id asc,
        credit_pack_purchased_at asc nulls last,
        credit_pack_id asc

),

-- One row per user, leads included, with the clock that all local times of the
-- user follow: that of the user's own branch, wherever a purchase was made. A
-- user without a branch and a branch without a time zone are on UTC.
users as (

    select
        dim_user.user_id,
        dim_user.branch_id,
        dim_user.created_at,
        coalesce(dim_branch.timezone_id, 'UTC') as timezone_id
    from public.dim_user
    left join public.dim_branch
        on dim_user.branch_id = dim_branch.branch_id

),

-- One row per user, leads included: both first purchases side by side, in the
-- user's local time.
user_first_purchases as (

    select
        users.user_id,
        users.branch_id,
        users.created_at at time zone users.timezone_id
            as local_user_created_at,

        -- Which kind came first is decided by instant, before any time zone
        -- is applied. A purchase without a time counts as later than every
        -- dated one, and so does one that was never made. If both have the
        -- same instant, or neither has a time, the membership converts. NULL
        -- for a lead, who has bought neither.
        case
            when
                coalesce(
                    first_credit_packs.credit_pack_purchased_at, 'infinity'
                )
                < coalesce(
                    first_memberships.membership_purchased_at, 'infinity'
                )
                then 'USER_CREDIT'
            when first_memberships.user_membership_id is not null
                then 'MEMBERSHIP'
            when first_credit_packs.credit_pack_id is not null
                then 'USER_CREDIT'
        end as conversion_event_type,

        first_memberships.user_membership_id,
        first_memberships.membership_purchased_at
            at time zone users.timezone_id as local_membership_purchased_at,
        first_memberships.membership_name,
        first_memberships.membership_source,
        first_credit_packs.credit_pack_id,
        first_credit_packs.credit_pack_purchased_at
            at time zone users.timezone_id as local_credit_pack_purchased_at,
        first_credit_packs.credit_pack_name,
        first_credit_packs.credit_pack_source
    from users
    left join first_memberships
        on users.user_id = first_memberships.user_id
    left join first_credit_packs
        on users.user_id = first_credit_packs.user_id

    -- For speed: this order keeps Postgres from merging this query into the one
    -- below, so it computes the columns above only once per row.
    order by users.user_id

)

-- One row per user: the columns of figure 1.4.1 of the brief. Those that begin
-- with client_conversion_ repeat the first purchase of the kind that came first.
--
-- For speed: the rows are in the byte order of user_id. REFRESH MATERIALIZED
-- VIEW CONCURRENTLY sorts all new rows that contain no NULL by their bytes, to
-- look for duplicates. Rows that are already in order take little time to sort.
select
    user_id,
    branch_id,
    local_user_created_at,
    case
        when conversion_event_type is null then 'LEAD'
        else 'CLIENT'
    end::varchar as lead_status,
    conversion_event_type::varchar as client_conversion_event_type,
    case conversion_event_type
        when 'MEMBERSHIP' then user_membership_id
        when 'USER_CREDIT' then credit_pack_id
    end as client_conversion_event_id,
    case conversion_event_type
        when 'MEMBERSHIP' then local_membership_purchased_at
        when 'USER_CREDIT' then local_credit_pack_purchased_at
    end as client_conversion_event_local_created_at,
    case conversion_event_type
        when 'MEMBERSHIP' then membership_name
        when 'USER_CREDIT' then credit_pack_name
    end as client_conversion_event_name,
    case conversion_event_type
        when 'MEMBERSHIP' then membership_source
        when 'USER_CREDIT' then credit_pack_source
    end as client_conversion_event_source,
    user_membership_id as first_user_membership_id,
    local_membership_purchased_at as first_local_membership_purchased_at,
    membership_name as first_membership_name,
    membership_source as first_membership_source,
    credit_pack_id as first_credit_pack_id,
    local_credit_pack_purchased_at as first_local_credit_pack_purchase_at,
    credit_pack_name as first_credit_pack_name,
    credit_pack_source as first_credit_pack_source
from user_first_purchases
order by user_id
) WITH NO DATA;--> statement-breakpoint
REFRESH MATERIALIZED VIEW "public"."fct_client_conversion_events";--> statement-breakpoint
CREATE UNIQUE INDEX "fct_client_conversion_events_user_id_key" ON "public"."fct_client_conversion_events" USING btree ("user_id");--> statement-breakpoint
COMMENT ON MATERIALIZED VIEW "public"."fct_client_conversion_events" IS 'One row per user, leads included: the first membership, the first credit pack, and, in the columns client_conversion_..., whichever of the two came first. Local times are in the time zone of the branch in branch_id, or in UTC if there is none.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_client_conversion_events"."user_id" IS 'Identifier of the user.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_client_conversion_events"."branch_id" IS 'Branch of the user. All local times in the row are in the time zone of this branch, or in UTC if the user has no branch or the branch has no time zone.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_client_conversion_events"."local_user_created_at" IS 'Local time at which the user was created.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_client_conversion_events"."lead_status" IS 'CLIENT once the user has bought a membership or a credit pack, LEAD before.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_client_conversion_events"."client_conversion_event_type" IS 'Kind of purchase that came first, MEMBERSHIP or USER_CREDIT (a credit pack). MEMBERSHIP if both came at the same instant or neither has a time. NULL for a lead.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_client_conversion_events"."client_conversion_event_id" IS 'Identifier of the purchase that came first.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_client_conversion_events"."client_conversion_event_local_created_at" IS 'Local time of the purchase that came first. NULL for a lead, and if upstream gave no time.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_client_conversion_events"."client_conversion_event_name" IS 'Name of the product bought in the purchase that came first.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_client_conversion_events"."client_conversion_event_source" IS 'Source of the purchase that came first.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_client_conversion_events"."first_user_membership_id" IS 'Identifier of the first membership that the user bought.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_client_conversion_events"."first_local_membership_purchased_at" IS 'Local time at which the first membership was purchased.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_client_conversion_events"."first_membership_name" IS 'Name of the first membership.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_client_conversion_events"."first_membership_source" IS 'Source of the purchase of the first membership.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_client_conversion_events"."first_credit_pack_id" IS 'Identifier of the first credit pack that the user bought.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_client_conversion_events"."first_local_credit_pack_purchase_at" IS 'Local time at which the first credit pack was purchased.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_client_conversion_events"."first_credit_pack_name" IS 'Name of the first credit pack.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_client_conversion_events"."first_credit_pack_source" IS 'Source of the purchase of the first credit pack.';--> statement-breakpoint
COMMENT ON INDEX "public"."fct_client_conversion_events_user_id_key" IS 'One row per user_id. REFRESH MATERIALIZED VIEW CONCURRENTLY needs it.';--> statement-breakpoint
ANALYZE "public"."fct_client_conversion_events";--> statement-breakpoint

-- One row per user and filter, so three per user, leads included: the purchase
-- that converted the user, if only the purchases that
-- client_conversion_event_filter names count as a conversion. Local times are
-- in the time zone of the branch in branch_id, or in UTC if there is none.
CREATE MATERIALIZED VIEW "public"."fct_lead_conversions" AS (
with

-- One row per filter that report users can choose: what a gym may count as a
-- conversion. Product owns this list. A new filter is a new line, which says
-- which kinds of purchase it considers. (With a third kind of purchase, a filter
-- could consider two of the three. It would then take the earliest of these by
-- instant, with ties as in fct_client_conversion_events. That view would have to
-- return the instants of all first purchases, because local times do not show
-- which one came first.)
conversion_filters (
    client_conversion_event_filter,
    considers_memberships,
    considers_credit_packs
) as (

    values
        ('MEMBERSHIP'::varchar, true, false),
        ('USER_CREDIT'::varchar, false, true),
        ('ALL'::varchar, true, true)

),

-- One row per user and filter: the kind of purchase that converts the user, if
-- only the purchases that the filter considers count. NULL for a lead.
filtered_conversions as (

    select
        events.user_id,
        events.branch_id,
        events.local_user_created_at,
        conversion_filters.client_conversion_event_filter,

        -- If the filter considers both kinds, the one that came first converts.
        -- fct_client_conversion_events has decided this by instant.
        case
            when
                conversion_filters.considers_memberships
                and conversion_filters.considers_credit_packs
                then events.client_conversion_event_type
            when
                conversion_filters.considers_memberships
                and events.first_user_membership_id is not null
                then 'MEMBERSHIP'
            when
                conversion_filters.considers_credit_packs
                and events.first_credit_pack_id is not null
                then 'USER_CREDIT'
        end as client_conversion_event_type,

        events.first_user_membership_id,
        events.first_local_membership_purchased_at,
        events.first_membership_name,
        events.first_membership_source,
        events.first_credit_pack_id,
        events.first_local_credit_pack_purchase_at,
        events.first_credit_pack_name,
        events.first_credit_pack_source
    from public.fct_client_conversion_events as events
    cross join conversion_filters

    -- For speed: this order keeps Postgres from merging this query into the one
    -- below, so it computes the type only once per row.
    order by
        user_id asc,
        client_conversion_event_type asc nulls last,
        client_conversion_event_filter asc

)

-- One row per user and filter: the columns of figure 1.4.2 of the brief. A user
-- who bought only what the filter does not consider is a LEAD in this row,
-- without a conversion.
--
-- For speed: the rows are in the order of their bytes, column by column. The
-- columns between user_id and lead_status are the same in all rows of a user. A
-- CLIENT comes before a LEAD, whose type is NULL. The columns between type and
-- filter follow from the type. REFRESH MATERIALIZED VIEW CONCURRENTLY sorts all
-- rows that contain no NULL in this order to look for duplicates, so its sort
-- has little to do.
select
    user_id,
    branch_id,
    local_user_created_at,
    case
        when client_conversion_event_type is null then 'LEAD'
        else 'CLIENT'
    end::varchar as lead_status,
    client_conversion_event_type,
    case client_conversion_event_type
        when 'MEMBERSHIP' then first_user_membership_id
        when 'USER_CREDIT' then first_credit_pack_id
    end as client_conversion_event_id,
    case client_conversion_event_type
        when 'MEMBERSHIP' then first_local_membership_purchased_at
        when 'USER_CREDIT' then first_local_credit_pack_purchase_at
    end as client_conversion_event_local_created_at,
    case client_conversion_event_type
        when 'MEMBERSHIP' then first_membership_name
        when 'USER_CREDIT' then first_credit_pack_name
    end as client_conversion_event_name,
    case client_conversion_event_type
        when 'MEMBERSHIP' then first_membership_source
        when 'USER_CREDIT' then first_credit_pack_source
    end as client_conversion_event_source,
    client_conversion_event_filter
from filtered_conversions
order by
    user_id asc,
    client_conversion_event_type asc nulls last,
    client_conversion_event_filter asc
) WITH NO DATA;--> statement-breakpoint
REFRESH MATERIALIZED VIEW "public"."fct_lead_conversions";--> statement-breakpoint
CREATE INDEX "fct_lead_conversions_branch_id_local_user_created_at_idx" ON "public"."fct_lead_conversions" USING btree ("branch_id","local_user_created_at");--> statement-breakpoint
CREATE UNIQUE INDEX "fct_lead_conversions_user_id_client_conversion_event_filter_key" ON "public"."fct_lead_conversions" USING btree ("user_id","client_conversion_event_filter");--> statement-breakpoint
COMMENT ON MATERIALIZED VIEW "public"."fct_lead_conversions" IS 'One row per user and filter, so three per user, leads included: the purchase that converted the user, if only the purchases that client_conversion_event_filter names count as a conversion. Local times are in the time zone of the branch in branch_id, or in UTC if there is none.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_lead_conversions"."user_id" IS 'Identifier of the user.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_lead_conversions"."branch_id" IS 'Branch of the user. All local times in the row are in the time zone of this branch, or in UTC if the user has no branch or the branch has no time zone.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_lead_conversions"."local_user_created_at" IS 'Local time at which the user was created.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_lead_conversions"."lead_status" IS 'CLIENT if the user has bought anything that the filter counts, otherwise LEAD.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_lead_conversions"."client_conversion_event_type" IS 'Kind of the converting purchase, MEMBERSHIP or USER_CREDIT (a credit pack). NULL for a lead.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_lead_conversions"."client_conversion_event_id" IS 'Identifier of the converting purchase.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_lead_conversions"."client_conversion_event_local_created_at" IS 'Local time of the converting purchase. NULL for a lead, and if upstream gave no time.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_lead_conversions"."client_conversion_event_name" IS 'Name of the product bought in the converting purchase.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_lead_conversions"."client_conversion_event_source" IS 'Source of the converting purchase.';--> statement-breakpoint
COMMENT ON COLUMN "public"."fct_lead_conversions"."client_conversion_event_filter" IS 'Purchases that count as a conversion in this row. MEMBERSHIP: only memberships. USER_CREDIT: only credit packs. ALL: both. A query should name exactly one of the three.';--> statement-breakpoint
COMMENT ON INDEX "public"."fct_lead_conversions_branch_id_local_user_created_at_idx" IS 'Finds the users of a branch, and among them those created between two dates.';--> statement-breakpoint
COMMENT ON INDEX "public"."fct_lead_conversions_user_id_client_conversion_event_filter_key" IS 'One row per user_id and client_conversion_event_filter. REFRESH MATERIALIZED VIEW CONCURRENTLY needs it.';--> statement-breakpoint
ANALYZE "public"."fct_lead_conversions";--> statement-breakpoint

-- Roles belong to the whole server, so the migration of another database may
-- have created this one, or may be creating it now.
DO $$
BEGIN
	IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'lead_conversions_reader') THEN
		IF NOT (SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user) THEN
			RAISE EXCEPTION 'The role lead_conversions_reader does not exist, and the role % may not create roles. Have an administrator run "create role lead_conversions_reader", then migrate again.', current_user
				USING ERRCODE = 'insufficient_privilege';
		END IF;
		CREATE ROLE "lead_conversions_reader" NOLOGIN;
		COMMENT ON ROLE "lead_conversions_reader" IS 'Members may read these objects of lead-conversions in every database of this server, and no others: fct_client_conversion_events, fct_lead_conversions, view_refreshes, and the columns of dim_branch that name a branch.';
	END IF;
EXCEPTION
	WHEN duplicate_object OR unique_violation THEN
		IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'lead_conversions_reader') THEN
			RAISE;
		END IF;
END
$$;--> statement-breakpoint

-- The default privileges of a database may give other roles privileges on new
-- objects. This revokes them all. The declared grants follow.
DO $$
DECLARE
	relations regclass[] := ARRAY[
		'"public"."dim_branch"',
		'"public"."dim_user"',
		'"public"."fct_credit_pack_purchases"',
		'"public"."fct_membership_purchases"',
		'"public"."input_loads"',
		'"public"."view_refreshes"',
		'"public"."fct_client_conversion_events"',
		'"public"."fct_lead_conversions"',
		'drizzle.lead_conversions_migrations'
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
		WHERE grantee <> relowner
		UNION
		SELECT format('SCHEMA %I', nspname), grantee
		FROM pg_namespace, aclexplode(nspacl)
		WHERE nspname = 'drizzle'
			AND nspowner = current_user::regrole
			AND grantee <> nspowner
			AND NOT EXISTS (
				SELECT FROM pg_class
				WHERE relnamespace = pg_namespace.oid AND relkind = 'r' AND oid <> ALL (relations)
			)
	LOOP
		EXECUTE format(
			'REVOKE ALL ON %s FROM %s CASCADE',
			granted.object,
			CASE granted.grantee WHEN 0 THEN 'PUBLIC' ELSE granted.grantee::regrole::text END
		);
	END LOOP;
END
$$;--> statement-breakpoint
GRANT USAGE ON SCHEMA "public" TO "lead_conversions_reader";--> statement-breakpoint
DO $$
BEGIN
	IF NOT has_schema_privilege('lead_conversions_reader', 'public', 'USAGE') THEN
		RAISE EXCEPTION 'The role % may not grant usage on the schema public. Have its owner run "grant usage on schema public to lead_conversions_reader", then migrate again.', current_user
			USING ERRCODE = 'insufficient_privilege';
	END IF;
END
$$;--> statement-breakpoint
GRANT SELECT ("branch_id", "city", "country", "name", "timezone_id") ON "public"."dim_branch" TO "lead_conversions_reader";--> statement-breakpoint
GRANT SELECT ON "public"."view_refreshes" TO "lead_conversions_reader";--> statement-breakpoint
GRANT SELECT ON "public"."fct_client_conversion_events" TO "lead_conversions_reader";--> statement-breakpoint
GRANT SELECT ON "public"."fct_lead_conversions" TO "lead_conversions_reader";
