import { readFileSync } from 'node:fs';
import { constants } from 'node:os';
import { Command, CommanderError } from 'commander';
import packageJson from 'lead-conversions/package.json' with { type: 'json' };
import pRetry from 'p-retry';
import { isUnknown } from '../views/session.ts';
import { type Database, openDatabase } from './database.ts';
import { explain, isTransient, reasonOf } from './failure.ts';
import { type Progress, progressOn } from './progress.ts';
import { type Setting, shared, type Values } from './settings.ts';

export const programName = 'lead-conversions';

type Settings = Record<string, Setting<unknown>>;

/** How a command is called, and its --help. */
interface Usage<Own extends Settings> {
  name: string;
  /** What it does, in sentences. `summary` is the short form for the list of commands. */
  description: string;
  summary?: string;
  /** What it works on, such as `<folder>`, and the description of that for --help. */
  argument?: [name: string, description: string];
  settings: Own;
  /** More paragraphs for --help, in lines of at most 80 characters. */
  notes?: string;
  /** The arguments of the example call in --help. */
  example?: string;
  /** Whether it is a script of this repository that is not in the package. */
  isOfRepository?: boolean;
}

/** Makes a command. A wrong call ends with a sentence on stderr and exit code 1. */
export function command<Own extends Settings>(usage: Usage<Own>): Command {
  const { name, description, summary = '', argument, settings, notes, example } = usage;
  const call =
    usage.isOfRepository || process.env.npm_lifecycle_event === name
      ? `npm run ${name} --`
      : ['npx lead-conversions', name].filter((word) => word !== programName).join(' ');
  const made = new Command(name)
    .description(description)
    .summary(summary)
    .version(packageJson.version, '--version', 'print the version')
    .helpOption('-h, --help', 'print this')
    .configureHelp({ commandUsage: (made) => `${call} ${made.usage()}` })
    .configureOutput({
      getOutHelpWidth: () => 80,
      getErrHelpWidth: () => 80,
      outputError: (text, write) => write(`${sentence(text)}\n`),
    })
    .exitOverride();
  if (argument) {
    made.argument(...argument);
  }
  for (const option of Object.values(settings)) {
    made.addOption(option);
  }
  made.hook('preAction', () => {
    const wrong = swallowed(name, Object.values(settings)) ?? optionAsValue(made);
    if (wrong) {
      made.error(wrong);
    }
  });
  const after = [notes, example && `Example:\n  ${call} ${example}`].filter(Boolean).join('\n\n');
  return made.addHelpText('after', after && `\n${after}`);
}

/**
 * Returns what is wrong if npm has taken an option as a setting of its own, and would run the
 * command without it. npm does so with all options before `--`. Two of the options (--json and
 * --force) are not checked: npm has the same ones, which may also come from its configuration.
 */
function swallowed(name: string, options: Setting<unknown>[]): string | undefined {
  const option = options.find(
    ({ long }) =>
      !['--json', '--force'].includes(long ?? '') &&
      process.env[`npm_config_${long?.slice(2).replaceAll('-', '_')}`] !== undefined,
  );
  return (
    option &&
    `npm took ${option.long} as one of its own settings. Put -- before all options: npm run ${name} -- ${option.long} …`
  );
}

/** Returns what is wrong if the value of an option is another option: its value was forgotten. */
function optionAsValue(made: Command): string | undefined {
  for (const option of made.options) {
    const values = [made.getOptionValue(option.attributeName())].flat();
    const taken = made.options.find(({ long, short }) =>
      values.some((it) => it && [long, short].includes(it)),
    );
    if (taken) {
      return `${option.long} needs a value, but is followed by ${taken.long}.`;
    }
  }
  return;
}

/** Returns a message on a wrong call in sentences. Those of commander begin with `error: `. */
function sentence(text: string): string {
  const [isOfCommander, start = '', rest = ''] = /^error: (.)(.*)/s.exec(text.trim()) ?? [];
  if (isOfCommander === undefined) {
    return text.trim();
  }
  const [said = '', advice] = rest.split('\n');
  const did = advice ? ` ${advice.replace(/^\((.*)\)$/, '$1')}` : '';
  return `${start.toUpperCase()}${said.replace(/\.$/, '')}.${did}`;
}

