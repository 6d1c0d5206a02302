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

/** How a command is called, and what --help says of it. */
interface Usage<Own extends Settings> {
  name: string;
  /** What it does, in sentences, and in the few words of the list of commands. */
  description: string;
  summary?: string;
  /** What it works on, such as `<folder>`, with what --help says of it. */
  argument?: [name: string, description: string];
  settings: Own;
  /** More paragraphs for --help, in lines of at most 80 characters. */
  notes?: string;
  /** The arguments of a call that --help shows. */
  example?: string;
  /** Whether it is a script of this repository, and not in the package. */
  isOfRepository?: boolean;
}

/** Makes a command. Whoever calls it wrongly is told so in a sentence, with exit code 1. */
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
    refuseSwallowed(name, Object.values(settings));
    refuseOptionsAsValues(made);
  });
  const after = [notes, example && `Example:\n  ${call} ${example}`].filter(Boolean).join('\n\n');
  return made.addHelpText('after', after && `\n${after}`);
}

/**
 * Throws an Error if npm has taken an option for a setting of its own, as it does with all
 * that comes before `--`, and would run the command without it. Two that npm has itself may
 * also come from its configuration.
 */
function refuseSwallowed(name: string, options: Setting<unknown>[]): void {
  const swallowed = options.find(
    ({ long }) =>
      !['--json', '--force'].includes(long ?? '') &&
      process.env[`npm_config_${long?.slice(2).replaceAll('-', '_')}`] !== undefined,
  );
  if (swallowed) {
    throw new Error(
      `npm took ${swallowed.long} as one of its own settings. Put -- before all options: npm run ${name} -- ${swallowed.long} …`,
    );
  }
}

/** Throws an Error if the value of an option is another option: then its own was forgotten. */
function refuseOptionsAsValues(made: Command): void {
  for (const option of made.options) {
    const values = [made.getOptionValue(option.attributeName())].flat();
    const taken = made.options.find(({ long, short }) =>
      values.some((it) => it && [long, short].includes(it)),
    );
    if (taken) {
      throw new Error(`${option.long} needs a value, but is followed by ${taken.long}.`);
    }
  }
}

/** What commander says of a wrong call, as a sentence in one line. */
function sentence(text: string): string {
  const [, start = '', rest = ''] = /^error: (.)(.*)/s.exec(text.trim()) ?? [];
  const [said = '', advice] = rest.split('\n');
  const did = advice ? ` ${advice.replace(/^\((.*)\)$/, '$1')}` : '';
  return `${start.toUpperCase()}${said.replace(/\.$/, '')}.${did}`;
}

/**
 * Does what the arguments of the process say. What goes wrong ends on stderr in a
 * sentence, with exit code 1. That nobody reads the output any more is not something
 * that goes wrong. The variable is the one that names the database.
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
      process.exitCode = error.exitCode; // it has been said what is wrong
      return;
    }
    console.error(explain(error, variable));
    process.exitCode = 1;
  }
}

/** How a command that works on a database has ended. */
interface Ending {
  outcome: string;
  /** Why it was skipped or has failed, in sentences; null if it has not. */
  reason: string | null;
}

/** By outcome; 0 for all others. 2 is how diff(1) says so, 75 is EX_TEMPFAIL of sysexits.h: nothing is wrong, try again later. */
const exitCodeOf: Record<string, number> = {
  failed: 1,
  findings: 1,
  different: 2,
  skipped: 75,
};

/** What --json prints, always with the same keys. */
type Output<Facts> = Ending &
  Facts & {
    /** What went wrong once the work was done, in sentences. */
    warnings: string[];
    /** How long all attempts took, and the waiting between them. */
    durationMs: number;
    /** Why attempts failed that were followed by another one, in sentences. */
    retries: string[];
  };

/** What the work of a command is given. */
export interface Work<Own extends Settings, Facts> {
  database: Database;
  /** The values of the settings. */
  settings: Values<Own>;
  /** What the command works on. */
  argument: string;
  /** What --json prints of the work, to be filled in. */
  facts: Facts;
  /** Aborted by SIGINT and SIGTERM. */
  signal: AbortSignal;
  progress: Progress;
  /** Prints a line, unless --json is given. */
  say(line: string): void;
  /** Prints what went wrong once the work was done, and has --json print it. */
  warn(sentence: string): void;
  /** Says that the work is committed: whatever goes wrong from here on is a warning. */
  onCommit(ending: Ending): void;
}

interface DatabaseUsage<Own extends Settings, Facts> extends Usage<Own> {
  /** What --json prints of no work at all. */
  nothing: () => Facts;
  /** What is so once the work has failed, as a sentence. */
  afterwards: string;
  /** What its exit codes mean, beside those that all commands have. */
  exitCodes: Record<number, string>;
  /** Whether an embedded database may be new, and is created then. */
  isNew?: boolean;
  /** Told what the server notes meanwhile. */
  onNotice?: (notice: string, facts: Facts) => void;
  work(work: Work<Own, Facts>): Promise<Ending>;
}

/**
 * Makes a command that works on the database that DATABASE_URL names. What may succeed
 * in a moment is tried again; SIGINT and SIGTERM cancel the work, on the server too.
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

/** How long cancelled work has to roll back before the process ends anyway. */
const graceMs = 5000;

/** The first retry comes after a second, each further one after twice that, up to this. */
const maxTimeout = 30_000;

/** Does the work, says how it went, and returns what --json prints of it. */
async function perform<Own extends Settings, Facts extends object>(
  usage: DatabaseUsage<Own, Facts>,
  settings: Values<Own> & Values<typeof shared>,
  argument: string,
): Promise<{ output: Output<Facts>; exitCode: number }> {
  const { nothing, afterwards, isNew, onNotice, work } = usage;
  const started = performance.now();
  const facts = nothing();
  const warnings: string[] = [];
  const retries: string[] = [];
  const { signal, cancelledBy } = cancelledBySignals();
  const progress = progressOn(process.stderr);
  /** How the work has ended, as far as that is known while it goes on. */
  let ending: Ending | undefined;
  let wasLostInCommit = false;
  const warn = (text: string) => {
    progress.end();
    // An attempt that follows another one finds the same again.
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
      // Perhaps by what the attempt before has left on the server, for a moment.
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
      maxTimeout,
      signal,
      shouldRetry: ({ error, attemptNumber }) => {
        const isSkipped = ending?.outcome === 'skipped';
        if (signal.aborted || !(isSkipped || (!ending && isTransient(error)))) {
          return false;
        }
        const seconds = Math.min(2 ** (attemptNumber - 1), maxTimeout / 1000);
        retries.push(explain(error));
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
    output: { outcome, reason, ...facts, warnings, durationMs, retries },
    exitCode: name ? 128 + constants.signals[name] : (exitCodeOf[outcome] ?? 0),
  };
}

/** Which setting has a value that Postgres does not take, if that is what an error says. */
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
 * What SIGINT and SIGTERM abort, in place of ending the process, and which of them it
 * was. That npm or npx has ended, which runs this process, counts as SIGTERM: npx does
 * not pass that on, and nobody would see the outcome any more.
 */
export function cancelledBySignals(): {
  signal: AbortSignal;
  cancelledBy: () => 'SIGINT' | 'SIGTERM' | undefined;
} {
  const cancellation = new AbortController();
  let name: 'SIGINT' | 'SIGTERM' | undefined;
  // Often twice: from the terminal or the service manager, and from npm.
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
 * The processes from the parent of this one up to npm or npx, if that runs it: itself, or
 * in a shell. One further up has started something else. On Linux alone.
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
    // One has just ended, or this is no Linux.
  }
  return [];
}
