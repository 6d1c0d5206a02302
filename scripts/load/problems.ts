/** Something that is wrong with a file. */
export interface Problem {
  /** Name of the file, such as `dim_user.csv`. */
  file: string;
  /** The line on which the record ends. (A quoted field may span several lines.) */
  line?: number | undefined;
  column?: string | undefined;
  /** What is wrong, and what to do, without a period at the end. */
  text: string;
}

/** How many problems a message shows. */
export const shownProblems = 20;

/** The problems of one file. All are counted, and the first ones by line are kept. */
export interface Problems {
  add(problem: Omit<Problem, 'file'>): void;
  /** Counts problems that are not shown. */
  addUnseen(count: number): void;
  kept: Problem[];
  total: number;
}

export function problemsOf(file: string): Problems {
  const problems: Problems = {
    kept: [],
    total: 0,
    add: (problem) => {
      problems.total += 1;
      const last = problems.kept[shownProblems - 1];
      if (!last || lineOf(problem) < lineOf(last)) {
        problems.kept.push({ file, ...problem });
        problems.kept.sort((one, other) => lineOf(one) - lineOf(other));
        problems.kept.splice(shownProblems);
      }
    },
    addUnseen: (count) => {
      problems.total += count;
    },
  };
  return problems;
}

const lineOf = ({ line = 0 }: Omit<Problem, 'file'>) => line;

/** Returns the first problems of all files, one per line, and how many more there are. */
export function describe(all: Problems[]): string {
  const total = all.reduce((sum, problems) => sum + problems.total, 0);
  const shown = all
    .flatMap(({ kept }) => kept)
    .slice(0, shownProblems)
    .map(({ file, line, column, text }) => {
      const place = [file, line && `line ${line}`, column && `column ${column}`];
      return `${place.filter(Boolean).join(', ')}: ${text}.`;
    });
  const more = total > shown.length ? [`and ${total - shown.length} more`] : [];
  return [...shown, ...more].join('\n');
}

/** Returns a value as messages show it, shortened if it is long. */
export const quote = (value: string): string =>
  value.length <= 80 ? JSON.stringify(value) : `${JSON.stringify(value.slice(0, 80))}...`;