/**
 * Runs a program with the arguments of the process. A failure ends with a sentence on stderr and
 * exit code 1. It is not a failure if nobody reads the output any more. `variable` is the
 * environment variable that names the database.
 */
export async function runProgram(program: Command, variable?: string): Promise<void> {
  process.stdout.on('error', (error: NodeJS.ErrnoException) => {
    if (error.code !== 'EPIPE') {
      console.error(`Warning: the output cannot be written: ${error.message}.`);
    }
  });
  process.stderr.on('error', () => {});
  try {
    await program.parseAsync();
  } catch (error) {
    if (error instanceof CommanderError) {
      process.exitCode = error.exitCode; // commander has printed what is wrong
      return;
    }
    console.error(explain(error, variable));
    process.exitCode = 1;
  }
}

/** How a command that works on a database has ended. */
interface Ending {
  outcome: string;
  /** Why it was skipped or has failed, in sentences, otherwise null. */
  reason: string | null;
}

/**
 * Exit codes by outcome, 0 for all others. 75 is EX_TEMPFAIL of sysexits.h: nothing is wrong, try
 * again later.
 */
const exitCodeOf: Record<string, number> = {
  failed: 1,
  findings: 1,
  different: 2,
  skipped: 75,
};

/** What --json prints, always with the same keys. */
type Output<Facts> = Ending &
  Facts & {
    /** What went wrong after the work was done, in sentences. */
    warnings: string[];
    /** How long all attempts and the pauses between them took, in milliseconds. */
    durationMs: number;
    /** For each attempt that was followed by another one, why it failed, in sentences. */
    retries: string[];
  };

/** What the work of a command receives. */
export interface Work<Own extends Settings, Facts> {
  database: Database;
  /** The values of the settings. */
  settings: Values<Own>;
  /** The argument: what the command works on. */
  argument: string;
  /** What --json prints about the work. The work fills it in. */
  facts: Facts;
  /** Aborted by SIGINT and SIGTERM. */
  signal: AbortSignal;
  progress: Progress;
  /** Prints a line, unless --json is given. */
  say(line: string): void;
  /**
   * Prints a warning, and adds it to the output of --json: something went wrong after the work was
   * done.
   */
  warn(sentence: string): void;
  /** Says that the work is committed. Whatever goes wrong from here on is a warning. */
  onCommit(ending: Ending): void;
}

interface DatabaseUsage<Own extends Settings, Facts> extends Usage<Own> {
  /** Returns what --json prints if no work was done. */
  nothing: () => Facts;
  /** A sentence on the state of the database after the work has failed. */
  afterwards: string;
  /** The meaning of its exit codes, besides the codes that all commands have. */
  exitCodes: Record<number, string>;
  /** Whether an embedded database may be new. If it is, it is created. */
  isNew?: boolean;
  /** Called with each notice of the server. */
  onNotice?: (notice: string, facts: Facts) => void;
  work(work: Work<Own, Facts>): Promise<Ending>;
}

/**
 * Makes a command that works on the database that DATABASE_URL names. It retries after failures
 * that may pass. SIGINT and SIGTERM cancel the work, on the server too.
 */
export function databaseCommand<Own extends Settings, Facts extends object>(
  usage: DatabaseUsage<Own, Facts>,
): Command {
  const { nothing, argument } = usage;
  const exitCodes = {
    1: 'failed, with the reason on stderr',
    130: 'cancelled by SIGINT',
    143: 'cancelled by SIGTERM',
    ...usage.exitCodes,
  };
  const listed = Object.entries(exitCodes).map(
    ([code, meaning]) => `  ${code.padEnd(3)}  ${meaning}`,
  );
  const notes = [usage.notes, `Exit codes:\n${listed.join('\n')}`].filter(Boolean).join('\n\n');
  const print = (output: Output<Facts>) => console.log(JSON.stringify(output));
  return command({ ...usage, notes, settings: { ...usage.settings, ...shared } })
    .exitOverride((error) => {
      if (error.exitCode !== 0 && process.argv.includes('--json')) {
        const reason = sentence(error.message);
        print({
          ...{ outcome: 'failed', reason, ...nothing() },
          ...{ warnings: [], durationMs: 0, retries: [] },
        });
      }
      throw error;
    })
    .action(async (...given: unknown[]) => {
      const settings = given.at(argument ? 1 : 0) as Values<Own> & Values<typeof shared>;
      const { output, exitCode } = await perform(usage, settings, String(given[0]));
      if (settings.json) {
        print(output);
      }
      if (exitCode > 128) {
        process.exit(exitCode); // the server may not have answered
      }
      process.exitCode = exitCode;
    });
}

