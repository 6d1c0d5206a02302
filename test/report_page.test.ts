import { existsSync } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import axe from 'axe-core';
import { sql } from 'drizzle-orm';
import { type Browser, chromium, type Page } from 'playwright-core';
import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import {
  dimBranch,
  dimUser,
  fctCreditPackPurchases,
  fctMembershipPurchases,
} from '../schema/index.ts';
import { gym } from '../scripts/demo/gym.ts';
import { loadFolder } from '../scripts/load/folder.ts';
import { type Figures, type Headline, readFigures } from '../scripts/report/figures.ts';
import { pageOf } from '../scripts/report/page.tsx';
import { count, inDays, percent, wordsOfFilter } from '../scripts/report/wording.ts';
import { conversionEventFilters, refreshViews } from '../views/index.ts';
import { useDatabase } from './support/database.ts';

const database = useDatabase();

/** The Chromium that CHROMIUM names, otherwise Debian's Chromium or Google Chrome. */
const executablePath = (
  process.env.CHROMIUM === undefined
    ? ['/usr/bin/chromium', '/usr/bin/google-chrome']
    : [process.env.CHROMIUM]
).find(existsSync);
if (!executablePath && process.env.CI) {
  throw new Error(
    'There is no Chromium to test the report with. Install Debian’s package chromium.',
  );
}
if (!executablePath) {
  console.warn(
    'The page of the report is not tested, for there is no Chromium. Install Debian’s package chromium, or name a Chromium in the environment variable CHROMIUM.',
  );
}

/** The data of a gym, and the options of its report. */
interface Case {
  fill: () => Promise<void>;
  options?: { branch?: string; since?: string };
  /** The instant at which the refresh began. The real one, if undefined. */
  refreshedAt?: string;
  title?: string;
}

const day = (text: string | null) => (text === null ? null : new Date(`${text}T12:00:00Z`));

/** Adds a branch with users, each with a day of joining and perhaps a membership or credit pack. */
const fillWith = async (
  users: { joined: string | null; bought?: string | null; pack?: string; name?: string }[],
  branch: Partial<typeof dimBranch.$inferInsert> = {},
) => {
  const { db } = database;
  await db.insert(dimBranch).values({ branchId: 'b', name: 'Harbour', ...branch });
  await db.insert(dimUser).values(
    users.map(({ joined }, index) => ({
      ...{ userId: `u${index}`, branchId: 'b', createdAt: day(joined) },
    })),
  );
  for (const [index, { bought, pack, name = 'Gold' }] of users.entries()) {
    const purchase = { userId: `u${index}`, branchId: 'b' };
    if (bought !== undefined) {
      await db.insert(fctMembershipPurchases).values({
        ...{ ...purchase, userMembershipId: 'm', membershipPurchasedAt: day(bought) },
        membershipPurchaseDetails: { name, source: name },
      });
    }
    if (pack !== undefined) {
      await db.insert(fctCreditPackPurchases).values({
        ...{ ...purchase, creditPackId: 'c', creditPackPurchasedAt: day(pack) },
        creditPackPurchaseDetails: { name, source: name },
      });
    }
  }
};

const fillFrom = async (files: Record<string, string>) => {
  const folder = await mkdtemp(join(tmpdir(), 'lead-conversions-report-'));
  for (const [file, text] of Object.entries(files)) {
    await writeFile(join(folder, file), text);
  }
  await loadFolder(database, folder);
  await rm(folder, { recursive: true });
};

const strange = [
  '<script>alert(1)</script>',
  '"><img src=https://example.com/x onerror=alert(1)>',
  'مركز اللياقة البدنية',
  '\u202eחדר כושר (abc) 12',
  '👨‍👩‍👧‍👦🏋🏽‍♀️ family & friends',
  `a name ${'that goes on '.repeat(40)}`,
  'Donaudampfschifffahrtsgesellschaftskapitän'.repeat(9),
  '',
  '\u0001\u2028 tab\tand\nline',
];

