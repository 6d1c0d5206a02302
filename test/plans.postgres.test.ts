import { sql } from 'drizzle-orm';
import { expect, test } from 'vitest';
import { useDatabase } from './support/database.ts';

const database = useDatabase();

test('first purchases are found in an index that holds no JSON', async () => {
  const { db } = database;
  await db.execute(sql`insert into dim_user (user_id) select generate_series(1, 5000)`);
  await db.execute(sql`
    insert into fct_membership_purchases
    select user_id, null, purchase, now() - purchase * interval '1 day', null, '{"name": "Monthly"}'
    from dim_user cross join generate_series(1, 5) as purchase`);
  await db.execute(sql`
    insert into fct_credit_pack_purchases
    select user_id, null, purchase, now() - purchase * interval '1 day', null, '{"name": "5 classes"}'
    from dim_user cross join generate_series(1, 5) as purchase`);
  await db.execute(sql`vacuum analyze`);
  const [view] = await db
    .select({ definition: sql<string>`pg_get_viewdef('fct_client_conversion_events')` })
    .from(sql`(values (1)) as one`);
  const plan = JSON.stringify(await db.execute(sql.raw(`explain ${view?.definition}`)));
  for (const index of ['fct_membership_purchases_first', 'fct_credit_pack_purchases_first']) {
    expect(plan).toContain(`Index Only Scan using ${index}`);
  }
  expect(plan).not.toContain('Sort');
});
