import { createHash } from 'node:crypto';
import type { ComponentChildren } from 'preact';
import { renderToStaticMarkup } from 'preact-render-to-string';
import type { ConversionEventFilter } from '../../views/values.ts';
import { type Feed, type Figures, type Query, shownNames } from './figures.ts';
import { panelOf } from './panel.tsx';
import { style } from './style.ts';
import {
  counted,
  shorten,
  warningsOf,
  wordsOfDay,
  wordsOfFilter,
  wordsOfInstant,
  wordsOfMonth,
} from './wording.ts';

/**
 * Returns the page as HTML, with one panel per filter, of which the reader sees one. The page loads
 * nothing and has no script. Its Content Security Policy allows neither:
 * https://www.w3.org/TR/CSP3/
 */
export async function pageOf(figures: Figures, title: string): Promise<string> {
  // The filter that considers everything comes first, and is the one that is shown first.
  const shown = figures.headlines.toSorted(
    (one, other) => Number(other.filter === 'ALL') - Number(one.filter === 'ALL'),
  );
  const filters = shown.map(({ filter }) => filter);
  const panels: ComponentChildren[] = [];
  for (const headline of shown) {
    panels.push(await panelOf(figures, headline));
  }
  const hash = createHash('sha256')
    .update(style + switchOf(filters))
    .digest('base64');
  const page = (
    <html lang="en">
      <head>
        <meta charset="utf-8" />
        <meta
          http-equiv="Content-Security-Policy"
          content={`default-src 'none'; style-src 'sha256-${hash}'; base-uri 'none'; form-action 'none'`}
        />
        <meta name="viewport" content="width=device-width, initial-scale=1" />
        <meta name="referrer" content="no-referrer" />
        <meta name="robots" content="noindex" />
        <title>{title}</title>
        <style dangerouslySetInnerHTML={{ __html: style + switchOf(filters) }} />
      </head>
      <body>
        <Stripes />
        <header>
          <h1>
            <bdi>{title}</bdi>
          </h1>
          <Scope figures={figures} />
          <Freshness figures={figures} />
        </header>
        <main>
          <fieldset>
            <legend>What counts as a conversion?</legend>
            {filters.map((filter, index) => (
              <label key={filter}>
                <input type="radio" name="filter" id={`filter-${filter}`} checked={index === 0} />
                {wordsOfFilter(filter)}
              </label>
            ))}
          </fieldset>
          {panels}
        </main>
        <Notes figures={figures} />
      </body>
    </html>
  );
  return `<!doctype html>\n${renderToStaticMarkup(page)}\n`;
}

/**
 * Returns the style that shows only the panel of the chosen filter. A browser without :has() shows
 * all panels.
 */
const switchOf = (filters: ConversionEventFilter[]): string =>
  filters
    .map(
      (filter) => `body:has(#filter-${filter}:checked) .panel:not(.${filter}) { display: none; }\n`,
    )
    .join('');

/** The pattern that marks months that are too early to judge, also in print and without colors. */
const Stripes = () => (
  <svg class="definitions" aria-hidden="true">
    <pattern
      id="young"
      width="5"
      height="5"
      patternUnits="userSpaceOnUse"
      patternTransform="rotate(45)"
    >
      <path class="stripes" d="M0 0V5" />
    </pattern>
  </svg>
);

const Scope = ({ figures: { branch, since, withoutJoining } }: { figures: Figures }) => (
  <p>
    {branch ? (
      <>
        Users of the branch{' '}
        <bdi>
          {branch.name !== null && `${shorten(branch.name, 100)}, `}
          {branch.branchId}
        </bdi>
      </>
    ) : (
      'Users of all branches'
    )}
    {since !== null && ` who joined in ${wordsOfMonth(since)} or later`}.
    {withoutJoining > 0 &&
      ` ${counted(withoutJoining, 'user')} without a date of joining ${withoutJoining === 1 ? 'is' : 'are'} left out.`}
  </p>
);