const cases: Record<string, Case> = {
  'a gym': {
    fill: () => fillFrom(gym(new Date('2026-07-01'))),
    refreshedAt: '2026-07-01T03:15:00Z',
  },
  'a gym since January': {
    fill: () => fillFrom(gym(new Date('2026-07-01'))),
    refreshedAt: '2026-07-01T03:15:00Z',
    options: { since: '2026-01' },
  },
  'a branch': {
    fill: () => fillFrom(gym(new Date('2026-07-01'))),
    refreshedAt: '2026-07-01T03:15:00Z',
    options: { branch: 'riverside' },
  },
  'the sample': {
    fill: async () => {
      await loadFolder(database, 'test/sample');
    },
  },
  nobody: { fill: async () => {} },
  'nobody since a month': {
    fill: () => fillFrom(gym(new Date('2026-07-01'))),
    options: { since: '2026-08' },
  },
  'one user': { fill: () => fillWith([{ joined: '2026-01-15' }]) },
  'no clients': {
    fill: () =>
      fillWith([{ joined: '2026-01-15' }, { joined: '2026-03-15' }, { joined: '2026-03-16' }]),
  },
  'all clients': {
    fill: () =>
      fillWith([
        { joined: '2026-01-15', bought: '2026-01-15' },
        { joined: '2026-03-15', pack: '2026-04-15' },
      ]),
  },
  'a single month': {
    fill: () =>
      fillWith([{ joined: '2026-01-15', bought: '2026-01-20' }, { joined: '2026-01-16' }]),
  },
  'clients from before they joined': {
    fill: () =>
      fillWith([{ joined: '2026-01-15', bought: '2020-01-20' }, { joined: '2026-01-16' }]),
  },
  'no dates': {
    fill: () =>
      fillWith([
        { joined: null, bought: null },
        { joined: null, bought: '2026-01-01' },
        { joined: '2026-01-16', pack: '2026-01-17' },
        { joined: '2026-01-16', bought: null },
        { joined: '9999-12-31' },
        { joined: '0001-01-01' },
      ]),
  },
  'very long times and small shares': {
    fill: async () => {
      await fillWith([{ joined: '2005-01-15', bought: '2026-09-03' }]);
      await database.db.execute(sql`
        insert into public.dim_user (user_id, branch_id, created_at)
        select number, 'b', timestamptz '2026-01-01' + number * interval '1 minute'
        from generate_series(1, 3000) as number`);
    },
  },
  'no dates at all': { fill: () => fillWith([{ joined: null, bought: null }, { joined: null }]) },
  'strange names': {
    fill: () =>
      fillWith(
        strange.map((name) => ({ joined: '2026-01-15', bought: '2026-01-20', name })),
        { name: strange.join(' '), city: strange[3] ?? '' },
      ),
    title: strange.slice(0, 6).join(' '),
  },
  '2,000 branches': {
    fill: async () => {
      await database.db.execute(sql`
        insert into public.dim_branch (branch_id, name, city)
        select number, 'Branch ' || number, 'City ' || number % 7
        from generate_series(1, 2000) as number`);
      await database.db.execute(sql`
        insert into public.dim_user (user_id, branch_id, created_at)
        select number, number % 2000 + 1, timestamptz '2026-01-01' + number * interval '1 minute'
        from generate_series(1, 9000) as number`);
      await database.db.execute(sql`
        insert into public.fct_membership_purchases (user_id, branch_id, user_membership_id, membership_purchased_at)
        select user_id, branch_id, 'm', created_at + interval '3 days'
        from public.dim_user where user_id::integer % 3 = 0`);
    },
  },
};

/**
 * Two branches. On the 10th of each month from January to May 2026, 8 users join Harbour and 6 join
 * Mill. At Harbour, 4 of them (3 in February) buy a membership three days later, but one who joined
 * in April had bought hers in 2025. At Mill, one user of each month until April buys credits after
 * 40 days. One more user joins Harbour on 1 June.
 */
const fillSmallGym = async () => {
  const { db } = database;
  await db.insert(dimBranch).values([
    { branchId: 'h', name: 'Harbour', city: 'Dublin' },
    { branchId: 'm', name: 'Mill', city: 'York' },
  ]);
  for (const month of [1, 2, 3, 4, 5]) {
    const joined = `2026-0${month}-10`;
    for (const [branchId, users] of [
      ...([
        ['h', 8],
        ['m', 6],
      ] as const),
    ]) {
      for (let number = 1; number <= users; number += 1) {
        const userId = `${branchId}${month}${number}`;
        await db.insert(dimUser).values({ userId, branchId, createdAt: day(joined) });
        const bought = branchId === 'h' && number <= (month === 2 ? 3 : 4);
        if (bought) {
          const isImported = month === 4 && number === 1;
          await db.insert(fctMembershipPurchases).values({
            ...{ userId, branchId, userMembershipId: 'm' },
            membershipPurchasedAt: day(isImported ? '2025-12-24' : `2026-0${month}-13`),
            membershipPurchaseDetails: { name: 'Gold', source: number === 4 ? 'App' : 'Website' },
          });
        } else if (branchId === 'm' && number === 1 && month < 5) {
          await db.insert(fctCreditPackPurchases).values({
            ...{ userId, branchId, creditPackId: 'c' },
            creditPackPurchasedAt: new Date(Date.parse(`${joined}T12:00:00Z`) + 40 * 86_400_000),
            creditPackPurchaseDetails: { name: 'Trial', source: 'App' },
          });
        }
      }
    }
  }
  await db
    .insert(dimUser)
    .values({ userId: 'new', branchId: 'h', createdAt: new Date('2026-06-01T01:00:00Z') });
};

