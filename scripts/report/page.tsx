import { createHash } from 'node:crypto';
import type { ComponentChildren } from 'preact';
import { renderToStaticMarkup } from 'preact-render-to-string';
import type { ConversionEventFilter } from '../../views/values.ts';
import { type Figures, type Query, shownNames } from './figures.ts';
import { panelOf } from './panel.tsx';
import { style } from './style.ts';
import {
  counted,
  shorten,
  warningOf,
  wordsOfDay,
  wordsOfFilter,
  wordsOfInstant,
  wordsOfMonth,
} from './wording.ts';

/**
 * The page as HTML: one panel per filter, of which the reader sees one. It loads nothing and
 * needs no script. Its policy would not let it: https://www.w3.org/TR/CSP3/
 */
export async function pageOf(figures: Figures, title: string): Promise<string> {
  // The filter that considers everything is the one that is seen first.
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
        <fieldset>
          <legend>What counts as a conversion?</legend>
          {filters.map((filter, index) => (
            <label key={filter}>
              <input type="radio" name="filter" id={`filter-${filter}`} checked={index === 0} />
              {wordsOfFilter(filter)}
            </label>
          ))}
        </fieldset>
        <main>{panels}</main>
        <Notes figures={figures} />
      </body>
    </html>
  );
  return `<!doctype html>\n${renderToStaticMarkup(page)}\n`;
}

/** Shows the panel of the filter that is chosen; all of them in a browser that does not know :has(). */
const switchOf = (filters: ConversionEventFilter[]): string =>
  filters
    .map(
      (filter) => `body:has(#filter-${filter}:checked) .panel:not(.${filter}) { display: none; }\n`,
    )
    .join('');

/** What marks the months that are too young, also in print and without colours. */
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
        Users of the branch <bdi>{shorten(branch.name ?? branch.branchId, 100)}</bdi>
      </>
    ) : (
      'Users of all branches'
    )}
    {since !== null && `, from those who joined in ${wordsOfMonth(since)} on`}.
    {withoutJoining > 0 &&
      ` ${counted(withoutJoining, 'user')} without a date of joining ${withoutJoining === 1 ? 'is' : 'are'} left out.`}
  </p>
);

const Freshness = ({ figures }: { figures: Figures }) => {
  const silence = daysOfSilence(figures);
  return (
    <>
      <p>
        {figures.refreshedAt && (
          <>
            Data as of{' '}
            <time dateTime={figures.refreshedAt}>{wordsOfInstant(figures.refreshedAt)} UTC</time>
            {'. '}
          </>
        )}
        {figures.until && (
          <>
            The latest user or conversion is of{' '}
            <time dateTime={figures.until}>{wordsOfDay(figures.until)}</time>
            {silence > 7 && `, ${counted(silence, 'day')} earlier`}.
          </>
        )}
      </p>
      <Warning {...figures} />
    </>
  );
};

/** Whole days from the latest user or conversion to the refresh: many of them where nobody loads data any more. */
const daysOfSilence = ({ refreshedAt, until }: Figures): number =>
  refreshedAt === null || until === null
    ? 0
    : Math.floor((Date.parse(refreshedAt) - Date.parse(until)) / 86_400_000);

const Warning = (figures: Figures) => {
  const text = warningOf(figures);
  return text && <p class="warning">Warning: {text}</p>;
};

/** What each figure is, and the SQL that has given it. */
const notes: { figure: Query; title: string; text: string }[] = [
  {
    figure: 'headlines',
    title: 'Users, leads, clients, rate and days',
    text: 'Each user counts once under each filter. A client has bought at least once what the filter counts, and everybody else is a lead. The conversion rate is clients divided by users. The days go from the day of joining to the day of the first purchase that counts, for clients who bought on the day of joining or later: half of them took at most the median, nine in ten at most the 90th percentile. Who bought on an earlier day than that of joining is a client, but not in the days.',
  },
  {
    figure: 'months',
    title: 'Months of joining',
    text: 'The clients of a month are those of its new users who have converted since, whenever that was. A month is too early to judge until so many days have gone by since its end as nine in ten of all clients took at most, whenever they joined.',
  },
  {
    figure: 'cohorts',
    title: 'Months after joining',
    text: 'Column 0 is the calendar month of joining, column 1 the month after it, and so on. Each is the share of the month’s new users who have converted by its end. Purchases from before the day of joining are not in it.',
  },
  {
    figure: 'speeds',
    title: 'Days since joining',
    text: 'The shares of each kind of purchase add up to 100%.',
  },
  {
    figure: 'sources',
    title: 'Sources',
    text: `Where the purchase that converted a client came from. The ${shownNames} sources with the most clients are named.`,
  },
  {
    figure: 'products',
    title: 'Products',
    text: `What converted a client. The ${shownNames} products with the most clients are named. A name that is sold as a membership and as a credit pack is two products.`,
  },
  {
    figure: 'branches',
    title: 'Branches',
    text: 'A user belongs to one branch, wherever the purchase was made.',
  },
  {
    figure: 'period',
    title: 'How far the data go',
    text: 'The day of the latest joining or conversion in all branches. What has a later date than the refresh is a mistake, and is left out here.',
  },
  {
    figure: 'refresh',
    title: 'How fresh the data are',
    text: 'The figures hold what was in the database when the latest refresh of the views began.',
  },
];

const Notes = ({ figures }: { figures: Figures }) => (
  <footer>
    <h2>How these figures are computed</h2>
    <p>
      All days and months are those on the clock of the user’s own branch, and those of UTC where a
      branch has no time zone. Everything is read at one moment, from the view fct_lead_conversions.
    </p>
    <div class="figures">
      {notes.map(({ figure, title, text }) => (
        <section class="note" key={figure}>
          <h3>{title}</h3>
          <p>{text}</p>
          <details>
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
