import { execFileSync } from 'node:child_process';
import {
  chmod,
  chown,
  mkdir,
  mkdtemp,
  readdir,
  readFile,
  rm,
  stat,
  symlink,
  writeFile,
} from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import postgres from 'postgres';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { openDatabase } from '../scripts/database.ts';
import { readFigures } from '../scripts/report/figures.ts';
import { conversionEventFilters } from '../views/index.ts';
import { run, start } from './support/commands.ts';
import { useServerDatabase } from './support/database.ts';
import { sessionsThatWait } from './support/sessions.ts';

const database = useServerDatabase();
let session: postgres.Sql;
let folder: string;
let out: string;

beforeEach(async () => {
  folder = await mkdtemp(join(tmpdir(), 'lead-conversions-report-'));
  out = join(folder, 'report.html');
  session = postgres(database.url, { max: 2, onnotice: () => {} });
});
afterEach(async () => {
  await session.end();
  await rm(folder, { recursive: true });
});

const fill = async () => {
  await run(database.url, 'npm run load', ['test/sample']);
  await run(database.url, 'npm run refresh');
};

/** A warning of each report, because the sample is from 2024. */
const ofOldData =
  /^The latest user or conversion dates from 2 May 2024, [\d,]+ days before the refresh\. Check that data are still being loaded\.$/;

const report = (...args: string[]) => run(database.url, 'npm run report', ['--out', out, ...args]);

/** The URL of the database for a role, which this creates. */
async function urlAs(role: string, ...grants: string[]): Promise<string> {
  await session.unsafe(`drop role if exists ${role}; create role ${role} login`);
  for (const grant of grants) {
    await session.unsafe(`grant ${grant} to ${role}`);
  }
  const url = new URL(database.url);
  url.username = role;
  return url.href;
}

test('a member of lead_conversions_reader can write the report, and a role without grants cannot', async () => {
  await fill();
  const [reader, stranger] = [`report_reader_${process.pid}`, `report_stranger_${process.pid}`];
  try {
    expect(
      await run(await urlAs(reader, 'lead_conversions_reader'), 'npm run report', ['--out', out]),
    ).toEqual({
      code: 0,
      stdout: expect.stringMatching(/report\.html: written, \d+ kB, 13 users\n$/),
      stderr: expect.stringMatching(/^Warning: The latest user .*\n$/),
    });
    expect(await readFile(out, 'utf8')).toMatch(/^<!doctype html>.*<\/html>\n$/s);
    expect(await run(await urlAs(stranger), 'npm run report', ['--out', out])).toEqual({
      code: 1,
      stdout: '',
      stderr: `The role ${stranger} may not read fct_lead_conversions. Connect as a role that has been granted lead_conversions_reader.\n`,
    });
  } finally {
    await session.unsafe(`drop role ${reader}; drop role if exists ${stranger}`);
  }
});

test('prints what it has written as JSON, and warns of old figures and old data', async () => {
  await fill();
  await session`update view_refreshes set started_at = now() - interval '3 days'`;
  const warning =
    'These figures were 72 hours old when the report was made. Check the nightly refresh.';
  const { code, stdout, stderr } = await report('--json', '--title', 'Our gyms');
  const warnings = stderr
    .trimEnd()
    .split('\n')
    .map((line) => line.replace(/^Warning: /, ''));
  expect({ code, warnings }).toEqual({
    ...{ code: 0, warnings: [warning, expect.stringMatching(ofOldData)] },
  });
  expect(JSON.parse(stdout)).toEqual({
    ...{ outcome: 'written', reason: null, file: out, bytes: (await stat(out)).size, users: 13 },
    refreshedAt: expect.stringMatching(/^\d{4}-\d\d-\d\dT.*\+00:00$/),
    ...{ warnings, durationMs: expect.any(Number), retries: [] },
  });
  const page = await readFile(out, 'utf8');
  expect(page).toContain('<h1><bdi>Our gyms</bdi></h1>');
  for (const one of warnings) {
    expect(page).toContain(`<p class="warning">Warning: ${one}</p>`);
  }
});

