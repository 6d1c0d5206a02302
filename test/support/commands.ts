import { type ChildProcess, execFile } from 'node:child_process';
import { promisify } from 'node:util';
import { inject } from 'vitest';
import packageJson from '../../package.json' with { type: 'json' };

const commands = {
  'drizzle-kit migrate': 'exec node_modules/.bin/drizzle-kit migrate',
  'npm run benchmark': packageJson.scripts.benchmark,
  'npm run demo': packageJson.scripts.demo,
  'npm run distribute': packageJson.scripts.distribute,
  'npm run diff': packageJson.scripts.diff,
  'npm run doctor': packageJson.scripts.doctor,
  'npm run generate': packageJson.scripts.generate,
  'npm run load': packageJson.scripts.load,
  'npm run migrate': packageJson.scripts.migrate,
  'npm run refresh': packageJson.scripts.refresh,
  'npm run report': packageJson.scripts.report,
};

export interface Result {
  /** The exit code, or the name of the signal that ended the process. */
  code: number | string;
  stdout: string;
  stderr: string;
}

const source = '--import tsx scripts/lead_conversions.ts';

/** Whether a command is one of the package, which may run compiled. */
export const isOfPackage = (command: keyof typeof commands) => commands[command].includes(source);

/**
 * Starts a command as a deploy or the nightly job does: in its own process, with only DATABASE_URL
 * to name the database, and in a shell, as npm does. The commands of the package come from the
 * folder `compiled`, if there is one.
 */
export function start(
  url: string,
  command: keyof typeof commands,
  args: readonly string[] = [],
  env: Record<string, string> = {},
  cwd = '.',
  compiled = cwd === '.' ? inject('compiled') : undefined,
): { process: ChildProcess; result: Promise<Result> } {
  const line =
    compiled === undefined
      ? commands[command]
      : commands[command].replace(source, `${compiled}/dist/scripts/lead_conversions.js`);
  const running = promisify(execFile)('sh', ['-c', `${line} "$@"`, 'sh', ...args], {
    cwd,
    // The command must not seem to be run by the npm that runs these tests.
    env: { ...process.env, npm_lifecycle_event: undefined, ...env, DATABASE_URL: url },
  });
  const result = running.then(
    ({ stdout, stderr }) => ({ code: 0, stdout, stderr }),
    ({ signal, code, stdout, stderr }) => ({ code: signal ?? code, stdout, stderr }),
  );
  return { process: running.child, result };
}

/** Runs a command until it ends. */
export const run = (...command: Parameters<typeof start>): Promise<Result> =>
  start(...command).result;
