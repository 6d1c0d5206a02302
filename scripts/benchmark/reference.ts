import type postgres from 'postgres';

/**
 * The obvious form of the two views, for comparison. It sorts whole purchases to find the first
 * ones, takes their JSON apart, and writes every user under each of the filters. Its rows are the
 * same.
 */
const events = `
with
memberships as (
    select distinct on (user_id)
        user_id,
        user_membership_id as id,
        membership_purchased_at as purchased_at,
        membership_purchase_details ->> 'name' as name,
        membership_purchase_details ->> 'source' as source
    from fct_membership_purchases
    order by user_id, membership_purchased_at, user_membership_id
),
credit_packs as (
    select distinct on (user_id)
        user_id,
        credit_pack_id as id,
        credit_pack_purchased_at as purchased_at,
        credit_pack_purchase_details ->> 'name' as name,
        credit_pack_purchase_details ->> 'source' as source
    from fct_credit_pack_purchases
    order by user_id, credit_pack_purchased_at, credit_pack_id
),
users as (
    select
        dim_user.user_id,
        dim_user.branch_id,
        dim_user.created_at,
        coalesce(timezone_id, 'UTC') as zone,
        memberships.user_id is not null
            and (
                credit_packs.user_id is null
                or coalesce(memberships.purchased_at, 'infinity')
                    <= coalesce(credit_packs.purchased_at, 'infinity')
            ) as by_membership,
        memberships.id as membership_id,
        memberships.purchased_at as membership_purchased_at,
        memberships.name as membership_name,
        memberships.source as membership_source,
        credit_packs.id as credit_pack_id,
        credit_packs.purchased_at as credit_pack_purchased_at,
        credit_packs.name as credit_pack_name,
        credit_packs.source as credit_pack_source
    from dim_user
    left join dim_branch using (branch_id)
    left join memberships using (user_id)
    left join credit_packs using (user_id)
)
select
    user_id,
    branch_id,
    created_at at time zone zone as local_user_created_at,
    (case when membership_id is null and credit_pack_id is null then 'LEAD' else 'CLIENT' end)::varchar
        as lead_status,
    (case when by_membership then 'MEMBERSHIP' when credit_pack_id is not null then 'USER_CREDIT' end)::varchar
        as client_conversion_event_type,
    case when by_membership then membership_id else credit_pack_id end
        as client_conversion_event_id,
    case when by_membership then membership_purchased_at else credit_pack_purchased_at end at time zone zone
        as client_conversion_event_local_created_at,
    (case when by_membership then membership_name else credit_pack_name end)::varchar
        as client_conversion_event_name,
    (case when by_membership then membership_source else credit_pack_source end)::varchar
        as client_conversion_event_source,
    membership_id as first_user_membership_id,
    membership_purchased_at at time zone zone as first_local_membership_purchased_at,
    membership_name::varchar as first_membership_name,
    membership_source::varchar as first_membership_source,
    credit_pack_id as first_credit_pack_id,
    credit_pack_purchased_at at time zone zone as first_local_credit_pack_purchase_at,
    credit_pack_name::varchar as first_credit_pack_name,
    credit_pack_source::varchar as first_credit_pack_source
from users`;

const conversionsOf = (from: string) => `
select
    user_id,
    branch_id,
    local_user_created_at,
    (case when type is null then 'LEAD' else 'CLIENT' end)::varchar as lead_status,
    type::varchar as client_conversion_event_type,
    case type when 'MEMBERSHIP' then first_user_membership_id when 'USER_CREDIT' then first_credit_pack_id end
        as client_conversion_event_id,
    case type
        when 'MEMBERSHIP' then first_local_membership_purchased_at
        when 'USER_CREDIT' then first_local_credit_pack_purchase_at
    end as client_conversion_event_local_created_at,
    case type when 'MEMBERSHIP' then first_membership_name when 'USER_CREDIT' then first_credit_pack_name end
        as client_conversion_event_name,
    case type when 'MEMBERSHIP' then first_membership_source when 'USER_CREDIT' then first_credit_pack_source end
        as client_conversion_event_source,
    filter::varchar as client_conversion_event_filter
from ${from} as events
cross join (values ('MEMBERSHIP'), ('USER_CREDIT'), ('ALL')) as filters (filter)
cross join lateral (
    select case
        when filter = 'ALL' then client_conversion_event_type
        when filter = 'MEMBERSHIP' and first_user_membership_id is not null then 'MEMBERSHIP'
        when filter = 'USER_CREDIT' and first_credit_pack_id is not null then 'USER_CREDIT'
    end as type
) as types`;

/** The rows of fct_lead_conversions, computed from the input tables by the obvious form. */
export const conversionsOnInputTables = `(${conversionsOf(`(${events})`)})`;

/** Creates the obvious form of both views in the schema `reference`, not populated. */
export async function createReference(client: postgres.Sql): Promise<void> {
  await client.unsafe(`
    create schema reference;
    create materialized view reference.fct_client_conversion_events as ${events} with no data;
    create unique index on reference.fct_client_conversion_events (user_id);
    create materialized view reference.fct_lead_conversions as
      ${conversionsOf('reference.fct_client_conversion_events')} with no data;
    create unique index on reference.fct_lead_conversions (user_id, client_conversion_event_filter)`);
}
