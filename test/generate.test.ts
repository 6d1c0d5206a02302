import { readdir, readFile, writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { sql } from 'drizzle-orm';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { explain } from '../scripts/failure.ts';
import { rolledBack } from '../scripts/generate/migration.ts';
import type { Session } from '../views/session.ts';
import type { Result } from './support/commands.ts';
import { useDatabase } from './support/database.ts';
import {
  addNotes,
  addUserInitial,
  deriveSourceAnew,
  laterMigration,
  retypeBranchId,
  type ScratchTree,
  scratchTree,
} from './support/scratch_tree.ts';

const migrated = useDatabase();

let tree: ScratchTree;
let landed: string[];
beforeEach(async () => {
  tree = await scratchTree();
  landed = await tree.migrations();
});
afterEach(() => tree.remove());

/** The result that the command would have, of the same work without a process of its own. */
const resultOf = (work: Promise<string>): Promise<Result> =>
  work.then(
    (said) => ({ code: 0, stdout: `${said}\n`, stderr: '' }),
    (error) => ({ code: 1, stdout: '', stderr: `${explain(error)}\n` }),
  );
const generate = (name: string) => resultOf(tree.generate(migrated.db, { name }));
const check = () => resultOf(tree.generate(migrated.db, { check: true }));

/** Generates in an empty embedded database: the database is emptied only while the work runs. */
async function inEmpty(work: (db: Session) => Promise<string>): Promise<Result> {
  const results: Result[] = [];
  await rolledBack(migrated.db, async (tx) => {
    await tx.execute(sql`drop schema public cascade`);
    await tx.execute(sql`drop schema drizzle cascade`);
    await tx.execute(sql`create schema public`);
    results.push(await resultOf(work(tx)));
  });
  return results[0] as Result;
}
const baseline = () => inEmpty((db) => tree.generateBaseline(db));
const checkBaseline = () => inEmpty((db) => tree.generate(db, { check: true }));

const command = (...args: string[]) => tree.run('', 'npm run generate', args);

/** The first statements of every migration, after its heading. */
const beginning = [
  'SET LOCAL statement_timeout TO 0;',
  "SET LOCAL lock_timeout TO '10s';",
  expect.stringContaining('quote_all_identifiers'),
  expect.stringContaining('idle_in_transaction_session_timeout'),
  "SET LOCAL citus.multi_shard_modify_mode TO 'sequential';",
  "SET LOCAL TimeZone TO 'UTC';",
  expect.stringContaining('LOCK TABLE drizzle.lead_conversions_migrations IN SHARE UPDATE EXC'),
  expect.stringContaining('LOCK TABLE "public"."view_refreshes" IN SHARE UPDATE EXCLUSIVE'),
];

/** The heading of a migration, and its statements after those that all migrations begin with. */
async function read(file: string): Promise<{ heading: string; statements: string[] }> {
  const text = await readFile(join(tree.folder, 'schema/migrations', file), 'utf8');
  const [first, ...statements] = text.trimEnd().split(/--> statement-breakpoint\n+/);
  const [, heading = ''] =
    /^((?:-- .*\n)*)--\n(?:-- .*\n)*SET LOCAL search_path TO pg_catalog, pg_temp;$/.exec(
      first ?? '',
    ) ?? [];
  expect(statements.slice(0, beginning.length)).toEqual(beginning);
  return {
    heading: heading.replaceAll(/\n?-- /g, ' ').trim(),
    statements: statements.slice(beginning.length),
  };
}

/** Generates migrations and reads them, in order. */
async function generatedFiles() {
  expect(await generate('change')).toMatchObject({ code: 0, stderr: '' });
  const files = (await tree.migrations()).filter((name) => !landed.includes(name));
  return await Promise.all(files.map(read));
}

/** Generates a migration and reads it. Fails if there are more. */
async function generated() {
  const [file, ...others] = await generatedFiles();
  expect(others).toEqual([]);
  return file ?? { heading: '', statements: [] };
}

/** Expects the statements to contain these parts, in this order. */
function expectInOrder(statements: string[], parts: string[]): void {
  const places = parts.map((part) => statements.findIndex((it) => it.includes(part)));
  expect(places).not.toContain(-1);
  expect(places).toEqual(places.toSorted((one, other) => one - other));
}

const refused = async (result: Promise<Result>, message: RegExp) => {
  expect(await result).toEqual({ code: 1, stdout: '', stderr: expect.stringMatching(message) });
  expect(await tree.migrations()).toEqual(landed);
};

describe('npm run generate', () => {
  test('writes nothing if the migrations already create what is declared', async () => {
    expect(await command('--name', 'nothing')).toEqual({
      code: 0,
      stdout: 'Nothing to generate: the migrations match schema/ and views/.\n',
      stderr: '',
    });
    expect(await tree.migrations()).toEqual(landed);
  });

  test('writes only the statements for changed comments, indexes and grants', async () => {
    await tree.edit(
      'views/fct_lead_conversions.ts',
      [`'Identifier of the user.'`, `'The user''s identifier.'`.replace("''", "\\'")],
      [`['branchId', 'localUserCreatedAt']`, `['branchId', 'leadStatus']`],
      ['grants: { [readerRole]', 'grants: { pg_monitor'],
    );
    await tree.edit('schema/dim_user.ts', [`'Name of the user.'`, `'Full name of the user.'`]);
    expect(await generated()).toEqual({
      heading: 'Changes the indexes of fct_lead_conversions.',
      statements: [
        'CREATE INDEX "fct_lead_conversions_branch_id_lead_status_idx" ON "public"."fct_lead_conversions" USING btree ("branch_id","lead_status");',
        `COMMENT ON COLUMN "public"."fct_lead_conversions"."user_id" IS 'The user''s identifier.';`,
        `COMMENT ON INDEX "public"."fct_lead_conversions_branch_id_lead_status_idx" IS 'Finds the users of a branch, and among them those created between two dates.';`,
        expect.stringContaining(
          'DROP INDEX "public"."fct_lead_conversions_branch_id_local_user_created_at_idx";',
        ),
        `COMMENT ON COLUMN "public"."dim_user"."name" IS 'Full name of the user.';`,
        'REVOKE SELECT ON "public"."fct_lead_conversions" FROM "lead_conversions_reader";',
        'GRANT SELECT ON "public"."fct_lead_conversions" TO "pg_monitor";',
      ],
    });
  });

  test('adds a column and its indexes to a table, with their comments, and replaces no view', async () => {
    await tree.edit(
      'schema/dim_user.ts',
      ['import { check, ', 'import { check, index, '],
      [`email: varchar('email'),`, `email: varchar('email'), phone: varchar('phone').unique(),`],
      [`'E-mail address of the user.',`, `'E-mail address of the user.', phone: 'Telephone.',`],
      ['(table) => [', `(table) => [index('dim_user_latest').on(table.createdAt.desc()), `],
      ['    checks: {', `    indexes: { dim_user_latest: 'The latest users.' },\n    checks: {`],
    );
    expect(await generated()).toEqual({
      heading: 'Changes dim_user.',
      statements: [
        expect.stringContaining('LOCK TABLE "public"."dim_user" IN ACCESS EXCLUSIVE MODE;'),
        'ALTER TABLE "public"."dim_user" ADD COLUMN "phone" varchar;',
        'CREATE INDEX "dim_user_latest" ON "public"."dim_user" USING btree ("created_at" DESC NULLS LAST);',
        'ALTER TABLE "public"."dim_user" ADD CONSTRAINT "dim_user_phone_unique" UNIQUE("phone");',
        `COMMENT ON COLUMN "public"."dim_user"."phone" IS 'Telephone.';`,
        `COMMENT ON INDEX "public"."dim_user_latest" IS 'The latest users.';`,
      ],
    });
  });

  test('replaces a changed view and the view that reads it, without CASCADE and table locks', async () => {
    await addUserInitial(tree);
    const { heading, statements } = await generated();
    expect(heading).toMatch(
      /^Replaces fct_client_conversion_events, and fct_lead_conversions, which reads it\.$/,
    );
    expect(statements.join('\n')).not.toMatch(/cascade/i);
    expect(statements.join('\n')).not.toContain('LOCK TABLE');
  });

  test('with a new kind of purchase, counts before it only what the old view has', async () => {
    await addUserInitial(tree);
    await tree.edit('views/purchase_kinds.ts', [
      'first: fctClientConversionEvents.firstCreditPackId',
      'first: fctClientConversionEvents.userInitial',
    ]);
    const [before, after] = (await generated()).statements.filter((it) => it.includes('count('));
    expect(before).toContain('count(first_user_membership_id)');
    expect(before).not.toContain('count(user_initial)');
    expect(after).toContain('count(user_initial) AS "clients by credit pack"');
  });

  test('replaces only the second view if only that one changes', async () => {
    await tree.edit('views/fct_lead_conversions.ts', [
      `('ALL'::varchar, true, true)`,
      `('ALL'::varchar, true, true),\n        ('NONE'::varchar, false, false)`,
    ]);
    const { heading, statements } = await generated();
    expect(heading).toMatch(/^Replaces fct_lead_conversions\.$/);
    expect(statements.filter((statement) => /"fct_client_conv/.test(statement))).toEqual([]);
  });

  test('drops a column that the old view read only after dropping that view', async () => {
    await tree.edit(
      'views/fct_client_conversion_events.ts',
      [`coalesce(dim_branch.timezone_id, 'UTC')`, `'UTC'`],
      ['      dimBranch.timezoneId,\n', ''],
    );
    await tree.edit(
      'schema/dim_branch.ts',
      [`timezoneId: varchar('timezone_id'),`, ''],
      [/check\(\n *'dim_branch_timezone_id_check',.*?\n {6}\),/s, ''],
      [/timezoneId:\n.*?',\n/s, ''],
      [/dim_branch_timezone_id_check:\n.*?',\n/s, ''],
      [`'country', 'timezoneId'`, `'country'`],
    );
    const [tables, views, ...others] = await generatedFiles();
    expect(others).toEqual([]);
    expect(tables?.heading).toBe(
      'Changes dim_branch. The views follow in the next migration, so nobody waits for these tables while the views are filled.',
    );
    expect(tables?.statements).toEqual([
      expect.stringContaining('LOCK TABLE "public"."dim_branch" IN ACCESS EXCLUSIVE MODE;'),
      'ALTER TABLE "public"."dim_branch" DROP CONSTRAINT "dim_branch_timezone_id_check";',
      'REVOKE SELECT ("timezone_id") ON "public"."dim_branch" FROM "lead_conversions_reader";',
    ]);
    expect(views?.heading).toMatch(
      /^Changes dim_branch\. Replaces fct_client_conversion_events, and fct_lead_conversions, which reads it\.$/,
    );
    // The table is locked with the views, at the end. The column is dropped once nothing reads it.
    const exchange = views?.statements.findIndex((it) => it.includes('DROP MATERIALIZED VIEW'));
    expect(views?.statements[exchange ?? -1]).toContain(
      'LOCK TABLE "public"."dim_branch" IN ACCESS EXCLUSIVE MODE;',
    );
    expect(views?.statements.at(-1)).toBe(
      'ALTER TABLE "public"."dim_branch" DROP COLUMN "timezone_id";',
    );
    // Nothing is left for the next migration.
    expect((await check()).stdout).toMatch(/^Nothing to generate: /);
  });

  test('changes the type of a column that views read by dropping and creating the views', async () => {
    await retypeBranchId(tree);
    const { heading, statements } = await generated();
    expect(heading).toMatch(
      /^Changes dim_user\. Replaces fct_client_conversion_events, and fct_lead_conversions, which reads it\. Drops fct_lead_conversions and fct_client_conversion_events and creates them again, because they read a column that changes\. Readers wait until the end\.$/,
    );
    expectInOrder(statements, [
      'CREATE TABLE "lead_conversions_kept"."kept"',
      'DROP MATERIALIZED VIEW "public"."fct_client_conversion_events";',
      'ALTER TABLE "public"."dim_user" ALTER COLUMN "branch_id" SET DATA TYPE',
      'REFRESH MATERIALIZED VIEW "lead_conversions_new"."fct_client_conversion_events";',
      'EXECUTE kept.statement;',
      'SET SCHEMA "public";',
    ]);
    expect((await check()).stdout).toMatch(/^Nothing to generate: /);
  });

  test('drops and adds a generated column that is derived in a new way, and creates its index again', async () => {
    await deriveSourceAnew(tree);
    const { statements } = await generated();
    expectInOrder(statements, [
      'DROP MATERIALIZED VIEW "public"."fct_client_conversion_events";',
      'ADD COLUMN "membership_source"',
      'CREATE INDEX "fct_membership_purchases_first"',
      'COMMENT ON INDEX "public"."fct_membership_purchases_first"',
      'REFRESH MATERIALIZED VIEW',
    ]);
    expect((await check()).stdout).toMatch(/^Nothing to generate: /);
  });

  test.each([
    [
      'an index',
      'schema/dim_user.ts',
      [`email: varchar('email'),`, `email: varchar('email').unique(),`],
      ['dim_user'],
    ],
    [
      'a foreign key',
      'schema/dim_user.ts',
      [/\.references\(\(\) => dimBranch\.branchId[^)]*\)/, ''],
      ['dim_branch', 'dim_user', 'fct_credit_pack_purchases', 'fct_membership_purchases'],
    ],
  ] as const)(
    'first locks all tables that a change of %s concerns',
    async (_, file, edit, tables) => {
      await tree.edit(file, [...edit] as [string | RegExp, string]);
      const { statements } = await generated();
      const locked = [
        ...(statements[0] ?? '').matchAll(/LOCK TABLE "public"\."(\w+)" IN ACCESS EXCLUSIVE/g),
      ];
      expect(locked.map(([, table]) => table)).toEqual(tables);
    },
  );

  test('adds a new table and view under their own names, and removes them again', async () => {
    await tree.edit(
      'views/view_refreshes.ts',
      [
        'import { instant, ',
        `import { sql } from 'drizzle-orm';\nimport { instant, publicMaterializedView, `,
      ],
      [
        '/** One row per view and refresh:',
        `export const notes = withProperties(publicTable('notes', { note: varchar('note') }), {
  comment: 'One row per note.', columns: { note: 'Its text.' },
});
export const branchUsers = withProperties(
  publicMaterializedView('branch_users', { branchId: varchar('branch_id').notNull() })
    .as(sql\`select distinct branch_id collate "default" as branch_id from public.fct_lead_conversions\`),
  {
    comment: 'One row per branch.', columns: { branchId: 'The branch.' }, uniqueKey: ['branchId'],
  },
);
/** One row per view and refresh:`,
      ],
    );
    await tree.edit('views/index.ts', [
      'export { type RecordedRefresh',
      'export { branchUsers, notes, type RecordedRefresh',
    ]);
    await refused(
      generate('branch_users'),
      /^branch_users is not in viewsInOrder of views\/refresh\.ts, so nothing refreshes it\. Add it there\.\n$/,
    );
    await tree.edit(
      'views/refresh.ts',
      [
        'fctClientConversionEvents, fctLeadConversions]',
        'fctClientConversionEvents, fctLeadConversions, branchUsers]',
      ],
      [`import { viewRefreshes }`, `import { branchUsers, viewRefreshes }`],
    );
    expect(await generated()).toEqual({
      heading: 'Adds notes and branch_users.',
      statements: [
        'CREATE TABLE "public"."notes" (\n\t"note" varchar\n);',
        `COMMENT ON TABLE "public"."notes" IS 'One row per note.';`,
        `COMMENT ON COLUMN "public"."notes"."note" IS 'Its text.';`,
        expect.stringMatching(/"notes"'.*OWNER TO/s),
        expect.stringMatching(/"notes"'\s.*REVOKE ALL ON /s),
        expect.stringMatching(/^-- [^;]*\nSET LOCAL row_security TO off;$/),
        'CREATE MATERIALIZED VIEW "public"."branch_users" AS (select distinct branch_id collate "default" as branch_id from public.fct_lead_conversions) WITH NO DATA;',
        'REFRESH MATERIALIZED VIEW "public"."branch_users";',
        'CREATE UNIQUE INDEX "branch_users_branch_id_key" ON "public"."branch_users" USING btree ("branch_id");',
        `COMMENT ON MATERIALIZED VIEW "public"."branch_users" IS 'One row per branch.';`,
        `COMMENT ON COLUMN "public"."branch_users"."branch_id" IS 'The branch.';`,
        `COMMENT ON INDEX "public"."branch_users_branch_id_key" IS 'One row per branch_id. REFRESH MATERIALIZED VIEW CONCURRENTLY needs it.';`,
        expect.stringMatching(/"branch_users"'\s.*REVOKE ALL ON /s),
        'ANALYZE "public"."branch_users";',
        expect.stringMatching(/"branch_users"'.*OWNER TO/s),
      ],
    });

    landed = await tree.migrations();
    await tree.edit('views/index.ts', ['branchUsers, notes, ', '']);
    await tree.edit('views/refresh.ts', [', branchUsers]', ']'], ['branchUsers, viewR', 'viewR']);
    const { heading, statements } = await generated();
    expect(heading).toMatch(/^Removes notes and branch_users\.$/);
    expect(statements.at(-1)).toBe('DROP TABLE "public"."notes";');
    expect(statements.join('\n')).toContain('DROP MATERIALIZED VIEW "public"."branch_users";');
    expect(statements.join('\n')).not.toContain('fct_');
  });

  test('names relations with their schema, and needs no search_path', async () => {
    await addUserInitial(tree);
    const { statements } = await generated();
    const text = statements.join('\n');
    expect(text).toContain('from lead_conversions_new.fct_client_conversion_events as events');
    expect(text).toContain('from public.dim_user');
    expect(text).not.toContain('search_path');
  });

  test('writes grants on columns, and revokes those that are no longer declared', async () => {
    await tree.edit('schema/dim_branch.ts', [
      `{ select: ['branchId', 'name', 'city', 'country', 'timezoneId'] }`,
      `{ select: ['branchId', 'name', 'createdAt'] }`,
    ]);
    await tree.edit('views/view_refreshes.ts', [
      `{ select: 'all' }`,
      `{ select: ['view', 'startedAt'] }`,
    ]);
    expect((await generated()).statements).toEqual([
      'REVOKE SELECT ("city", "country", "timezone_id") ON "public"."dim_branch" FROM "lead_conversions_reader";',
      'GRANT SELECT ("created_at") ON "public"."dim_branch" TO "lead_conversions_reader";',
      'REVOKE SELECT ON "public"."view_refreshes" FROM "lead_conversions_reader";',
      'GRANT SELECT ("started_at", "view") ON "public"."view_refreshes" TO "lead_conversions_reader";',
    ]);
  });

  test('with --baseline writes nothing if the baseline already creates what is declared', async () => {
    await baseline(); // it replaces the migrations since the last baseline
    expect(await baseline()).toEqual({
      code: 0,
      stdout: 'Nothing to generate: the baseline matches schema/ and views/.\n',
      stderr: '',
    });
  });

  test('with --baseline replaces all migrations with one that creates what is declared', async () => {
    await addUserInitial(tree);
    await generated();
    await addNotes(tree);
    const meta = () => readdir(join(tree.folder, 'schema/migrations/meta'));
    expect(await baseline()).toMatchObject({ code: 0, stderr: '' });
    expect(await tree.migrations()).toEqual(['0000_lead_conversions.sql']);
    expect(await meta()).toEqual(['0000_snapshot.json', '_journal.json']);
    expect(await checkBaseline()).toMatchObject({ code: 0, stderr: '' });
    expect(await baseline()).toMatchObject({
      stdout: expect.stringMatching(/^Nothing to generate: /),
    });
    const text = await readFile(
      join(tree.folder, 'schema/migrations/0000_lead_conversions.sql'),
      'utf8',
    );
    expect(text).toContain('CREATE TABLE "public"."notes"');
    expect(text.match(/^CREATE MATERIALIZED VIEW/gm)).toHaveLength(2);
  });

  test('refuses a migration that does not begin by limiting the search_path', async () => {
    const file = join(tree.folder, 'schema/migrations', landed[0] ?? '');
    await writeFile(
      file,
      (await readFile(file, 'utf8')).replace('SET LOCAL search_path', 'SET search_path'),
    );
    await refused(
      check(),
      /^schema\/migrations\/0000_lead_conversions\.sql does not begin with "SET LOCAL search_path TO pg_catalog, pg_temp;--> statement-breakpoint", /,
    );
  });

  test.each([
    ['idx', { idx: 1 }],
    ['when', { when: Date.parse('2020-01-01') }],
  ])(
    'refuses a journal whose %s does not rise, as after a merge of two branches',
    async (_, wrong) => {
      await tree.edit('schema/dim_user.ts', [`'Name of the user.'`, `'Full name of the user.'`]);
      await generated();
      await tree.edit('schema/dim_user.ts', [`'Full name of the user.'`, `'Name of the user.'`]);
      expect(await generate('back')).toMatchObject({ code: 0 });
      landed = await tree.migrations();
      const file = join(tree.folder, 'schema/migrations/meta/_journal.json');
      const journal = JSON.parse(await readFile(file, 'utf8'));
      journal.entries.push({ ...journal.entries.pop(), ...wrong });
      await writeFile(file, JSON.stringify(journal));
      await refused(
        check(),
        new RegExp(
          `^In schema/migrations/meta/_journal\\.json the migration ${laterMigration('back', 2)} does not come after ${laterMigration('change')} by both its idx and its when, so a database that has ${laterMigration('change')} would never get it\\. `,
        ),
      );
    },
  );

  test('refuses a migration whose first statement is not separate from the others', async () => {
    const file = join(tree.folder, 'schema/migrations', landed[0] ?? '');
    await writeFile(
      file,
      (await readFile(file, 'utf8')).replace('pg_temp;--> statement-breakpoint', 'pg_temp;'),
    );
    await refused(check(), /and put --> statement-breakpoint between all statements\.\n$/);
  });

  test('accepts a comment with a word longer than a line', async () => {
    const url = `https://wiki.example.com/${'x'.repeat(100)}`;
    await tree.edit('schema/dim_branch.ts', [
      `comment: 'One row per branch of a gym.'`,
      `comment: 'One row per branch of a gym, see ${url} for more.'`,
    ]);
    expect(await baseline()).toMatchObject({ code: 0 });
    expect(await checkBaseline()).toMatchObject({ code: 0, stderr: '' });
  });

  test('refuses a table and a view that are not declared in the schema public', async () => {
    await tree.edit(
      'views/fct_lead_conversions.ts',
      ['  publicMaterializedView(', '  pgMaterializedView('],
      [`import { varchar }`, `import { pgMaterializedView, varchar }`],
      ['localTime, publicMaterializedView }', 'localTime }'],
    );
    await refused(
      generate('schema'),
      /^fct_lead_conversions is not declared in the schema public\. Declare it with publicTable or publicMaterializedView /,
    );
    await tree.edit(
      'schema/dim_user.ts',
      ['  publicTable(', '  pgTable('],
      ['import { check, ', 'import { check, pgTable, '],
    );
    await refused(
      generate('schema'),
      /^dim_user is not declared in the schema public\. Declare it with publicTable or publicMaterializedView /,
    );
  });

  test('refuses a migration name that is empty or has spaces and capitals', async () => {
    for (const name of ['', 'Days To Conversion']) {
      await refused(
        generate(name),
        /^Name the migration after the change, with lower-case letters, digits and underscores: /,
      );
    }
  });

  test('with --check fails if a migration is missing, shows it, and writes nothing', async () => {
    await tree.edit('schema/dim_user.ts', [`'Name of the user.'`, `'Full name of the user.'`]);
    await refused(
      command('--check'),
      /^The migrations do not match schema\/ and views\/\. .*IS 'Full name of the user\.';\n/s,
    );
  });

  test('refuses SQL that fails, and writes nothing', async () => {
    await tree.edit('views/fct_lead_conversions.ts', [
      'from public.fct_client_conversion_events as events',
      'from public.fct_conversion_events as events',
    ]);
    await refused(
      generate('typo'),
      /^A statement of the migration would fail: relation "public\.fct_conversion_events" does not exist\nline \d+: from public\.fct_conversion_events as events\n$/,
    );
  });

  test('recognizes types that Postgres writes in another way than Drizzle', async () => {
    await tree.edit(
      'views/fct_lead_conversions.ts',
      ['import { varchar }', 'import { numeric, varchar }'],
      [
        `userId: identifier('user_id').notNull(),`,
        `userId: identifier('user_id').notNull(), share: numeric('share', { precision: 10, scale: 2 }),`,
      ],
      [
        'select\n    user_id,\n    branch_id,',
        'select\n    user_id, 1::numeric(10,2) as share,\n    branch_id,',
      ],
      [`userId: 'Identifier of the user.',`, `userId: 'Identifier of the user.', share: 'One.',`],
    );
    await tree.edit(
      'schema/dim_user.ts',
      ['import { check, ', 'import { char, check, '],
      [
        `email: varchar('email'),`,
        `email: varchar('email'), initial: char('initial', { length: 1 }),`,
      ],
      [`'E-mail address of the user.',`, `'E-mail address of the user.', initial: 'Of the name.',`],
    );
    expect((await generatedFiles()).map(({ heading }) => heading)).toEqual([
      expect.stringMatching(/^Changes dim_user\. The views follow /),
      'Replaces fct_lead_conversions.',
    ]);
  });

  test('refuses a view that reads a column missing from its declaration', async () => {
    await tree.edit('views/fct_client_conversion_events.ts', ['      dimUser.createdAt,\n', '']);
    await tree.edit('schema/dim_user.ts', [`'Name of the user.'`, `'Full name of the user.'`]);
    await refused(
      generate('reads'),
      /^Declare in "reads" every column that the view reads\. A refresh would fail with: fct_client_conversion_events reads created_at of dim_user\. /,
    );
  });

  test('refuses a view whose columns differ from those declared', async () => {
    await tree.edit('views/fct_lead_conversions.ts', [
      'end::varchar as lead_status',
      'end as lead_status',
    ]);
    await refused(
      generate('columns'),
      /^After the migrations, fct_lead_conversions would not match its declaration: its columns would be /,
    );
  });

  test('refuses a column, a check, an index and a table without a comment', async () => {
    const column = `name: 'Name of the user.',`;
    await tree.edit('schema/dim_user.ts', [column, '']);
    await refused(generate('comments'), /^The column name of dim_user has no comment\. /);
    await tree.edit('schema/dim_user.ts', ['    columns: {', `    columns: { ${column}`]);
    const check = '      dim_user_created_at_check: calendarRangeRule,\n';
    await tree.edit('schema/dim_user.ts', [check, '']);
    await refused(
      generate('comments'),
      /^The check dim_user_created_at_check of dim_user has no comment\. Declare one with withProperties /,
    );
    await tree.edit('schema/dim_user.ts', ['    checks: {\n', `    checks: {\n${check}`]);
    const index = '      fct_membership_purchases_first:\n';
    await tree.edit('schema/fct_membership_purchases.ts', [index, '      other:\n']);
    await refused(
      generate('comments'),
      /^The index fct_membership_purchases_first of fct_membership_purchases has no comment\. /,
    );
    await tree.edit('schema/fct_membership_purchases.ts', ['      other:\n', index]);
    await tree.edit('views/view_refreshes.ts', [
      '/** One row per view and refresh:',
      `export const notes = publicTable('notes', { note: varchar('note') });\n/** One row per view and refresh:`,
    ]);
    await tree.edit('views/index.ts', ['{ type RecordedRefresh', '{ notes, type RecordedRefresh']);
    await refused(generate('comments'), /^notes has no comment\. /);
  });

  test('stops if drizzle-kit has a question and nobody can answer it', async () => {
    await tree.edit(
      'schema/dim_user.ts',
      [`name: varchar('name'),`, `fullName: varchar('full_name'),`],
      [`name: 'Name of the user.'`, `fullName: 'Name of the user.'`],
    );
    const { code, stderr } = await command('--name', 'rename');
    expect(code).not.toBe(0);
    expect(stderr).toContain(
      'drizzle-kit asks a question. Run "npm run generate" in a terminal to answer it.\n',
    );
    expect(await tree.migrations()).toEqual(landed);
  });
});