test('replaces an existing file as a whole and keeps its permissions, even behind a link', async () => {
  await fill();
  const target = join(folder, 'target.html');
  await writeFile(target, 'old</html>\n');
  await chmod(target, 0o640);
  const isRoot = process.getuid?.() === 0;
  const [uid, gid] = isRoot ? [65534, 65533] : [process.getuid?.(), process.getgid?.()];
  await chown(target, uid ?? 0, gid ?? 0);
  await symlink('target.html', out);
  const { process: running, result } = start(database.url, 'npm run report', ['--out', out]);
  const seen = new Set<string>();
  while (running.exitCode === null) {
    const text = await readFile(out, 'utf8');
    seen.add(text.endsWith('</html>\n') ? text.slice(0, 9) : 'a part');
  }
  expect(await result).toMatchObject({ code: 0 });
  seen.add((await readFile(out, 'utf8')).slice(0, 9));
  expect([...seen]).toEqual(['old</html', '<!doctype']);
  const replaced = await stat(target);
  expect([replaced.mode & 0o777, replaced.uid, replaced.gid]).toEqual([0o640, uid, gid]);
  expect((await readdir(folder)).sort()).toEqual(['report.html', 'target.html']);
});

test.each([
  [
    ['--branch', 'nowhere'],
    'There is no branch "nowhere" in dim_branch. Use the branch_id of a branch.',
  ],
  [['--since', 'May'], '--since must be a month such as 2026-01, not "May".'],
  [
    ['--out', '/tmp/no such folder/report.html'],
    '--out "/tmp/no such folder/report.html" is in a folder that does not exist. Create the folder first.',
  ],
  [['--out', '/tmp'], '--out "/tmp" is not a file. Name the HTML file to write.'],
  [['--out', '/dev/null'], '--out "/dev/null" is not a file. Name the HTML file to write.'],
  [['--out', ''], '--out "" does not name a file. Name the HTML file to write.'],
  [['--out', './'], '--out "./" does not name a file. Name the HTML file to write.'],
  [['--out', '--since'], '--out needs a value, but is followed by --since.'],
  [['--title', '--branch'], '--title needs a value, but is followed by --branch.'],
  [['--title', ' '], '--title is empty. Leave it out, or give the page a title.'],
])('refuses %j, and leaves the file as it was', async (args, reason) => {
  await writeFile(out, 'old');
  expect(await report(...args)).toEqual({
    ...{ code: 1, stdout: '', stderr: `${reason}\n` },
  });
  expect(await readFile(out, 'utf8')).toBe('old');
  expect(await readdir(folder)).toEqual(['report.html']);
});

test('prints JSON for a wrong option, too', async () => {
  const reason = '--out needs a value, but is followed by --json.';
  const { code, stdout, stderr } = await report('--out', '--json');
  expect({ code, stderr }).toEqual({ code: 1, stderr: `${reason}\n` });
  expect(JSON.parse(stdout)).toMatchObject({ outcome: 'failed', reason, file: null });
});

test('accepts a file name as long as the system allows, and refuses a link to a missing file', async () => {
  await fill();
  const long = join(folder, `${'n'.repeat(250)}.html`);
  expect(await run(database.url, 'npm run report', ['--out', long])).toMatchObject({ code: 0 });
  await symlink('nowhere.html', out);
  expect(await report()).toMatchObject({
    ...{
      code: 1,
      stderr: `--out "${out}" is a link to a file that does not exist. Remove the link.\n`,
    },
  });
});

test('says what was too slow for the statement timeout', async () => {
  await fill();
  await session.begin(async (holder) => {
    await holder`lock table dim_branch in access exclusive mode`;
    expect(await report('--statement-timeout', '500ms')).toMatchObject({
      code: 1,
      stderr: expect.stringMatching(
        /^The report could not read .*: canceling statement due to statement timeout\. The statement timeout was 500ms\.\n$/,
      ),
    });
  });
});

test('refuses to run without --out, and says so if npm has taken that option', async () => {
  expect(await run(database.url, 'npm run report')).toEqual({
    ...{ code: 1, stdout: '' },
    stderr: '--out is missing. Name the HTML file to write, such as --out report.html.\n',
  });
  const byNpm = { npm_lifecycle_event: 'report', npm_config_out: out };
  expect(await run(database.url, 'npm run report', [out], byNpm)).toMatchObject({ code: 1 });
  expect(await run(database.url, 'npm run report', [], byNpm)).toEqual({
    ...{ code: 1, stdout: '' },
    stderr:
      'npm took --out as one of its own settings. Put -- before all options: npm run report -- --out …\n',
  });
});

