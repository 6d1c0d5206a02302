import { execFile } from 'node:child_process';
import { cp, readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { type ScratchTree, scratchTree } from './support/scratch_tree.ts';

// Follows "Changing a view" in views/README.md to the letter, in a copy of this package with its
// tests.

let tree: ScratchTree;
beforeEach(async () => {
  tree = await scratchTree();
  for (const name of ['test', '.biome.json', '.gitignore']) {
    await cp(name, join(tree.folder, name), { recursive: true });
  }
});
afterEach(() => tree.remove());

/** The code blocks of that section, in order. */
async function blocks(language: 'ts' | 'sql'): Promise<string[]> {
  const readme = await readFile('views/README.md', 'utf8');
  const [, section = ''] = readme.split('\n## Changing a view\n');
  const found = section.matchAll(new RegExp(`\`\`\`${language}\\n(.*?)\`\`\``, 'gs'));
  return [...found].map(([, code = '']) => code.replace(/^ {3}/gm, '').trimEnd());
}

/** Runs a program in the tree, and returns its output. Throws the output if it fails. */
async function execute(program: string, ...args: string[]): Promise<string> {
  const { stdout } = await promisify(execFile)(program, args, {
    cwd: tree.folder,
    env: {
      ...process.env,
      ...{ npm_lifecycle_event: undefined, VITEST: undefined, VITEST_POOL_ID: undefined },
      ...{ VITEST_WORKER_ID: undefined, NODE_ENV: undefined },
      ...{ CI: undefined, CHROMIUM: '' }, // without the tests in a browser
    },
    maxBuffer: 2 ** 26,
  }).catch(({ stdout, stderr }) => {
    throw new Error(`${program} ${args.join(' ')} failed.\n${stdout}\n${stderr}`);
  });
  return stdout;
}

/** Generates the migration, and runs all checks and tests. */
async function finish(name: string): Promise<void> {
  await execute('npx', 'biome', 'check', '--write', '.');
  await execute('npm', 'run', 'generate', '--', '--name', name);
  await execute('npm', 'run', 'check');
  // Leaves out tests that are slow and do not depend on the columns of the views.
  const files = (await readdir('test')).filter(
    (file) =>
      file.endsWith('.test.ts') && !/\.postgres\.|^(load.*|commands|generate)\.test/.test(file),
  );
  const said = await execute('npm', 'test', '--', '-u', ...files.map((file) => `test/${file}`));
  expect(said).toMatch(/Snapshots .*1 updated/);
  await execute('npm', 'test', '--', 'test/sample.test.ts');
}

const timeout = { timeout: 600_000 };

describe('the checks and tests pass after following the recipe', () => {
  test('for a column appended to the first view', timeout, async () => {
    const [column = '', comment = ''] = await blocks('ts');
    const [sql = ''] = await blocks('sql');
    await tree.edit(
      'views/fct_client_conversion_events.ts',
      [`import { varchar } from`, `import { integer, varchar } from`],
      [
        `firstCreditPackSource: varchar('first_credit_pack_source'),`,
        `firstCreditPackSource: varchar('first_credit_pack_source'),\n${column}`,
      ],
      [
        `credit_pack_source as first_credit_pack_source`,
        `credit_pack_source as first_credit_pack_source,\n\n${sql.replace(/^/gm, '    ')}`,
      ],
      [
        `firstCreditPackSource: 'Source of the purchase of the first credit pack.',`,
        `firstCreditPackSource: 'Source of the purchase of the first credit pack.',\n${comment}`,
      ],
    );
    await tree.edit('test/support/model.ts', [
      `first_credit_pack_source: creditPack?.details?.source ?? null,`,
      `first_credit_pack_source: creditPack?.details?.source ?? null,
        days_to_conversion: daysBetween(
          local(user.created_at),
          local(conversion?.purchased_at ?? null),
        ),`,
    ]);
    const model = join(tree.folder, 'test/support/model.ts');
    await writeFile(
      model,
      `${await readFile(model, 'utf8')}
const daysBetween = (one: string | null, other: string | null) =>
  one && other && Temporal.PlainDate.from(one).until(Temporal.PlainDate.from(other)).days;
`,
    );
    await tree.edit(
      'test/contract.test.ts',
      [
        `    'first_credit_pack_source character varying',`,
        `    'first_credit_pack_source character varying',\n    'days_to_conversion integer',`,
      ],
      [
        `firstCreditPackSource: string | null;`,
        `firstCreditPackSource: string | null;\n      daysToConversion: number | null;`,
      ],
    );
    await tree.edit('views/README.md', [
      /(?<=^\| `first_credit_pack_source` .*\n)/m,
      `| \`days_to_conversion\` | Days from the creation of the user to the purchase that came first. |\n`,
    ]);
    await finish('days_to_conversion');
    expect(await tree.migrations()).toContainEqual(
      expect.stringMatching(/^\d{4}_days_to_conversion\.sql$/),
    );
  });

  test('for a fourth filter', timeout, async () => {
    await tree.edit('views/fct_lead_conversions.ts', [
      `('ALL'::varchar, true, true)`,
      `('ALL'::varchar, true, true),\n        ('NONE'::varchar, false, false)`,
    ]);
    await tree.edit('views/values.ts', [
      `['MEMBERSHIP', 'USER_CREDIT', 'ALL']`,
      `['MEMBERSHIP', 'USER_CREDIT', 'ALL', 'NONE']`,
    ]);
    await tree.edit('test/support/model.ts', [
      `    ALL: input,\n    MEMBERSHIP: { ...none, memberships: input.memberships },`,
      `    ALL: input,\n    MEMBERSHIP: { ...none, memberships: input.memberships },\n    NONE: none,`,
    ]);
    await tree.edit('test/contract.test.ts', [
      `'MEMBERSHIP' | 'USER_CREDIT' | 'ALL' }`,
      `'MEMBERSHIP' | 'USER_CREDIT' | 'ALL' | 'NONE' }`,
    ]);
    await tree.edit('scripts/benchmark/reference.ts', [`('ALL')) as`, `('ALL'), ('NONE')) as`]);
    await finish('none_filter');
  });
});
