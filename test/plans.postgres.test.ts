import { sql } from 'drizzle-orm';
import { expect, test } from 'vitest';
import { refreshViews } from '../views/index.ts';
import { useDatabase } from './support/database.ts';

const database = useDatabase();

/** The lines of the plan of a query. */
async function planOf(query: string): Promise<string[]> {
  const lines = (await database.db.execute(sql.raw(`explain ${query}`))) as unknown as {
    'QUERY PLAN': string;
  }[];
  return lines.map((line) => line['QUERY PLAN']);
}

const scansOf = (plan: string[]) =>
  plan.flatMap((line) => /\w+ (?:Only )?Scan (?:using \w+ )?on fct_\w+/.exec(line)?.[0] ?? []);

test('the first view reads first purchases from indexes alone', async () => {
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
  const plan = await planOf(view?.definition ?? '');

  const purchases = scansOf(plan);
  expect(purchases.toSorted()).toEqual([
    'Index Only Scan using fct_credit_pack_purchases_first on fct_credit_pack_purchases',
    'Index Only Scan using fct_membership_purchases_first on fct_membership_purchases',
  ]);
  // Nothing sorts the purchases after the index.
  const firsts = plan.flatMap((line, index) => (line.includes('Unique') ? [plan[index + 1]] : []));
  expect(firsts).toEqual([
    expect.stringContaining('Index Only Scan'),
    expect.stringContaining('Index Only Scan'),
  ]);
  // Only the users may be sorted.
  const sorted = plan.filter((line) => line.includes('Sort Key'));
  expect(sorted.filter((line) => !line.endsWith('Sort Key: dim_user.user_id COLLATE "C"'))).toEqual(
    [],
  );
});

test('queries on a branch or a user use an index, with 100,000 users', async () => {
  const { db } = database;
  await db.execute(sql`insert into dim_branch (branch_id) select generate_series(1, 200)`);
  await db.execute(sql`
    insert into dim_user (user_id, branch_id, created_at)
    select number, number % 200 + 1, '2024-01-01'::timestamptz + number * interval '5 minutes'
    from generate_series(1, 100000) as number`);
  await db.execute(sql`
    insert into fct_membership_purchases (user_id, user_membership_id, membership_purchased_at)
    select user_id, 'm', now() from dim_user where user_id like '%7'`);
  await refreshViews(db);

  const report = await planOf(`
    select date_trunc('month', local_user_created_at), lead_status, count(*)
    from fct_lead_conversions
    where branch_id = '7'
      and client_conversion_event_filter = 'MEMBERSHIP'
      and local_user_created_at >= '2024-03-01'
      and local_user_created_at < '2024-06-01'
    group by 1, 2`);
  expect(scansOf(report)).not.toContain('Seq Scan on fct_lead_conversions');
  expect(report.join('\n')).toMatch(
    /Index Scan (using|on) fct_lead_conversions_branch_id_local_user_created_at_idx[^\n]*\n\s*Index Cond: [^\n]*branch_id[^\n]*local_user_created_at/,
  );

  const user = await planOf(`
    select * from fct_lead_conversions
    where user_id = '77777'
    order by client_conversion_event_filter`);
  expect(scansOf(user)).toEqual([
    'Index Scan using fct_lead_conversions_user_id_client_conversion_event_filter_key on fct_lead_conversions',
  ]);
});