describe.skipIf(!executablePath)('the page of the report', () => {
  let browser: Browser;
  let server: Server;
  let url: string;
  let html: string;
  let figures: Figures;
  /** The paths that were requested from the server. */
  let asked: string[];

  beforeAll(async () => {
    browser = await chromium.launch({
      ...(executablePath && { executablePath }),
      args: ['--no-sandbox', '--disable-gpu', '--disable-background-networking'],
    });
    server = createServer((request, response) => {
      asked.push(request.url ?? '');
      response.setHeader('Content-Type', 'text/html').end(html);
    }).listen(0, '127.0.0.1');
    await new Promise((listening) => server.once('listening', listening));
    url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/report.html`;
  });
  beforeEach(() => {
    asked = [];
  });
  afterAll(async () => {
    await browser.close();
    server.close();
  });

  const make = async ({ fill, options, refreshedAt, title = 'Lead conversions' }: Case) => {
    await fill();
    await refreshViews(database.db, { maxLoss: '100%' });
    if (refreshedAt !== undefined) {
      await database.db.execute(
        sql`update public.view_refreshes set started_at = ${refreshedAt}::timestamptz`,
      );
    }
    figures = await readFigures(database.db, {
      statementTimeout: '1min',
      workMem: '64MB',
      ...options,
    });
    html = await pageOf(figures, title);
  };

  /** Opens the page for some work. Fails if the browser logs anything or requests another URL. */
  const inPage = async (
    options: Parameters<Browser['newPage']>[0],
    work: (page: Page) => Promise<void>,
  ) => {
    const page = await browser.newPage(options);
    const said: string[] = [];
    page.on('console', (message) => said.push(message.text()));
    page.on('pageerror', (error) => said.push(String(error)));
    page.on('request', (request) => said.push(...(request.url() === url ? [] : [request.url()])));
    try {
      await page.goto(url);
      await work(page);
    } finally {
      await page.close();
    }
    expect(said).toEqual([]);
  };

  test.each(Object.keys(cases))(
    '%s: it fits windows of three widths, shows every figure, and loads nothing else',
    { timeout: 120_000 },
    async (name) => {
      await make(cases[name] as Case);
      await inPage({}, async (page) => {
        expect(
          await page.locator('script, img, iframe, link, a, [src], [href], [style]').count(),
        ).toBe(0);
        for (const width of [360, 768, 1280]) {
          await page.setViewportSize({ width, height: 800 });
          for (const filter of conversionEventFilters) {
            await page.check(`#filter-${filter}`);
            expect(await page.evaluate(whatDoesNotFit), `${filter} at ${width} pixels`).toEqual([]);
          }
        }
        for (const filter of conversionEventFilters) {
          await expectComplete(page, figures, filter);
          await expectDrawn(page, filter);
        }
      });
      expect(new Set(asked)).toEqual(new Set(['/report.html']));
    },
  );

  test.each([
    ...(['light', 'dark'] as const).map((scheme) => ['a gym', scheme] as const),
    ...['nobody', 'strange names'].map((name) => [name, 'light'] as const),
  ])(
    '%s: axe finds no serious or critical accessibility problem in %s mode',
    { timeout: 120_000 },
    async (name, colorScheme) => {
      await make(cases[name] as Case);
      await inPage({ bypassCSP: true, colorScheme }, async (page) => {
        await page.evaluate(axe.source);
        const { violations } = await page.evaluate(() =>
          (globalThis as unknown as { axe: typeof axe }).axe.run(),
        );
        const serious = violations.filter(
          ({ impact }) => impact === 'serious' || impact === 'critical',
        );
        expect(serious.map(({ id, nodes }) => [id, nodes[0]?.html])).toEqual([]);
      });
    },
  );

  const panels = async (page: Page) => {
    const visible: string[] = [];
    for (const panel of await page.locator('main > section').all()) {
      if (await panel.isVisible()) {
        visible.push(await panel.locator('h2').innerText());
      }
    }
    return visible;
  };

  test('a gym: mouse and keyboard switch between the panels, without a script', async () => {
    await make(cases['a gym'] as Case);
    await inPage({ javaScriptEnabled: false }, async (page) => {
      const [all, memberships, creditPacks] = [
        'Memberships and credit packs',
        ...['Memberships only', 'Credit packs only'],
      ];
      expect(await panels(page)).toEqual([all]);
      await page
        .getByText(creditPacks ?? '')
        .first()
        .click();
      expect(await panels(page)).toEqual([creditPacks]);
      await page.keyboard.press('ArrowUp');
      expect(await panels(page)).toEqual([memberships]);
      await page.reload();
      await page.keyboard.press('Tab');
      await page.keyboard.press('ArrowRight');
      expect(await panels(page)).toEqual([memberships]);
    });
  });

  test.each(['a gym since January', 'a branch', '2,000 branches'])(
    '%s: only the chosen panel is printed, on white, and fits even with all tables open',
    { timeout: 120_000 },
    async (name) => {
      await make(cases[name] as Case);
      // A4 with margins of 1 cm, at 96 pixels per inch.
      await inPage(
        { colorScheme: 'dark', viewport: { width: 718, height: 1047 } },
        async (page) => {
          await page.check('#filter-USER_CREDIT');
          await page.emulateMedia({ media: 'print', colorScheme: 'dark' });
          expect(await panels(page)).toEqual(['Credit packs only']);
          expect(await page.evaluate(() => getComputedStyle(document.body).backgroundColor)).toBe(
            'rgb(255, 255, 255)',
          );
          expect(await page.locator('fieldset').isVisible()).toBe(false);
          expect(await page.evaluate(whatDoesNotFit)).toEqual([]);
          await page.evaluate(() => {
            for (const numbers of document.querySelectorAll<HTMLDetailsElement>('.numbers')) {
              numbers.open = true;
            }
          });
          expect(await page.evaluate(whatDoesNotFit)).toEqual([]);
        },
      );
    },
  );

  test.each([
    ['2026-05-10', ['no', 'no', 'yes', 'yes', 'yes']],
    ['2026-05-11', ['no', 'no', 'no', 'yes', 'yes']],
  ])(
    'a gym until %s: the months are marked in which some users have had less than 40 days',
    async (last, marks) => {
      await make({
        fill: () =>
          fillWith([
            { joined: '2026-01-10', bought: '2026-02-19' },
            { joined: '2026-02-10', bought: '2026-03-22' },
            { joined: '2026-03-10', pack: '2026-04-19' },
            { joined: '2026-04-10' },
            { joined: last },
          ]),
      });
      await inPage({}, async (page) => {
        const months = page.locator('section.ALL table', { hasText: 'Too early to judge' });
        expect(await months.locator('tbody td:last-child').allTextContents()).toEqual(marks);
      });
    },
  );

  /** The text of a panel: its tiles, and the rows of its tables by caption. */
  const textOf = async (page: Page, filter: string) => {
    await page.check(`#filter-${filter}`);
    const panel = page.locator(`section.${filter}`);
    const tables = await panel
      .locator('table')
      .evaluateAll((tables) =>
        tables.map((table) => [
          table.querySelector('caption')?.textContent,
          [...table.querySelectorAll('tbody tr')].map((row) =>
            [...row.children].map(({ textContent }) => textContent).join(' | '),
          ),
        ]),
      );
    return {
      tiles: await panel.locator('dl > div').allInnerTexts(),
      tables: Object.fromEntries(tables),
    };
  };

  test('a small gym since April: the page shows the figures that were counted manually', async () => {
    await make({
      ...{ fill: fillSmallGym, options: { since: '2026-04' }, title: 'A small gym' },
      refreshedAt: '2026-06-01T03:15:00Z',
    });
    await inPage({}, async (page) => {
      expect((await page.locator('header').innerText()).split(/\n+/)).toEqual([
        'A small gym',
        'Users of all branches who joined in Apr 2026 or later.',
        expect.stringMatching(
          /^Data as of 1 June 2026 at 03:15 UTC, with users up to 1 June 2026 and conversions up to 20 May 2026\. This page was made on .* UTC and does not update itself\.$/,
        ),
        expect.stringMatching(/^Warning: These figures were [\d,]+ hours old/),
      ]);
      expect(await page.locator('section.ALL > .muted').allTextContents()).toEqual([
        'The changes compare users who joined in Apr 2026 to May 2026, at the end of 31 May 2026, with users who joined in Feb 2026 to Mar 2026, at the end of 31 March 2026. Both had about the same time to convert.',
      ]);
      expect(await textOf(page, 'ALL')).toEqual({
        tiles: [
          'Users\n29\nAll users begin as leads.\nApr 2026 to May 2026: 28 against 28 (0)',
          'Leads\n20\nUsers who have not converted.\nApr 2026 to May 2026: 19 against 20 (−1)',
          'Clients\n9\nUsers who have converted.\nApr 2026 to May 2026: 9 against 8 (+1)',
          'Conversion rate\n31.0%\nShare of users who are clients.\nAll of these months are too early to judge.\nApr 2026 to May 2026: 32.1% against 28.6% (+3.5 points)',
          'Half of clients within\n3 days\nMedian time from joining to conversion, of the clients so far.\n3 days for all, whenever they joined.\nApr 2026 to May 2026: 3 against 3 (0)',
          '9 in 10 clients within\n40 days\n90th percentile of the time from joining to conversion, of the clients so far.\n40 days for all, whenever they joined.\nApr 2026 to May 2026: 40 against 40 (0)',
          'Bought before joining\n1\nClients who bought before they joined, for example in imported data. The times above leave them out.',
        ],
        tables: {
          'Users and clients by month of joining': [
            'Apr 2026 | 14 | 9 | 5 | 35.7% | yes',
            'May 2026 | 14 | 10 | 4 | 28.6% | yes',
            'Jun 2026 | 1 | 1 | 0 | 0% | yes',
          ],
          'Share of users who have converted, by month of joining and months after it': [
            `Apr 2026 | 14 | 28.6% | 35.7% | ${' | '.repeat(10)}`,
            `May 2026 | 14 | 28.6% | ${' | '.repeat(11)}`,
            `Jun 2026 | 1 | ${' | '.repeat(12)}`,
          ],
          'Clients by days since joining and by what they bought': [
            '0 | 0 | 0% | 0 | 0%',
            '1–7 | 7 | 100% | 0 | 0%',
            '8–30 | 0 | 0% | 0 | 0%',
            '31–90 | 0 | 0% | 1 | 100%',
            '91–365 | 0 | 0% | 0 | 0%',
            '366+ | 0 | 0% | 0 | 0%',
          ],
          'Clients by source and by what they bought': ['Website | 6 | 0 | 6', 'App | 2 | 1 | 3'],
          'Clients by product': [
            'Gold | Membership | 8 | 88.9%',
            'Trial | Credit pack | 1 | 11.1%',
          ],
          'Users and clients by branch': [
            'Harbour | Dublin | 17 | 8 | 47.1% | 3 days | 1 June 2026',
            'Mill | York | 12 | 1 | 8.3% | 40 days | 20 May 2026',
          ],
        },
      });
      const { tiles } = await textOf(page, 'USER_CREDIT');
      expect(tiles.map((tile) => tile.split('\n')[1])).toEqual([
        ...['29', '28', '1', '3.4%', '40 days', '40 days', '0'],
      ]);
      expect(
        await page.locator('section.ALL [id=ALL-sources] ~ div text').allTextContents(),
      ).toEqual(expect.arrayContaining(['\u2068Website\u2069  6', '\u2068App\u2069  3']));
    });
  });

  test('a small gym of all months: the page shows the figures that were counted manually', async () => {
    await make({ fill: fillSmallGym, refreshedAt: '2026-06-01T03:15:00Z' });
    await inPage({}, async (page) => {
      const { tiles, tables } = await textOf(page, 'ALL');
      expect(tiles[3]).toBe(
        'Conversion rate\n32.4%\nShare of users who are clients.\n33.3% in the months that are old enough to judge.',
      );
      expect(tables['Branches whose conversion rate differs most']).toEqual([
        'Mill | 30 | 13.3% | −19.1',
        'Harbour | 41 | 46.3% | +13.9',
      ]);
      expect(tables['Users and clients by month of joining']).toEqual([
        'Jan 2026 | 14 | 9 | 5 | 35.7% | no',
        'Feb 2026 | 14 | 10 | 4 | 28.6% | no',
        'Mar 2026 | 14 | 9 | 5 | 35.7% | no',
        'Apr 2026 | 14 | 9 | 5 | 35.7% | yes',
        'May 2026 | 14 | 10 | 4 | 28.6% | yes',
        'Jun 2026 | 1 | 1 | 0 | 0% | yes',
      ]);
    });
    await make({
      ...{ fill: async () => {}, options: { branch: 'm', since: '2026-02' } },
      refreshedAt: '2026-06-01T03:15:00Z',
    });
    await inPage({}, async (page) => {
      expect(await page.locator('header p').first().innerText()).toBe(
        'Users of the branch Mill, m who joined in Feb 2026 or later.',
      );
      expect(await page.locator('section.ALL > .muted').textContent()).toMatch(
        /^There is no comparison with earlier months: /,
      );
    });
  });

  test('a gym: the page names no user, and says what it cannot compute', async () => {
    await make(cases['a gym'] as Case);
    expect(html).not.toMatch(/user-\d{3}|member ?\d|@example/i);
    expect(html).toContain('a conversion rate per source cannot be computed');
    expect(html).toContain('from public.fct_lead_conversions');
  });
});

