import type { ComponentChildren } from 'preact';
import {
  type ConversionEventFilter,
  type ConversionEventType,
  conversionEventTypes,
} from '../../views/values.ts';
import { cohortsChart, monthsChart, namesChart, speedChart } from './charts.ts';
import {
  type Bought,
  type BranchCounts,
  cohortMonths,
  dayOf,
  endOf,
  type Figures,
  type Headline,
  judgedUntil,
  lastMonthOf,
  type Month,
  type MonthCounts,
  monthOf,
  shownNames,
} from './figures.ts';
import {
  change,
  count,
  counted,
  inDays,
  percent,
  points,
  shorten,
  wordsOfDay,
  wordsOfFilter,
  wordsOfMonth,
  wordsOfSpans,
  wordsOfType,
} from './wording.ts';

/** How many months of joining the charts show. They show the latest ones. */
const shownMonths = 24;

/** The least number of users with which a branch is compared with the whole. */
const leastUsers = 30;

/**
 * How many branches are compared, and up to how many branches the list of all of them is open at
 * first.
 */
const comparedBranches = 5;
const openBranches = 20;

/** The figures of one filter, and what follows from them. */
interface Panel
  extends Pick<Figures, 'comparison' | 'sources' | 'products' | 'speeds' | 'cohorts' | 'branches'> {
  filter: ConversionEventFilter;
  headline: Headline;
  /** The two headlines to compare: of whole months, and of as many months before them. */
  compared: { now: Headline; before: Headline } | undefined;
  /** The headline of all users, whenever they joined. */
  everybody: Headline | undefined;
  since: Month | null;
  /** The months of joining, as rows of a table. Each user is in one of them. */
  months: MonthRow[];
  /** The kinds of purchase that have converted somebody. */
  types: ConversionEventType[];
  /** The number of days within which nine in ten of all clients convert, whenever they joined. */
  daysToJudge: number | null;
  /** The users and clients whose month of joining is old enough to judge. */
  judged: Pick<MonthRow, 'users' | 'clients'>;
  /** The last month that is over, as far as the data go. */
  lastMonth: Month;
  isOfOneBranch: boolean;
}

interface MonthRow {
  label: string;
  users: number;
  clients: number;
  /** Null for several months together, and for users whose month of joining is unknown. */
  month: Month | null;
  /**
   * Whether it is too early to judge the month, because some of its users have not had
   * `daysToJudge`. Null if that is unknown, and for several months that differ.
   */
  isYoung: boolean | null;
}

/** Returns everything that is shown under one filter. */
export async function panelOf(figures: Figures, headline: Headline): Promise<ComponentChildren> {
  const { filter } = headline;
  const of = <Figure extends { filter: ConversionEventFilter }>(all: Figure[]) =>
    all.filter((figure) => figure.filter === filter);
  const { comparison, since } = figures;
  const completeUntil = judgedUntil(filter, figures);
  const [everybody] = of(figures.everybody);
  const daysToJudge = everybody?.p90Days ?? null;
  const isYoung = (month: Month | null) =>
    month === null || completeUntil === null || daysToJudge === null
      ? null
      : endOf(month) + daysToJudge > dayOf(completeUntil);
  const counts = of(figures.months);
  const sources = of(figures.sources);
  const [now] = of(comparison?.headlines ?? []);
  const [before] = of(comparison?.headlinesBefore ?? []);
  const panel: Panel = {
    ...{ filter, headline, comparison, sources, daysToJudge, everybody, since },
    compared: now && before && { now, before },
    months: monthRowsOf(counts, figures.until, isYoung),
    judged: sumOf(counts.filter(({ month }) => isYoung(month) === false)),
    types: [...new Set(sources.map(({ type }) => type))].sort(),
    products: of(figures.products),
    speeds: of(figures.speeds),
    cohorts: of(figures.cohorts),
    lastMonth: completeUntil === null ? 0 : lastMonthOf(completeUntil),
    branches: of(figures.branches),
    isOfOneBranch: figures.branch !== null,
  };
  return (
    <section class={`panel ${filter}`} aria-labelledby={`${filter}-title`} key={filter}>
      <h2 id={`${filter}-title`}>{wordsOfFilter(filter)}</h2>
      <Tiles {...panel} />
      <Compared {...panel} />
      <div class="figures">
        {[
          await monthsCard(panel),
          await cohortsCard(panel),
          await speedsCard(panel),
          await sourcesCard(panel),
          await productsCard(panel),
          ...branchCards(panel),
        ]}
      </div>
    </section>
  );
}

