import type { ComponentChildren } from 'preact';
import type { ConversionEventFilter, ConversionEventType } from '../../views/values.ts';
import { cohortsChart, monthsChart, namesChart, speedChart } from './charts.ts';
import {
  type Bought,
  type BranchCounts,
  cohortMonths,
  type Figures,
  type Headline,
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
  wordsOfFilter,
  wordsOfMonth,
  wordsOfSpans,
  wordsOfType,
} from './wording.ts';

/** How many months of joining the charts show, the latest ones. */
const shownMonths = 24;

/** How many users a branch needs to be compared with the others. */
const leastUsers = 30;

/** How many branches are compared, and up to how many the list of all is open from the start. */
const comparedBranches = 5;
const openBranches = 20;

/** The figures of one filter, and what follows from them. */
interface Panel
  extends Pick<Figures, 'before' | 'sources' | 'products' | 'speeds' | 'cohorts' | 'branches'> {
  filter: ConversionEventFilter;
  headline: Headline;
  headlineBefore: Headline | undefined;
  /** The months of joining as rows of a table. All users are in one of them. */
  months: MonthRow[];
  /** The kinds of purchase that have converted somebody. */
  types: ConversionEventType[];
  /** Within how many days nine in ten of all clients convert, whenever they joined. */
  daysToJudge: number | null;
  /** The last month that is over, as far as the data go. */
  lastMonth: Month;
  isOfOneBranch: boolean;
}

interface MonthRow {
  label: string;
  users: number;
  clients: number;
  /** Null for several months together, and for users of whom it is not known. */
  month: Month | null;
  /** Whether it is too early to judge the month: some of its users have not had `daysToJudge`. Null where there is no telling. */
  isYoung: boolean | null;
}

