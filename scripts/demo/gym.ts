/** How many users join in each month, from January on, relative to a month in spring. */
const seasons = [1.8, 1.3, 1.1, 1, 0.9, 0.8, 0.7, 0.7, 1.4, 1.1, 0.9, 0.6];

const months = 18;
const users = 900;
const dayMs = 86_400_000;

/** The size of each branch, and how likely its leads are to buy each kind first. */
const branches = [
  {
    ...{ id: 'harbour', name: 'Harbour Street', city: 'Dublin', country: 'Ireland' },
    ...{ zone: 'Europe/Dublin', size: 0.45, membership: 0.36, creditPack: 0.24 },
  },
  {
    ...{ id: 'old-mill', name: 'Old Mill', city: 'Manchester', country: 'United Kingdom' },
    ...{ zone: 'Europe/London', size: 0.35, membership: 0.3, creditPack: 0.2 },
  },
  {
    ...{ id: 'riverside', name: 'Riverside', city: 'New York', country: 'United States' },
    ...{ zone: 'America/New_York', size: 0.2, membership: 0.18, creditPack: 0.38 },
  },
];

/** The products, how often each is sold relative to the others, and where. */
const products: Record<
  'membership' | 'creditPack',
  { names: Weights; sources: Weights; medianDays: number }
> = {
  membership: {
    names: {
      'Monthly membership': 5,
      'Annual membership': 2,
      'Off-peak membership': 2,
      'Student membership': 1,
    },
    sources: { 'Front desk': 5, Website: 4, 'Open day': 2, 'Partner offer': 1 },
    medianDays: 13,
  },
  creditPack: {
    names: { 'Intro pack': 5, '5 classes': 3, '10 classes': 2, '20 classes': 1 },
    sources: { App: 6, Website: 3, 'Front desk': 2 },
    medianDays: 5,
  },
};

type Kind = keyof typeof products;
type Weights = Record<string, number>;

/**
 * Returns a made-up gym as the files that a load reads. It has three branches, and users who joined
 * in the 18 months up to an instant, more of them in January and September. They take days to weeks
 * to convert, and some never convert. A few purchases come from an older system, and are from
 * before the user was created. A few have no details. The same instant always gives the same gym.
 */
export function gym(end: Date): Record<string, string> {
  const random = randomNumbers(2026);
  const pick = (weights: Weights): string => {
    let left = random() * Object.values(weights).reduce((sum, weight) => sum + weight, 0);
    for (const [value, weight] of Object.entries(weights)) {
      left -= weight;
      if (left < 0) {
        return value;
      }
    }
    return '';
  };
  /**
   * Returns a number of days. Half of these numbers are below the median, and a few are very large.
   */
  const delay = (median: number) => {
    const normal = Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random());
    return median * Math.exp(normal);
  };
  /** The first instant of each month, and of the month after the last one. */
  const starts = Array.from({ length: months + 1 }, (_, index) =>
    Date.UTC(end.getUTCFullYear(), end.getUTCMonth() - months + 1 + index, 1),
  );
  const [begin = 0] = starts;
  const lengthOf = (month: number) =>
    Math.min(starts[month + 1] ?? 0, end.getTime()) - (starts[month] ?? 0);
  const monthWeights = Object.fromEntries(
    Array.from({ length: months }, (_, month) => [
      month,
      (seasons[new Date(starts[month] ?? 0).getUTCMonth()] ?? 1) *
        (1 + month / 40) *
        (lengthOf(month) / (30 * dayMs)),
    ]),
  );
  const branchSizes = Object.fromEntries(branches.map(({ id, size }) => [id, size]));

  const rows = {
    dim_user: [] as unknown[][],
    fct_credit_pack_purchases: [] as unknown[][],
    fct_membership_purchases: [] as unknown[][],
  };
  let purchases = 0;
  const buy = (kind: Kind, user: string, branch: string, at: number) => {
    if (at >= end.getTime()) {
      return; // not yet
    }
    const { names, sources } = products[kind];
    const details =
      random() < 0.01 ? '' : JSON.stringify({ name: pick(names), source: pick(sources) });
    const table = kind === 'membership' ? 'fct_membership_purchases' : 'fct_credit_pack_purchases';
    purchases += 1;
    const time = new Date(at).toISOString();
    rows[table].push([user, branch, `${kind}-${purchases}`, time, time, details]);
  };

  for (let number = 1; number <= users; number += 1) {
    const user = `user-${String(number).padStart(3, '0')}`;
    const branchId = pick(branchSizes);
    const branch = branches.find(({ id }) => id === branchId);
    if (!branch) {
      continue;
    }
    const month = Number(pick(monthWeights));
    const joined = (starts[month] ?? 0) + random() * lengthOf(month);
    rows.dim_user.push([
      ...[user, branch.id, `Member ${number}`, `member${number}@example.com`],
      new Date(joined).toISOString(),
    ]);
    const chance = random();
    const first: Kind | undefined =
      chance < branch.membership
        ? 'membership'
        : chance < branch.membership + branch.creditPack
          ? 'creditPack'
          : undefined;
    if (first === undefined) {
      continue;
    }
    const isImported = random() < 0.02;
    const at = joined + (isImported ? -1 : 1) * delay(products[first].medianDays) * dayMs;
    buy(first, user, branch.id, Math.max(at, begin));
    if (first === 'creditPack' && random() < 0.35) {
      buy('membership', user, branch.id, at + (10 + delay(40)) * dayMs);
    }
    if (random() < 0.3) {
      buy(first, user, branch.id, at + delay(60) * dayMs);
    }
  }

  const purchaseColumns = (id: string, at: string, details: string) => [
    ...['user_id', 'branch_id', id, at, 'created_at', details],
  ];
  return {
    'dim_branch.csv': csvOf(
      ['branch_id', 'name', 'email', 'city', 'country', 'timezone_id', 'created_at'],
      branches.map(({ id, name, city, country, zone }) => [
        ...[id, name, `${id}@example.com`, city, country, zone, new Date(begin).toISOString()],
      ]),
    ),
    'dim_user.csv': csvOf(['user_id', 'branch_id', 'name', 'email', 'created_at'], rows.dim_user),
    'fct_credit_pack_purchases.csv': csvOf(
      purchaseColumns('credit_pack_id', 'credit_pack_purchased_at', 'credit_pack_purchase_details'),
      rows.fct_credit_pack_purchases,
    ),
    'fct_membership_purchases.csv': csvOf(
      purchaseColumns(
        'user_membership_id',
        'membership_purchased_at',
        'membership_purchase_details',
      ),
      rows.fct_membership_purchases,
    ),
  };
}

function csvOf(columns: string[], rows: unknown[][]): string {
  const quoted = (value: unknown) => `"${String(value).replaceAll('"', '""')}"`;
  return [columns, ...rows.map((row) => row.map((value) => (value === '' ? '' : quoted(value))))]
    .map((cells) => `${cells.join(',')}\n`)
    .join('');
}

/** Returns pseudorandom numbers from 0 to 1, by Mulberry32 of Tommy Ettinger. */
function randomNumbers(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 2 ** 32;
  };
}
