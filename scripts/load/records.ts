/** A field: undefined if it is empty and not quoted, null if it stands for NULL. */
export type Field = string | null | undefined;

/** A record of a CSV file. */
export interface CsvRecord {
  /** The line on which it ends. */
  line: number;
  fields: Field[];
}

export interface CsvOptions {
  delimiter: string;
  /** Texts that stand for NULL where they are not quoted. An empty field always does. */
  nulls: Set<string>;
  /**
   * Whether, within quotes, `\` escapes a quote or itself. Otherwise a second quote escapes a
   * quote.
   */
  hasBackslashes: boolean;
}

/** A record that is not well-formed. */
export interface Mistake {
  line: number;
  text: string;
}

/** Longer than the longest JSON of an export. A quote that is never closed must end somewhere. */
const longestRecord = 2 ** 24;

/**
 * Yields the records of a text in the order of the file, the header first, in one iterable per
 * piece of the text. The caller must consume an iterable before it asks for the next one. Only the
 * quoting of RFC 4180, or `hasBackslashes`, is accepted. Any other record is reported as a mistake,
 * and skipped up to the end of its line. Blank lines, and lines with nothing but delimiters, are
 * not records.
 * https://www.rfc-editor.org/rfc/rfc4180
 *
 * csv-parse, with which the tests compare this function, could not be used: it drops a backslash
 * that it takes for an escape, counts some lines twice, does not report where an unclosed quote
 * begins, and takes quadratic time over mistakes.
 */
export async function* readRecords(
  text: AsyncIterable<string>,
  options: CsvOptions,
  onMistake: (mistake: Mistake) => void,
): AsyncGenerator<Iterable<CsvRecord>> {
  const scan = scanner(options);
  let rest = '';
  /** How long the rest must be before it is scanned again, so a long record takes linear time. */
  let enough = 0;
  let line = 1;
  /** Scans all complete records, and yields those that are well-formed. */
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
      yield scanAll(false);
    }
    if (rest.length > longestRecord) {
      onMistake({
        line,
        text: `the record that begins here is longer than ${longestRecord / 2 ** 20} MB. Perhaps a quote in it is never closed`,
      });
      return;
    }
  }
  yield scanAll(true);
}

/** A record or a mistake, the position at which the next record begins, and its line. */
type Scanned = ({ fields: Field[] } | Mistake) & { end: number; nextLine: number };

const quote = '"'.charCodeAt(0);
const backslash = '\\'.charCodeAt(0);
const carriageReturn = '\r'.charCodeAt(0);
const lineFeed = '\n'.charCodeAt(0);

/**
 * Returns a function that scans one record of a text, from a position on. It returns undefined if
 * the text ends within the record, unless it is the last piece of the text.
 *
 * For speed, it compares character codes, and creates no function per record.
 */