/** Expects the page to show the figures that were read, under one filter. */
async function expectComplete(
  page: Page,
  figures: Figures,
  filter: (typeof conversionEventFilters)[number],
) {
  const panel = page.locator(`section.${filter}`);
  const headline = figures.headlines.find((one) => one.filter === filter);
  if (!headline) {
    throw new Error(`There is no headline of ${filter}.`);
  }
  const { users, leads, clients, beforeJoining, withoutDays } = headline;
  expect(await panel.locator('h2').textContent()).toBe(wordsOfFilter(filter));
  const tiles = await panel
    .locator('dl > div')
    .evaluateAll((tiles) =>
      tiles.map((tile) =>
        [...tile.querySelectorAll('dt, .value')].map(({ textContent }) => textContent),
      ),
    );
  expect(Object.fromEntries(tiles)).toMatchObject({
    Users: count(users),
    Leads: count(leads),
    Clients: count(clients),
    'Conversion rate': percent(clients, users),
    'Half of clients within': inDays(headline.medianDays),
    '9 in 10 clients within': inDays(headline.p90Days),
    'Bought before joining': count(beforeJoining),
  });
  const compared = (all: Headline[] = []) => all.find((one) => one.filter === filter);
  const [now, before] = [
    compared(figures.comparison?.headlines),
    compared(figures.comparison?.headlinesBefore),
  ];
  expect(await panel.locator('dl dd', { hasText: 'against' }).allTextContents()).toEqual(
    now && before
      ? [
          ...(['users', 'leads', 'clients'] as const).map((figure) =>
            expect.stringContaining(`: ${count(now[figure])} against ${count(before[figure])} (`),
          ),
          expect.stringContaining(
            `: ${percent(now.clients, now.users)} against ${percent(before.clients, before.users)} (`,
          ),
          ...(['medianDays', 'p90Days'] as const)
            .filter((figure) => now[figure] !== null && before[figure] !== null)
            .map((figure) =>
              expect.stringContaining(`: ${now[figure]} against ${before[figure]} (`),
            ),
        ]
      : [],
  );
  /** The sum of a column in the table with this caption, or null if there is no such table. */
  const sumOf = (caption: string, column: string) =>
    panel.locator('table').evaluateAll(
      (tables, [caption, column]) => {
        const table = tables.find(
          (table) => table.querySelector('caption')?.textContent === caption,
        );
        const headers = [...(table?.querySelectorAll('thead th') ?? [])];
        const index = headers.findIndex(({ textContent }) => textContent === column);
        const cells = [...(table?.querySelectorAll('tbody tr') ?? [])].map(
          (row) => row.children[index]?.textContent,
        );
        return table
          ? cells.reduce((sum, text) => sum + Number(text?.replaceAll(',', '')), 0)
          : null;
      },
      [caption, column] as const,
    );
  const orNull = (number: number, isThere: boolean) => (isThere ? number : null);
  expect(await sumOf('Users and clients by month of joining', 'Users')).toBe(
    orNull(users, users > 0),
  );
  expect(await sumOf('Users and clients by month of joining', 'Clients')).toBe(
    orNull(clients, users > 0),
  );
  expect(await sumOf('Users and clients by branch', 'Users')).toBe(orNull(users, users > 0));
  expect(await sumOf('Users and clients by branch', 'Clients')).toBe(orNull(clients, users > 0));
  expect(await sumOf('Clients by source and by what they bought', 'All clients')).toBe(
    orNull(clients, clients > 0),
  );
  expect(await sumOf('Clients by product', 'Clients')).toBe(orNull(clients, clients > 0));
  const fromJoining = clients - beforeJoining - withoutDays;
  const days = 'Clients by days since joining and by what they bought';
  const ofTypes = [await sumOf(days, 'Membership'), await sumOf(days, 'Credit pack')];
  expect(ofTypes.reduce((sum: number, number) => sum + (number || 0), 0)).toBe(fromJoining);
}

