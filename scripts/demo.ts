import { mkdtemp, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { migrate } from 'drizzle-orm/pglite/migrator';
import { migrations } from '../schema/migrations.ts';
import { refreshDefaults, refreshViews } from '../views/index.ts';
import { command, runProgram } from './command.ts';
import { openPglite } from './database.ts';
import { gym } from './demo/gym.ts';
import { loadFolder } from './load/folder.ts';
import { writeReport } from './report.ts';
import { tableOf } from './table.ts';

const inProject = (path: string) => fileURLToPath(new URL(`../${path}`, import.meta.url));

/**
 * The questions that the demo asks the views. The tables of answers are at most 100 columns wide.
 */
const questions = {
  'How many leads became clients, by what the gym counts as a conversion?': `
select
    client_conversion_event_filter as filter,
    count(*) as users,
    count(*) filter (where lead_status = 'LEAD') as leads,
    count(*) filter (where lead_status = 'CLIENT') as clients,
    round(100.0 * count(*) filter (where lead_status = 'CLIENT') / count(*))
        as percent_converted
from fct_lead_conversions
group by client_conversion_event_filter
order by client_conversion_event_filter`,

  'Which purchase turned each lead into a client, by what counts as a conversion?': `
select
    user_id,
    client_conversion_event_filter as filter,
    lead_status as status,
    client_conversion_event_type as type,
    client_conversion_event_id as id,
    client_conversion_event_local_created_at as local_created_at
from fct_lead_conversions
order by user_id, client_conversion_event_filter`,

  'What was it, if both kinds count?': `
select
    user_id,
    client_conversion_event_type as type,
    client_conversion_event_local_created_at as local_created_at,
    client_conversion_event_name as name,
    client_conversion_event_source as source
from fct_client_conversion_events
order by user_id`,

  'What was the first membership of each user?': `
select
    user_id,
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
};

/** Returns the last midnight in UTC. */
const today = () => new Date(new Date().setUTCHours(0, 0, 0, 0));

const program = command({
  name: 'demo',
  isOfRepository: true,
  description:
    'Loads the sample data into an embedded database, shows what the two views make of it, and writes the report of a made-up gym to a temporary folder. Needs no database.',
  settings: {},
}).action(async () => {
  const database = await openPglite();
  const { db } = database;
  await migrate(db, migrations);
  const loads = await loadFolder(database, inProject('test/sample'));
  const { views } = await refreshViews(db);
  const loaded = loads.map(({ file, rows }) => `${rows} ${file.replace('.csv', '')}`);
  console.log('Loaded rows:', loaded.join(', '));
  console.log('Refreshed', views.map(({ view, rows }) => `${view} to ${rows} rows`).join(', '));

  for (const [question, query] of Object.entries(questions)) {
    const { fields, rows } = await db.execute(query);
    console.log(`\n${question}\n${query}\n`);
    const columns = fields.map(({ name }) => name);
    const cells = rows.map((row) => columns.map((column) => row[column] as string | null));
    console.log(tableOf(columns, cells));
  }

  // The made-up gym replaces the sample.
  const folder = await mkdtemp(join(tmpdir(), 'lead-conversions-demo-'));
  for (const [file, text] of Object.entries(gym(today()))) {
    await writeFile(join(folder, file), text);
  }
  await loadFolder(database, folder, { isSnapshot: true, maxLoss: '100%' });
  await refreshViews(db, { maxLoss: '100%' });
  const { file, figures } = await writeReport(db, {
    ...refreshDefaults,
    out: join(folder, 'report.html'),
    title: 'Lead conversions of a made-up gym',
  });
  console.log(
    `\nThe report of a made-up gym with ${figures.headlines[0]?.users} users. Open it in a browser:\n\n${file}`,
  );
  await database.close();
});

await runProgram(program);
