import { execFile } from 'node:child_process';
import { cp, mkdtemp, readdir, readFile, rm, stat, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import { build } from 'esbuild';
import postgres from 'postgres';
import { afterAll, afterEach, beforeAll, beforeEach, describe, expect, test, vi } from 'vitest';
import packageJson from '../package.json' with { type: 'json' };
import { conversionEventFilters } from '../views/index.ts';
import { useUnmigratedDatabase } from './support/database.ts';
import { type ScratchTree, scratchTree } from './support/scratch_tree.ts';
import { filters, patience, sessionsEnded, sessionsThatWait } from './support/sessions.ts';

/** A copy of the package, to pack and to install in empty projects, as others get it. */
let tree: ScratchTree;
let tarball: string;
/** The project of an app. */
let project: string;
/** The project of an operator, with nothing but the package and Drizzle. */
let production: string;

/** The environment without the npm that runs these tests. */
const environment = Object.fromEntries(
  Object.entries(process.env).filter(([name]) => !name.startsWith('npm_')),
);

const execute = async (cwd: string, program: string, args: string[], env = {}) => {
  const running = promisify(execFile)(program, args, { cwd, env: { ...environment, ...env } });
  return await running.then(
    ({ stdout }) => stdout,
    ({ stdout, stderr }) => {
      throw new Error(`${program} ${args.join(' ')} failed:\n${stdout}${stderr}`);
    },
  );
};

const tool = (name: string) => resolve('node_modules/.bin', name);

const emptyProject = async () => {
  const folder = await mkdtemp(join(tmpdir(), 'lead-conversions-consumer-'));
  await writeFile(join(folder, 'package.json'), '{ "private": true, "type": "module" }');
  return folder;
};

const install = (folder: string, ...packages: string[]) =>
  execute(folder, 'npm', ['install', '--no-audit', '--no-fund', '--prefer-offline', ...packages]);

beforeAll(async () => {
  tree = await scratchTree();
  const packed = await execute(tree.folder, 'npm', ['pack', '--silent']);
  tarball = join(tree.folder, packed.trim());
  production = await emptyProject();
  await install(production, tarball, 'drizzle-orm@0.45');
  project = await emptyProject();
  await cp(production, project, { recursive: true });
  const { devDependencies: versions, dependencies } = packageJson;
  await install(
    project,
    `postgres@${dependencies.postgres}`,
    `@types/node@${versions['@types/node']}`,
  );
  const readme = await readFile('README.md', 'utf8');
  const [example = ''] =
    /(?<=```ts\n)import (?:(?!```).)*lead-conversions\/views.*?(?=```)/s.exec(readme) ?? [];
  await writeFile(join(project, 'example.ts'), example);
  await writeFile(join(project, 'consumer.ts'), consumer);
}, 180_000);
afterAll(async () => {
  await tree.remove();
  await rm(project, { recursive: true });
  await rm(production, { recursive: true });
});

/** What an app may do with it, beside the example in the README. */
const consumer = `
import { readFileSync } from 'node:fs';
import { drizzle } from 'drizzle-orm/postgres-js';
import { migrate } from 'drizzle-orm/postgres-js/migrator';
import { migrations } from 'lead-conversions/migrations';
import { type Branch, dimBranch, dimUser, fctMembershipPurchases, type MembershipPurchase, type User } from 'lead-conversions/schema';
import { type ClientConversionEvent, conversionEventFilters, conversionEventTypes, fctClientConversionEvents, leadStatuses, readerRole, type RefreshReport, refreshViews, viewRefreshes } from 'lead-conversions/views';
import { statusesWithNames, latestClients } from './example.js';

const filters: readonly ['MEMBERSHIP', 'USER_CREDIT', 'ALL', ...string[]] = conversionEventFilters;
const types: readonly ['MEMBERSHIP', 'USER_CREDIT'] = conversionEventTypes;
const statuses: readonly ['LEAD', 'CLIENT'] = leadStatuses;
// @ts-expect-error: there is no such filter
latestClients satisfies (branchId: string, filter: 'TRIAL') => unknown;
// @ts-expect-error: a row may have no branch
(event: ClientConversionEvent): string => event.branchId;

const db = drizzle(process.env['DATABASE_URL'] ?? '');
await migrate(db, migrations);

const branch: Branch = { branchId: 'dublin', name: null, email: null, city: null, country: null, timezoneId: 'Europe/Dublin', createdAt: null };
const user: User = { userId: 'ada', branchId: 'dublin', name: 'Ada', email: null, createdAt: new Date('2024-06-01T12:00:00Z') };
const purchase: typeof fctMembershipPurchases.$inferInsert = {
  userId: 'ada', branchId: null, userMembershipId: 'm1', membershipPurchasedAt: new Date('2024-07-01T12:00:00Z'),
  createdAt: null, membershipPurchaseDetails: { name: 'Gold' },
};
await db.insert(dimBranch).values(branch);
await db.insert(dimUser).values(user);
await db.insert(fctMembershipPurchases).values(purchase);
const report: RefreshReport = await refreshViews(db, {
  lockTimeout: process.env['LOCK_TIMEOUT'], signal: undefined, force: undefined, onStep: undefined,
});
const joined = await statusesWithNames('ALL');
const [stored]: MembershipPurchase[] = await db.select().from(fctMembershipPurchases);
const events: ClientConversionEvent[] = await db.select().from(fctClientConversionEvents);
const [refresh] = await db.select().from(viewRefreshes);
console.log(JSON.stringify({
  filters, types, statuses, readerRole, events, derived: [stored?.membershipName, stored?.membershipSource],
  outcome: report.outcome,
  joined,
  version: refresh?.packageVersion === JSON.parse(readFileSync('node_modules/lead-conversions/package.json', 'utf8')).version,
  clients: await latestClients('dublin', 'ALL'),
  others: await latestClients('dublin', 'USER_CREDIT'),
}));
process.exit();
`;

const compile = (...options: string[]) =>
  execute(project, tool('tsc'), [
    ...['--strict', '--target', 'es2022', '--types', 'node', ...options],
    ...['--exactOptionalPropertyTypes', '--noPropertyAccessFromIndexSignature'],
    ...['--noUncheckedIndexedAccess', '--verbatimModuleSyntax', '--isolatedModules'],
    ...['consumer.ts', 'example.ts'],
  ]);

test('the package has compiled code, the declarations of its entries and the migrations, but no sources', async () => {
  const listed = await execute(tree.folder, 'tar', ['tzf', tarball]);
  const files = listed
    .trim()
    .split('\n')
    .map((file) => file.replace('package/', ''));
  const isCode = (file: string) => /^dist\/(scripts\/|(schema|views)\/\w+\.)/.test(file);
  expect(files).toContain('dist/views/index.js');
  for (const file of files.filter(isCode)) {
    expect(file).toMatch(/^dist\/((schema|views)\/\w+\.(js|d\.ts)|scripts\/[\w/]+\.js)$/);
  }
  const migrations = await tree.migrations();
  expect(files.filter((file) => !isCode(file)).sort()).toEqual([
    'LICENSE',
    'README.md',
    ...migrations.map((name) => `dist/schema/migrations/${name}`),
    'dist/schema/migrations/meta/_journal.json',
    'package.json',
    ...['schema', 'scripts', 'views'].map((folder) => `${folder}/README.md`),
  ]);
});

test('an installation takes six packages and less than 20 MB, Drizzle included', async () => {
  const { packages } = JSON.parse(await readFile(join(production, 'package-lock.json'), 'utf8'));
  expect(Object.keys(packages).sort()).toEqual([
    '',
    ...[
      ...['commander', 'drizzle-orm', 'is-network-error', 'lead-conversions'],
      ...['p-retry', 'postgres'],
    ].map((name) => `node_modules/${name}`),
  ]);
  const files = await readdir(join(production, 'node_modules'), { recursive: true });
  let bytes = 0;
  for (const file of files) {
    bytes += (await stat(join(production, 'node_modules', file))).size;
  }
  expect(bytes).toBeLessThan(20e6);
});

test('the list of filters alone is bundled into less than 400 bytes, for browsers too', async () => {
  const { outputFiles } = await build({
    stdin: {
      contents: `
        import { conversionEventFilters } from 'lead-conversions/views';
        console.log(conversionEventFilters);`,
      resolveDir: project,
    },
    bundle: true,
    minify: true,
    format: 'esm',
    write: false,
  });
  const [bundle] = outputFiles;
  expect(bundle?.text).toContain(JSON.stringify(conversionEventFilters));
  expect(bundle?.contents.length).toBeLessThan(400);
});

test('the package is built when it is installed from git', { timeout: 180_000 }, async () => {
  const folder = await emptyProject();
  try {
    await cp('package-lock.json', join(tree.folder, 'package-lock.json'));
    await writeFile(join(tree.folder, '.gitignore'), 'node_modules\ndist\n*.tgz\n');
    const git = (...args: string[]) =>
      execute(tree.folder, 'git', [
        '-c',
        'user.name=test',
        '-c',
        'user.email=test@localhost',
        ...args,
      ]);
    await git('init', '--quiet');
    await git('add', '.');
    await git('commit', '--quiet', '--message', 'All of it');
    await install(folder, `git+file://${tree.folder}`, 'drizzle-orm@0.45');
    expect(await execute(folder, 'npx', ['lead-conversions', '--version'])).toBe(
      `${packageJson.version}\n`,
    );
  } finally {
    await rm(folder, { recursive: true });
  }
});

