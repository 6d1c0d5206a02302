import { execFile } from 'node:child_process';
import { join } from 'node:path';

const commands = {
  'drizzle-kit migrate': ['drizzle-kit', 'migrate'],
  'npm run load': ['tsx', 'scripts/load.ts'],
  'npm run refresh': ['tsx', 'scripts/refresh.ts'],
} satisfies Record<string, [string, string]>;

/**
 * Runs a command to its end as a deploy or the nightly job does: in a process of
 * its own, which knows the database by DATABASE_URL alone.
 */
export function run(
  url: string,
  command: keyof typeof commands,
  args: readonly string[] = [],
): Promise<{ code: number | string; stdout: string; stderr: string }> {
  const [program, ...first] = commands[command] as [string, string];
  return new Promise((resolve) => {
    execFile(
      join('node_modules/.bin', program),
      [...first, ...args],
      { env: { ...process.env, DATABASE_URL: url } },
      (error, stdout, stderr) => resolve({ code: error?.code ?? 0, stdout, stderr }),
    );
  });
}
