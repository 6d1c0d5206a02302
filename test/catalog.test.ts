import { sql } from 'drizzle-orm';
import { expect, test } from 'vitest';
import { useDatabase } from './support/database.ts';

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
  ]);
});

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

test('view_refreshes has the columns that tell how fresh the views are', async () => {
  expect(await columns('view_refreshes')).toEqual([
    'view character varying not null',
    'started_at timestamp with time zone not null',
    'finished_at timestamp with time zone not null',
    'mode character varying not null',
    'rows bigint not null',
    'inserted bigint not null',
    'deleted bigint not null',
    'duration_ms bigint not null',
    'package_version character varying not null',
    'fingerprint numeric not null',
  ]);
});

test('lead_conversions_reader may read the two reports and their history', async () => {
  const grants = await database.db
    .select({ grant: sql`concat_ws(' ', relname, privilege_type)` })
    .from(sql`pg_class cross join aclexplode(relacl)`)
    .where(sql`grantee = 'lead_conversions_reader'::regrole`)
    .orderBy(sql`relname`);
  expect(grants.map(({ grant }) => grant)).toEqual([
    'fct_client_conversion_events SELECT',
    'fct_lead_conversions SELECT',
    'view_refreshes SELECT',
  ]);
});

test('the two reports are populated materialized views', async () => {
  const views = await database.db
    .select({ name: sql`matviewname`, populated: sql`ispopulated` })
    .from(sql`pg_matviews`)
    .orderBy(sql`matviewname`);
  expect(views).toEqual([
    { name: 'fct_client_conversion_events', populated: true },
    { name: 'fct_lead_conversions', populated: true },
  ]);
});

test('indexes are these', async () => {
  const indexes = await database.db
    .select({
      index: sql`replace(replace(indexdef, 'public.', ''), ' USING btree', '')`,
    })
    .from(sql`pg_indexes`)
    .where(sql`schemaname = 'public'`)
    .orderBy(sql`tablename`, sql`indexname`);
  expect(indexes.map(({ index }) => index)).toEqual([
    'CREATE UNIQUE INDEX dim_branch_pkey ON dim_branch (branch_id)',
    'CREATE UNIQUE INDEX dim_user_pkey ON dim_user (user_id)',
    'CREATE UNIQUE INDEX fct_client_conversion_events_user_id_key ON fct_client_conversion_events (user_id)',
    'CREATE INDEX fct_credit_pack_purchases_first ON fct_credit_pack_purchases (user_id, credit_pack_purchased_at, credit_pack_id)',
    'CREATE UNIQUE INDEX fct_credit_pack_purchases_user_id_credit_pack_id_pk ON fct_credit_pack_purchases (user_id, credit_pack_id)',
    'CREATE INDEX fct_lead_conversions_branch_id_local_user_created_at_idx ON fct_lead_conversions (branch_id, local_user_created_at)',
    'CREATE UNIQUE INDEX fct_lead_conversions_user_id_client_conversion_event_filter_key ON fct_lead_conversions (user_id, client_conversion_event_filter)',
    'CREATE INDEX fct_membership_purchases_first ON fct_membership_purchases (user_id, membership_purchased_at, user_membership_id)',
    'CREATE UNIQUE INDEX fct_membership_purchases_user_id_user_membership_id_pk ON fct_membership_purchases (user_id, user_membership_id)',
    'CREATE UNIQUE INDEX view_refreshes_view_started_at_pk ON view_refreshes (view, started_at)',
  ]);
});

test('every table, view, column and check has a comment, a relation’s on what one row is', async () => {
  const relations = sql`
    select oid, relname
    from pg_class
    where relnamespace = 'public'::regnamespace and relkind in ('r', 'm')`;
  const described = await database.db
    .select({
      relation: sql<string>`relname`,
      comment: sql<string>`obj_description(oid, 'pg_class')`,
    })
    .from(sql`(${relations}) as relations`);
  expect(described).toHaveLength(7);
  for (const { comment } of described) {
    expect(comment).toMatch(/^One row per /);
  }

  const undescribed = await database.db
    .select({ name: sql`relname || '.' || attname` })
    .from(sql`(${relations}) as relations inner join pg_attribute on attrelid = oid`)
    .where(sql`attnum > 0 and not attisdropped and col_description(attrelid, attnum) is null`);
  expect(undescribed).toEqual([]);

  const unexplained = await database.db
    .select({ name: sql`conname` })
    .from(sql`(${relations}) as relations inner join pg_constraint on conrelid = relations.oid`)
    .where(sql`contype = 'c' and obj_description(pg_constraint.oid, 'pg_constraint') is null`);
  expect(unexplained).toEqual([]);
});