/** All columns that each table may have, in their order. */
const columnsOf: Record<string, string[]> = {
  'Users and clients by month of joining': [
    ...['Month of joining', 'Users', 'Leads', 'Clients', 'Conversion rate', 'Too early to judge'],
  ],
  'Share of users who have converted, by month of joining and months after it': [
    ...['Month of joining', 'Users', ...Array.from({ length: 13 }, (_, index) => String(index))],
  ],
  'Clients by days since joining and by what they bought': [
    ...['Days since joining', 'Membership', 'Share of Membership'],
    ...['Credit pack', 'Share of Credit pack'],
  ],
  'Clients by source and by what they bought': [
    ...['Source', 'Membership', 'Credit pack', 'All clients'],
  ],
  'Clients by product': ['Product', 'Kind', 'Clients', 'Share of clients'],
  'Branches whose conversion rate differs most': [
    ...['Branch', 'Users', 'Conversion rate', 'Difference in points'],
  ],
  'Users and clients by branch': [
    ...['Branch', 'City', 'Users', 'Clients', 'Conversion rate', 'Half of clients within'],
    'Latest joining or conversion',
  ],
};

/** The titles of the axes of each chart. */
const axesOf: Record<string, string[]> = {
  months: ['Conversion rate', 'Month of joining', 'Users who joined'],
  cohorts: ['Month of joining', 'Months after the month of joining'],
  speeds: ['Days since joining', 'Share of clients'],
  sources: ['Clients'],
  products: ['Clients'],
};

