import { Temporal } from 'temporal-polyfill';

/**
 * The rules of the two views in plain TypeScript, written from "Decisions" in
 * views/README.md and not from the SQL. Slow and simple on purpose.
 */

export interface Branch {
  branch_id: string;
  timezone_id: string | null;
}

export interface User {
  user_id: string;
  branch_id: string | null;
  /** An instant in ISO 8601, to the microsecond. */
  created_at: string | null;
}

export interface Purchase {
  user_id: string;
  branch_id: string | null;
  /** `credit_pack_id` or `user_membership_id`. */
  id: string;
  /** An instant in ISO 8601, to the microsecond. */
  purchased_at: string | null;
  details: { name?: string | null; source?: string | null } | null;
}

export interface Input {
  branches: Branch[];
  users: User[];
  creditPacks: Purchase[];
  memberships: Purchase[];
}

/** The rows that fct_client_conversion_events has for an input, by user in byte order. */
export function clientConversionEvents({ branches, users, creditPacks, memberships }: Input) {
  return users
    .toSorted((one, other) => compareBytes(one.user_id, other.user_id))
    .map((user) => {
      const branch = branches.find(({ branch_id }) => branch_id === user.branch_id);
      const local = (instant: string | null) => localTime(instant, branch?.timezone_id ?? 'UTC');
      const own = ({ user_id }: Purchase) => user_id === user.user_id;
      const membership = memberships.filter(own).toSorted(compareFirst)[0];
      const creditPack = creditPacks.filter(own).toSorted(compareFirst)[0];
      const conversion = firstOfBoth(membership, creditPack);
      return {
        user_id: user.user_id,
        branch_id: user.branch_id,
        local_user_created_at: local(user.created_at),
        lead_status: conversion ? 'CLIENT' : 'LEAD',
        client_conversion_event_type: conversion?.type ?? null,
        client_conversion_event_id: conversion?.id ?? null,
        client_conversion_event_local_created_at: local(conversion?.purchased_at ?? null),
        client_conversion_event_name: conversion?.details?.name ?? null,
        client_conversion_event_source: conversion?.details?.source ?? null,
        first_user_membership_id: membership?.id ?? null,
        first_local_membership_purchased_at: local(membership?.purchased_at ?? null),
        first_membership_name: membership?.details?.name ?? null,
        first_membership_source: membership?.details?.source ?? null,
        first_credit_pack_id: creditPack?.id ?? null,
        first_local_credit_pack_purchase_at: local(creditPack?.purchased_at ?? null),
        first_credit_pack_name: creditPack?.details?.name ?? null,
        first_credit_pack_source: creditPack?.details?.source ?? null,
      };
    });
}

/** The rows that fct_lead_conversions has for an input, by user in byte order and filter. */
export function leadConversions(input: Input) {
  const none = { ...input, creditPacks: [], memberships: [] };
  const considered = {
    ALL: input,
    MEMBERSHIP: { ...none, memberships: input.memberships },
    USER_CREDIT: { ...none, creditPacks: input.creditPacks },
  };
  const rows = Object.entries(considered).map(([filter, purchases]) =>
    clientConversionEvents(purchases).map((event) => ({
      user_id: event.user_id,
      branch_id: event.branch_id,
      local_user_created_at: event.local_user_created_at,
      lead_status: event.lead_status,
      client_conversion_event_type: event.client_conversion_event_type,
      client_conversion_event_id: event.client_conversion_event_id,
      client_conversion_event_local_created_at: event.client_conversion_event_local_created_at,
      client_conversion_event_name: event.client_conversion_event_name,
      client_conversion_event_source: event.client_conversion_event_source,
      client_conversion_event_filter: filter,
    })),
  );
  return input.users.flatMap((_, index) => rows.map((ofFilter) => ofFilter[index]));
}

function firstOfBoth(membership?: Purchase, creditPack?: Purchase) {
  const asMembership = membership && { ...membership, type: 'MEMBERSHIP' };
  const asCreditPack = creditPack && { ...creditPack, type: 'USER_CREDIT' };
  if (!asMembership || !asCreditPack) {
    return asMembership ?? asCreditPack;
  }
  return compareTimes(asCreditPack, asMembership) < 0 ? asCreditPack : asMembership;
}

const compareFirst = (one: Purchase, other: Purchase) =>
  compareTimes(one, other) || compareBytes(one.id, other.id);

/** Earlier instants come first, no instant last. */
function compareTimes({ purchased_at: one }: Purchase, { purchased_at: other }: Purchase): number {
  if (one === null || other === null) {
    return Number(one === null) - Number(other === null);
  }
  return Temporal.Instant.compare(one, other);
}

const compareBytes = (one: string, other: string) =>
  Buffer.compare(Buffer.from(one), Buffer.from(other));

/** An instant as the local time of a zone, in ISO 8601 without an offset. */
const localTime = (instant: string | null, zone: string) =>
  instant && Temporal.Instant.from(instant).toZonedDateTimeISO(zone).toPlainDateTime().toString();
