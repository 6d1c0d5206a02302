import { access, readdir, readFile } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { expect, test } from 'vitest';

const pages = [
  'README.md',
  ...['schema', 'scripts', 'test', 'views'].map((it) => `${it}/README.md`),
];

/** The text of a page without its code. */
const proseOf = async (page: string) =>
  (await readFile(page, 'utf8')).replace(/^ *```.*?^ *```/gms, '');

/** The anchors that GitHub gives the headings of a page. */
const anchorsOf = async (page: string) =>
  [...(await proseOf(page)).matchAll(/^#+ (.*)$/gm)].map(([, heading = '']) =>
    heading
      .toLowerCase()
      .replace(/[^\w\s-]/g, '')
      .replaceAll(' ', '-'),
  );

test.each(pages)('every link in %s leads to a file and a heading that exist', async (page) => {
  const links = [...(await proseOf(page)).matchAll(/\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)/g)];
  expect(links).not.toEqual([]);
  for (const [, path = '', anchor] of links) {
    const file = path === '' ? page : join(dirname(page), path);
    await access(file);
    if (anchor !== undefined) {
      expect(await anchorsOf(file), `${page} links to ${file}`).toContain(anchor);
    }
  }
});

test('scripts/README.md explains only messages that exist', async () => {
  const ofPostgres = [
    ...['permission denied', 'permission denied for schema public', 'row-level security'],
    ...['statement timeout', 'out of memory', 'during recovery'],
  ];
  const folders = ['views', 'scripts', 'scripts/generate'];
  const sources = (await Promise.all(folders.map((it) => readdir(it, { withFileTypes: true }))))
    .flat()
    .filter((it) => it.isFile() && it.name.endsWith('.ts'))
    .map(({ parentPath, name }) => readFile(join(parentPath, name), 'utf8'));
  const code = (await Promise.all(sources)).join('\n');
  const prose = await proseOf('scripts/README.md');
  const [, explained = ''] = /^## When a refresh fails$(.*?)^## Standbys$/ms.exec(prose) ?? [];
  const messages = [...explained.matchAll(/(?<=^- |, )_([^_\n]+(?:_[^_\n]+)*?)_(?=[:, ])/gm)];
  expect(messages.length).toBeGreaterThan(20);
  for (const [, message = ''] of messages) {
    expect(ofPostgres.includes(message) || code.includes(message), message).toBe(true);
  }
});

test('README.md has at most 250 lines', async () => {
  expect((await readFile('README.md', 'utf8')).split('\n').length).toBeLessThanOrEqual(250);
});
