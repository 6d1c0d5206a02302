import { execFile } from 'node:child_process';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, expect, test } from 'vitest';
import packageJson from '../package.json' with { type: 'json' };
import { useUnmigratedDatabase } from './support/database.ts';
import { type ScratchTree, scratchTree } from './support/scratch_tree.ts';

/** The package as others get it: packed, and installed in an empty project. */
let tree: ScratchTree;
let tarball: string;
let project: string;

const execute = async (cwd: string, program: string, args: string[], env = {}) => {
  const running = promisify(execFile)(program, args, { cwd, env: { ...process.env, ...env } });
  return await running.then(
    ({ stdout }) => stdout,
    ({ stdout, stderr }) => {
      throw new Error(`${program} ${args.join(' ')} failed:\n${stdout}${stderr}`);
    },
  );
};

const tool = (name: string) => resolve('node_modules/.bin', name);

beforeAll(async () => {
  tree = await scratchTree();
  const packed = await execute(tree.folder, 'npm', ['pack', '--silent']);
  tarball = join(tree.folder, packed.trim());
  project = await mkdtemp(join(tmpdir(), 'lead-conversions-consumer-'));
  await writeFile(join(project, 'package.json'), '{ "private": true, "type": "module" }');
  const { devDependencies: versions, dependencies } = packageJson;
  await execute(project, 'npm', [
    ...['install', '--no-audit', '--no-fund', '--prefer-offline', tarball, 'drizzle-orm@0.45'],
    ...[`postgres@${dependencies.postgres}`, `@types/node@${versions['@types/node']}`],
  ]);
  const readme = await readFile('README.md', 'utf8');
  const [example = ''] =
    /(?<=```ts\n)import (?:(?!```).)*lead-conversions\/views.*?(?=```)/s.exec(readme) ?? [];
  await writeFile(join(project, 'example.ts'), example);
  await writeFile(join(project, 'consumer.ts'), consumer);
}, 180_000);
afterAll(async () => {
  await tree.remove();
  await rm(project, { recursive: true });
});

/** What an app may do with it, beside the example in the README. */
const consumer = `
import { readFileSync } from 'node:fs';
import { drizzle } from 'drizzle-orm/postgres-js';
import { migrate } from 'drizzle-orm/postgres-js/migrator';
import { type Branch, dimBranch, dimUser, fctMembershipPurchases, type MembershipPurchase, type User } from 'lead-conversions/schema';
import { type ClientConversionEvent, conversionEventFilters, conversionEventTypes, fctClientConversionEvents, leadStatuses, readerRole, type RefreshReport, refreshViews, viewRefreshes } from 'lead-conversions/views';
import { latestClients } from './example.js';

const filters: readonly ['MEMBERSHIP', 'USER_CREDIT', 'ALL'] = conversionEventFilters;
const types: readonly ['MEMBERSHIP', 'USER_CREDIT'] = conversionEventTypes;
const statuses: readonly ['LEAD', 'CLIENT'] = leadStatuses;
// @ts-expect-error: there is no such filter
latestClients satisfies (branchId: string, filter: 'TRIAL') => unknown;
// @ts-expect-error: a row may have no branch
(event: ClientConversionEvent): string => event.branchId;

const db = drizzle(process.env.DATABASE_URL ?? '');
await migrate(db, {
  migrationsFolder: 'node_modules/lead-conversions/schema/migrations',
  migrationsTable: 'lead_conversions_migrations',
});

const branch: Branch = { branchId: 'dublin', name: null, email: null, city: null, country: null, timezoneId: 'Europe/Dublin', createdAt: null };
const user: User = { userId: 'ada', branchId: 'dublin', name: 'Ada', email: null, createdAt: new Date('2024-06-01T12:00:00Z') };
const purchase: typeof fctMembershipPurchases.$inferInsert = {
  userId: 'ada', branchId: null, userMembershipId: 'm1', membershipPurchasedAt: new Date('2024-07-01T12:00:00Z'),
  createdAt: null, membershipPurchaseDetails: { name: 'Gold' },
};
await db.insert(dimBranch).values(branch);
await db.insert(dimUser).values(user);
await db.insert(fctMembershipPurchases).values(purchase);
const report: RefreshReport = await refreshViews(db);
const [stored]: MembershipPurchase[] = await db.select().from(fctMembershipPurchases);
const events: ClientConversionEvent[] = await db.select().from(fctClientConversionEvents);
const [refresh] = await db.select().from(viewRefreshes);
console.log(JSON.stringify({
  filters, types, statuses, readerRole, events, derived: [stored?.membershipName, stored?.membershipSource],
  outcome: report.outcome,
  version: refresh?.packageVersion === JSON.parse(readFileSync('node_modules/lead-conversions/package.json', 'utf8')).version,
  clients: await latestClients('dublin', 'ALL'),
  others: await latestClients('dublin', 'USER_CREDIT'),
}));
process.exit();
`;

const compile = (...options: string[]) =>
  execute(project, tool('tsc'), [
    ...['--strict', '--target', 'es2022', '--types', 'node', ...options],
    ...['consumer.ts', 'example.ts'],
  ]);

test('holds compiled code, its declarations and the migrations, and nothing else', async () => {
  const files = await execute(tree.folder, 'tar', ['tzf', tarball]);
  const [code = [], others = []] = [true, false].map((isCode) =>
    files
      .trim()
      .split('\n')
      .map((file) => file.replace('package/', ''))
      .filter((file) => file.startsWith('dist/') === isCode),
  );
  expect(code).toContain('dist/views/index.js');
  for (const file of code) {
    expect(file).toMatch(/^dist\/(schema|views)\/\w+\.(js|d\.ts)$/);
  }
  const migrations = await tree.migrations();
  expect(others.sort()).toEqual([
    'LICENSE',
    'README.md',
    'package.json',
    ...migrations.map((name) => `schema/migrations/${name}`),
    'schema/migrations/meta/_journal.json',
  ]);
});

test('is what publint and arethetypeswrong ask of an ESM package', async () => {
  await execute(tree.folder, tool('publint'), ['--strict', tarball]);
  await execute(tree.folder, tool('attw'), ['--profile', 'esm-only', tarball]);
});

test.each([
  ['nodenext', 'nodenext'],
  ['bundler', 'esnext'],
])('type-checks in an app that resolves modules as %s', async (moduleResolution, module) => {
  const resolution = ['--module', module, '--moduleResolution', moduleResolution];
  // Drizzle's own declarations do not compile without each of its drivers.
  await compile('--noEmit', '--skipLibCheck', ...resolution);
  const ofOthers = await compile('--noEmit', ...resolution).catch(({ message }) => message);
  expect(ofOthers).not.toContain('lead-conversions');
});

const database = useUnmigratedDatabase();

test('migrates, refreshes and queries a database, as the README shows', async () => {
  await compile('--skipLibCheck', '--module', 'nodenext');
  const output = await execute(project, process.execPath, ['consumer.js'], {
    DATABASE_URL: database.url,
  });
  const conversion = {
    userId: 'ada',
    branchId: 'dublin',
    localUserCreatedAt: '2024-06-01 13:00:00',
    leadStatus: 'CLIENT',
    clientConversionEventType: 'MEMBERSHIP',
    clientConversionEventId: 'm1',
    clientConversionEventLocalCreatedAt: '2024-07-01 13:00:00',
    clientConversionEventName: 'Gold',
    clientConversionEventSource: null,
  };
  expect(JSON.parse(output)).toEqual({
    filters: ['MEMBERSHIP', 'USER_CREDIT', 'ALL'],
    types: ['MEMBERSHIP', 'USER_CREDIT'],
    statuses: ['LEAD', 'CLIENT'],
    readerRole: 'lead_conversions_reader',
    derived: ['Gold', null],
    events: [
      {
        ...conversion,
        firstUserMembershipId: 'm1',
        firstLocalMembershipPurchasedAt: '2024-07-01 13:00:00',
        firstMembershipName: 'Gold',
        firstMembershipSource: null,
        firstCreditPackId: null,
        firstLocalCreditPackPurchaseAt: null,
        firstCreditPackName: null,
        firstCreditPackSource: null,
      },
    ],
    outcome: 'refreshed',
    version: true,
    clients: [{ ...conversion, clientConversionEventFilter: 'ALL' }],
    others: [],
  });
});