test('require can load the package, too', async () => {
  const code = `console.log(require('lead-conversions/views').conversionEventFilters.length)`;
  expect(await execute(project, process.execPath, ['--input-type=commonjs', '--eval', code])).toBe(
    `${conversionEventFilters.length}\n`,
  );
});

test('npm refuses to install the package beside Drizzle 1.0, and names the conflict', async () => {
  const folder = await emptyProject();
  try {
    await expect(install(folder, tarball, 'drizzle-orm@1.0.0-rc.5-169397b')).rejects.toThrow(
      /peer drizzle-orm@"\^0\.45\.4" from lead-conversions@/,
    );
  } finally {
    await rm(folder, { recursive: true });
  }
});

test('publint and arethetypeswrong accept the package as an ESM package', async () => {
  await execute(tree.folder, tool('publint'), ['--strict', tarball]);
  await execute(tree.folder, tool('attw'), ['--profile', 'esm-only', tarball]);
});

test.each([
  ['nodenext', 'nodenext'],
  ['bundler', 'esnext'],
])(
  'the package type-checks in an app that resolves modules as %s',
  async (moduleResolution, module) => {
    const resolution = ['--module', module, '--moduleResolution', moduleResolution];
    // The declarations of Drizzle itself do not compile unless all of its drivers are installed.
    await compile('--noEmit', '--skipLibCheck', ...resolution);
    const ofOthers = await compile('--noEmit', ...resolution).catch(({ message }) => message);
    expect(ofOthers).not.toContain('lead-conversions');
  },
);

