-- Both reports again, with the same rows: computed with less work, and in the
-- order that makes refreshing them cheap. The new ones are filled while the old
-- ones are still being read, and take their places at the end.
CREATE MATERIALIZED VIEW "public"."fct_client_conversion_events_new" AS (
with

-- One row per user who ever bought a membership: the key of the first one.
-- It is found by key and time alone, which an index holds in this order,
-- without reading any purchase's JSON.
first_membership_keys as (

    -- The earliest instant wins. A purchase without a time comes after every
    -- dated one and still counts. Of purchases at the same instant, the lowest
    -- identifier in byte order wins, so that every refresh picks the same one.
    select distinct on (user_id)
        user_id,
        user_membership_id
    from fct_membership_purchases
    order by
        user_id asc,
        membership_purchased_at asc nulls last,
        user_membership_id asc

),

-- One row per user who ever bought a credit pack: the key of the first one,
-- by the same rule.
first_credit_pack_keys as (

    select distinct on (user_id)
        user_id,
        credit_pack_id
    from fct_credit_pack_purchases
    order by
        user_id asc,
        credit_pack_purchased_at asc nulls last,
        credit_pack_id asc

),

-- One row per user who ever bought a membership: the first one with what
-- upstream says of it. A missing detail, a missing key and a JSON null are all
-- NULL here. In user order, as all that is joined by user below.
first_memberships as (

    select
        user_id,
        user_membership_id,
        membership_purchased_at,
        (membership_purchase_details ->> 'name')::varchar as membership_name,
        (membership_purchase_details ->> 'source')::varchar
            as membership_source
    from fct_membership_purchases
    where (user_id, user_membership_id) in (

        -- offset 0 leaves the rows as they are. It keeps Postgres from merging
        -- the list into a join by two columns, where it would expect one row.
        select
            user_id,
            user_membership_id
        from first_membership_keys
        offset 0

    )
    order by user_id

),

-- One row per user who ever bought a credit pack: the first one with what
-- upstream says of it, in user order.
first_credit_packs as (

    select
        user_id,
        credit_pack_id,
        credit_pack_purchased_at,
        (credit_pack_purchase_details ->> 'name')::varchar as credit_pack_name,
        (credit_pack_purchase_details ->> 'source')::varchar
            as credit_pack_source
    from fct_credit_pack_purchases
    where (user_id, credit_pack_id) in (

        -- offset 0 is for the plan, as above.
        select
            user_id,
            credit_pack_id
        from first_credit_pack_keys
        offset 0

    )
    order by user_id

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
    from dim_user
    left join dim_branch
        on dim_user.branch_id = dim_branch.branch_id

),

-- One row per user, leads included: both first purchases side by side, in the
-- user's local time.
--
-- The rows leave in the byte order of user_id, and so reach the view in it.
-- REFRESH MATERIALIZED VIEW CONCURRENTLY sorts all new rows by their bytes, to
-- see that there are no duplicates, and rows in order are sorted at a glance.
user_first_purchases as (

    select
        users.user_id,
        users.branch_id,
        users.created_at at time zone users.timezone_id
            as local_user_created_at,

        -- Which kind came first is judged by instant, before any time zone. A
        -- purchase without a time, like one that was never made, is later than
        -- every dated one; at the same instant the membership converts. NULL
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
    order by users.user_id

)

-- One row per user: the columns of figure 1.4.1. Those that begin with
-- client_conversion_ repeat the first purchase of the kind that came first.
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
);--> statement-breakpoint
-- One row per user.
CREATE UNIQUE INDEX "fct_client_conversion_events_new_user_id_key" ON "fct_client_conversion_events_new" USING btree ("user_id");--> statement-breakpoint
CREATE MATERIALIZED VIEW "public"."fct_lead_conversions_new" AS (
with

-- One row per filter that report users can choose. The list is product's: what
-- a gym may count as a conversion. A new filter is a new line here, saying
-- which kinds of purchase it considers.
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

-- One row per user and filter: the kind of purchase that converts the user
-- when only what the filter considers counts, NULL where that leaves a lead.
filtered_conversions as (

    select
        events.user_id,
        events.branch_id,
        events.local_user_created_at,
        conversion_filters.client_conversion_event_filter,

        -- Where the filter considers both kinds, whichever came first, as
        -- fct_client_conversion_events has judged it by instant.
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
    from fct_client_conversion_events_new as events
    cross join conversion_filters

)

-- One row per user and filter: the columns of figure 1.4.2. A user who bought
-- only what the filter leaves out is a LEAD under it, with no conversion.
--
-- The rows come in the order of their bytes, column by column: what is between
-- user_id and lead_status is the same in all rows of a user, a CLIENT comes
-- before a LEAD, whose type is NULL, and what is between type and filter
-- follows from the type. REFRESH MATERIALIZED VIEW CONCURRENTLY sorts them like
-- that to see that there are no duplicates, and then has nothing to move.
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
    client_conversion_event_type collate "C" asc nulls last,
    client_conversion_event_filter collate "C" asc
);--> statement-breakpoint
-- One row per user and filter, and the index that answers for one user.
CREATE UNIQUE INDEX "fct_lead_conversions_new_user_id_filter_key" ON "fct_lead_conversions_new" USING btree ("user_id","client_conversion_event_filter");--> statement-breakpoint
-- Answers for the users of a branch, between two dates.
CREATE INDEX "fct_lead_conversions_branch_id_local_user_created_at_idx" ON "fct_lead_conversions_new" USING btree ("branch_id","local_user_created_at");--> statement-breakpoint
-- From here on readers wait, for an instant.
DROP MATERIALIZED VIEW "fct_lead_conversions";--> statement-breakpoint
DROP MATERIALIZED VIEW "fct_client_conversion_events";--> statement-breakpoint
ALTER MATERIALIZED VIEW "fct_client_conversion_events_new" RENAME TO "fct_client_conversion_events";--> statement-breakpoint
ALTER INDEX "fct_client_conversion_events_new_user_id_key" RENAME TO "fct_client_conversion_events_user_id_key";--> statement-breakpoint
ALTER MATERIALIZED VIEW "fct_lead_conversions_new" RENAME TO "fct_lead_conversions";--> statement-breakpoint
ALTER INDEX "fct_lead_conversions_new_user_id_filter_key" RENAME TO "fct_lead_conversions_user_id_client_conversion_event_filter_key";--> statement-breakpoint
COMMENT ON MATERIALIZED VIEW "fct_client_conversion_events" IS 'One row per user, leads included: the first membership, the first credit pack, and as client_conversion_... whichever of the two came first. Local times are in the time zone of the branch in branch_id, UTC if there is none.';--> statement-breakpoint
COMMENT ON COLUMN "fct_client_conversion_events"."user_id" IS 'Identifier of the user.';--> statement-breakpoint
COMMENT ON COLUMN "fct_client_conversion_events"."branch_id" IS 'Branch of the user, whose time zone is that of every local time in the row.';--> statement-breakpoint
COMMENT ON COLUMN "fct_client_conversion_events"."local_user_created_at" IS 'Local time at which the user was created.';--> statement-breakpoint
COMMENT ON COLUMN "fct_client_conversion_events"."lead_status" IS 'CLIENT once the user has bought a membership or a credit pack, LEAD before.';--> statement-breakpoint
COMMENT ON COLUMN "fct_client_conversion_events"."client_conversion_event_type" IS 'Kind of purchase that came first, MEMBERSHIP or USER_CREDIT (a credit pack). MEMBERSHIP where both came at the same instant. NULL for a lead.';--> statement-breakpoint
COMMENT ON COLUMN "fct_client_conversion_events"."client_conversion_event_id" IS 'Identifier of the purchase that came first.';--> statement-breakpoint
COMMENT ON COLUMN "fct_client_conversion_events"."client_conversion_event_local_created_at" IS 'Local time of the purchase that came first. NULL also where upstream gave no time.';--> statement-breakpoint
COMMENT ON COLUMN "fct_client_conversion_events"."client_conversion_event_name" IS 'Name of the product bought in the purchase that came first.';--> statement-breakpoint
COMMENT ON COLUMN "fct_client_conversion_events"."client_conversion_event_source" IS 'Source of the purchase that came first.';--> statement-breakpoint
COMMENT ON COLUMN "fct_client_conversion_events"."first_user_membership_id" IS 'Identifier of the first membership that the user bought.';--> statement-breakpoint
COMMENT ON COLUMN "fct_client_conversion_events"."first_local_membership_purchased_at" IS 'Local time at which the first membership was purchased.';--> statement-breakpoint
COMMENT ON COLUMN "fct_client_conversion_events"."first_membership_name" IS 'Name of the first membership.';--> statement-breakpoint
COMMENT ON COLUMN "fct_client_conversion_events"."first_membership_source" IS 'Source of the purchase of the first membership.';--> statement-breakpoint
COMMENT ON COLUMN "fct_client_conversion_events"."first_credit_pack_id" IS 'Identifier of the first credit pack that the user bought.';--> statement-breakpoint
COMMENT ON COLUMN "fct_client_conversion_events"."first_local_credit_pack_purchase_at" IS 'Local time at which the first credit pack was purchased.';--> statement-breakpoint
COMMENT ON COLUMN "fct_client_conversion_events"."first_credit_pack_name" IS 'Name of the first credit pack.';--> statement-breakpoint
COMMENT ON COLUMN "fct_client_conversion_events"."first_credit_pack_source" IS 'Source of the purchase of the first credit pack.';--> statement-breakpoint
COMMENT ON MATERIALIZED VIEW "fct_lead_conversions" IS 'One row per user and filter, three per user, leads included: the purchase that converted the user when only what client_conversion_event_filter considers counts as a conversion. Local times are in the time zone of the branch in branch_id, UTC if there is none.';--> statement-breakpoint
COMMENT ON COLUMN "fct_lead_conversions"."user_id" IS 'Identifier of the user.';--> statement-breakpoint
COMMENT ON COLUMN "fct_lead_conversions"."branch_id" IS 'Branch of the user, whose time zone is that of every local time in the row.';--> statement-breakpoint
COMMENT ON COLUMN "fct_lead_conversions"."local_user_created_at" IS 'Local time at which the user was created.';--> statement-breakpoint
COMMENT ON COLUMN "fct_lead_conversions"."lead_status" IS 'CLIENT if the user has bought anything that the filter considers, otherwise LEAD.';--> statement-breakpoint
COMMENT ON COLUMN "fct_lead_conversions"."client_conversion_event_type" IS 'Kind of the converting purchase, MEMBERSHIP or USER_CREDIT (a credit pack). NULL for a lead.';--> statement-breakpoint
COMMENT ON COLUMN "fct_lead_conversions"."client_conversion_event_id" IS 'Identifier of the converting purchase.';--> statement-breakpoint
COMMENT ON COLUMN "fct_lead_conversions"."client_conversion_event_local_created_at" IS 'Local time of the converting purchase. NULL also where upstream gave no time.';--> statement-breakpoint
COMMENT ON COLUMN "fct_lead_conversions"."client_conversion_event_name" IS 'Name of the product bought in the converting purchase.';--> statement-breakpoint
COMMENT ON COLUMN "fct_lead_conversions"."client_conversion_event_source" IS 'Source of the converting purchase.';--> statement-breakpoint
COMMENT ON COLUMN "fct_lead_conversions"."client_conversion_event_filter" IS 'What the row counts as a conversion: MEMBERSHIP memberships only, USER_CREDIT credit packs only, ALL both. A report reads one of the three.';--> statement-breakpoint
GRANT SELECT ON "fct_client_conversion_events", "fct_lead_conversions" TO "lead_conversions_reader";