/**
 * How long cancelled work may take to roll back before the process ends anyway, in milliseconds.
 */
const graceMs = 5000;

/**
 * The longest pause before a retry, in milliseconds. The first pause is one second, and each
 * further one is twice as long as the one before it.
 */
const longestPauseMs = 30_000;

/** Does the work and prints its outcome. Returns what --json prints, and the exit code. */
async function perform<Own extends Settings, Facts extends object>(
  usage: DatabaseUsage<Own, Facts>,
  settings: Values<Own> & Values<typeof shared>,
  argument: string,
): Promise<{ output: Output<Facts>; exitCode: number }> {
  const { nothing, afterwards, isNew, onNotice, work } = usage;
  const started = performance.now();
  const facts = nothing();
  const warnings: string[] = [];
  const failedAttempts: string[] = [];
  const { signal, cancelledBy } = cancelledBySignals();
  const progress = progressOn(process.stderr);
  /** The ending of the work, as far as it is known while the work goes on. */
  let ending: Ending | undefined;
  let wasLostInCommit = false;
  const warn = (text: string) => {
    progress.end();
    // A retry may find the same again.
    if (!warnings.includes(text)) {
      warnings.push(text);
      console.error(`Warning: ${text}`);
    }
  };

  const attempt = async (number: number): Promise<Ending> => {
    ending = undefined;
    const database = await openDatabase(process.env.DATABASE_URL, {
      isNew,
      onWarning: warn,
      onNotice: (notice) => {
        progress.end();
        onNotice?.(notice, facts);
      },
    });
    try {
      ending = await work({
        ...{ database, settings, argument, facts, signal, progress, warn },
        say: (line) => {
          progress.end();
          if (!settings.json) {
            console.log(line);
          }
        },
        onCommit: (committed) => {
          ending = committed;
        },
      });
    } catch (error) {
      wasLostInCommit ||= isUnknown(error);
      throw error;
    } finally {
      progress.end();
      await database.close();
    }
    if (ending.outcome === 'skipped' && number > 1) {
      // The attempt before may have left something on the server for a moment, which caused this.
      throw new Error(`Skipped: ${ending.reason}.`);
    }
    return ending;
  };

  const attempts = async (): Promise<Ending> => {
    if (!/^\d{1,4}$/.test(settings.retries)) {
      throw new Error(
        `--retries must be a number from 0 to 9999, not ${JSON.stringify(settings.retries)}.`,
      );
    }
    const allowed = Number(settings.retries);
    return await pRetry(attempt, {
      retries: allowed,
      maxTimeout: longestPauseMs,
      signal,
      shouldRetry: ({ error, attemptNumber }) => {
        const isSkipped = ending?.outcome === 'skipped';
        if (signal.aborted || !(isSkipped || (!ending && isTransient(error)))) {
          return false;
        }
        const seconds = Math.min(2 ** (attemptNumber - 1), longestPauseMs / 1000);
        failedAttempts.push(explain(error));
        console.error(explain(error));
        console.error(`Trying again in ${seconds} s (${attemptNumber} of ${allowed}).`);
        return true;
      },
    });
  };

  const overdue = new Promise<never>((_, reject) => {
    signal.addEventListener('abort', () => setTimeout(() => reject(late), graceMs));
  });
  const late = new Error('Cancelled, but the server did not confirm this in time.');

  const failure = (error: unknown): string => {
    const before = wasLostInCommit
      ? 'An earlier attempt lost its connection during the commit, so it is not known whether the work is done.'
      : '';
    if (error === signal.reason) {
      return `Cancelled by ${cancelledBy()}. ${before || afterwards}`;
    }
    if (error === late) {
      return `${late.message} It is not known whether the work is done.`;
    }
    const said = explain(error) + adviceOn(error, usage.settings);
    return before && !isUnknown(error) ? `${said}\n${before}` : said;
  };

  const { outcome, reason } = await Promise.race([attempts(), overdue]).catch((error) => {
    if (ending && ending.outcome !== 'skipped' && error !== signal.reason) {
      warn(explain(error));
    }
    return ending ?? { outcome: 'failed', reason: failure(error) };
  });
  if (wasLostInCommit && outcome !== 'failed') {
    warn(
      'An earlier attempt lost its connection during the commit. What it did is not counted here.',
    );
  }
  progress.end();
  if (reason !== null) {
    console.error(outcome === 'skipped' ? `skipped: ${reason}` : reason);
  }
  const durationMs = Math.round(performance.now() - started);
  const name = cancelledBy();
  return {
    output: { outcome, reason, ...facts, warnings, durationMs, retries: failedAttempts },
    exitCode: name ? 128 + constants.signals[name] : (exitCodeOf[outcome] ?? 0),
  };
}