const database = useUnmigratedDatabase();

describe('npx lead-conversions', () => {
  const npx = (...args: string[]) =>
    execute(production, 'npx', ['lead-conversions', ...args], { DATABASE_URL: database.url });

  test('migrates, loads and refreshes a database', async () => {
    expect(await npx('migrate')).toMatch(/^(\d{4}_\w+: migrated, \d+ ms\n)+$/);
    expect(await npx('load', resolve('test/sample'))).toContain(
      'dim_user.csv: 13 rows, 13 inserted, 0 updated, 0 unchanged\n',
    );
    const { outcome, views } = JSON.parse(await npx('refresh', '--json'));
    expect(outcome).toBe('refreshed');
    expect(views).toMatchObject([{ rows: 13 }, { rows: 13 * filters }]);
    expect(await npx('diff')).toMatch(/^(fct_\w+: \d+ rows, nothing would change\n){2}$/);
    expect(await npx('doctor')).toBe('The database is healthy.\n');
  });

  test('does not need to write any file', async () => {
    const readOnly = (...args: string[]) =>
      execute(
        production,
        process.execPath,
        ['--no-warnings', '--experimental-permission', '--allow-fs-read=*', ...args],
        { DATABASE_URL: database.url },
      );
    const program = 'node_modules/.bin/lead-conversions';
    await expect(
      readOnly('--eval', "require('node:fs').writeFileSync('some.file', '')"),
    ).rejects.toThrow('ERR_ACCESS_DENIED');
    await readOnly(program, 'migrate');
    await readOnly(program, 'load', resolve('test/sample'));
    expect(await readOnly(program, 'refresh')).toContain(
      `fct_lead_conversions: ${13 * filters} rows`,
    );
  });

  test('prints its version, and the usage of each command in lines of at most 80 characters', async () => {
    expect(await npx('--version')).toBe(`${packageJson.version}\n`);
    const commands = ['migrate', 'load', 'refresh', 'diff', 'doctor', 'distribute', 'report'];
    for (const args of [[], ...commands.map((command) => [command])]) {
      expect(await npx(...args, '--version')).toBe(`${packageJson.version}\n`);
      const help = await npx(...args, '--help');
      expect(help).toMatch(new RegExp(`^Usage: ${['npx lead-conversions', ...args].join(' ')} `));
      expect(help).toContain(`\nExample:\n  npx lead-conversions `);
      expect(Math.max(...help.split('\n').map(({ length }) => length))).toBeLessThanOrEqual(80);
    }
  });

  test('says what to install for an embedded database', async () => {
    await expect(
      execute(production, 'npx', ['lead-conversions', 'migrate'], { DATABASE_URL: 'pglite:gym' }),
    ).rejects.toThrow(
      'A pglite: database needs PGlite, which is not installed. Install it with "npm install @electric-sql/pglite@0.5".\n',
    );
  });

  test('writes the report once its libraries are installed, and names missing ones', async () => {
    await npx('migrate');
    const report = (folder: string) =>
      execute(folder, 'npx', ['lead-conversions', 'report', '--out', 'report.html'], {
        DATABASE_URL: database.url,
      });
    const advice = 'npm install vega@6 vega-lite@6 preact@11 preact-render-to-string@6';
    await expect(report(production)).rejects.toThrow(
      `The report needs preact, which is not installed. Install all that it needs with "${advice}".\n`,
    );
    const folder = await emptyProject();
    try {
      await install(folder, tarball, 'drizzle-orm@0.45');
      await execute(folder, 'npm', [...advice.split(' ').slice(1), '--prefer-offline']);
      expect(await report(folder)).toMatch(/^report\.html: written, \d+ kB, 0 users\n$/);
      expect(await readFile(join(folder, 'report.html'), 'utf8')).toMatch(/<\/html>\n$/);
    } finally {
      await rm(folder, { recursive: true });
    }
  }, 180_000);

  describe('refresh', () => {
    let session: postgres.Sql;
    beforeEach(async () => {
      await npx('migrate');
      session = postgres(database.url, { max: 2, onnotice: () => {} });
      await session`insert into dim_user (user_id) values ('mia')`;
    });
    afterEach(() => session.end());

    test.each(['SIGTERM', 'SIGKILL'] as const)(
      'is cancelled when npx is ended by %s',
      async (signal) => {
        await session.begin(async (locked) => {
          await locked`refresh materialized view concurrently fct_lead_conversions`;
          const running = execFile('npx', ['lead-conversions', 'refresh'], {
            cwd: production,
            env: { ...environment, DATABASE_URL: database.url },
          });
          let said = '';
          running.stderr?.on('data', (text) => {
            said += text;
          });
          await sessionsThatWait(session);
          running.kill(signal);
          await vi.waitUntil(() => said.includes('\n'), patience);
          expect(said).toBe('Cancelled by SIGTERM. The views have not changed.\n');
          await sessionsEnded(session);
        });
      },
    );
  });
});

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
    filters: [...conversionEventFilters],
    types: ['MEMBERSHIP', 'USER_CREDIT'],
    statuses: ['LEAD', 'CLIENT'],
    readerRole: 'lead_conversions_reader',
    derived: ['Gold', null],
    events: [
      expect.objectContaining({
        ...conversion,
        firstUserMembershipId: 'm1',
        firstLocalMembershipPurchasedAt: '2024-07-01 13:00:00',
        firstMembershipName: 'Gold',
        firstMembershipSource: null,
        firstCreditPackId: null,
        firstLocalCreditPackPurchaseAt: null,
        firstCreditPackName: null,
        firstCreditPackSource: null,
      }),
    ],
    outcome: 'refreshed',
    joined: [{ leadStatus: 'CLIENT', user: 'Ada', branch: null, city: null }],
    version: true,
    clients: [expect.objectContaining({ ...conversion, clientConversionEventFilter: 'ALL' })],
    others: [],
  });
});