/** All that is shown under one filter. */
export async function panelOf(figures: Figures, headline: Headline): Promise<ComponentChildren> {
  const { filter } = headline;
  const of = <Figure extends { filter: ConversionEventFilter }>(all: Figure[]) =>
    all.filter((figure) => figure.filter === filter);
  const daysToJudge = of(figures.everybody)[0]?.p90Days ?? null;
  const sources = of(figures.sources);
  const panel: Panel = {
    ...{ filter, headline, sources, before: figures.before },
    headlineBefore: of(figures.before?.headlines ?? [])[0],
    daysToJudge,
    months: monthRowsOf(of(figures.months), figures.until, daysToJudge),
    types: [...new Set(sources.map(({ type }) => type))].sort(),
    products: of(figures.products),
    speeds: of(figures.speeds),
    cohorts: of(figures.cohorts),
    lastMonth: figures.until === null ? 0 : lastMonthOf(figures.until),
    branches: of(figures.branches),
    isOfOneBranch: figures.branch !== null,
  };
  return (
    <section class={`panel ${filter}`} aria-labelledby={`${filter}-title`} key={filter}>
      <h2 id={`${filter}-title`}>{wordsOfFilter(filter)}</h2>
      <Tiles {...panel} />
      {panel.before && (
        <p class="muted">
          Users who joined later have had less time to convert than those with whom they are
          compared.
        </p>
      )}
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

const dayMs = 86_400_000;

/** The number of a day, as Postgres writes it in JSON. */
const dayOf = (day: string): number => Date.parse(`${day}T00:00:00Z`) / dayMs;

/** The number of the last day of a month. */
const endOf = (month: Month): number =>
  new Date(0).setUTCFullYear(Math.floor(month / 12), (month % 12) + 1, 0) / dayMs;

/** The last month that is over on a day. */
const lastMonthOf = (day: string): Month => {
  const month = monthOf(day);
  return dayOf(day) < endOf(month) ? month - 1 : month;
};

/** The months of joining up to the latest day of the data, also those without users. */
function monthRowsOf(
  counts: MonthCounts[],
  until: string | null,
  daysToJudge: number | null,
): MonthRow[] {
  const row = (
    label: string,
    month: Month | null,
    has: (month: Month | null) => boolean,
    isYoung = month === null || until === null || daysToJudge === null
      ? null
      : endOf(month) + daysToJudge > dayOf(until),
  ): MonthRow => {
    const own = counts.filter((counts) => has(counts.month));
    return {
      ...{ label, month, isYoung },
      users: sum(own.map(({ users }) => users)),
      clients: sum(own.map(({ clients }) => clients)),
    };
  };
  const untilMonth = monthOf(until) ?? Number.NEGATIVE_INFINITY;
  const past = counts
    .map(({ month }) => month)
    .filter((month) => month !== null && month <= untilMonth) as Month[];
  const latest = Math.max(...past);
  const last = latest > untilMonth - shownMonths ? untilMonth : latest;
  const first = Math.max(Math.min(...past), last - shownMonths + 1);
  const shown =
    past.length === 0 ? [] : Array.from({ length: last - first + 1 }, (_, index) => first + index);
  return [
    row('Earlier', null, (month) => month !== null && month < first && past.includes(month)),
    ...shown.map((month) => row(wordsOfMonth(month), month, (other) => other === month)),
    row('Later', null, (month) => month !== null && month > untilMonth),
    row('Not known', null, (month) => month === null),
  ].filter(({ month, users }) => month !== null || users > 0);
}

/** The headline figures, with their change against the months before. */
function Tiles({ headline, headlineBefore, before, months }: Panel) {
  const { users, leads, clients, beforeJoining, withoutDays, medianDays, p90Days } = headline;
  const mature = months.filter(({ isYoung }) => isYoung === false);
  const matureUsers = sum(mature.map(({ users }) => users));
  const hasYoung = months.some(({ isYoung, users }) => isYoung && users > 0);
  const than = before && `in ${wordsOfMonth(before.from)} to ${wordsOfMonth(before.to)}`;
  const against = (now: number | null, then: number | null | undefined) =>
    than && now !== null && then !== null && then !== undefined
      ? `${change(now - then)} against ${count(then)} ${than}`
      : undefined;
  const rateBefore =
    than && headlineBefore && users > 0
      ? `${points([clients, users], [headlineBefore.clients, headlineBefore.users])} points against ${percent(headlineBefore.clients, headlineBefore.users)} ${than}`
      : undefined;
  const tiles: { term: string; value: string; notes: (string | undefined | false)[] }[] = [
    {
      term: 'Users',
      value: count(users),
      notes: ['All begin as leads.', against(users, headlineBefore?.users)],
    },
    {
      term: 'Leads',
      value: count(leads),
      notes: ['Have not converted.', against(leads, headlineBefore?.leads)],
    },
    {
      term: 'Clients',
      value: count(clients),
      notes: ['Have converted.', against(clients, headlineBefore?.clients)],
    },
    {
      term: 'Conversion rate',
      value: percent(clients, users),
      notes: [
        'Clients of all users.',
        hasYoung &&
          matureUsers > 0 &&
          `${percent(sum(mature.map(({ clients }) => clients)), matureUsers)} in the months old enough to judge.`,
        rateBefore,
      ],
    },
    {
      term: 'Half convert within',
      value: inDays(medianDays),
      notes: ['Median of the days since joining.', against(medianDays, headlineBefore?.medianDays)],
    },
    {
      term: '9 in 10 convert within',
      value: inDays(p90Days),
      notes: [
        '90th percentile of the days since joining.',
        against(p90Days, headlineBefore?.p90Days),
      ],
    },
    {
      term: 'Converted before joining',
      value: count(beforeJoining),
      notes: ['Clients with an imported purchase. They are not in the days.'],
    },
    ...(withoutDays === 0
      ? []
      : [
          {
            term: 'Days not known',
            value: count(withoutDays),
            notes: [
              'Clients without a date of joining or of conversion, or with one after the refresh.',
            ],
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

/** A chart, whose numbers are in a table beside it. */
const Chart = ({ svg }: { svg: string }) => <div dangerouslySetInnerHTML={{ __html: svg }} />;

interface TableProps {
  caption: string;
  columns: string[];
  /** Columns that hold text. The others hold numbers. */
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
  <details>
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
      {shown.length === 0 ? (
        <p class="muted">No user has a month of joining in these data.</p>
      ) : (
        <>
          {shown.some(({ isYoung }) => isYoung) && (
            <p class="muted">
              Months with a hollow point and stripes are too early to judge: not all of their users
              have had the {counted(daysToJudge ?? 0, 'day')} within which nine in ten of all
              clients convert.
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

async function cohortsCard({ filter, months, cohorts, lastMonth }: Panel) {
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
        <p class="muted">No month of joining is over in these data.</p>
      ) : (
        <>
          <p class="muted">
            The share of each month’s new users who have converted up to the end of a later month.
            Months that are not over are left out.
          </p>
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
        <p class="muted">Nobody has converted on a day from joining on.</p>
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
                types.map(wordsOfType),
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
          Not in this chart: {counted(beforeJoining, 'client')} from before they joined
          {withoutDays > 0 && `, and ${count(withoutDays)} whose days are not known`}.
        </p>
      )}
    </Card>
  );
}

/** What the page calls a source or a product. */
const nameOf = ({ rank, name }: Bought, missing: string, others: string): string =>
  rank > shownNames ? others : name === null ? missing : shorten(name, 60);

/** A name in a chart: its direction is its own. */
const isolated = (name: string): string => `\u2068${shorten(name, 42)}\u2069`;

const marksOf = (bought: Bought[], name: (one: Bought) => string) =>
  bought.map((one) => ({
    ...{ place: one.rank, label: isolated(name(one)) },
    ...{ type: wordsOfType(one.type), value: one.clients },
  }));

async function sourcesCard({ filter, sources, types }: Panel) {
  const name = (one: Bought) => nameOf(one, 'No source given', 'All other sources');
  const places = [...new Set(sources.map(({ rank }) => rank))];
  return (
    <Card id={`${filter}-sources`} title="Which sources do clients come from?">
      <p class="muted">
        Only purchases have a source, and leads have none. So a conversion rate per source cannot be
        computed.
      </p>
      {places.length === 0 ? (
        <p class="muted">Nobody has converted.</p>
      ) : (
        <>
          <Chart svg={await namesChart(marksOf(sources, name), types.map(wordsOfType))} />
          <Numbers
            caption="Clients by source and by what they bought"
            columns={['Source', ...types.map(wordsOfType), 'All clients']}
            rows={places.map((place) => {
              const own = sources.filter(({ rank }) => rank === place);
              const clients = (type: ConversionEventType) =>
                sum(own.filter((one) => one.type === type).map(({ clients }) => clients));
              return [
                <bdi>{own[0] && name(own[0])}</bdi>,
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

async function productsCard({ filter, products, types, headline }: Panel) {
  const name = (one: Bought) => nameOf(one, 'No name given', 'All other products');
  return (
    <Card id={`${filter}-products`} title="Which products convert most?">
      {products.length === 0 ? (
        <p class="muted">Nobody has converted.</p>
      ) : (
        <>
          <Chart svg={await namesChart(marksOf(products, name), types.map(wordsOfType))} />
          <Numbers
            caption="Clients by product"
            columns={['Product', 'Kind', 'Clients', 'Share of clients']}
            textColumns={2}
            rows={products.map((one) => [
              <bdi>{name(one)}</bdi>,
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

/** A branch by its name; by its identifier where it has none, and with it where others are called the same. */
const Branch = ({ branchId, name, isShared }: BranchCounts & { isShared: boolean }) =>
  branchId === null ? (
    <>No branch</>
  ) : (
    <bdi>
      {shorten(name ?? branchId, 100)}
      {isShared && ` (${shorten(branchId, 100)})`}
    </bdi>
  );

function branchCards({ filter, headline, branches, isOfOneBranch }: Panel): ComponentChildren[] {
  const whole = headline.users === 0 ? 0 : headline.clients / headline.users;
  const difference = ({ users, clients }: BranchCounts) => clients / users - whole;
  const named = new Map<string | null, number>();
  for (const { name } of branches) {
    named.set(name, (named.get(name) ?? 0) + 1);
  }
  const isShared = ({ name }: BranchCounts) => name !== null && (named.get(name) ?? 0) > 1;
  const large = branches.filter(({ branchId, users }) => branchId !== null && users >= leastUsers);
  const compared = large
    .toSorted((one, other) => Math.abs(difference(other)) - Math.abs(difference(one)))
    .slice(0, comparedBranches);
  const list = (
    <Table
      caption="Users and clients by branch"
      columns={['Branch', 'City', 'Users', 'Clients', 'Conversion rate', 'Half convert within']}
      textColumns={2}
      rows={branches.map((branch) => [
        <Branch {...branch} isShared={isShared(branch)} key="branch" />,
        branch.city === null ? '' : <bdi key="city">{shorten(branch.city, 60)}</bdi>,
        ...[count(branch.users), count(branch.clients)],
        ...[percent(branch.clients, branch.users), inDays(branch.medianDays)],
      ])}
    />
  );
  return [
    isOfOneBranch ? null : (
      <Card id={`${filter}-compared`} title="Which branches differ most from the whole?">
        <p class="muted">
          {large.length < 2
            ? `No branch is compared with the whole of ${percent(headline.clients, headline.users)}: that takes two branches with ${leastUsers} users.`
            : `Compared with the whole of ${percent(headline.clients, headline.users)}. Branches with fewer than ${leastUsers} users are left out, and small ones differ by chance.`}
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