const sum = (numbers: number[]): number => numbers.reduce((total, number) => total + number, 0);

const sumOf = (counts: Pick<MonthRow, 'users' | 'clients'>[]) => ({
  users: sum(counts.map(({ users }) => users)),
  clients: sum(counts.map(({ clients }) => clients)),
});

/**
 * Returns the months of joining up to the latest day of the data, including months without users.
 */
function monthRowsOf(
  counts: MonthCounts[],
  until: string | null,
  isYoung: (month: Month | null) => boolean | null,
): MonthRow[] {
  const untilMonth = monthOf(until) ?? Number.NEGATIVE_INFINITY;
  const past = counts.filter(({ month }) => month !== null && month <= untilMonth);
  const months = past.map(({ month }) => month ?? 0);
  const latest = Math.max(...months);
  const last = latest > untilMonth - shownMonths ? untilMonth : latest;
  const first = Math.max(Math.min(...months), last - shownMonths + 1);
  const shown =
    past.length === 0 ? [] : Array.from({ length: last - first + 1 }, (_, index) => first + index);
  const together = (label: string, own: MonthCounts[]): MonthRow[] => {
    const ages = new Set(own.map(({ month }) => isYoung(month)));
    const [age = null] = ages.size === 1 ? ages : [];
    return own.length === 0 ? [] : [{ ...{ label, month: null, isYoung: age }, ...sumOf(own) }];
  };
  return [
    ...together(
      'Earlier',
      past.filter(({ month }) => month !== null && month < first),
    ),
    ...shown.map((month) => ({
      ...{ label: wordsOfMonth(month), month, isYoung: isYoung(month) },
      ...sumOf(counts.filter((counts) => counts.month === month)),
    })),
    ...together(
      'Later',
      counts.filter(({ month }) => month !== null && month > untilMonth),
    ),
    ...together(
      'Not known',
      counts.filter(({ month }) => month === null),
    ),
  ];
}

/** The headline figures, with their change from the months before. */
function Tiles(panel: Panel) {
  const { headline, comparison, compared, months, judged, since, everybody } = panel;
  const { users, leads, clients, beforeJoining, withoutDays, medianDays, p90Days } = headline;
  const whenCompared = comparison && `${wordsOfMonths(comparison.months)}: `;
  const against = (of: (headline: Headline) => number | null) => {
    const [now, before] = [compared && of(compared.now), compared && of(compared.before)];
    return typeof now === 'number' && typeof before === 'number'
      ? `${whenCompared}${count(now)} against ${count(before)} (${change(now - before)})`
      : undefined;
  };
  const ofEverybody = (days: number | null | undefined) =>
    since !== null && typeof days === 'number' && `${inDays(days)} for all, whenever they joined.`;
  const rateOf = (headline: Headline): [number, number] => [headline.clients, headline.users];
  const tiles: { term: string; value: string; notes: (string | undefined | false)[] }[] = [
    {
      term: 'Users',
      value: count(users),
      notes: ['All users begin as leads.', against(({ users }) => users)],
    },
    {
      term: 'Leads',
      value: count(leads),
      notes: ['Users who have not converted.', against(({ leads }) => leads)],
    },
    {
      term: 'Clients',
      value: count(clients),
      notes: ['Users who have converted.', against(({ clients }) => clients)],
    },
    {
      term: 'Conversion rate',
      value: percent(clients, users),
      notes: [
        'Share of users who are clients.',
        users > judged.users &&
          months.some(({ isYoung, users }) => isYoung && users > 0) &&
          (judged.users > 0
            ? `${percent(judged.clients, judged.users)} in the months that are old enough to judge.`
            : 'All of these months are too early to judge.'),
        compared &&
          `${whenCompared}${percent(...rateOf(compared.now))} against ${percent(...rateOf(compared.before))} (${points(rateOf(compared.now), rateOf(compared.before))} points)`,
      ],
    },
    {
      term: 'Half of clients within',
      value: inDays(medianDays),
      notes: [
        'Median time from joining to conversion, of the clients so far.',
        ofEverybody(everybody?.medianDays),
        against(({ medianDays }) => medianDays),
      ],
    },
    {
      term: '9 in 10 clients within',
      value: inDays(p90Days),
      notes: [
        '90th percentile of the time from joining to conversion, of the clients so far.',
        ofEverybody(everybody?.p90Days),
        against(({ p90Days }) => p90Days),
      ],
    },
    {
      term: 'Bought before joining',
      value: count(beforeJoining),
      notes: [
        'Clients who bought before they joined, for example in imported data. The times above leave them out.',
      ],
    },
    ...(withoutDays === 0
      ? []
      : [
          {
            term: 'Time not known',
            value: count(withoutDays),
            notes: ['Clients whose date of joining or conversion is missing or cannot be true.'],
          },
        ]),
  ];
  return (
    <dl class="tiles">
      {tiles.map(({ term, value, notes }) => (
        <div key={term}>
          <dt>{term}</dt>
          <dd class="value">{value}</dd>
          {notes.filter(Boolean).map((note) => (
            <dd key={note}>{note}</dd>
          ))}
        </div>
      ))}
    </dl>
  );
}

