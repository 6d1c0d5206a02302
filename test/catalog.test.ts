import { readFile } from 'node:fs/promises';
import { getTableName, getViewName, is, sql } from 'drizzle-orm';
import {
  getMaterializedViewConfig,
  PgMaterializedView,
  PgTable,
  pgMaterializedView,
  pgTable,
  varchar,
} from 'drizzle-orm/pg-core';
import { expect, test } from 'vitest';
import { inputTables } from '../schema/input_tables.ts';
import { withProperties } from '../schema/properties.ts';
import {
  columnOrder,
  declarations,
  declaredRelations,
  readRelations,
} from '../scripts/relations.ts';
import { viewsInOrder } from '../views/refresh.ts';
import { useDatabase } from './support/database.ts';

const database = useDatabase();

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

test('the tables have these indexes and no others', async () => {
  const indexes = await database.db
    .select({
      index: sql`replace(replace(indexdef, 'public.', ''), ' USING btree', '')`,
    })
    .from(sql`pg_indexes`)
    .where(sql`tablename in (select tablename from pg_tables where schemaname = 'public')`)
    .orderBy(sql`tablename`, sql`indexname`);
  expect(indexes.map(({ index }) => index)).toEqual([
    'CREATE UNIQUE INDEX dim_branch_pkey ON dim_branch (branch_id)',
    'CREATE UNIQUE INDEX dim_user_pkey ON dim_user (user_id)',
    'CREATE INDEX fct_credit_pack_purchases_first ON fct_credit_pack_purchases (user_id, credit_pack_purchased_at, credit_pack_id, credit_pack_name, credit_pack_source)',
    'CREATE UNIQUE INDEX fct_credit_pack_purchases_user_id_credit_pack_id_pk ON fct_credit_pack_purchases (user_id, credit_pack_id)',
    'CREATE INDEX fct_membership_purchases_first ON fct_membership_purchases (user_id, membership_purchased_at, user_membership_id, membership_name, membership_source)',
    'CREATE UNIQUE INDEX fct_membership_purchases_user_id_user_membership_id_pk ON fct_membership_purchases (user_id, user_membership_id)',
    'CREATE UNIQUE INDEX input_loads_pkey ON input_loads (id)',
    'CREATE UNIQUE INDEX view_refreshes_pkey ON view_refreshes (id)',
  ]);
});

test('every table and view matches its declaration, and there are no others', async () => {
  const declared = declaredRelations();
  expect(declared.map(({ name }) => name)).toEqual([
    'dim_branch',
    'dim_user',
    'fct_client_conversion_events',
    'fct_credit_pack_purchases',
    'fct_lead_conversions',
    'fct_membership_purchases',
    'input_loads',
    'view_refreshes',
  ]);
  expect(await readRelations(database.db)).toEqual(declared);
});

test.each([
  'comment on table dim_user is null',
  `comment on column fct_lead_conversions.user_id is 'Who.'`,
  'comment on constraint dim_user_created_at_check on dim_user is null',
  'comment on index fct_membership_purchases_first is null',
  'drop index fct_lead_conversions_branch_id_local_user_created_at_idx',
  'create index on fct_client_conversion_events (branch_id)',
  'create index on dim_user (branch_id)',
  'alter table dim_user add column phone varchar',
  'alter table dim_user alter column name type text',
  'alter table dim_user alter column name set not null',
  'alter table dim_user drop constraint dim_user_created_at_check',
  'revoke select on fct_lead_conversions from lead_conversions_reader',
  'grant select on dim_user to public',
  'create table notes (note text)',
  'create view notes as select 1 as note',
])('a difference from the declarations is noticed after: %s', async (statement) => {
  const undone = new Error('undone');
  await expect(
    database.db.transaction(async (transaction) => {
      await transaction.execute(statement);
      expect(await readRelations(transaction)).not.toEqual(declaredRelations());
      throw undone;
    }),
  ).rejects.toThrow(undone);
});

