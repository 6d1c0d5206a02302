-- The two reports, populated from the start, so that they can be read at once.
-- Each has one unique index: REFRESH MATERIALIZED VIEW CONCURRENTLY needs it, and
-- it says what one row is.
CREATE MATERIALIZED VIEW "public"."fct_client_conversion_events" AS (
with

-- One row per user who ever bought a membership: the key of the first one.
-- It is found by key and time alone, without reading any purchase's JSON.
first_membership_keys as (

    -- The earliest instant wins. A purchase without a time comes after every
    -- dated one and still counts. Of purchases at the same instant, the lowest
    -- identifier in byte order wins, so that every refresh picks the same one.
    select distinct on (user_id)
        user_id,
        user_membership_id,
        membership_purchased_at
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
        credit_pack_id,
        credit_pack_purchased_at
    from fct_credit_pack_purchases
    order by
        user_id asc,
        credit_pack_purchased_at asc nulls last,
        credit_pack_id asc

),

-- One row per user who ever bought a membership: the first one with what
-- upstream says of it. A missing detail, a missing key and a JSON null are all
-- NULL here.
first_memberships as (

    select
        first_membership_keys.user_id,
        first_membership_keys.user_membership_id,
        first_membership_keys.membership_purchased_at,
        (purchases.membership_purchase_details ->> 'name')::varchar
            as membership_name,
        (purchases.membership_purchase_details ->> 'source')::varchar
            as membership_source
    from first_membership_keys
    inner join fct_membership_purchases as purchases
        on first_membership_keys.user_id = purchases.user_id
        and first_membership_keys.user_membership_id
            = purchases.user_membership_id

),

-- One row per user who ever bought a credit pack: the first one with what
-- upstream says of it.
first_credit_packs as (

    select
        first_credit_pack_keys.user_id,
        first_credit_pack_keys.credit_pack_id,
        first_credit_pack_keys.credit_pack_purchased_at,
        (purchases.credit_pack_purchase_details ->> 'name')::varchar
            as credit_pack_name,
        (purchases.credit_pack_purchase_details ->> 'source')::varchar
            as credit_pack_source
    from first_credit_pack_keys
    inner join fct_credit_pack_purchases as purchases
        on first_credit_pack_keys.user_id = purchases.user_id
        and first_credit_pack_keys.credit_pack_id = purchases.credit_pack_id

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
CREATE UNIQUE INDEX "fct_client_conversion_events_user_id_key" ON "fct_client_conversion_events" USING btree ("user_id");--> statement-breakpoint
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
CREATE MATERIALIZED VIEW "public"."fct_lead_conversions" AS (
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
    from fct_client_conversion_events as events
    cross join conversion_filters

)

-- One row per user and filter: the columns of figure 1.4.2. A user who bought
-- only what the filter leaves out is a LEAD under it, with no conversion.
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
);--> statement-breakpoint
-- One row per user and filter.
CREATE UNIQUE INDEX "fct_lead_conversions_user_id_client_conversion_event_filter_key" ON "fct_lead_conversions" USING btree ("user_id","client_conversion_event_filter");--> statement-breakpoint
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
COMMENT ON COLUMN "fct_lead_conversions"."client_conversion_event_filter" IS 'What the row counts as a conversion: MEMBERSHIP memberships only, USER_CREDIT credit packs only, ALL both. A report reads one of the three.';