test.skipIf(process.getuid?.() !== 0)(
  'names the file that it cannot write, and leaves nothing behind',
  async () => {
    const small = join(folder, 'small');
    await mkdir(small);
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=16k', 'tmpfs', small]);
    try {
      const file = join(small, 'report.html');
      expect(await run(database.url, 'npm run report', ['--out', file])).toEqual({
        ...{ code: 1, stdout: '' },
        stderr: `${file} cannot be written: ENOSPC: no space left on device, write.\n`,
      });
      expect(await readdir(small)).toEqual([]);
    } finally {
      execFileSync('umount', [small]);
    }
  },
);

test('is cancelled by SIGTERM while it waits, and writes no file', async () => {
  await session.begin(async (holder) => {
    await holder`lock table dim_branch in access exclusive mode`;
    const { process, result } = start(database.url, 'npm run report', ['--out', out]);
    await sessionsThatWait(session);
    process.kill('SIGTERM');
    expect(await result).toMatchObject({ code: 143, stdout: '' });
  });
  expect(await readdir(folder)).toEqual([]);
});

test('refuses to run if a policy hides branches', async () => {
  const reader = `report_reader_${process.pid}`;
  try {
    const url = await urlAs(reader, 'lead_conversions_reader');
    await session`alter table dim_branch enable row level security`;
    const { code, stderr } = await run(url, 'npm run report', ['--out', out]);
    expect({ code, stderr }).toEqual({
      code: 1,
      stderr: expect.stringContaining(
        'query would be affected by row-level security policy for table "dim_branch"',
      ),
    });
  } finally {
    await session.unsafe(`drop role ${reader}`);
  }
});

test('refuses a view without all filters of this version', async () => {
  await fill();
  await session.unsafe(`
    create table others as
    select * from fct_lead_conversions where client_conversion_event_filter <> 'USER_CREDIT';
    drop materialized view fct_lead_conversions;
    create materialized view fct_lead_conversions as select * from others`);
  const declared = conversionEventFilters.toSorted();
  const deployed = declared.filter((filter) => filter !== 'USER_CREDIT');
  const counts = deployed.map((filter) => `13 under ${filter}`);
  expect(await report()).toEqual({
    ...{ code: 1, stdout: '' },
    stderr: `fct_lead_conversions does not have the same users under all filters ${declared.join(', ')}: ${counts.join(', ')}. Migrate the database to this version, and refresh it.\n`,
  });
});

test('reads all figures as of one moment, even if a refresh runs meanwhile', async () => {
  await fill();
  const { db, close } = await openDatabase(database.url);
  const environment = { ...process.env, DATABASE_URL: database.url };
  const sum = (rows: { filter: string; users: number }[]) =>
    rows.filter(({ filter }) => filter === 'ALL').reduce((total, { users }) => total + users, 0);
  try {
    const figures = await readFigures(db, {
      ...{ statementTimeout: '1min', workMem: '4MB' },
      onFigure: (what) => {
        if (what === 'the months') {
          const user = "insert into dim_user values ('new', null, null, null, '2026-01-01')";
          execFileSync(
            process.execPath,
            [
              '--input-type=module',
              '--eval',
              `
            import postgres from 'postgres';
            const session = postgres(process.env.DATABASE_URL);
            await session.unsafe(${JSON.stringify(user)});
            await session.end();`,
            ],
            { env: environment },
          );
          execFileSync('npm', ['run', '--silent', 'refresh'], { env: environment });
        }
      },
    });
    expect([sum(figures.headlines), sum(figures.months), sum(figures.branches)]).toEqual([
      13, 13, 13,
    ]);
    const again = await readFigures(db, { statementTimeout: '1min', workMem: '4MB' });
    expect([sum(again.headlines), sum(again.months), sum(again.branches)]).toEqual([14, 14, 14]);
  } finally {
    await close();
  }
});
