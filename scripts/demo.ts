import { fileURLToPath } from 'node:url';
import { migrate } from 'drizzle-orm/pglite/migrator';
import { migrations } from '../schema/migrations.ts';
import { refreshViews } from '../views/index.ts';
import { command, runProgram } from './command.ts';
import { openPglite } from './database.ts';
import { loadFolder } from './load/folder.ts';
import { tableOf } from './table.ts';

const inProject = (path: string) => fileURLToPath(new URL(`../${path}`, import.meta.url));

/** What the demo asks the views. */
const questions = {
  'What turned each lead into a client?': `
select
    user_id,
    lead_status as status,
    client_conversion_event_type as type,
    client_conversion_event_id as id,
    client_conversion_event_local_created_at as local_created_at,
    client_conversion_event_name as name,
    client_conversion_event_source as source
from fct_client_conversion_events
order by user_id`,

  'What was each user’s first membership?': `
select
    user_id,
    branch_id,
    local_user_created_at,
    first_user_membership_id as membership_id,
    first_local_membership_purchased_at as local_purchased_at,
    first_membership_name as name,
    first_membership_source as source
from fct_client_conversion_events
order by user_id`,

  'And the first credit pack?': `
select
    user_id,
    first_credit_pack_id as credit_pack_id,
    first_local_credit_pack_purchase_at as local_purchase_at,
    first_credit_pack_name as name,
    first_credit_pack_source as source
from fct_client_conversion_events
order by user_id`,

  'What turned each lead into a client, for every meaning of conversion?': `
select
    user_id,
    client_conversion_event_filter as filter,
    lead_status as status,
    client_conversion_event_type as type,
    client_conversion_event_id as id,
    client_conversion_event_local_created_at as local_created_at,
    client_conversion_event_name as name,
    client_conversion_event_source as source
from fct_lead_conversions
order by user_id, client_conversion_event_filter`,

  'How many leads became clients, by what the gym counts as a conversion?': `
select
    client_conversion_event_filter as filter,
    count(*) as users,
    count(*) filter (where lead_status = 'CLIENT') as clients,
    round(100.0 * count(*) filter (where lead_status = 'CLIENT') / count(*))
        as percent_converted
from fct_lead_conversions
group by client_conversion_event_filter
order by client_conversion_event_filter`,
};

const program = command({
  name: 'demo',
  isOfRepository: true,
  description:
    'Loads the sample data into an embedded database, and shows what the two views make of it. Needs no database.',
  settings: {},
}).action(async () => {
  const database = await openPglite();
  const { db } = database;
  await migrate(db, migrations);
  const loads = await loadFolder(database, inProject('test/sample'));
  const { views } = await refreshViews(db);
  console.log('Loaded', loads.map(({ file, rows }) => `${rows} rows of ${file}`).join(', '));
  console.log('Refreshed', views.map(({ view, rows }) => `${view} to ${rows} rows`).join(', '));

  for (const [question, query] of Object.entries(questions)) {
    const { fields, rows } = await db.execute(query);
    console.log(`\n${question}\n${query}\n`);
    const columns = fields.map(({ name }) => name);
    const cells = rows.map((row) => columns.map((column) => row[column] as string | null));
    console.log(tableOf(columns, cells));
  }
  await database.close();
});

await runProgram(program);