/**
 * Returns a sentence that names the setting if the error says that Postgres does not accept its
 * value, otherwise an empty text.
 */
function adviceOn(error: unknown, settings: Settings): string {
  const [, parameter = ''] =
    /^(?:invalid value|.* is outside the valid range) for parameter "(\w+)"/.exec(
      String(reasonOf(error)?.message),
    ) ?? [];
  const setting = Object.values(settings).find(
    ({ long }) => long === `--${parameter.replaceAll('_', '-')}`,
  );
  const variable = setting?.envVar ? ` or ${setting.envVar}` : '';
  return setting ? `\nIt comes from ${setting.long}${variable}.` : '';
}

/**
 * Returns a signal that SIGINT and SIGTERM abort, instead of ending the process, and a function
 * that returns which of them it was. If npm or npx runs this process, its end counts as SIGTERM:
 * npx does not pass signals on, and nobody would see the outcome any more.
 */
export function cancelledBySignals(): {
  signal: AbortSignal;
  cancelledBy: () => 'SIGINT' | 'SIGTERM' | undefined;
} {
  const cancellation = new AbortController();
  let name: 'SIGINT' | 'SIGTERM' | undefined;
  // Often called twice: for the signal from the terminal or the service manager, and the one from
  // npm.
  const stop = (by: NodeJS.Signals) => {
    name ??= by === 'SIGINT' ? by : 'SIGTERM';
    cancellation.abort(new Error(`cancelled by ${name}`));
  };
  process.on('SIGINT', stop).on('SIGTERM', stop);
  const atStart = ancestorsUpToNpm();
  if (atStart.length > 0) {
    const look = () => `${ancestorsUpToNpm()}` === `${atStart}` || stop('SIGTERM');
    setInterval(look, 1000).unref();
  }
  return { signal: cancellation.signal, cancelledBy: () => name };
}

/**
 * Returns the processes from the parent of this one up to npm or npx, if that runs this process,
 * directly or in a shell. An npm further up has started something else. Returns an empty array
 * otherwise, and on all systems but Linux.
 */
function ancestorsUpToNpm(): number[] {
  const ancestors: number[] = [];
  const read = (pid: number, file: string) => readFileSync(`/proc/${pid}/${file}`, 'latin1');
  try {
    for (let pid = process.ppid; pid > 1 && ancestors.length < 2; ) {
      ancestors.push(pid);
      if (read(pid, 'cmdline').startsWith('npm ')) {
        return ancestors;
      }
      pid = Number(/.*\) \S (\d+)/s.exec(read(pid, 'stat'))?.[1]);
    }
  } catch {
    // One of the processes has just ended, or this system is not Linux.
  }
  return [];
}
