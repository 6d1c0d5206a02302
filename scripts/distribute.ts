import { vacuum } from '../views/vacuum.ts';
import { databaseCommand } from './command.ts';
import { type Distributed, distributeTables } from './distribute/tables.ts';
import { bounds } from './settings.ts';

export const distribute = databaseCommand({
  name: 'distribute',
  description:
    'Distributes the input tables of the database that DATABASE_URL names over the workers of its Citus cluster: every server gets all of dim_branch, and the other tables are split by user_id. The views stay on the coordinator. Run it once.',
  summary: 'distributes the input tables over a Citus cluster',
  settings: { lockTimeout: bounds.lockTimeout, statementTimeout: bounds.statementTimeout },
  exitCodes: {
    0: 'distributed, or there was nothing to distribute',
    75: 'skipped: a refresh or migration is running, or refreshes are held off',
  },
  example: '--lock-timeout 1min',
  nothing: () => ({ tables: [] as Distributed[] }),
  afterwards: 'The tables have not changed.',
  work: async ({ database, settings, facts, signal, progress, say, warn, onCommit }) => {
    if (process.env.DATABASE_URL?.startsWith('pglite:')) {
      throw new Error(
        'DATABASE_URL names an embedded database, which cannot be distributed. Set it to the URL of the coordinator of a Citus cluster.',
      );
    }
    const { statementTimeout } = settings;
    const { reason, isNew, tables } = await distributeTables(database.db, {
      ...{ ...settings, signal },
      onStep: progress.show,
    });
    if (reason !== null) {
      return { outcome: 'skipped', reason };
    }
    const ending = { outcome: 'distributed', reason: null };
    onCommit(ending);
    facts.tables = tables;
    for (const { table, rows, distributedBy, shards } of tables) {
      say(
        `${table}: ${rows} rows, ${distributedBy === null ? 'complete on every server' : `${shards} shards`}`,
      );
    }
    if (!isNew) {
      say('Nothing to do: the tables are already distributed.');
    }
    for (const { table } of isNew ? tables : []) {
      progress.show(`${table}: vacuuming`);
      (await vacuum(database.db, table, 'distributed', { statementTimeout, signal })).forEach(warn);
    }
    return ending;
  },
});