function scanner({ delimiter, nulls, hasBackslashes }: CsvOptions) {
  const delimiterCode = delimiter.charCodeAt(0);

  return (text: string, start: number, startLine: number, isLast: boolean): Scanned | undefined => {
    let line = startLine;
    let at = start;
    const fields: Field[] = [];
    for (;;) {
      if (text.charCodeAt(at) === quote) {
        const quoted = readQuoted(text, at + 1, isLast);
        if (!quoted) {
          return isLast
            ? { line, text: mistakes.open, end: text.length, nextLine: line + 1 }
            : undefined;
        }
        fields.push(quoted.value);
        line += linesIn(quoted.value);
        at = quoted.end;
      } else {
        const end = endOfPlain(text, at);
        if (end === text.length && !isLast) {
          return undefined;
        }
        const value = text.slice(at, end);
        at = end;
        const isWholeLine = fields.length === 0 && (at === text.length || isEndOfLine(text, at));
        const isNothing = isWholeLine ? value.trim() === '' : value === '';
        fields.push(isNothing ? undefined : nulls.has(value) ? null : value);
        if (text.charCodeAt(at) === quote) {
          return mistake(text, at, line, isLast, mistakes.unquoted);
        }
      }
      if (at >= text.length) {
        return isLast ? { fields, end: at + 1, nextLine: line + 1 } : undefined;
      }
      if (isEndOfLine(text, at)) {
        const end = startOfNextLine(text, at, isLast);
        return end === undefined ? undefined : { fields, end, nextLine: line + 1 };
      }
      if (text.charCodeAt(at) !== delimiterCode) {
        const { followed, followedDespiteBackslashes } = mistakes;
        const said = hasBackslashes ? followedDespiteBackslashes : followed;
        return mistake(text, at, line, isLast, said);
      }
      at += 1;
    }
  };

  /**
   * Returns where a field that is not quoted ends, or the length of the text if it does not end in
   * it.
   */
  function endOfPlain(text: string, start: number): number {
    for (let at = start; at < text.length; at += 1) {
      const code = text.charCodeAt(at);
      if (
        code === delimiterCode ||
        code === lineFeed ||
        code === carriageReturn ||
        code === quote
      ) {
        return at;
      }
    }
    return text.length;
  }

  /**
   * Returns the value of a quoted field and the position after its closing quote, or undefined if
   * there is no closing quote.
   */
  function readQuoted(
    text: string,
    start: number,
    isLast: boolean,
  ): { value: string; end: number } | undefined {
    let value = '';
    let from = start;
    for (let at = endOfQuoted(text, from); at >= 0; at = endOfQuoted(text, at)) {
      if (at + 1 === text.length && !isLast) {
        return undefined; // what comes next decides
      }
      const next = text.charCodeAt(at + 1);
      if (text.charCodeAt(at) === backslash) {
        if (next === quote || next === backslash) {
          value += text.slice(from, at) + text[at + 1];
          from = at + 2;
          at += 2;
        } else {
          at += 1; // no escape, so it stays, as in Postgres' COPY: JSON has its own use for it
        }
      } else if (next === quote && !hasBackslashes) {
        value += text.slice(from, at + 1);
        from = at + 2;
        at += 2;
      } else {
        return { value: value + text.slice(from, at), end: at + 1 };
      }
    }
    return undefined;
  }

  /** Returns the position of the next quote or escape, or -1 if there is none. */
  function endOfQuoted(text: string, start: number): number {
    if (!hasBackslashes) {
      return text.indexOf('"', start);
    }
    for (let at = start; at < text.length; at += 1) {
      const code = text.charCodeAt(at);
      if (code === quote || code === backslash) {
        return at;
      }
    }
    return -1;
  }
}

/** Returns a mistake at a position, with where the next line begins. */
function mistake(
  text: string,
  position: number,
  line: number,
  isLast: boolean,
  said: string,
): Scanned | undefined {
  let end = position;
  while (end < text.length && !isEndOfLine(text, end)) {
    end += 1;
  }
  const next = end < text.length ? startOfNextLine(text, end, isLast) : isLast ? end : undefined;
  return next === undefined ? undefined : { line, text: said, end: next, nextLine: line + 1 };
}

const isEndOfLine = (text: string, position: number): boolean =>
  text.charCodeAt(position) === lineFeed || text.charCodeAt(position) === carriageReturn;

/**
 * Returns where the next line starts after the end of a line, or undefined if more text is needed
 * to know whether a line feed follows.
 */
function startOfNextLine(text: string, end: number, isLast: boolean): number | undefined {
  if (text.charCodeAt(end) === lineFeed) {
    return end + 1;
  }
  if (end + 1 === text.length && !isLast) {
    return undefined;
  }
  return text.charCodeAt(end + 1) === lineFeed ? end + 2 : end + 1;
}

/** Returns how many lines end within a value. */
const linesIn = (value: string): number =>
  value.includes('\n') || value.includes('\r') ? (value.match(/\r\n|\r|\n/g)?.length ?? 0) : 0;

const mistakes = {
  open: 'the quote that opens here is never closed',
  unquoted:
    'a field has a quote in it, but is not quoted. Put quotes around the field, and double the quote in it',
  followed:
    "there is text between the closing quote of a field and the next field. Double each quote within a field, or load with --escape '\\' if the file writes \\\" in its place",
  followedDespiteBackslashes:
    'there is text between the closing quote of a field and the next field. Write \\" for each quote within a field, or load without --escape if the file doubles them',
};
