import { sql } from 'drizzle-orm';
import { varchar } from 'drizzle-orm/pg-core';
import { identifier, localTime, publicMaterializedView } from '../schema/columns.ts';
import {
  dimBranch,
  dimUser,
  fctCreditPackPurchases,
  fctMembershipPurchases,
} from '../schema/index.ts';
import { readerRole, withProperties } from '../schema/properties.ts';
import { conversionEventTypes, leadStatuses } from './values.ts';

/**
 * One row per user, leads included: the user's first membership, first credit pack, and as
 * `clientConversion…` the one that came first.
 *
 * Every local time is in the time zone of the user's own branch (`branchId`). The columns, and
 * their order, are from figure 1.4.1 of the brief.
 */
export const fctClientConversionEvents = withProperties(
  publicMaterializedView('fct_client_conversion_events', {
    userId: identifier('user_id').notNull(),
    branchId: identifier('branch_id'),
    localUserCreatedAt: localTime('local_user_created_at'),
    leadStatus: varchar('lead_status', { enum: leadStatuses }).notNull(),
    clientConversionEventType: varchar('client_conversion_event_type', {
      enum: conversionEventTypes,
    }),
    clientConversionEventId: identifier('client_conversion_event_id'),
    clientConversionEventLocalCreatedAt: localTime('client_conversion_event_local_created_at'),
    clientConversionEventName: varchar('client_conversion_event_name'),
    clientConversionEventSource: varchar('client_conversion_event_source'),
    firstUserMembershipId: identifier('first_user_membership_id'),
    firstLocalMembershipPurchasedAt: localTime('first_local_membership_purchased_at'),
    firstMembershipName: varchar('first_membership_name'),
    firstMembershipSource: varchar('first_membership_source'),
    firstCreditPackId: identifier('first_credit_pack_id'),
    firstLocalCreditPackPurchaseAt: localTime('first_local_credit_pack_purchase_at'),
    firstCreditPackName: varchar('first_credit_pack_name'),
    firstCreditPackSource: varchar('first_credit_pack_source'),
  }).as(sql`
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
`),
  {
    comment:
      'One row per user, leads included: the first membership, the first credit pack, and, in the columns client_conversion_..., whichever of the two came first. Local times are in the time zone of the branch in branch_id, or in UTC if there is none.',
    columns: {
      userId: 'Identifier of the user.',
      branchId:
        'Branch of the user. All local times in the row are in the time zone of this branch, or in UTC if the user has no branch or the branch has no time zone.',
      localUserCreatedAt: 'Local time at which the user was created.',
      leadStatus: 'CLIENT once the user has bought a membership or a credit pack, LEAD before.',
      clientConversionEventType:
        'Kind of purchase that came first, MEMBERSHIP or USER_CREDIT (a credit pack). MEMBERSHIP if both came at the same instant or neither has a time. NULL for a lead.',
      clientConversionEventId: 'Identifier of the purchase that came first.',
      clientConversionEventLocalCreatedAt:
        'Local time of the purchase that came first. NULL for a lead, and if upstream gave no time.',
      clientConversionEventName: 'Name of the product bought in the purchase that came first.',
      clientConversionEventSource: 'Source of the purchase that came first.',
      firstUserMembershipId: 'Identifier of the first membership that the user bought.',
      firstLocalMembershipPurchasedAt: 'Local time at which the first membership was purchased.',
      firstMembershipName: 'Name of the first membership.',
      firstMembershipSource: 'Source of the purchase of the first membership.',
      firstCreditPackId: 'Identifier of the first credit pack that the user bought.',
      firstLocalCreditPackPurchaseAt: 'Local time at which the first credit pack was purchased.',
      firstCreditPackName: 'Name of the first credit pack.',
      firstCreditPackSource: 'Source of the purchase of the first credit pack.',
    },
    uniqueKey: ['userId'],
    reads: [
      dimBranch.branchId,
      dimBranch.timezoneId,
      dimUser.userId,
      dimUser.branchId,
      dimUser.createdAt,
      fctCreditPackPurchases.userId,
      fctCreditPackPurchases.creditPackId,
      fctCreditPackPurchases.creditPackPurchasedAt,
      fctCreditPackPurchases.creditPackName,
      fctCreditPackPurchases.creditPackSource,
      fctMembershipPurchases.userId,
      fctMembershipPurchases.userMembershipId,
      fctMembershipPurchases.membershipPurchasedAt,
      fctMembershipPurchases.membershipName,
      fctMembershipPurchases.membershipSource,
    ],
    grants: { [readerRole]: { select: 'all' } },
  },
);

/** A row of `fct_client_conversion_events`. */
export type ClientConversionEvent = typeof fctClientConversionEvents.$inferSelect;
