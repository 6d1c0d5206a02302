import { Option } from 'commander';
import { refreshDefaults } from '../views/refresh.ts';

/** A setting of a command. Only TypeScript knows the type of its value. */
export type Setting<Value = string> = Option & { value?: Value };

/** The values of settings. */
export type Values<Settings extends Record<string, Setting<unknown>>> = {
  [Name in keyof Settings]: Settings[Name] extends Setting<infer Value> ? Value : never;
};

/**
 * Declares a setting: its flag, its description for --help, and its default value. An empty
 * environment variable counts as not set.
 */
export function setting<Value = string>(
  flags: string,
  description: string,
  { preset, variable }: { preset?: Value; variable?: string } = {},
): Setting<Value> {
  const option = new Option(flags, description).default(preset);
  return variable && process.env[variable] !== '' ? option.env(variable) : option;
}

/** Declares a setting that may be given several times, each time with one value. */
export const repeatable = (flags: string, description: string): Setting<string[]> =>
  new Option(flags, description)
    .default([], 'none')
    .argParser((value, before: string[]) => [...before, value]);

/**
 * The bounds of a refresh or a load: how long it waits, what it may use, and what loss it accepts.
 */
export const bounds = {
  lockTimeout: setting(
    '--lock-timeout <duration>',
    'how long to wait for a lock that another session holds',
    { preset: refreshDefaults.lockTimeout, variable: 'LEAD_CONVERSIONS_LOCK_TIMEOUT' },
  ),
  statementTimeout: setting('--statement-timeout <duration>', 'how long one statement may take', {
    preset: refreshDefaults.statementTimeout,
    variable: 'LEAD_CONVERSIONS_STATEMENT_TIMEOUT',
  }),
  workMem: setting(
    '--work-mem <size>',
    'memory for each sort and hash table; larger ones go to disk',
    { preset: refreshDefaults.workMem, variable: 'LEAD_CONVERSIONS_WORK_MEM' },
  ),
  maxLoss: setting(
    '--max-loss <percent>',
    'the largest share that may be lost: in a refresh, of the users or of the clients; in a load with --snapshot, of the rows of a table',
    { preset: refreshDefaults.maxLoss, variable: 'LEAD_CONVERSIONS_MAX_LOSS' },
  ),
};

/** The settings of all commands that work on a database. */
export const shared = {
  retries: setting(
    '--retries <number>',
    'how many times to retry after a failure that may pass, waiting 1, 2, 4 … up to 30 seconds',
    { preset: '5', variable: 'LEAD_CONVERSIONS_RETRIES' },
  ),
  json: setting<boolean>('--json', 'print one line of JSON'),
};