const Freshness = ({ figures }: { figures: Figures }) => {
  const { refreshedAt, feeds } = figures;
  const latestOf = (isWanted: (feed: Feed) => boolean) =>
    feeds
      .filter(({ feed }) => isWanted(feed))
      .map(({ latest }) => latest)
      .sort()
      .at(-1);
  const upTo = [
    { what: 'users', day: latestOf((feed) => feed === 'JOINING') },
    { what: 'conversions', day: latestOf((feed) => feed !== 'JOINING') },
  ].flatMap(({ what, day }) => (day === undefined ? [] : `${what} up to ${wordsOfDay(day)}`));
  return (
    <>
      <p>
        {refreshedAt && (
          <>
            Data as of <time dateTime={refreshedAt}>{wordsOfInstant(refreshedAt)} UTC</time>
            {upTo.length > 0 && `, with ${upTo.join(' and ')}`}.{' '}
          </>
        )}
        This page was made on {wordsOfInstant(new Date().toISOString())} UTC and does not update
        itself.
      </p>
      {warningsOf(figures).map((warning) => (
        <p class="warning" key={warning}>
          Warning: {warning}
        </p>
      ))}
    </>
  );
};

/** An explanation of each figure, which the page shows above its SQL. */
const notes: { figure: Query; title: string; text: string }[] = [
  {
    figure: 'headlines',
    title: 'Users, leads, clients, rate and times',
    text: 'Each user counts once under each filter. A client has bought something that the filter counts. Everybody else is a lead. The conversion rate is the number of clients divided by the number of users. The time to convert is the number of days from the day of joining to the day of the first purchase that counts. Half of the clients took at most the median, and nine in ten took at most the 90th percentile. A client who bought before the day of joining, as in an import, has no such time.',
  },
  {
    figure: 'everybody',
    title: 'When a month is old enough to judge',
    text: 'The same figures for all users, whenever they joined. Their 90th percentile decides which months are old enough.',
  },
  {
    figure: 'comparison',
    title: 'Changes: these months',
    text: 'Only complete months are compared, with the same number of earlier months, if the data go back that far. Only purchases up to the end of the last complete day count.',
  },
  {
    figure: 'comparisonBefore',
    title: 'Changes: the months before',
    text: 'The purchases of the earlier users count only up to a day that is the same number of months earlier, so both groups had about the same time to convert. Months differ by up to three days.',
  },
  {
    figure: 'months',
    title: 'Months of joining',
    text: 'The clients of a month are those of its new users who have converted since, at any time. A month is old enough to judge once its last user has had the time that nine in ten clients need.',
  },
  {
    figure: 'cohorts',
    title: 'Months after joining',
    text: 'Column 0 is the calendar month of joining, column 1 is the next month, and so on. Each value is the share of the month’s new users who had converted by the end of that column’s month. A user who bought before joining counts from column 0 on.',
  },
  {
    figure: 'speeds',
    title: 'Days since joining',
    text: 'The shares of each kind of purchase add up to 100%.',
  },
  {
    figure: 'sources',
    title: 'Sources',
    text: `The source of the purchase that converted a client. The ${shownNames} sources with the most clients are named.`,
  },
  {
    figure: 'products',
    title: 'Products',
    text: `The product that converted a client. The ${shownNames} products with the most clients are named. Products of different kinds are counted separately, even if they have the same name.`,
  },
  {
    figure: 'branches',
    title: 'Branches',
    text: 'A user belongs to one branch, even if another branch sold the purchase.',
  },
  {
    figure: 'feeds',
    title: 'How far the data go',
    text: 'The first and the latest day of joining, and of first purchases of each kind. If one of them seems to have stopped long before the refresh, no month since then is old enough to judge.',
  },
  {
    figure: 'period',
    title: 'Which days are over',
    text: 'The day of the latest joining or conversion, and the last day that was over in all branches. A date after the refresh or before 1970 is a mistake in the data, and is ignored.',
  },
  {
    figure: 'refresh',
    title: 'How fresh the data are',
    text: 'The figures show what was in the database when the latest refresh of the views began.',
  },
];

const Notes = ({ figures }: { figures: Figures }) => (
  <footer>
    <h2>How these figures are computed</h2>
    <p>
      All days and months follow the clock of the user’s own branch, or UTC if the branch has no
      time zone. All figures are read in one snapshot of the view fct_lead_conversions.
    </p>
    <div class="figures">
      {notes
        .filter(({ figure }) => figures.queries[figure])
        .map(({ figure, title, text }) => (
          <section class="note" key={figure}>
            <h3>{title}</h3>
            <p>{text}</p>
            <details class="sql">
              <summary>
                SQL<span class="hidden"> of: {title}</span>
              </summary>
              {/* biome-ignore lint/a11y/noNoninteractiveTabindex: otherwise it cannot be scrolled by keyboard */}
              <pre tabIndex={0}>{figures.queries[figure]}</pre>
            </details>
          </section>
        ))}
    </div>
  </footer>
);