const wordsOfMonths = ([first, last]: [Month, Month]): string =>
  first === last ? wordsOfMonth(first) : `${wordsOfMonth(first)} to ${wordsOfMonth(last)}`;

/** Explains what the changes in the tiles compare. */
function Compared({ comparison, since }: Panel) {
  if (since === null) {
    return null;
  }
  if (!comparison) {
    return (
      <p class="muted">
        There is no comparison with earlier months: either the data do not go back far enough, or
        none of these months is over.
      </p>
    );
  }
  const { months, monthsBefore, asOf, asOfBefore } = comparison;
  return (
    <p class="muted">
      The changes compare users who joined in {wordsOfMonths(months)}, at the end of{' '}
      {wordsOfDay(asOf)}, with users who joined in {wordsOfMonths(monthsBefore)}, at the end of{' '}
      {wordsOfDay(asOfBefore)}. Both had about the same time to convert.
    </p>
  );
}

interface CardProps {
  id: string;
  title: string;
  isWide?: boolean;
  children: ComponentChildren;
}

/** A figure, under the question that it answers. */
const Card = ({ id, title, isWide, children }: CardProps) => (
  <section class={isWide ? 'card wide' : 'card'} aria-labelledby={id} key={id}>
    <h3 id={id}>{title}</h3>
    {children}
  </section>
);

/** A chart. Its numbers are in a table beside it. */
const Chart = ({ svg }: { svg: string }) => <div dangerouslySetInnerHTML={{ __html: svg }} />;

interface TableProps {
  caption: string;
  columns: string[];
  /** How many of the first columns hold text. The others hold numbers. */
  textColumns?: number;
  rows: ComponentChildren[][];
}