/** Expects each table to have its columns, and each chart to draw the numbers of its table. */
async function expectDrawn(page: Page, filter: (typeof conversionEventFilters)[number]) {
  await page.check(`#filter-${filter}`);
  const cards = await page.evaluate(readCards, filter);
  for (const { name, columns, caption, rows, titles, scale, rects, points } of cards) {
    const expected = columnsOf[caption ?? ''] ?? [];
    if (caption !== undefined) {
      expect(columns, caption).toEqual(expected.filter((column) => columns.includes(column)));
      expect(columns.length, caption).toBeGreaterThanOrEqual(Math.min(expected.length, 3));
    }
    if (rects === undefined) {
      continue;
    }
    expect(titles, name).toEqual(axesOf[name]);
    const cell = (row: Record<string, string>, column: string) =>
      Number((row[column] ?? '0').replaceAll(',', '').replace('%', ''));
    const near = (drawn: number[], numbers: number[], tolerance: number) => {
      expect(drawn.length, name).toBe(numbers.length);
      for (const [index, number] of numbers.entries()) {
        expect(Math.abs((drawn[index] ?? Number.NaN) - number), name).toBeLessThanOrEqual(
          tolerance,
        );
      }
    };
    const text = (column: string) => rows.map((row) => row[column] ?? '');
    if (name === 'months') {
      const shown = rows.filter((row) => /^\w+ \d+$/.test(row['Month of joining'] ?? ''));
      const most = Math.max(...shown.map((row) => cell(row, 'Users')));
      const drawn = (fills: string[]) =>
        rects.filter(({ fill }) => fills.includes(fill)).map(({ height }) => height * scale);
      near(
        drawn(['var(--leads)']),
        shown.map((row) => cell(row, 'Leads')),
        most / 100,
      );
      near(
        drawn(['var(--clients)', 'url(#young)']),
        shown.map((row) => cell(row, 'Clients')),
        most / 100,
      );
      const isYoung = shown.map((row) => row['Too early to judge'] === 'yes');
      expect(
        rects
          .filter(({ fill }) => fill !== 'var(--leads)')
          .map(({ fill }) => fill === 'url(#young)'),
      ).toEqual(isYoung);
      const judged = shown.filter((row) => cell(row, 'Users') > 0);
      near(
        points.map(({ y }) => 100 * (1 - y / 90)),
        judged.map((row) => cell(row, 'Conversion rate').valueOf() || 0),
        0.2,
      );
      expect(points.map(({ fill }) => fill === 'var(--page)')).toEqual(
        judged.map((row) => row['Too early to judge'] === 'yes'),
      );
    } else if (name === 'cohorts') {
      const cells = rows.flatMap((row) =>
        columns
          .slice(2)
          .map((column) => row[column] ?? '')
          .filter(Boolean),
      );
      const shades = [0, 10, 20, 30, 40, 50, 60, 80, 100];
      expect(rects.length).toBe(cells.length);
      for (const [index, rate] of cells.entries()) {
        const number = /under/.test(rate)
          ? 0.05
          : /over/.test(rate)
            ? 99.95
            : Number.parseFloat(rate);
        const isOnEdge = number > 0 && shades.includes(number);
        const shade = shades.findIndex((upTo) => number <= upTo);
        const allowed = isOnEdge ? [shade, shade + 1] : [shade];
        expect(
          allowed.map((one) => `var(--shade-${one})`),
          rate,
        ).toContain(rects[index]?.fill);
      }
    } else if (name === 'speeds') {
      const kinds = columns.filter((column) => /^Share of/.test(column));
      const shares = kinds.flatMap((kind) => rows.map((row) => cell(row, kind)));
      near(
        rects.map(({ height }) => height * scale),
        shares.map((share) => share || 0),
        0.6,
      );
    } else {
      const [column, kinds] =
        name === 'sources'
          ? ['All clients', columns.slice(1, -1)]
          : ['Clients', [...new Set(text('Kind'))]];
      const drawn = new Map<number, number>();
      for (const { y, width } of rects) {
        drawn.set(y, (drawn.get(y) ?? 0) + width * scale);
      }
      const most = Math.max(...rows.map((row) => cell(row, column)));
      expect(kinds.length).toBeGreaterThan(0);
      near(
        [...drawn.values()].slice(0, 10),
        rows.slice(0, 10).map((row) => cell(row, column)),
        most / 100,
      );
    }
  }
}