test.each(viewsInOrder.map((view) => getMaterializedViewConfig(view)))(
  'the database defines $name as it is declared',
  async ({ name, query }) => {
    const definition = (view: string) => sql<string>`pg_get_viewdef(${view}::regclass)`;
    await database.db.execute(sql`create temporary view declared as ${query}`);
    const [definitions] = await database.db
      .select({ declared: definition('declared'), actual: definition(name) })
      .from(sql`(values (1)) as once`);
    await database.db.execute(sql`drop view declared`);
    expect(definitions?.actual).toBe(definitions?.declared);
  },
);

test('Drizzle names the schema of each table and view in every statement', () => {
  const { db } = database;
  for (const declaration of Object.values(declarations)) {
    if (is(declaration, PgTable) || is(declaration, PgMaterializedView)) {
      const name = is(declaration, PgTable) ? getTableName(declaration) : getViewName(declaration);
      const statements = is(declaration, PgTable)
        ? [db.select().from(declaration), db.insert(declaration).values({}), db.delete(declaration)]
        : [db.select().from(declaration), db.refreshMaterializedView(declaration)];
      for (const statement of statements) {
        expect(statement.toSQL().sql).toContain(`"public"."${name}"`);
      }
    }
  }
});

test('the comment on a table or view begins with its grain, "One row per …"', () => {
  for (const { comments } of declaredRelations()) {
    expect(comments[0]?.text).toMatch(/^One row per /);
  }
});

test.each<[page: string, relation: string]>([
  ['views/README.md', 'fct_client_conversion_events'],
  ['views/README.md', 'fct_lead_conversions'],
  ...inputTables.map((table): [string, string] => ['schema/README.md', getTableName(table)]),
])('%s lists the columns of %s with their comments', async (page, relation) => {
  const [, section = ''] = (await readFile(page, 'utf8')).split(
    new RegExp(`^\`${relation}\`(?:, one row per .*)?:$`, 'm'),
  );
  const [table = ''] = /\n\|.*?\n\n/s.exec(section) ?? [];
  const order = columnOrder(relation);
  const columns = declaredRelations()
    .find(({ name }) => name === relation)
    ?.comments.filter(({ on }) => on === 'COLUMN')
    .toSorted((one, other) => order.indexOf(one.name) - order.indexOf(other.name));
  const rows = [...table.matchAll(/^\| `(\w+)` +\|(?: \w+ +\|)? (.*?) +\|$/gm)];
  expect(rows.map(([, ...cells]) => cells)).toEqual(columns?.map(({ name, text }) => [name, text]));
});

test('a column without a comment does not compile, and neither does a view whose key may be NULL', () => {
  const comment = 'One row per note.';
  const notes = pgTable('notes', { id: varchar('id').notNull(), note: varchar('note') });
  // @ts-expect-error: there is no comment on note
  withProperties(notes, { comment, columns: { id: 'Identifier.' } });
  // @ts-expect-error: there is no column text
  withProperties(notes, { comment, columns: { id: 'Identifier.', note: 'Text.', text: 'Text.' } });
  withProperties(notes, { comment, columns: { id: 'Identifier.', note: 'Text.' } });

  const view = pgMaterializedView('view', {
    id: varchar('id').notNull(),
    note: varchar('note'),
  }).as(sql`select id, note from notes`);
  const columns = { id: 'Identifier.', note: 'Text.' };
  // @ts-expect-error: there is no unique key
  withProperties(view, { comment, columns });
  // @ts-expect-error: note may be NULL
  withProperties(view, { comment, columns, uniqueKey: ['note'] });
  const indexed = { comment, columns, uniqueKey: ['id'], reads: [notes.id] } as const;
  // @ts-expect-error: there is no column text
  withProperties(view, { ...indexed, indexes: [{ on: ['text'], comment }] });
  expect(withProperties(view, indexed)).toBe(view);
});
