import { sql } from 'drizzle-orm';
import { expect, expectTypeOf, test } from 'vitest';
import * as schema from '../schema/index.ts';
import type { ClientConversionEvent, LeadConversion } from '../views/index.ts';
import * as views from '../views/index.ts';
import { useDatabase } from './support/database.ts';

// Pins everything that apps depend on. Before you change an expectation here, read "Releases" in
// views/README.md.

const database = useDatabase();

/** Columns in order, as `\d` shows them: information_schema leaves materialized views out. */
async function columns(relation: string): Promise<string[]> {
  const rows = await database.db
    .select({
      column: sql<string>`concat_ws(' ',
        attname,
        format_type(atttypid, atttypmod),
        case when attcollation = '"C"'::regcollation then 'collate C' end,
        case when attnotnull then 'not null' end
      )`,
    })
    .from(sql`pg_attribute`)
    .where(sql`attrelid = ${relation}::regclass and attnum > 0 and not attisdropped`)
    .orderBy(sql`attnum`);
  return rows.map(({ column }) => column);
}

test('fct_client_conversion_events has the columns of figure 1.4.1', async () => {
  expect(await columns('fct_client_conversion_events')).toEqual([
    'user_id character varying collate C',
    'branch_id character varying collate C',
    'local_user_created_at timestamp without time zone',
    'lead_status character varying',
    'client_conversion_event_type character varying',
    'client_conversion_event_id character varying collate C',
    'client_conversion_event_local_created_at timestamp without time zone',
    'client_conversion_event_name character varying',
    'client_conversion_event_source character varying',
    'first_user_membership_id character varying collate C',
    'first_local_membership_purchased_at timestamp without time zone',
    'first_membership_name character varying',
    'first_membership_source character varying',
    'first_credit_pack_id character varying collate C',
    'first_local_credit_pack_purchase_at timestamp without time zone',
    'first_credit_pack_name character varying',
    'first_credit_pack_source character varying',
  ]);
});

test('fct_lead_conversions has the columns of figure 1.4.2', async () => {
  expect(await columns('fct_lead_conversions')).toEqual([
    'user_id character varying collate C',
    'branch_id character varying collate C',
    'local_user_created_at timestamp without time zone',
    'lead_status character varying',
    'client_conversion_event_type character varying',
    'client_conversion_event_id character varying collate C',
    'client_conversion_event_local_created_at timestamp without time zone',
    'client_conversion_event_name character varying',
    'client_conversion_event_source character varying',
    'client_conversion_event_filter character varying',
  ]);
});

test('dim_branch has the columns of figure 1.3.1', async () => {
  expect(await columns('dim_branch')).toEqual([
    'branch_id character varying collate C not null',
    'name character varying',
    'email character varying',
    'city character varying',
    'country character varying',
    'timezone_id character varying',
    'created_at timestamp with time zone',
  ]);
});

test('dim_user has the columns of figure 1.3.2', async () => {
  expect(await columns('dim_user')).toEqual([
    'user_id character varying collate C not null',
    'branch_id character varying collate C',
    'name character varying',
    'email character varying',
    'created_at timestamp with time zone',
  ]);
});

test('fct_credit_pack_purchases has the columns of figure 1.3.3', async () => {
  expect(await columns('fct_credit_pack_purchases')).toEqual([
    'user_id character varying collate C not null',
    'branch_id character varying collate C',
    'credit_pack_id character varying collate C not null',
    'credit_pack_purchased_at timestamp with time zone',
    'created_at timestamp with time zone',
    'credit_pack_purchase_details jsonb',
    'credit_pack_name character varying',
    'credit_pack_source character varying',
  ]);
});

test('fct_membership_purchases has the columns of figure 1.3.5', async () => {
  expect(await columns('fct_membership_purchases')).toEqual([
    'user_id character varying collate C not null',
    'branch_id character varying collate C',
    'user_membership_id character varying collate C not null',
    'membership_purchased_at timestamp with time zone',
    'created_at timestamp with time zone',
    'membership_purchase_details jsonb',
    'membership_name character varying',
    'membership_source character varying',
  ]);
});

test('view_refreshes has the columns that show how fresh the views are', async () => {
  expect(await columns('view_refreshes')).toEqual([
    'id bigint not null',
    'view character varying not null',
    'started_at timestamp with time zone not null',
    'finished_at timestamp with time zone not null',
    'mode character varying not null',
    'rows bigint not null',
    'inserted bigint not null',
    'deleted bigint not null',
    'duration_ms bigint not null',
    'package_version character varying not null',
    'server character varying not null',
    'basis jsonb',
  ]);
});

test('input_loads has the columns that show how old the input is', async () => {
  expect(await columns('input_loads')).toEqual([
    'id bigint not null',
    'input_table character varying not null',
    'started_at timestamp with time zone not null',
    'finished_at timestamp with time zone not null',
    'is_snapshot boolean not null',
    'rows bigint not null',
    'inserted bigint not null',
    'updated bigint not null',
    'deleted bigint not null',
    'package_version character varying not null',
  ]);
});

/** The columns that both views have. */
interface Conversion {
  userId: string;
  branchId: string | null;
  localUserCreatedAt: string | null;
  leadStatus: 'LEAD' | 'CLIENT';
  clientConversionEventType: 'MEMBERSHIP' | 'USER_CREDIT' | null;
  clientConversionEventId: string | null;
  clientConversionEventLocalCreatedAt: string | null;
  clientConversionEventName: string | null;
  clientConversionEventSource: string | null;
}

test('the rows have these types in TypeScript', () => {
  expectTypeOf<ClientConversionEvent>().branded.toEqualTypeOf<
    Conversion & {
      firstUserMembershipId: string | null;
      firstLocalMembershipPurchasedAt: string | null;
      firstMembershipName: string | null;
      firstMembershipSource: string | null;
      firstCreditPackId: string | null;
      firstLocalCreditPackPurchaseAt: string | null;
      firstCreditPackName: string | null;
      firstCreditPackSource: string | null;
    }
  >();
  expectTypeOf<LeadConversion>().branded.toEqualTypeOf<
    Conversion & { clientConversionEventFilter: 'MEMBERSHIP' | 'USER_CREDIT' | 'ALL' }
  >();
});

test('the entries of the package export these values', () => {
  expect(Object.keys(schema).sort()).toEqual([
    'dimBranch',
    'dimUser',
    'fctCreditPackPurchases',
    'fctMembershipPurchases',
    'inputLoads',
  ]);
  expect(Object.keys(views).sort()).toEqual([
    'conversionEventFilters',
    'conversionEventTypes',
    'fctClientConversionEvents',
    'fctLeadConversions',
    'leadStatuses',
    'readerRole',
    'refreshDefaults',
    'refreshModes',
    'refreshViews',
    'viewRefreshes',
  ]);
});