/**
 * Runs in the page: reads the table and chart of each card under a filter, in units of the chart.
 */
function readCards(filter: string) {
  return [...document.querySelectorAll(`section.${filter} .card`)].map((card) => {
    const table = card.querySelector('table');
    const columns = [...(table?.querySelectorAll('thead th') ?? [])].map(
      ({ textContent }) => textContent ?? '',
    );
    const rows = [...(table?.querySelectorAll('tbody tr') ?? [])].map((row) =>
      Object.fromEntries(
        columns.map((column, index) => [column, row.children[index]?.textContent ?? '']),
      ),
    );
    const chart = card.querySelector('svg');
    const name = card.getAttribute('aria-labelledby')?.replace(`${filter}-`, '') ?? '';
    const positions = (element: Element) =>
      [...(element.getAttribute('transform') ?? '').matchAll(/-?[\d.]+/g)].map(Number);
    /** The value of one unit along the axis that measures the bars. */
    const scaleOf = () => {
      const isVertical = ['months', 'speeds'].includes(name);
      const labels = [...(chart?.querySelectorAll('.role-axis-label text') ?? [])]
        .filter((label) => !isVertical || label.getAttribute('text-anchor') === 'end')
        .filter((label) => /^[\d,]+%?$/.test(label.textContent ?? ''))
        .filter((label) => name !== 'months' || !label.textContent?.includes('%'))
        .map((label) => ({
          value: Number(label.textContent?.replace(/[,%]/g, '')),
          at: positions(label)[isVertical ? 1 : 0] ?? 0,
        }));
      const [first, last] = [labels[0], labels.at(-1)];
      return first && last ? Math.abs((last.value - first.value) / (last.at - first.at)) : 0;
    };
    return {
      name,
      columns,
      caption: table?.querySelector('caption')?.textContent ?? undefined,
      rows,
      titles: [...(chart?.querySelectorAll('.role-axis-title text') ?? [])]
        .map(({ textContent }) => textContent ?? '')
        .sort(),
      scale: scaleOf(),
      rects: chart
        ? [...chart.querySelectorAll<SVGPathElement>('.mark-rect.role-mark path')].map((path) => ({
            ...{ fill: path.getAttribute('fill') ?? '', y: path.getBBox().y },
            ...{ width: path.getBBox().width, height: path.getBBox().height },
          }))
        : undefined,
      points: [...(chart?.querySelectorAll('.mark-symbol.role-mark path') ?? [])].map((path) => ({
        ...{ fill: path.getAttribute('fill') ?? '', y: positions(path)[1] ?? 0 },
      })),
    };
  });
}

