import type { ConversionEventFilter, ConversionEventType } from '../../views/values.ts';
import { dayOf, type Figures, type Month, spans } from './figures.ts';

/** What the report calls a filter. One that has no words here goes by its name. */
export const wordsOfFilter = (filter: ConversionEventFilter): string =>
  ({
    ALL: 'Memberships and credit packs',
    MEMBERSHIP: 'Memberships only',
    USER_CREDIT: 'Credit packs only',
  })[filter as string] ?? filter;

/** What the report calls a kind of purchase. */
export const wordsOfType = (type: ConversionEventType): string =>
  ({ MEMBERSHIP: 'Membership', USER_CREDIT: 'Credit pack' })[type as string] ?? type;

const locale = 'en-GB';
const numbers = new Intl.NumberFormat(locale);
const signed = new Intl.NumberFormat(locale, { signDisplay: 'exceptZero' });
const signedTenths = new Intl.NumberFormat(locale, {
  ...{ signDisplay: 'exceptZero', minimumFractionDigits: 1, maximumFractionDigits: 1 },
});
const percents = new Intl.NumberFormat(locale, { style: 'percent' });
const tenthsOfPercent = new Intl.NumberFormat(locale, {
  style: 'percent',
  minimumFractionDigits: 1,
});
const months = new Intl.DateTimeFormat(locale, {
  month: 'short',
  year: 'numeric',
  timeZone: 'UTC',
});
const days = new Intl.DateTimeFormat(locale, { dateStyle: 'long', timeZone: 'UTC' });
const instants = new Intl.DateTimeFormat(locale, {
  ...{ dateStyle: 'long', timeStyle: 'short', timeZone: 'UTC' },
});

export const count = (number: number): string => numbers.format(number);

/** A number with its noun, such as `1 user` and `2 users`. */
export const counted = (number: number, noun: string, plural = `${noun}s`): string =>
  `${count(number)} ${number === 1 ? noun : plural}`;

export const change = (number: number): string => signed.format(number).replace('-', '−');

/** A share. It says 0% and 100% only of none and of all. Without a whole there is none. */
export function percent(part: number, whole: number): string {
  if (whole === 0) {
    return '–';
  }
  if (part === 0 || part === whole) {
    return percents.format(part / whole);
  }
  const rounded = perMille(part, whole);
  if (rounded === 0) {
    return `under ${tenthsOfPercent.format(0.001)}`;
  }
  return rounded === 1000
    ? `over ${tenthsOfPercent.format(0.999)}`
    : tenthsOfPercent.format(rounded / 1000);
}

/** How many points one share is above another, as far as both are written. Both have a whole. */
export const points = (one: [part: number, whole: number], other: [part: number, whole: number]) =>
  signedTenths.format((perMille(...one) - perMille(...other)) / 10).replace('-', '−');

const perMille = (part: number, whole: number): number => Math.round((1000 * part) / whole);

/** A number of days, if there is one. */
export const inDays = (number: number | null): string =>
  number === null ? '–' : counted(number, 'day');

export const wordsOfMonth = (month: Month): string => {
  const day = new Date(0);
  day.setUTCFullYear(Math.floor(month / 12), month % 12, 1);
  return months.format(day);
};

export const wordsOfDay = (day: string): string =>
  day.endsWith('BC') ? day : days.format(new Date(`${day}T00:00:00Z`));

export const wordsOfInstant = (instant: string): string => instants.format(new Date(instant));

/** The days of each span, such as `1–7`. */
export const wordsOfSpans = spans.map((first, index) => {
  const next = spans[index + 1];
  return next === undefined
    ? `${first}+`
    : next === first + 1
      ? `${first}`
      : `${first}–${next - 1}`;
});

const graphemes = new Intl.Segmenter(locale, { granularity: 'grapheme' });

/**
 * A name from upstream as one line of at most that many characters. What it contains changes
 * neither the direction nor the characters of the text around it.
 */
export function shorten(text: string, length: number): string {
  const line = text
    .replace(/\p{Bidi_C}/gu, '')
    .replace(/[\p{Cc}\p{Zl}\p{Zp}\s]+/gu, ' ')
    .trim();
  if (line === '') {
    return '(blank)';
  }
  const characters = Array.from(
    graphemes.segment(line.slice(0, 20 * length)),
    ({ segment }) => segment,
  );
  const isLong = characters.length > length || line.length > 20 * length;
  return isLong ? `${characters.slice(0, length - 1).join('')}…` : line;
}

/** How old the figures may be before the report warns. */
const warningHours = 26;

/** How many days may lie between the latest user or conversion and the refresh. */
const warningDays = 7;

/** What makes the figures doubtful, in sentences. */
export function warningsOf(figures: Figures): string[] {
  const { refreshedAt, hoursOld, until, fromFuture, headlines } = figures;
  const warnings: string[] = [];
  if (refreshedAt === null) {
    warnings.push(
      'Nobody knows how old these figures are: the views have not been refreshed since they were created. Refresh them.',
    );
  } else if (hoursOld !== null && hoursOld < 0) {
    warnings.push(
      'Nobody knows how old these figures are: the latest refresh is in the future by the clock of the server.',
    );
  } else if (hoursOld !== null && hoursOld > warningHours) {
    warnings.push(
      `These figures were ${counted(Math.floor(hoursOld), 'hour')} old when the report was made. The nightly refresh has not run.`,
    );
  }
  const silence = daysOfSilence(figures);
  if (until !== null && silence > warningDays) {
    warnings.push(
      `The latest user or conversion dates from ${wordsOfDay(until)}, ${count(silence)} days before the refresh. Check that data are still being loaded.`,
    );
  }
  if (fromFuture > 0) {
    warnings.push(
      `${counted(fromFuture, 'user')} joined or converted after the refresh, by the dates in the data. They count, but their times are left out.`,
    );
  }
  if (headlines.every(({ users }) => users === 0)) {
    warnings.push('There are no users to report on.');
  }
  return warnings;
}

/** Whole days from the latest user or conversion to the refresh. */
const daysOfSilence = ({ refreshedAt, until }: Figures): number =>
  refreshedAt === null || until === null
    ? 0
    : Math.floor(Date.parse(refreshedAt) / 86_400_000 - dayOf(until));
