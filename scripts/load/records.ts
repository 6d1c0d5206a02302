import { pipeline, Readable } from 'node:stream';
import { type CsvError, type InfoCallback, parse } from 'csv-parse';

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

/** A field may hold an export's longest JSON, and a quote that is never closed must end somewhere. */
const longestRecord = 2 ** 24;

/**
 * The records of a text in the order of the file, the header first. Quoting is that of
 * RFC 4180, and nothing else is accepted: each record that is not written like that is
 * told as a mistake, and left out. Blank lines, and lines of delimiters alone, are no
 * records. https://www.rfc-editor.org/rfc/rfc4180
 */
export async function* readRecords(
  text: AsyncIterable<string>,
  { delimiter, nulls, hasBackslashes }: CsvOptions,
  onMistake: (mistake: { line: number; text: string }) => void,
): AsyncGenerator<CsvRecord> {
  const wrongLines = new Set<number>();
  let isTooLong = false;
  const parser = parse({
    delimiter,
    record_delimiter: ['\r\n', '\n', '\r'],
    info: true,
    raw: true,
    relax_column_count: true, // counted by whoever knows the header
    skip_empty_lines: true,
    skip_records_with_error: true,
    max_record_size: longestRecord,
    on_skip: (error) => {
      const { code, lines, raw = '' } = error as CsvError & { lines: number; raw?: string };
      isTooLong = code === 'CSV_MAX_RECORD_SIZE';
      const isOpen = isTooLong || code === 'CSV_QUOTE_NOT_CLOSED';
      const line = isOpen ? lines - linesAfterOpening(raw) : lines;
      // Once a quote has not ended a field, the parser takes what follows for quoted.
      const isFalse = code === 'CSV_QUOTE_NOT_CLOSED' && wrongLines.size > 0;
      if (!isFalse && !wrongLines.has(line)) {
        wrongLines.add(line);
        onMistake({ line, text: mistakes[code] ?? String(error) });
      }
      if (isTooLong) {
        parser.destroy();
      }
    },
  });
  // What goes wrong with the text ends the parser with the error.
  pipeline(Readable.from(hasBackslashes ? doublingQuotes(text) : text), parser, () => {});
  try {
    for await (const { record, raw, info } of parser as AsyncIterable<Parsed>) {
      const isQuoted = record.some((field) => field === '' || nulls.has(field))
        ? quotedFields(raw, record)
        : [];
      const fields = record.map((field, index) =>
        isQuoted[index] !== false
          ? field
          : field === ''
            ? undefined
            : nulls.has(field)
              ? null
              : field,
      );
      if (fields.some((field) => field !== undefined)) {
        yield { line: info.lines, fields };
      }
    }
  } catch (error) {
    if (!isTooLong) {
      throw error;
    }
  }
}

interface Parsed {
  record: string[];
  raw: string;
  info: InfoCallback;
}

/** For each field of a record, whether it is quoted in the text of the record. */
function quotedFields(raw: string, record: string[]): boolean[] {
  let position = raw.search(/[^\r\n]/); // what is left of blank lines before it
  return record.map((field) => {
    const isQuoted = raw[position] === '"';
    const quotes = isQuoted ? field.split('"').length + 1 : 0; // those around it, and the doubled ones
    position += field.length + quotes + 1;
    return isQuoted;
  });
}

/** How many lines of a record follow the one on which a quote opens that is never closed. */
function linesAfterOpening(raw: string): number {
  const open = raw.replace(/"(?:[^"]|"")*"/g, '').replace(/(?:\r\n|\r|\n)$/, '');
  return open.slice(open.indexOf('"')).split(/\r\n|\r|\n/).length - 1;
}

/** What is said of each mistake that the parser finds. */
const mistakes: Partial<Record<string, string>> = {
  INVALID_OPENING_QUOTE:
    'a field has a quote in it, but is not quoted. Put quotes around the field, and double the one in it',
  CSV_INVALID_CLOSING_QUOTE:
    "something stands between the quote that ends a field and the next field. Double each quote within a field, or load with --escape '\\' if the file writes \\\" in its place",
  CSV_QUOTE_NOT_CLOSED: 'the quote that opens here is never closed',
  CSV_MAX_RECORD_SIZE: `the record that begins here is longer than ${longestRecord / 2 ** 20} MB. Perhaps a quote in it is never closed`,
};

/**
 * A text in which quotes within quotes are escaped with a backslash, as one in which
 * they are doubled. A backslash before anything but a quote or a backslash is one, as in
 * COPY of Postgres: in JSON it has a meaning of its own.
 */
async function* doublingQuotes(text: AsyncIterable<string>): AsyncGenerator<string> {
  let isQuoted = false;
  let rest = '';
  for await (const chunk of text) {
    const whole = rest + chunk;
    const [backslashes = ''] = /\\*$/.exec(whole) ?? [];
    rest = backslashes.length % 2 === 1 ? '\\' : '';
    yield whole.slice(0, whole.length - rest.length).replace(/\\(["\\])|"/g, (found, escaped) => {
      if (escaped === undefined) {
        isQuoted = !isQuoted;
        return found;
      }
      return !isQuoted ? found : escaped === '"' ? '""' : escaped;
    });
  }
  yield rest;
}
