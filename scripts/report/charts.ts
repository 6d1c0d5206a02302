import { parse, View } from 'vega';
import { type Config, compile, type TopLevelSpec } from 'vega-lite';

/** What the charts show about a month of joining. */
export interface MonthMark {
  label: string;
  clients: number;
  leads: number;
  /** From 0 to 1. Null without users. */
  rate: number | null;
  /** Whether it is too early to judge the month. */
  isYoung: boolean;
}

/** A bar, or a part of a bar, for one kind of purchase. */
export interface TypeMark {
  /** The number of the bar that it is part of, from 1. */
  place: number;
  label: string;
  type: string;
  value: number;
}

/** A cell of the chart of cohorts. */
export interface CohortMark {
  label: string;
  monthsUntil: number;
  /** From 0 to 1. */
  rate: number;
}

// The charts are drawn for a screen of 360 pixels, and scaled up on wider ones. Their colors are
// defined in the style of the page, for light and dark.
const width = 252;
/** The width with the axes. */
const fullWidth = 304;

const config: Config = {
  aria: false, // the page describes each chart, and has its numbers in a table
  background: 'transparent',
  font: 'inherit',
  padding: 2,
  view: { stroke: null },
  text: { color: 'var(--text)' },
  axis: {
    domainColor: 'var(--line)',
    gridColor: 'var(--line)',
    tickColor: 'var(--line)',
    labelColor: 'var(--text)',
    labelFontSize: 10,
    titleColor: 'var(--text)',
    titleFontSize: 10,
    titleFontWeight: 'normal',
    titlePadding: 5,
  },
  legend: {
    orient: 'top',
    title: null,
    labelColor: 'var(--text)',
    labelFontSize: 10,
    labelLimit: 0,
    symbolType: 'square',
    columnPadding: 8,
    offset: 6,
  },
};

async function draw(spec: TopLevelSpec): Promise<string> {
  const { spec: vega } = compile({ ...spec, config });
  const view = new View(parse(vega), { renderer: 'none' });
  const svg = await view.toSVG();
  view.finalize();
  // In a page, an SVG needs no namespaces, and the style sets its size.
  return svg.replace(
    /^<svg[^>]*viewBox="0 0 ([\d.]+) ([\d.]+)">/,
    (_, ownWidth, height) =>
      `<svg viewBox="0 0 ${Math.max(ownWidth, fullWidth)} ${height}" aria-hidden="true">`,
  );
}

const inOrder = (labels: string[]) => [...new Set(labels)];

/** Draws the conversion rate by month of joining, above the users and clients of each month. */
export const monthsChart = (months: MonthMark[]): Promise<string> => {
  const x = {
    field: 'label',
    type: 'ordinal' as const,
    sort: inOrder(months.map(({ label }) => label)),
    scale: { paddingInner: 0.2 },
  };
  const rate = { field: 'rate', type: 'quantitative' as const };
  return draw({
    data: { values: months },
    spacing: 8,
    resolve: { scale: { x: 'shared' } },
    vconcat: [
      {
        width,
        height: 90,
        layer: [
          {
            transform: [{ filter: '!datum.isYoung' }],
            mark: { type: 'line', color: 'var(--clients)', strokeWidth: 2 },
          },
          {
            transform: [{ filter: 'isValid(datum.rate)' }],
            mark: { type: 'point', filled: true, opacity: 1, size: 26, strokeWidth: 1.5 },
          },
        ].map((layer) => ({
          ...layer,
          encoding: {
            x: { ...x, axis: null },
            y: {
              ...rate,
              scale: { domain: [0, 1] },
              axis: { title: 'Conversion rate', format: '%', tickCount: 4 },
            },
            ...(layer.mark.type === 'point' && {
              fill: {
                condition: { test: 'datum.isYoung', value: 'var(--page)' },
                value: 'var(--clients)',
              },
              stroke: { value: 'var(--clients)' },
            }),
          },
        })) as never[],
      },
      {
        width,
        height: 110,
        transform: [
          { fold: ['clients', 'leads'], as: ['status', 'users'] },
          {
            calculate:
              "datum.status === 'leads' ? 'Leads' : datum.isYoung ? 'Clients so far' : 'Clients'",
            as: 'kind',
          },
          { calculate: "datum.status === 'leads' ? 1 : 0", as: 'order' },
        ],
        mark: { type: 'bar', stroke: 'var(--outline)', strokeWidth: 0.5 },
        encoding: {
          x: {
            ...x,
            axis: {
              title: 'Month of joining',
              labelAngle: 0,
              labelOverlap: 'greedy',
              labelPadding: 6,
              ticks: false,
            },
          },
          y: {
            field: 'users',
            type: 'quantitative',
            axis: { title: 'Users who joined', format: ',d', tickCount: 4, tickMinStep: 1 },
          },
          fill: {
            field: 'kind',
            type: 'nominal',
            scale: {
              domain: ['Clients', 'Clients so far', 'Leads'],
              range: ['var(--clients)', 'url(#young)', 'var(--leads)'],
            },
          },
          order: { field: 'order', type: 'quantitative' },
        },
      },
    ],
  });
};

