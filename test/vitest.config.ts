import { defineConfig } from 'vitest/config';
import { BaseSequencer, type TestSpecification } from 'vitest/node';

/** Starts with the two files that take longest, so the workers end at about the same time. */
class LongestFirst extends BaseSequencer {
  override async sort(files: TestSpecification[]): Promise<TestSpecification[]> {
    const isLong = ({ moduleId }: TestSpecification) =>
      /\/(recipe|changing_views)\./.test(moduleId);
    const sorted = await super.sort(files);
    return [...sorted.filter(isLong), ...sorted.filter((file) => !isLong(file))];
  }
}

/** The suite runs twice: in-process on PGlite, and on a real PostgreSQL 16. */
export default defineConfig({
  test: {
    maxWorkers: '100%',
    sequence: { sequencer: LongestFirst },
    projects: [
      {
        test: {
          name: 'pglite',
          include: ['test/*.test.ts'],
          exclude: ['test/*.postgres.test.ts'],
          isolate: false, // the files of a worker share an embedded database
          testTimeout: 120_000,
          hookTimeout: 120_000,
        },
      },
      {
        test: {
          name: 'postgres',
          include: ['test/*.test.ts'],
          // The first works on an embedded database, the second on pages in a browser.
          exclude: ['test/generate.test.ts', 'test/report_page.test.ts'],
          globalSetup: 'test/support/postgres_setup.ts',
          testTimeout: 120_000,
          hookTimeout: 120_000,
        },
      },
    ],
  },
});