const Table = ({ caption, columns, textColumns = 1, rows }: TableProps) => {
  const classOf = (index: number) => (index < textColumns ? undefined : 'number');
  return (
    // biome-ignore lint/a11y/noNoninteractiveTabindex: otherwise it cannot be scrolled by keyboard
    <section class="scroll" tabIndex={0} aria-label={caption}>
      <table>
        <caption>{caption}</caption>
        <thead>
          <tr>
            {columns.map((column, index) => (
              <th scope="col" class={classOf(index)} key={column}>
                {column}
              </th>
            ))}
          </tr>
        </thead>
        <tbody>
          {rows.map((cells, row) => (
            <tr key={row}>
              {cells.map((cell, index) =>
                index === 0 ? (
                  <th scope="row" key={columns[index]}>
                    {cell}
                  </th>
                ) : (
                  <td class={classOf(index)} key={columns[index]}>
                    {cell}
                  </td>
                ),
              )}
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
};

const Numbers = (table: TableProps) => (
  <details class="numbers">
    <summary>
      The numbers<span class="hidden"> of: {table.caption}</span>
    </summary>
    <Table {...table} />
  </details>
);

async function monthsCard({ filter, months, daysToJudge }: Panel) {
  const title = 'What share of each month’s new users became clients?';
  const shown = months.filter(({ month }) => month !== null);
  return (
    <Card id={`${filter}-months`} title={title}>
      {months.length > shown.length && shown.length > 0 && (
        <p class="muted">The chart shows up to {shownMonths} months. The table has all users.</p>
      )}
      {shown.length === 0 ? (
        <p class="muted">No month of joining is known.</p>
      ) : (
        <>
          {shown.some(({ isYoung }) => isYoung) && (
            <p class="muted">
              Months with a hollow point and stripes are too early to judge: in these data, not all
              of their users have had {counted(daysToJudge ?? 0, 'day')}, the time within which nine
              in ten of all clients convert.
            </p>
          )}
          <Chart
            svg={
              await monthsChart(
                shown.map(({ label, users, clients, isYoung }) => ({
                  ...{ label, clients, isYoung: isYoung === true },
                  leads: users - clients,
                  rate: users === 0 ? null : clients / users,
                })),
              )
            }
          />
        </>
      )}
      {months.length > 0 && (
        <Numbers
          caption="Users and clients by month of joining"
          columns={[
            'Month of joining',
            'Users',
            'Leads',
            'Clients',
            'Conversion rate',
            'Too early to judge',
          ]}
          rows={months.map(({ label, users, clients, isYoung }) => [
            ...[label, count(users), count(users - clients), count(clients)],
            ...[percent(clients, users), isYoung === null ? '' : isYoung ? 'yes' : 'no'],
          ])}
        />
      )}
    </Card>
  );
}

async function cohortsCard({ filter, headline, months, cohorts, lastMonth }: Panel) {
  const columns = Array.from({ length: cohortMonths + 1 }, (_, monthsUntil) => monthsUntil);
  const rows = months.flatMap(({ label, users, month }) => {
    if (month === null || users === 0) {
      return [];
    }
    const own = cohorts.filter((cohort) => cohort.month === month);
    const converted = (monthsUntil: number) =>
      sum(own.filter((cohort) => cohort.monthsUntil <= monthsUntil).map(({ clients }) => clients));
    return [{ label, users, counts: columns.filter((k) => month + k <= lastMonth).map(converted) }];
  });
  const marks = rows.flatMap(({ label, users, counts }) =>
    counts.map((clients, monthsUntil) => ({ label, monthsUntil, rate: clients / users })),
  );
  return (
    <Card id={`${filter}-cohorts`} title="How does conversion grow in the months after joining?">
      {marks.length === 0 ? (
        <p class="muted">No month of joining is complete in these data.</p>
      ) : (
        <>
          <p class="muted">
            The share of each month’s new users who had converted by the end of a later month. A
            month is shown once it is complete. Users who bought before joining count from the
            start.
          </p>
          {headline.withoutDays > 0 && (
            <p class="muted">
              This leaves out {counted(headline.withoutDays, 'client')} whose time is not known.
            </p>
          )}
          <Chart svg={await cohortsChart(marks)} />
          <Numbers
            caption="Share of users who have converted, by month of joining and months after it"
            columns={['Month of joining', 'Users', ...columns.map(String)]}
            rows={rows.map(({ label, users, counts }) => [
              ...[label, count(users)],
              ...columns.map((k) => (counts[k] === undefined ? '' : percent(counts[k], users))),
            ])}
          />
        </>
      )}
    </Card>
  );
}

async function speedsCard({ filter, headline, types, speeds }: Panel) {
  const clients = (type: ConversionEventType, span?: number) =>
    sum(
      speeds
        .filter((speed) => speed.type === type && (span === undefined || speed.span === span))
        .map(({ clients }) => clients),
    );
  const known = types.filter((type) => clients(type) > 0);
  const { beforeJoining, withoutDays } = headline;
  return (
    <Card id={`${filter}-speeds`} title="How soon after joining do clients convert?">
      {known.length === 0 ? (
        <p class="muted">No client has a known time from joining to conversion.</p>
      ) : (
        <>
          <Chart
            svg={
              await speedChart(
                known.flatMap((type) =>
                  wordsOfSpans.map((label, index) => ({
                    ...{ place: index + 1, label, type: wordsOfType(type) },
                    value: clients(type, index + 1) / clients(type),
                  })),
                ),
                conversionEventTypes.map(wordsOfType),
              )
            }
          />
          <Numbers
            caption="Clients by days since joining and by what they bought"
            columns={[
              'Days since joining',
              ...known.flatMap((type) => [wordsOfType(type), `Share of ${wordsOfType(type)}`]),
            ]}
            rows={wordsOfSpans.map((label, index) => [
              label,
              ...known.flatMap((type) => [
                count(clients(type, index + 1)),
                percent(clients(type, index + 1), clients(type)),
              ]),
            ])}
          />
        </>
      )}
      {beforeJoining + withoutDays > 0 && (
        <p class="muted">
          This leaves out{' '}
          {[
            beforeJoining > 0 && `${counted(beforeJoining, 'client')} who bought before joining`,
            withoutDays > 0 && `${counted(withoutDays, 'client')} whose time is not known`,
          ]
            .filter(Boolean)
            .join(' and ')}
          .
        </p>
      )}
    </Card>
  );
}

/** What the page shows in place of a name. */
const [others, notGiven] = ['(all others)', '(not given)'];

/**
 * Returns the name of a source or product on the page. A name that looks like one of those texts is
 * put in quotes.
 */
function nameOf({ rank, name }: Bought): string {
  if (rank > shownNames || name === null) {
    return rank > shownNames ? others : notGiven;
  }
  const shown = shorten(name, 300);
  return [others, notGiven].includes(shown) ? `“${shown}”` : shown;
}

/** The name in a table. A text of the page itself is in italics. */
const Name = ({ of }: { of: Bought }) =>
  of.rank > shownNames || of.name === null ? <em>{nameOf(of)}</em> : <bdi>{nameOf(of)}</bdi>;

/** Returns the name for a chart. Its writing direction does not affect the text around it. */
const isolated = (name: string): string => `\u2068${shorten(name, 42)}\u2069`;

const marksOf = (bought: Bought[]) =>
  bought.map((one) => ({
    ...{ place: one.rank, label: isolated(nameOf(one)) },
    ...{ type: wordsOfType(one.type), value: one.clients },
  }));

async function sourcesCard({ filter, sources, types }: Panel) {
  const places = [...new Set(sources.map(({ rank }) => rank))];
  return (
    <Card id={`${filter}-sources`} title="Which sources do clients come from?">
      <p class="muted">
        A client counts under the source of the first purchase that counts as a conversion. Leads
        have no source, so a conversion rate per source cannot be computed.
      </p>
      {places.length === 0 ? (
        <p class="muted">Nobody has converted.</p>
      ) : (
        <>
          <Chart svg={await namesChart(marksOf(sources), conversionEventTypes.map(wordsOfType))} />
          <Numbers
            caption="Clients by source and by what they bought"
            columns={['Source', ...types.map(wordsOfType), 'All clients']}
            rows={places.map((place) => {
              const own = sources.filter(({ rank }) => rank === place);
              const clients = (type: ConversionEventType) =>
                sum(own.filter((one) => one.type === type).map(({ clients }) => clients));
              return [
                own[0] && <Name of={own[0]} />,
                ...types.map((type) => count(clients(type))),
                count(sum(own.map(({ clients }) => clients))),
              ];
            })}
          />
        </>
      )}
    </Card>
  );
}

async function productsCard({ filter, products, headline }: Panel) {
  return (
    <Card id={`${filter}-products`} title="Which products turn the most leads into clients?">
      {products.length === 0 ? (
        <p class="muted">Nobody has converted.</p>
      ) : (
        <>
          <p class="muted">
            A client counts under the product of the first purchase that counts as a conversion.
          </p>
          <Chart svg={await namesChart(marksOf(products), conversionEventTypes.map(wordsOfType))} />
          <Numbers
            caption="Clients by product"
            columns={['Product', 'Kind', 'Clients', 'Share of clients']}
            textColumns={2}
            rows={products.map((one) => [
              <Name of={one} />,
              ...[
                wordsOfType(one.type),
                count(one.clients),
                percent(one.clients, headline.clients),
              ],
            ])}
          />
        </>
      )}
    </Card>
  );
}

/** Returns the name of a branch on the page, or its identifier if it has no name. */
const nameOfBranch = ({ branchId, name }: BranchCounts): string =>
  shorten(name ?? branchId ?? '', 100);

/** The name of a branch, with its identifier if other branches have the same name. */
const Branch = ({ isShared, ...branch }: BranchCounts & { isShared: boolean }) =>
  branch.branchId === null ? (
    <em>(no branch)</em>
  ) : (
    <bdi>
      {nameOfBranch(branch)}
      {isShared && ` (${shorten(branch.branchId, 100)})`}
    </bdi>
  );

function branchCards({ filter, headline, branches, isOfOneBranch }: Panel): ComponentChildren[] {
  const whole = headline.users === 0 ? 0 : headline.clients / headline.users;
  const difference = ({ users, clients }: BranchCounts) => clients / users - whole;
  const named = new Map<string, number>();
  for (const branch of branches) {
    named.set(nameOfBranch(branch), (named.get(nameOfBranch(branch)) ?? 0) + 1);
  }
  const isShared = (branch: BranchCounts) => (named.get(nameOfBranch(branch)) ?? 0) > 1;
  const large = branches.filter(({ branchId, users }) => branchId !== null && users >= leastUsers);
  const compared = large
    .toSorted((one, other) => Math.abs(difference(other)) - Math.abs(difference(one)))
    .slice(0, comparedBranches);
  const list = (
    <Table
      caption="Users and clients by branch"
      columns={[
        ...['Branch', 'City', 'Users', 'Clients', 'Conversion rate', 'Half of clients within'],
        'Latest joining or conversion',
      ]}
      textColumns={2}
      rows={branches.map((branch) => [
        <Branch {...branch} isShared={isShared(branch)} key="branch" />,
        branch.city === null ? '' : <bdi key="city">{shorten(branch.city, 60)}</bdi>,
        ...[count(branch.users), count(branch.clients)],
        ...[percent(branch.clients, branch.users), inDays(branch.medianDays)],
        branch.latest === null ? '–' : wordsOfDay(branch.latest),
      ])}
    />
  );
  return [
    isOfOneBranch ? null : (
      <Card id={`${filter}-compared`} title="Which branches differ most from the average?">
        <p class="muted">
          {large.length < 2
            ? `A comparison needs at least two branches with ${leastUsers} users each.`
            : `The rate of all branches together is ${percent(headline.clients, headline.users)}. Branches with fewer than ${leastUsers} users are left out, because they differ by chance.`}
        </p>
        {large.length >= 2 && (
          <Table
            caption="Branches whose conversion rate differs most"
            columns={['Branch', 'Users', 'Conversion rate', 'Difference in points']}
            rows={compared.map((branch) => [
              <Branch {...branch} isShared={isShared(branch)} key="branch" />,
              ...[count(branch.users), percent(branch.clients, branch.users)],
              points([branch.clients, branch.users], [headline.clients, headline.users]),
            ])}
          />
        )}
      </Card>
    ),
    <Card
      id={`${filter}-branches`}
      title={isOfOneBranch ? 'How does this branch do?' : 'How does each branch do?'}
      isWide={!isOfOneBranch}
      key="branches"
    >
      {branches.length === 0 ? (
        <p class="muted">There are no users.</p>
      ) : (
        <details open={branches.length <= openBranches}>
          <summary>{counted(branches.length, 'branch', 'branches')}</summary>
          {list}
        </details>
      )}
    </Card>,
  ];
}
