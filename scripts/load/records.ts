/** A field, or undefined if it is empty and not quoted, or null if it stands for NULL. */
export type Field = string | null | undefined;

/** A record of a CSV file. */
export interface CsvRecord {
  /** The line on which it ends. */
  line: number;
  fields: Field[];
}

export interface CsvOptions {
  delimiter: string;
  /** What stands for NULL where it is not quoted, beside nothing at all. */
  nulls: Set<string>;
  /** Whether `\` escapes quotes, and itself, within quotes, in place of a second quote. */
  hasBackslashes: boolean;
}

/** A record that is not written as it should be. */
export interface Mistake {
  line: number;
  text: string;
}

/** Longer than the longest JSON of an export: a quote that is never closed must end somewhere. */
const longestRecord = 2 ** 24;

/**
 * The records of a text in the order of the file, the header first. Quoting is that of
 * RFC 4180, and nothing else is accepted: each record that is not written like that is
 * told as a mistake, and left out, up to the end of its line. Blank lines, and lines of
 * delimiters alone, are no records. https://www.rfc-editor.org/rfc/rfc4180
 *
 * csv-parse, with which the tests compare this, was not fit for it: it drops a backslash
 * that it takes for an escape, counts some lines twice, does not know where a quote opened
 * that is never closed, and takes quadratic time over mistakes.
 */
export async function* readRecords(
  text: AsyncIterable<string>,
  options: CsvOptions,
  onMistake: (mistake: Mistake) => void,
): AsyncGenerator<CsvRecord> {
  const scan = scanner(options);
  let rest = '';
  /** How long the rest has to be before it is scanned anew, so that a long record takes linear time. */
  let enough = 0;
  let line = 1;
  /** Scans the records that are whole, and returns what they are. */
  const scanAll = function* (isLast: boolean): Generator<CsvRecord> {
    let position = 0;
    while (position < rest.length) {
      const found = scan(rest, position, line, isLast);
      if (!found) {
        break;
      }
      position = found.end;
      line = found.nextLine;
      if ('text' in found) {
        onMistake({ line: found.line, text: found.text });
      } else if (found.fields.some((field) => field !== undefined)) {
        yield { line: line - 1, fields: found.fields };
      }
    }
    rest = rest.slice(position);
    enough = 2 * rest.length;
  };
  for await (const chunk of text) {
    rest += chunk;
    if (rest.length >= enough || rest.length > longestRecord) {
      yield* scanAll(false);
    }
    if (rest.length > longestRecord) {
      onMistake({
        line,
        text: `the record that begins here is longer than ${longestRecord / 2 ** 20} MB. Perhaps a quote in it is never closed`,
      });
      return;
    }
  }
  yield* scanAll(true);
}

/** A record or a mistake, where the next record begins, and on which line. */
type Scanned = ({ fields: Field[] } | Mistake) & { end: number; nextLine: number };

/**
 * Scans one record of a text from a position on. Returns undefined if the text ends
 * within it, unless that is the last of it.
 */
function scanner({ delimiter, nulls, hasBackslashes }: CsvOptions) {
  const ofPlain = new RegExp(`["\\r\\n${delimiter}]`, 'g');
  const ofQuoted = hasBackslashes ? /["\\]/g : /"/g;
  const find = (pattern: RegExp, text: string, from: number): number => {
    pattern.lastIndex = from;
    return pattern.exec(text)?.index ?? -1;
  };

  return (text: string, start: number, startLine: number, isLast: boolean): Scanned | undefined => {
    let line = startLine;
    let at = start;
    const fields: Field[] = [];
    const mistake = (textOfMistake: string): Scanned | undefined => {
      const end = find(/[\r\n]/g, text, at);
      return end < 0 && !isLast
        ? undefined
        : endOfLine(end < 0 ? text.length : end, { line, text: textOfMistake });
    };
    /** What was found, to the end of the line that is at a position; more is needed to see a line feed. */
    const endOfLine = (
      position: number,
      found: { fields: Field[] } | Mistake,
    ): Scanned | undefined => {
      if (text[position] === '\r' && position + 1 === text.length && !isLast) {
        return undefined;
      }
      const length = text.startsWith('\r\n', position) ? 2 : 1;
      return { ...found, end: position + length, nextLine: line + 1 };
    };
    for (;;) {
      if (text[at] === '"') {
        const quoted = readQuoted(text, at + 1, isLast);
        if (!quoted) {
          return isLast
            ? { line, text: mistakes.open, end: text.length, nextLine: line + 1 }
            : undefined;
        }
        fields.push(quoted.value);
        line += quoted.value.match(/\r\n|\r|\n/g)?.length ?? 0;
        at = quoted.end;
      } else {
        const end = find(ofPlain, text, at);
        if (end < 0 && !isLast) {
          return undefined;
        }
        const value = text.slice(at, end < 0 ? text.length : end);
        at += value.length;
        const isWholeLine =
          fields.length === 0 && (at === text.length || /[\r\n]/.test(text[at] ?? ''));
        const isNothing = isWholeLine ? value.trim() === '' : value === '';
        fields.push(isNothing ? undefined : nulls.has(value) ? null : value);
        if (text[at] === '"') {
          return mistake(mistakes.unquoted);
        }
      }
      if (at >= text.length) {
        return isLast ? endOfLine(at, { fields }) : undefined;
      }
      if (text[at] === '\r' || text[at] === '\n') {
        return endOfLine(at, { fields });
      }
      if (text[at] !== delimiter) {
        return mistake(hasBackslashes ? mistakes.followedDespiteBackslashes : mistakes.followed);
      }
      at += 1;
    }
  };

  /** The value of a quoted field, and the position after its last quote; undefined if there is none. */
  function readQuoted(
    text: string,
    start: number,
    isLast: boolean,
  ): { value: string; end: number } | undefined {
    let value = '';
    let from = start;
    for (let at = find(ofQuoted, text, from); at >= 0; at = find(ofQuoted, text, at)) {
      const next = text[at + 1];
      if (next === undefined && !isLast) {
        return undefined; // it depends on what comes
      }
      if (text[at] === '\\') {
        if (next === '"' || next === '\\') {
          value += text.slice(from, at) + next;
          from = at + 2;
          at += 2;
        } else {
          at += 1; // one that is no escape, as in COPY of Postgres: in JSON it has a meaning of its own
        }
      } else if (next === '"' && !hasBackslashes) {
        value += text.slice(from, at + 1);
        from = at + 2;
        at += 2;
      } else {
        return { value: value + text.slice(from, at), end: at + 1 };
      }
    }
    return undefined;
  }
}

const mistakes = {
  open: 'the quote that opens here is never closed',
  unquoted:
    'a field has a quote in it, but is not quoted. Put quotes around the field, and double the one in it',
  followed:
    "there is text between the closing quote of a field and the next field. Double each quote within a field, or load with --escape '\\' if the file writes \\\" in its place",
  followedDespiteBackslashes:
    'there is text between the closing quote of a field and the next field. Write \\" for each quote within a field, or load without --escape if the file doubles them',
};
