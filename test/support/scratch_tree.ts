import { execFile } from 'node:child_process';
import { cp, mkdtemp, readdir, readFile, rename, rm, symlink, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join, resolve } from 'node:path';
import { promisify } from 'node:util';
import journal from '../../schema/migrations/meta/_journal.json' with { type: 'json' };
import type { Session } from '../../views/session.ts';
import { isOfPackage, type Result, run } from './commands.ts';

/** The migrations of this package, in their order. */
export const landedMigrations: string[] = journal.entries.map(({ tag }) => tag);

/** The name of the migration that is this many after them. */
export const laterMigration = (name: string, number = 1): string =>
  `${String(landedMigrations.length + number - 1).padStart(4, '0')}_${name}`;

/** A copy of this package, to change and to run its commands in. */
export interface ScratchTree {
  /** Its path, which changes after edits. */
  folder: string;
  /** Replaces texts in one of its files. Throws unless each is there exactly once. */
  edit(file: string, ...replacements: [from: string | RegExp, to: string][]): Promise<void>;
  /**
   * Does what the command `npm run generate` does there, without a process of its own. Afterwards
   * the embedded database is as it was.
   */
  generate(db: Session, options: { name?: string; check?: boolean }): Promise<string>;
  /** The same for `npm run generate -- --baseline`, on an empty database. */
  generateBaseline(db: Session): Promise<string>;
  /**
   * Compiles the package there into `dist` as `npm pack` does, but without type checks. Compiled
   * commands start in a third of the time.
   */
  compile(): Promise<void>;
  /** Compiles the package there if it was edited, and runs a command as `run` does. */
  run(url: string, command: Parameters<typeof run>[1], args?: string[]): Promise<Result>;
  /** The names of its migrations. */
  migrations(): Promise<string[]>;
  remove(): Promise<void>;
}

const contents = [
  '.tsconfig.build.json',
  'README.md',
  'LICENSE',
  'package.json',
  'drizzle.config.ts',
  'tsconfig.json',
  'schema',
  'views',
  'scripts',
];

export async function scratchTree(): Promise<ScratchTree> {
  const home = await mkdtemp(join(tmpdir(), 'lead-conversions-tree-'));
  for (const name of contents) {
    await cp(name, join(home, name), { recursive: true });
  }
  await symlink(resolve('node_modules'), join(home, 'node_modules'));
  let version = 0;
  let compiled: Promise<void> | undefined;
  let modules: Promise<typeof import('../../scripts/generate/files.ts')> | undefined;
  /**
   * Its current modules. Node.js reads a module only once per path, so the tree moves when its
   * modules are read after an edit.
   */
  const readModules = async () => {
    version += 1;
    const moved = `${home}-${version}`;
    await rename(tree.folder, moved);
    tree.folder = moved;
    return await import(join(moved, 'scripts/generate/files.ts'));
  };
  const tree: ScratchTree = {
    folder: home,
    edit: async (file, ...replacements) => {
      modules = undefined;
      compiled = undefined;
      const path = join(tree.folder, file);
      let text = await readFile(path, 'utf8');
      for (const [from, to] of replacements) {
        if (text.split(from).length !== 2) {
          throw new Error(`${file} does not have this text exactly once: ${from}`);
        }
        text = text.replace(from, () => to);
      }
      await writeFile(path, text);
    },
    generate: async (db, options) => {
      modules ??= readModules();
      return (await modules).generate(db, options);
    },
    generateBaseline: async (db) => {
      modules ??= readModules();
      return (await modules).generateBaseline(db);
    },
    compile: async () => {
      const dist = join(tree.folder, 'dist');
      await rm(dist, { recursive: true, force: true });
      const project = join(tree.folder, '.tsconfig.build.json');
      await promisify(execFile)('node_modules/.bin/tsc', [
        ...['--project', project, '--noCheck', '--declaration', 'false'],
      ]);
      // A link, because migrations are generated and changed later.
      await symlink('../../schema/migrations', join(dist, 'schema/migrations'));
    },
    run: async (url, command, args = []) => {
      if (isOfPackage(command)) {
        compiled ??= tree.compile();
        await compiled;
      }
      return await run(url, command, args, {}, tree.folder, tree.folder);
    },
    migrations: async () =>
      (await readdir(join(tree.folder, 'schema/migrations'))).filter((name) =>
        name.endsWith('.sql'),
      ),
    remove: () => rm(tree.folder, { recursive: true }),
  };
  return tree;
}

/** Adds a column to the first view, which the second one reads. */
export const addUserInitial = (tree: ScratchTree): Promise<void> =>
  tree.edit(
    'views/fct_client_conversion_events.ts',
    [
      `firstCreditPackSource: varchar('first_credit_pack_source'),`,
      `userInitial: identifier('user_initial'),
    firstCreditPackSource: varchar('first_credit_pack_source'),`,
    ],
    [
      'credit_pack_source as first_credit_pack_source',
      'left(user_id, 1)::varchar as user_initial,\n    credit_pack_source as first_credit_pack_source',
    ],
    [
      `firstCreditPackSource: 'Source`,
      `userInitial: 'First character of user_id.',
      firstCreditPackSource: 'Source`,
    ],
  );

/** Adds a column to a table. */
export const addPhone = (tree: ScratchTree): Promise<void> =>
  tree.edit(
    'schema/dim_user.ts',
    [`email: varchar('email'),`, `email: varchar('email'), phone: varchar('phone'),`],
    [`'E-mail address of the user.',`, `'E-mail address of the user.', phone: 'Telephone.',`],
  );

/** Drops a column of a table that no view reads. */
export const dropEmail = (tree: ScratchTree): Promise<void> =>
  tree.edit(
    'schema/dim_user.ts',
    [`      email: varchar('email'),\n`, ''],
    [/ *email: 'E-mail address of the user\.',\n/, ''],
  );

/** Derives a generated column from another key, so the column is dropped and added. */
export const deriveSourceAnew = (tree: ScratchTree): Promise<void> =>
  tree.edit('schema/fct_membership_purchases.ts', [
    `detail('membership_source', 'membership_purchase_details', 'source')`,
    `detail('membership_source', 'membership_purchase_details', 'source2' as 'source')`,
  ]);

/** Changes the type of a column that the first view reads. */
export const retypeBranchId = async (tree: ScratchTree): Promise<void> => {
  await tree.edit('schema/dim_user.ts', [
    `branchId: identifier('branch_id')`,
    `branchId: varchar('branch_id', { length: 200 })`,
  ]);
  await tree.edit('views/fct_client_conversion_events.ts', [
    '        dim_user.branch_id,',
    '        dim_user.branch_id::varchar collate "C" as branch_id,',
  ]);
};

/** Adds a table with an identity column, and lets readers read the other column. */
export const addNotes = async (tree: ScratchTree): Promise<void> => {
  await tree.edit('views/view_refreshes.ts', [
    '/** One row per view and refresh:',
    `export const notes = withProperties(
  publicTable('notes', {
    id: bigint('id', { mode: 'number' }).primaryKey().generatedAlwaysAsIdentity(),
    note: varchar('note'),
  }),
  {
    comment: 'One row per note.',
    columns: { id: 'Its number.', note: 'Its text.' },
    grants: { [readerRole]: { select: ['note'] } },
  },
);
/** One row per view and refresh:`,
  ]);
  await tree.edit('views/index.ts', ['{ type RecordedRefresh', '{ notes, type RecordedRefresh']);
};
