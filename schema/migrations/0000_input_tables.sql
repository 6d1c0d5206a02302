-- The four input tables, as upstream delivers them: branches, users and the two
-- kinds of purchase that turn a lead into a client. The CHECKs refuse a row that
-- would make the refresh of the views fail for everybody. The two indexes named
-- ..._first hold each user's purchases in the order in which the first is found.
CREATE TABLE "dim_branch" (
	"branch_id" varchar COLLATE "C" PRIMARY KEY NOT NULL,
	"name" varchar,
	"email" varchar,
	"city" varchar,
	"country" varchar,
	"timezone_id" varchar,
	"created_at" timestamp with time zone,
	CONSTRAINT "dim_branch_timezone_id_check" CHECK ("dim_branch"."timezone_id" is null or "dim_branch"."timezone_id" ~* '^([a-z]+(/[a-z_-]+)+|Etc/GMT(0|[+-][0-9]|[+]1[0-2]|-1[0-4])|UTC|GMT|GMT[+-]?0|UCT|Greenwich|Universal|Zulu|CST6CDT|EST5EDT|MST7MDT|PST8PDT|Navajo|Cuba|Egypt|Eire|GB|GB-Eire|Hongkong|Iceland|Iran|Israel|Jamaica|Japan|Kwajalein|Libya|NZ|NZ-CHAT|Poland|Portugal|PRC|ROC|ROK|Singapore|Turkey|W-SU)$' and timezone("dim_branch"."timezone_id", to_timestamp(0)) is not null),
	CONSTRAINT "dim_branch_created_at_check" CHECK ("dim_branch"."created_at" >= '0001-01-01 00:00:00+00' and "dim_branch"."created_at" < '10000-01-01 00:00:00+00')
);
--> statement-breakpoint
CREATE TABLE "dim_user" (
	"user_id" varchar COLLATE "C" PRIMARY KEY NOT NULL,
	"branch_id" varchar COLLATE "C",
	"name" varchar,
	"email" varchar,
	"created_at" timestamp with time zone,
	CONSTRAINT "dim_user_created_at_check" CHECK ("dim_user"."created_at" >= '0001-01-01 00:00:00+00' and "dim_user"."created_at" < '10000-01-01 00:00:00+00')
);
--> statement-breakpoint
CREATE TABLE "fct_credit_pack_purchases" (
	"user_id" varchar COLLATE "C" NOT NULL,
	"branch_id" varchar COLLATE "C",
	"credit_pack_id" varchar COLLATE "C" NOT NULL,
	"credit_pack_purchased_at" timestamp with time zone,
	"created_at" timestamp with time zone,
	"credit_pack_purchase_details" jsonb,
	CONSTRAINT "fct_credit_pack_purchases_user_id_credit_pack_id_pk" PRIMARY KEY("user_id","credit_pack_id"),
	CONSTRAINT "fct_credit_pack_purchases_credit_pack_purchased_at_check" CHECK ("fct_credit_pack_purchases"."credit_pack_purchased_at" >= '0001-01-01 00:00:00+00' and "fct_credit_pack_purchases"."credit_pack_purchased_at" < '10000-01-01 00:00:00+00'),
	CONSTRAINT "fct_credit_pack_purchases_created_at_check" CHECK ("fct_credit_pack_purchases"."created_at" >= '0001-01-01 00:00:00+00' and "fct_credit_pack_purchases"."created_at" < '10000-01-01 00:00:00+00'),
	CONSTRAINT "fct_credit_pack_purchases_credit_pack_purchase_details_check" CHECK (jsonb_typeof("fct_credit_pack_purchases"."credit_pack_purchase_details") in ('object', 'null'))
);
--> statement-breakpoint
CREATE TABLE "fct_membership_purchases" (
	"user_id" varchar COLLATE "C" NOT NULL,
	"branch_id" varchar COLLATE "C",
	"user_membership_id" varchar COLLATE "C" NOT NULL,
	"membership_purchased_at" timestamp with time zone,
	"created_at" timestamp with time zone,
	"membership_purchase_details" jsonb,
	CONSTRAINT "fct_membership_purchases_user_id_user_membership_id_pk" PRIMARY KEY("user_id","user_membership_id"),
	CONSTRAINT "fct_membership_purchases_membership_purchased_at_check" CHECK ("fct_membership_purchases"."membership_purchased_at" >= '0001-01-01 00:00:00+00' and "fct_membership_purchases"."membership_purchased_at" < '10000-01-01 00:00:00+00'),
	CONSTRAINT "fct_membership_purchases_created_at_check" CHECK ("fct_membership_purchases"."created_at" >= '0001-01-01 00:00:00+00' and "fct_membership_purchases"."created_at" < '10000-01-01 00:00:00+00'),
	CONSTRAINT "fct_membership_purchases_membership_purchase_details_check" CHECK (jsonb_typeof("fct_membership_purchases"."membership_purchase_details") in ('object', 'null'))
);
--> statement-breakpoint
ALTER TABLE "dim_user" ADD CONSTRAINT "dim_user_branch_id_dim_branch_branch_id_fk" FOREIGN KEY ("branch_id") REFERENCES "public"."dim_branch"("branch_id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "fct_credit_pack_purchases" ADD CONSTRAINT "fct_credit_pack_purchases_user_id_dim_user_user_id_fk" FOREIGN KEY ("user_id") REFERENCES "public"."dim_user"("user_id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "fct_credit_pack_purchases" ADD CONSTRAINT "fct_credit_pack_purchases_branch_id_dim_branch_branch_id_fk" FOREIGN KEY ("branch_id") REFERENCES "public"."dim_branch"("branch_id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "fct_membership_purchases" ADD CONSTRAINT "fct_membership_purchases_user_id_dim_user_user_id_fk" FOREIGN KEY ("user_id") REFERENCES "public"."dim_user"("user_id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
ALTER TABLE "fct_membership_purchases" ADD CONSTRAINT "fct_membership_purchases_branch_id_dim_branch_branch_id_fk" FOREIGN KEY ("branch_id") REFERENCES "public"."dim_branch"("branch_id") ON DELETE no action ON UPDATE no action;--> statement-breakpoint
CREATE INDEX "fct_credit_pack_purchases_first" ON "fct_credit_pack_purchases" USING btree ("user_id","credit_pack_purchased_at","credit_pack_id");--> statement-breakpoint
CREATE INDEX "fct_membership_purchases_first" ON "fct_membership_purchases" USING btree ("user_id","membership_purchased_at","user_membership_id");--> statement-breakpoint
COMMENT ON TABLE "dim_branch" IS 'One row per branch of a gym.';--> statement-breakpoint
COMMENT ON COLUMN "dim_branch"."branch_id" IS 'Identifier of the branch.';--> statement-breakpoint
COMMENT ON COLUMN "dim_branch"."name" IS 'Name of the branch.';--> statement-breakpoint
COMMENT ON COLUMN "dim_branch"."email" IS 'E-mail address of the branch.';--> statement-breakpoint
COMMENT ON COLUMN "dim_branch"."city" IS 'City where the branch is.';--> statement-breakpoint
COMMENT ON COLUMN "dim_branch"."country" IS 'Country where the branch is.';--> statement-breakpoint
COMMENT ON COLUMN "dim_branch"."timezone_id" IS 'IANA time zone of the branch, such as Europe/Dublin. It is the clock of the local times of the branch and of its users in every report. NULL counts as UTC.';--> statement-breakpoint
COMMENT ON COLUMN "dim_branch"."created_at" IS 'Instant at which the branch was created.';--> statement-breakpoint
COMMENT ON CONSTRAINT "dim_branch_timezone_id_check" ON "dim_branch" IS 'must be an IANA time zone name that Postgres knows, such as Europe/Dublin, not an abbreviation (CET) or an offset (FOO+3)';--> statement-breakpoint
COMMENT ON CONSTRAINT "dim_branch_created_at_check" ON "dim_branch" IS 'must lie in the years 1 to 9999 (UTC)';--> statement-breakpoint
COMMENT ON TABLE "dim_user" IS 'One row per user of a gym, who is a lead until the first purchase of a membership or credit pack.';--> statement-breakpoint
COMMENT ON COLUMN "dim_user"."user_id" IS 'Identifier of the user.';--> statement-breakpoint
COMMENT ON COLUMN "dim_user"."branch_id" IS 'Branch that the user belongs to, whose time zone is the clock of all local times of the user.';--> statement-breakpoint
COMMENT ON COLUMN "dim_user"."name" IS 'Name of the user.';--> statement-breakpoint
COMMENT ON COLUMN "dim_user"."email" IS 'E-mail address of the user.';--> statement-breakpoint
COMMENT ON COLUMN "dim_user"."created_at" IS 'Instant at which the user was created.';--> statement-breakpoint
COMMENT ON CONSTRAINT "dim_user_created_at_check" ON "dim_user" IS 'must lie in the years 1 to 9999 (UTC)';--> statement-breakpoint
COMMENT ON TABLE "fct_credit_pack_purchases" IS 'One row per credit pack that a user bought.';--> statement-breakpoint
COMMENT ON COLUMN "fct_credit_pack_purchases"."user_id" IS 'User who bought the credit pack.';--> statement-breakpoint
COMMENT ON COLUMN "fct_credit_pack_purchases"."branch_id" IS 'Branch that sold the credit pack, not always that of the user.';--> statement-breakpoint
COMMENT ON COLUMN "fct_credit_pack_purchases"."credit_pack_id" IS 'Identifier of the purchased credit pack within its user.';--> statement-breakpoint
COMMENT ON COLUMN "fct_credit_pack_purchases"."credit_pack_purchased_at" IS 'Instant at which the credit pack was purchased. NULL counts as later than every other.';--> statement-breakpoint
COMMENT ON COLUMN "fct_credit_pack_purchases"."created_at" IS 'Instant at which the credit pack was created.';--> statement-breakpoint
COMMENT ON COLUMN "fct_credit_pack_purchases"."credit_pack_purchase_details" IS 'What upstream says of the purchase, a JSON object: name of the credit pack, and source of the purchase.';--> statement-breakpoint
COMMENT ON CONSTRAINT "fct_credit_pack_purchases_credit_pack_purchased_at_check" ON "fct_credit_pack_purchases" IS 'must lie in the years 1 to 9999 (UTC)';--> statement-breakpoint
COMMENT ON CONSTRAINT "fct_credit_pack_purchases_created_at_check" ON "fct_credit_pack_purchases" IS 'must lie in the years 1 to 9999 (UTC)';--> statement-breakpoint
COMMENT ON CONSTRAINT "fct_credit_pack_purchases_credit_pack_purchase_details_check" ON "fct_credit_pack_purchases" IS 'must be a JSON object, or JSON null';--> statement-breakpoint
COMMENT ON TABLE "fct_membership_purchases" IS 'One row per membership that a user bought.';--> statement-breakpoint
COMMENT ON COLUMN "fct_membership_purchases"."user_id" IS 'User who bought the membership.';--> statement-breakpoint
COMMENT ON COLUMN "fct_membership_purchases"."branch_id" IS 'Branch that sold the membership, not always that of the user.';--> statement-breakpoint
COMMENT ON COLUMN "fct_membership_purchases"."user_membership_id" IS 'Identifier of the purchased membership within its user.';--> statement-breakpoint
COMMENT ON COLUMN "fct_membership_purchases"."membership_purchased_at" IS 'Instant at which the membership was purchased. NULL counts as later than every other.';--> statement-breakpoint
COMMENT ON COLUMN "fct_membership_purchases"."created_at" IS 'Instant at which the membership was created.';--> statement-breakpoint
COMMENT ON COLUMN "fct_membership_purchases"."membership_purchase_details" IS 'What upstream says of the purchase, a JSON object: name of the membership, and source of the purchase.';--> statement-breakpoint
COMMENT ON CONSTRAINT "fct_membership_purchases_membership_purchased_at_check" ON "fct_membership_purchases" IS 'must lie in the years 1 to 9999 (UTC)';--> statement-breakpoint
COMMENT ON CONSTRAINT "fct_membership_purchases_created_at_check" ON "fct_membership_purchases" IS 'must lie in the years 1 to 9999 (UTC)';--> statement-breakpoint
COMMENT ON CONSTRAINT "fct_membership_purchases_membership_purchase_details_check" ON "fct_membership_purchases" IS 'must be a JSON object, or JSON null';
