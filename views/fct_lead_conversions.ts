import { sql } from 'drizzle-orm';
import { varchar } from 'drizzle-orm/pg-core';
import { identifier, localTime, publicMaterializedView } from '../schema/columns.ts';
import { readerRole, withProperties } from '../schema/properties.ts';
import { fctClientConversionEvents } from './fct_client_conversion_events.ts';
import { conversionEventFilters, conversionEventTypes, leadStatuses } from './values.ts';

/**
 * Three rows per user, one per `clientConversionEventFilter`: the purchase that turned the lead
 * into a client if only the purchases that the filter considers count. `leadStatus` follows the
 * filter of the row, too.
 *
 * Every local time is in the time zone of the user's own branch (`branchId`). The columns, and
 * their order, are from figure 1.4.2 of the brief.
 */
export const fctLeadConversions = withProperties(
  publicMaterializedView('fct_lead_conversions', {
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
    clientConversionEventFilter: varchar('client_conversion_event_filter', {
      enum: conversionEventFilters,
    }).notNull(),
  }).as(sql`
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
`),
  {
    comment:
      'One row per user and filter, so three per user, leads included: the purchase that converted the user, if only the purchases that client_conversion_event_filter names count as a conversion. Local times are in the time zone of the branch in branch_id, or in UTC if there is none.',
    columns: {
      userId: 'Identifier of the user.',
      branchId:
        'Branch of the user. All local times in the row are in the time zone of this branch, or in UTC if the user has no branch or the branch has no time zone.',
      localUserCreatedAt: 'Local time at which the user was created.',
      leadStatus: 'CLIENT if the user has bought anything that the filter counts, otherwise LEAD.',
      clientConversionEventType:
        'Kind of the converting purchase, MEMBERSHIP or USER_CREDIT (a credit pack). NULL for a lead.',
      clientConversionEventId: 'Identifier of the converting purchase.',
      clientConversionEventLocalCreatedAt:
        'Local time of the converting purchase. NULL for a lead, and if upstream gave no time.',
      clientConversionEventName: 'Name of the product bought in the converting purchase.',
      clientConversionEventSource: 'Source of the converting purchase.',
      clientConversionEventFilter:
        'Purchases that count as a conversion in this row. MEMBERSHIP: only memberships. USER_CREDIT: only credit packs. ALL: both. A query should name exactly one of the three.',
    },
    uniqueKey: ['userId', 'clientConversionEventFilter'],
    reads: [
      fctClientConversionEvents.userId,
      fctClientConversionEvents.branchId,
      fctClientConversionEvents.localUserCreatedAt,
      fctClientConversionEvents.clientConversionEventType,
      fctClientConversionEvents.firstUserMembershipId,
      fctClientConversionEvents.firstLocalMembershipPurchasedAt,
      fctClientConversionEvents.firstMembershipName,
      fctClientConversionEvents.firstMembershipSource,
      fctClientConversionEvents.firstCreditPackId,
      fctClientConversionEvents.firstLocalCreditPackPurchaseAt,
      fctClientConversionEvents.firstCreditPackName,
      fctClientConversionEvents.firstCreditPackSource,
    ],
    indexes: [
      {
        on: ['branchId', 'localUserCreatedAt'],
        comment: 'Finds the users of a branch, and among them those created between two dates.',
      },
    ],
    grants: { [readerRole]: { select: 'all' } },
  },
);

/** A row of `fct_lead_conversions`. */
export type LeadConversion = typeof fctLeadConversions.$inferSelect;