/** Runs in the page: lists what is too wide, overlaps, is cut off or too small, or has no name. */
function whatDoesNotFit(): string[] {
  const found: string[] = [];
  const isShown = (element: Element) => element.checkVisibility();
  if (document.documentElement.scrollWidth > innerWidth) {
    found.push(`the page is ${document.documentElement.scrollWidth} wide`);
  }
  for (const element of document.querySelectorAll(
    '.card, .tiles > div, .tiles dd, h1, h2, h3, p, label',
  )) {
    if (isShown(element) && element.scrollWidth > element.clientWidth + 1) {
      found.push(`${element.tagName} ${element.textContent?.slice(0, 60)} overflows`);
    }
  }
  const overlap = (elements: Element[]) => {
    for (const [index, element] of elements.entries()) {
      overlapping([element], elements.slice(index + 1));
    }
  };
  const overlapping = (some: Element[], others: Element[]) => {
    for (const one of some.filter(isShown)) {
      for (const other of others.filter(isShown)) {
        const [box, otherBox] = [one.getBoundingClientRect(), other.getBoundingClientRect()];
        const width = Math.min(box.right, otherBox.right) - Math.max(box.left, otherBox.left);
        const height = Math.min(box.bottom, otherBox.bottom) - Math.max(box.top, otherBox.top);
        if (width > 1 && height > 2) {
          found.push(
            `"${one.textContent?.slice(0, 40)}" lies on "${other.textContent?.slice(0, 40)}"`,
          );
        }
      }
    }
  };
  overlap([...document.querySelectorAll('.tiles > div, .card, .note, header, fieldset')]);
  for (const element of document.querySelectorAll('[aria-labelledby]')) {
    if (!document.getElementById(element.getAttribute('aria-labelledby') ?? '')?.textContent) {
      found.push(`a ${element.tagName} has no name`);
    }
  }
  for (const table of document.querySelectorAll('table')) {
    const card = table.closest('.card')?.getBoundingClientRect();
    const isCut = getComputedStyle(table.parentElement as Element).overflowX === 'visible';
    if (isShown(table) && isCut && card && table.getBoundingClientRect().right > card.right) {
      found.push(`${table.caption?.textContent} leaves its card`);
    }
  }
  for (const chart of document.querySelectorAll('svg[viewBox]')) {
    overlapping(
      [...chart.querySelectorAll('.mark-text.role-mark text')],
      [...chart.querySelectorAll('.mark-rect.role-mark path')],
    );
    const texts = [...chart.querySelectorAll('text')].filter(
      ({ textContent, attributes }) =>
        textContent && attributes.getNamedItem('opacity')?.value !== '0',
    );
    overlap(texts);
    const frame = chart.getBoundingClientRect();
    for (const text of texts.filter(isShown)) {
      const box = text.getBoundingClientRect();
      if (
        box.left < frame.left - 1 ||
        box.right > frame.right + 1 ||
        box.bottom > frame.bottom + 1
      ) {
        found.push(`"${text.textContent}" leaves its chart`);
      }
      if (box.height < 8 && box.width < 8) {
        found.push(`"${text.textContent}" is too small`);
      }
    }
  }
  return found;
}
