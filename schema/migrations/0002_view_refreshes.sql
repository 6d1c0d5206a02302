-- The history of the refreshes, from which everybody can tell how fresh the
-- views are, and the role that report users are given to read them.
CREATE TABLE "view_refreshes" (
	"view" varchar NOT NULL,
	"started_at" timestamp with time zone NOT NULL,
	"finished_at" timestamp with time zone NOT NULL,
	"mode" varchar NOT NULL,
	"rows" bigint NOT NULL,
	"inserted" bigint NOT NULL,
	"deleted" bigint NOT NULL,
	"duration_ms" bigint NOT NULL,
	"package_version" varchar NOT NULL,
	"fingerprint" numeric NOT NULL,
	CONSTRAINT "view_refreshes_view_started_at_pk" PRIMARY KEY("view","started_at")
);
--> statement-breakpoint
COMMENT ON TABLE "view_refreshes" IS 'One row per view and refresh, written in the transaction of the refresh: how fresh each view is, and what the refreshes did. A refresh reads the latest row of each view; older ones may be deleted.';--> statement-breakpoint
COMMENT ON COLUMN "view_refreshes"."view" IS 'Name of the view.';--> statement-breakpoint
COMMENT ON COLUMN "view_refreshes"."started_at" IS 'Instant at which the refresh began, the same for all views of one refresh. The view holds all that was committed by then.';--> statement-breakpoint
COMMENT ON COLUMN "view_refreshes"."finished_at" IS 'Instant at which the view was up to date. Readers saw it with the commit, once all views were.';--> statement-breakpoint
COMMENT ON COLUMN "view_refreshes"."mode" IS 'How the view was brought up to date: concurrently, by changing the rows that differed; populate, by a plain REFRESH of a view that was not populated; unchanged, by nothing, because nothing that it reads had changed.';--> statement-breakpoint
COMMENT ON COLUMN "view_refreshes"."rows" IS 'Rows in the view after the refresh.';--> statement-breakpoint
COMMENT ON COLUMN "view_refreshes"."inserted" IS 'Rows that the refresh inserted. A changed row is one deleted and one inserted.';--> statement-breakpoint
COMMENT ON COLUMN "view_refreshes"."deleted" IS 'Rows that the refresh deleted.';--> statement-breakpoint
COMMENT ON COLUMN "view_refreshes"."duration_ms" IS 'How long the refresh of this view took, in milliseconds.';--> statement-breakpoint
COMMENT ON COLUMN "view_refreshes"."package_version" IS 'Version of lead-conversions that refreshed the view.';--> statement-breakpoint
COMMENT ON COLUMN "view_refreshes"."fingerprint" IS 'Sum of the ids of the transactions that wrote the rows of the view (xmin). Tells the next refresh whether anybody has changed the view since.';--> statement-breakpoint
-- Roles belong to the whole server, so that another database may have made this
-- one before, or be making it at this moment.
DO $$
BEGIN
	IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'lead_conversions_reader') THEN
		IF NOT (SELECT rolsuper OR rolcreaterole FROM pg_roles WHERE rolname = current_user) THEN
			RAISE EXCEPTION 'The role lead_conversions_reader is not there, and the role % may not create roles. Have an administrator run "create role lead_conversions_reader", then migrate again.', current_user
				USING ERRCODE = 'insufficient_privilege';
		END IF;
		CREATE ROLE "lead_conversions_reader" NOLOGIN;
		COMMENT ON ROLE "lead_conversions_reader" IS 'Members may read the reports of lead-conversions, and nothing else of it: fct_client_conversion_events, fct_lead_conversions and view_refreshes.';
	END IF;
EXCEPTION
	WHEN duplicate_object OR unique_violation THEN
		IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'lead_conversions_reader') THEN
			RAISE;
		END IF;
END
$$;--> statement-breakpoint
GRANT USAGE ON SCHEMA "public" TO "lead_conversions_reader";--> statement-breakpoint
GRANT SELECT ON "fct_client_conversion_events", "fct_lead_conversions", "view_refreshes" TO "lead_conversions_reader";
