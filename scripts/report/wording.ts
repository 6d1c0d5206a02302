import { purchaseKinds } from '../../views/purchase_kinds.ts';
import type { ConversionEventFilter, ConversionEventType } from '../../views/values.ts';
import {
  daysBeforeRefresh,
  endOfData,
  type Feed,
  type Figures,
  isSilent,
  type Month,
  spans,
} from './figures.ts';

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

const capitalized = (text: string) => text.replace(/^./, (first) => first.toUpperCase());

/** Returns what the report calls a filter. An unknown filter keeps its own name. */
export function wordsOfFilter(filter: ConversionEventFilter): string {
  const kind = Object.entries(purchaseKinds).find(([type]) => type === filter)?.[1];
  const all = Object.values(purchaseKinds).map(({ plural }) => plural);
  return filter === 'ALL'
    ? capitalized(new Intl.ListFormat(locale).format(all))
    : kind
      ? capitalized(`${kind.plural} only`)
      : filter;
}

/** Returns what the report calls a kind of purchase. An unknown kind keeps its own name. */
export const wordsOfType = (type: ConversionEventType): string =>
  capitalized(purchaseKinds[type]?.name ?? type);

/** Returns a number with its noun, such as `1 user` and `2 users`. */
export const counted = (number: number, noun: string, plural = `${noun}s`): string =>
  `${count(number)} ${number === 1 ? noun : plural}`;

export const change = (number: number): string => signed.format(number).replace('-', '−');

/**
 * Returns a share in percent. It is 0% only for none, and 100% only for all. Returns a dash if the
 * whole is 0.
 */
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

/**
 * Returns by how many percentage points one share is above another, computed from the rounded
 * shares. Neither whole may be 0.
 */
export const points = (one: [part: number, whole: number], other: [part: number, whole: number]) =>
  signedTenths.format((perMille(...one) - perMille(...other)) / 10).replace('-', '−');

const perMille = (part: number, whole: number): number => Math.round((1000 * part) / whole);

/** Returns a number of days in words, or a dash for null. */
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
 * Returns a name from the upstream system as one line of at most `length` characters. Nothing in it
 * can change the direction or the characters of the text around it.
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

/** The report warns about figures that are older than this, in hours. */
const warningHours = 26;

/**
 * How many records a branch must lack before it is named: one of many branches may lack a few by
 * chance.
 */
const expectedOfBranch = 20;

/** Returns what the report calls the records of a feed. */
const wordsOfFeed = (feed: Feed): { one: string; many: string } => {
  return feed === 'JOINING'
    ? { one: 'user', many: 'users' }
    : { one: `first ${purchaseKinds[feed].name}`, many: purchaseKinds[feed].plural };
};

/** Returns sentences about what seems not to be loaded any more. */
function silenceOf(figures: Figures): string[] {
  const { refreshedAt, feeds, branches, branch } = figures;
  const before = (day: string) =>
    `${wordsOfDay(day)}, ${counted(daysBeforeRefresh(day, refreshedAt), 'day')} before the refresh`;
  const end = endOfData(figures);
  if (end !== undefined) {
    return [
      `The latest user or conversion dates from ${before(end)}. Check that data are still being loaded.`,
    ];
  }
  const sentences = feeds
    .filter((feed) => isSilent(feed, refreshedAt))
    .map(({ feed, latest }) => {
      const { one, many } = wordsOfFeed(feed);
      return `The latest ${one} dates from ${before(latest)}. Check that ${many} are still being loaded.`;
    });
  const silent = branches
    .filter(({ filter, branchId }) => branch === null && filter === 'ALL' && branchId !== null)
    .flatMap(({ branchId, name, users, clients, first, latest }) =>
      first === null || latest === null
        ? []
        : { name: shorten(name ?? branchId ?? '', 60), records: users + clients, first, latest },
    )
    .filter((one) => isSilent(one, refreshedAt, expectedOfBranch));
  if (silent.length > 0) {
    const named = silent
      .slice(0, 5)
      .map(({ name, latest }) => `${name} (the latest dates from ${wordsOfDay(latest)})`);
    const more = silent.length > 5 ? ` and ${count(silent.length - 5)} more` : '';
    sentences.push(
      `There are no new users or conversions in ${counted(silent.length, 'branch', 'branches')}: ${named.join(', ')}${more}. Check that all data are still being loaded.`,
    );
  }
  return sentences;
}

/** Returns sentences about what makes the figures doubtful. */
export function warningsOf(figures: Figures): string[] {
  const { refreshedAt, hoursOld, mistaken, headlines } = figures;
  const warnings: string[] = [];
  if (refreshedAt === null) {
    warnings.push(
      'The age of these figures is not known: the views have not been refreshed since they were created. Refresh them.',
    );
  } else if (hoursOld !== null && hoursOld < 0) {
    warnings.push(
      'The age of these figures is not known: by the server’s clock, the latest refresh is in the future.',
    );
  } else if (hoursOld !== null && hoursOld > warningHours) {
    warnings.push(
      `These figures were ${counted(Math.floor(hoursOld), 'hour')} old when the report was made. Check the nightly refresh.`,
    );
  }
  warnings.push(...silenceOf(figures));
  if (mistaken > 0) {
    warnings.push(
      `${counted(mistaken, 'user')} joined or converted after the refresh or before 1970, according to the data. These users are counted, but are left out of all times.`,
    );
  }
  if (headlines.every(({ users }) => users === 0)) {
    warnings.push('There are no users to report on.');
  }
  return warnings;
}
