import { randomUUID } from 'node:crypto';
import type { Stats } from 'node:fs';
import { chmod, chown, lstat, open, realpath, rename, rm, stat } from 'node:fs/promises';
import { dirname, join, resolve } from 'node:path';
import type { Session } from '../views/session.ts';
import { databaseCommand } from './command.ts';
import { type Figures, type FiguresOptions, readFigures } from './report/figures.ts';
import { counted, warningsOf } from './report/wording.ts';
import { bounds, setting } from './settings.ts';

/** What --json prints about a report. */
interface ReportFacts {
  /** The path of the written file. */
  file: string | null;
  bytes: number | null;
  users: number | null;
  /** The instant at which the latest refresh began, in ISO 8601. */
  refreshedAt: string | null;
}

export const report = databaseCommand({
  name: 'report',
  description:
    'Writes the figures of the database that DATABASE_URL names as one HTML page. The page needs no other file, no server and no network, and contains no data of individual users. A member of lead_conversions_reader may run this.',
  summary: 'writes the figures as an HTML page',
  settings: {
    out: setting<string | undefined>('--out <file>', 'the HTML file to write, or to replace'),
    branch: setting<string | undefined>('--branch <id>', 'report only on this branch'),
    since: setting<string | undefined>(
      '--since <month>',
      'only users who joined in this month or later, such as 2026-01, compared with the same number of earlier months',
    ),
    title: setting('--title <text>', 'the title of the page', { preset: 'Lead conversions' }),
    statementTimeout: bounds.statementTimeout,
    workMem: bounds.workMem,
  },
  exitCodes: { 0: 'written, perhaps with warnings on stderr and on the page' },
  example: '--out report.html --since 2026-01',
  nothing: (): ReportFacts => ({ file: null, bytes: null, users: null, refreshedAt: null }),
  afterwards: 'No file was written.',
  work: async ({ database, settings, facts, signal, progress, say, warn, onCommit }) => {
    const { out } = settings;
    if (out === undefined) {
      throw new Error('--out is missing. Name the HTML file to write, such as --out report.html.');
    }
    const { figures, ...written } = await writeReport(database.db, {
      ...settings,
      out,
      signal,
      onStep: (step) => progress.show(step),
    });
    onCommit({ outcome: 'written', reason: null });
    const users = figures.headlines[0]?.users ?? 0;
    Object.assign(facts, { ...written, users, refreshedAt: figures.refreshedAt });
    warningsOf(figures).forEach(warn);
    say(`${out}: written, ${Math.ceil(written.bytes / 1000)} kB, ${counted(users, 'user')}`);
    return { outcome: 'written', reason: null };
  },
});

interface ReportOptions extends FiguresOptions {
  /** The path of the file to write or replace. */
  out: string;
  title: string;
  /** Called with what is being done. */
  onStep?: (step: string) => void;
}

/**
 * Writes the report, and returns the path and size of the file and the figures in it. An existing
 * file is replaced only when the new one is complete.
 *
 * Throws an Error that says what to do if the file cannot be written, a library is not installed,
 * or the figures cannot be read. An existing file then stays unchanged.
 */
export async function writeReport(
  session: Session,
  { out, title, onStep, ...options }: ReportOptions,
): Promise<{ file: string; bytes: number; figures: Figures }> {
  const { pageOf } = await loadPage();
  if (title.trim() === '') {
    throw new Error('--title is empty. Leave it out, or give the page a title.');
  }
  for (let attempt = 0; attempt < 3; attempt += 1) {
    const target = await targetOf(out);
    const figures = await readFigures(session, {
      ...options,
      onFigure: (what) => onStep?.(`reading ${what}`),
    });
    onStep?.('drawing');
    const page = await pageOf(figures, title);
    options.signal?.throwIfAborted();
    if (await replace(target, page)) {
      return { file: target.path, bytes: Buffer.byteLength(page), figures };
    }
  }
  throw new Error(
    `${out} was replaced by other processes three times while this report was made. Let only one job at a time write it.`,
  );
}

/**
 * Loads the module that draws the page. Its libraries are optional peer dependencies, which no
 * other command needs. Throws an Error that says what to do if one of them is not installed.
 */
async function loadPage(): Promise<typeof import('./report/page.tsx')> {
  try {
    return await import('./report/page.tsx');
  } catch (error) {
    const { code, message } = error as NodeJS.ErrnoException;
    const [, name] = /Cannot find (?:package|module) '([^']+)'/.exec(message) ?? [];
    if (code !== 'ERR_MODULE_NOT_FOUND' || name?.startsWith('.')) {
      throw error;
    }
    throw new Error(
      `The report needs ${name}, which is not installed. Install all that it needs with "npm install vega@6 vega-lite@6 preact@11 preact-render-to-string@6".`,
      { cause: error },
    );
  }
}

interface Target {
  /** Its path, without symbolic links. */
  path: string;
  /** The owner and the permissions of the file that is replaced. */
  owner?: Pick<Stats, 'uid' | 'gid' | 'mode'>;
  /** Identifies the present version of the file, or says that there is none. */
  state: string;
}

/** Returns where to write. Throws an Error if there cannot be a file. */
async function targetOf(out: string): Promise<Target> {
  const given = JSON.stringify(out);
  const path = resolve(out);
  if (out.trim() === '' || /[/\\]$/.test(out)) {
    throw new Error(`--out ${given} does not name a file. Name the HTML file to write.`);
  }
  const isThere = await lstat(path).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== 'ENOENT') {
      throw new Error(`--out ${given} cannot be written: ${error.message}.`, { cause: error });
    }
    return undefined;
  });
  if (isThere === undefined) {
    if (!(await stat(dirname(path)).catch(() => undefined))) {
      throw new Error(
        `--out ${given} is in a folder that does not exist. Create the folder first.`,
      );
    }
    return { path, state: await stateOf(path) };
  }
  const found = await stat(path).catch(() => undefined);
  if (!found) {
    throw new Error(`--out ${given} is a link to a file that does not exist. Remove the link.`);
  }
  if (!found.isFile()) {
    throw new Error(`--out ${given} is not a file. Name the HTML file to write.`);
  }
  const target = await realpath(path);
  return { path: target, owner: found, state: await stateOf(target) };
}

const stateOf = async (path: string): Promise<string> => {
  const found = await stat(path, { bigint: true }).catch(() => undefined);
  return found ? `${found.ino} ${found.mtimeNs}` : 'not there';
};

/**
 * Writes a file under a temporary name beside the old one, then renames it. So a reader of the old
 * file never reads a part of it. If the old file has been replaced meanwhile, does nothing and
 * returns false: its figures may be newer.
 */
async function replace({ path, owner, state }: Target, text: string): Promise<boolean> {
  const temporary = join(dirname(path), `.${randomUUID()}.tmp`);
  try {
    const file = await open(temporary, 'wx', owner ? 0o600 : 0o666);
    try {
      await file.writeFile(text);
      await file.sync();
    } finally {
      await file.close();
    }
    if (owner) {
      // A user who may not give files away owns the new one.
      await chown(temporary, owner.uid, owner.gid).catch(() => {});
      await chmod(temporary, owner.mode & 0o777); // independent of the umask
    }
    if ((await stateOf(path)) !== state) {
      await rm(temporary);
      return false;
    }
    await rename(temporary, path);
    return true;
  } catch (error) {
    await rm(temporary, { force: true }).catch(() => {});
    throw new Error(`${path} cannot be written: ${(error as Error).message}.`, { cause: error });
  }
}
