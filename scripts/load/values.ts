import { quote } from './problems.ts';

const instantShape =
  /^(\d{4}-\d\d-\d\d)(?:[T ](\d\d):(\d\d)(?::(\d\d)(\.\d+)?)?(?: ?(?:Z|UTC|([+-]\d\d)(?::?(\d\d))?))?)?$/;

/**
 * For speed: nearly all instants have this shape. It leaves out the days that some months do not
 * have.
 */
const usualShape =
  /^\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1\d|2[0-8])[T ](?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?(?:Z|\+00)?$/;

const minuteMs = 60_000;
const dayMs = 24 * 60 * minuteMs;
const earliest = Date.parse('0001-01-01T00:00:00Z');
const tooLate = Date.parse('+010000-01-01T00:00:00Z');

/**
 * Returns an instant as Postgres reads it in every session, or what is wrong with it. The text is
 * in ISO 8601, with a year of four digits. Without an offset it is UTC. As in Postgres, times up to
 * 24:00:00 and seconds up to 60 are valid.
 * https://www.postgresql.org/docs/16/datatype-datetime.html#DATATYPE-DATETIME-INPUT
 */
export function readInstant(text: string): string | { wrong: string } {
  if (usualShape.test(text) && !text.startsWith('0000')) {
    return text.endsWith('Z') || text.endsWith('+00') ? text : `${text}+00`;
  }
  const [
    isShaped,
    date = '',
    hours = '00',
    minutes = '00',
    seconds = '00',
    fraction = '',
    ...offset
  ] = instantShape.exec(text) ?? [];
  if (isShaped === undefined) {
    return {
      wrong: `${quote(text)} is not a time. Write 2024-06-01 or 2024-06-01T12:30:00Z. You may write an offset such as +05:30 instead of Z. Without one, the time is UTC`,
    };
  }
  const [offsetHours = '+00', offsetMinutes = '00'] = offset;
  const time =
    (Number(hours) * 60 + Number(minutes)) * minuteMs +
    Math.round(Number(`${seconds}${fraction}`) * 1e6) / 1e3; // Postgres keeps microseconds
  const shift =
    (Math.abs(Number(offsetHours)) * 60 + Number(offsetMinutes)) *
    minuteMs *
    (offsetHours.startsWith('-') ? -1 : 1);
  const midnight = midnightOf(date);
  const isOnClock =
    Number(minutes) <= 59 &&
    Number(seconds) <= 60 &&
    time <= dayMs &&
    Number(offsetMinutes) <= 59 &&
    Math.abs(Number(offsetHours)) <= 15;
  if (midnight === undefined || !isOnClock) {
    return { wrong: `${quote(text)} is not a valid date or time` };
  }
  const instant = midnight + Math.floor(time) - shift;
  if (instant < earliest || instant >= tooLate) {
    return { wrong: `${quote(text)} is not in the years 1 to 9999 (UTC)` };
  }
  return `${date} ${hours}:${minutes}:${seconds}${fraction}${offsetHours}:${offsetMinutes}`;
}

/**
 * When each date begins in UTC, in milliseconds since 1970, or undefined if there is no such date.
 */
const midnights = new Map<string, number | undefined>();

/**
 * Returns when a date begins. Each date is computed only once, because an export has the same few
 * thousand dates again and again.
 */
function midnightOf(date: string): number | undefined {
  if (!midnights.has(date)) {
    if (midnights.size > 10_000) {
      midnights.clear();
    }
    const midnight = new Date(`${date}T00:00:00Z`);
    const isOnCalendar =
      !Number.isNaN(midnight.valueOf()) &&
      midnight.toISOString().startsWith(date) &&
      !date.startsWith('0000');
    midnights.set(date, isOnCalendar ? midnight.valueOf() : undefined);
  }
  return midnights.get(date);
}

/**
 * Returns what is wrong with a text that is not JSON, or that jsonb cannot hold, otherwise
 * undefined. A rule of the table says what kind of JSON the details have to be.
 * https://www.postgresql.org/docs/16/datatype-json.html
 */
export function wrongWithJson(text: string): string | undefined {
  if (depthOf(text) > deepest) {
    return `${quote(text)} is nested in more than ${deepest} levels`;
  }
  let isStorable = true;
  const look = (key: string, value: unknown) => {
    const isText = (part: unknown) => typeof part !== 'string' || !/[\p{Surrogate}\0]/u.test(part);
    isStorable &&= isText(key) && isText(value);
    return value;
  };
  try {
    JSON.parse(text, text.includes('\\u') ? look : undefined);
  } catch {
    return `${quote(text)} is not JSON`;
  }
  return isStorable
    ? undefined
    : `${quote(text)} has an escape for a character that Postgres cannot store`;
}

/** How many levels deep JSON may be nested. Much deeper JSON crashes an embedded database. */
const deepest = 1000;

/** Returns how deep the brackets in a text are nested, without those in strings. */
function depthOf(text: string): number {
  if (text.length <= deepest) {
    return 0; // it cannot be too deep
  }
  let depth = 0;
  let greatest = 0;
  let isInString = false;
  for (let index = 0; index < text.length; index += 1) {
    const character = text[index];
    if (character === '"') {
      isInString = !isInString;
    } else if (isInString) {
      index += character === '\\' ? 1 : 0;
    } else if (character === '[' || character === '{') {
      depth += 1;
      greatest = Math.max(greatest, depth);
    } else if (character === ']' || character === '}') {
      depth -= 1;
    }
  }
  return greatest;
}