/** Draws one bar for each source or product, divided by the kind of purchase. */
export const namesChart = (marks: TypeMark[], types: string[]): Promise<string> => {
  const y = {
    field: 'place',
    type: 'ordinal' as const,
    axis: null,
    scale: { paddingInner: 0.55, paddingOuter: 0.4 },
  };
  return draw({
    data: { values: marks.map((mark) => ({ ...mark, typeOrder: types.indexOf(mark.type) })) },
    width,
    height: { step: 32 },
    layer: [
      {
        mark: { type: 'bar' },
        encoding: {
          y,
          x: {
            field: 'value',
            type: 'quantitative',
            axis: { title: 'Clients', format: ',d', tickCount: 4, tickMinStep: 1 },
          },
          color: colorOf(marks, types),
          order: { field: 'typeOrder', type: 'quantitative' },
        },
      },
      {
        transform: [
          { aggregate: [{ op: 'sum', field: 'value', as: 'total' }], groupby: ['place', 'label'] },
          { calculate: "datum.label + '  ' + format(datum.total, ',d')", as: 'said' },
        ],
        mark: { type: 'text', align: 'left', baseline: 'bottom', dy: -8, fontSize: 10, x: 0 },
        encoding: { y, text: { field: 'said' } },
      },
    ],
  });
};

/** Draws, for each kind of purchase, the share of its clients by days since joining. */
export const speedChart = (marks: TypeMark[], types: string[]): Promise<string> =>
  draw({
    data: { values: marks },
    width,
    height: 140,
    mark: { type: 'bar' },
    encoding: {
      x: {
        field: 'label',
        type: 'ordinal',
        sort: inOrder(marks.map(({ label }) => label)),
        axis: { title: 'Days since joining', labelAngle: 0, ticks: false },
        scale: { paddingInner: 0.2 },
      },
      xOffset: { field: 'type', type: 'nominal', sort: [...types] },
      y: {
        field: 'value',
        type: 'quantitative',
        axis: { title: 'Share of clients', format: '%', tickCount: 4 },
      },
      color: colorOf(marks, types),
    },
  });

/**
 * Returns the color of each kind of purchase, which is always the same. The legend has only the
 * kinds that occur.
 */
const colorOf = (marks: TypeMark[], types: readonly string[]) => ({
  field: 'type',
  type: 'nominal' as const,
  scale: { domain: [...types], range: types.map((_, index) => `var(--type-${index + 1})`) },
  legend: { values: types.filter((type) => marks.some((mark) => mark.type === type)) },
});

/**
 * The shades of the cells in the chart of cohorts. A cell has the first shade whose limit is at
 * least its rate.
 */
const shades = [
  { upTo: 0, label: 'none' },
  ...[0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1].map((upTo, index, all) => ({
    upTo,
    label: `${100 * (all[index - 1] ?? 0)}–${100 * upTo}%`,
  })),
];

/** Draws the conversion rate by month of joining and months after it. */
export const cohortsChart = (marks: CohortMark[]): Promise<string> =>
  draw({
    data: {
      values: marks.map((mark) => ({
        ...mark,
        shade: shades.find(({ upTo }) => mark.rate <= upTo)?.label,
      })),
    },
    width: 208,
    height: { step: 15 },
    mark: { type: 'rect', stroke: 'var(--outline)', strokeWidth: 0.5 },
    encoding: {
      x: {
        field: 'monthsUntil',
        type: 'ordinal',
        axis: { title: 'Months after the month of joining', labelAngle: 0, ...bare },
      },
      y: {
        field: 'label',
        type: 'ordinal',
        sort: inOrder(marks.map(({ label }) => label)),
        axis: { title: 'Month of joining', ...bare },
      },
      color: {
        field: 'shade',
        type: 'ordinal',
        scale: {
          domain: shades.map(({ label }) => label),
          range: shades.map((_, shade) => `var(--shade-${shade})`),
        },
        legend: { columns: 3, symbolStrokeColor: 'var(--outline)' },
      },
    },
  });

const bare = { ticks: false, domain: false };
