import { drizzle } from 'drizzle-orm/postgres-js';
import { migrate } from 'drizzle-orm/postgres-js/migrator';
import postgres from 'postgres';
import { migrations } from '../../schema/migrations.ts';
import { refreshDefaults, refreshViews } from '../../views/index.ts';
import { openDatabase } from '../database.ts';
import { type Figures, readFigures } from '../report/figures.ts';
import { pageOf } from '../report/page.tsx';
import { generate, type Size } from './data.ts';
import { median, type OnProgress } from './measure.ts';

/** The costs of the report for one size: medians over the rounds, in milliseconds. */
export interface ReportMeasurements extends Size {
  /** The time of each figure, by its name, in the order of reading. */
  figures: Record<string, number>;
  /** The time of all figures, in one transaction. */
  reading: number;
  drawing: number;
  /** The size of the page, in bytes. */
  bytes: number;
}

/** Measures the report for a size, in an empty database, and leaves the data there. */
export async function measureReport(
  url: string,
  size: Size,
  { rounds, onProgress }: { rounds: number; onProgress: OnProgress },
): Promise<ReportMeasurements> {
  const client = postgres(url, { max: 1, onnotice: () => {}, fetch_types: false });
  const database = await openDatabase(url);
  try {
    onProgress('migrate, generate and refresh');
    await migrate(drizzle(client), migrations);
    await generate(client, size);
    await refreshViews(database.db);
    const figures: Record<string, number[]> = {};
    const samples: Record<'reading' | 'drawing' | 'bytes', number[]> = {
      ...{ reading: [], drawing: [], bytes: [] },
    };
    for (let round = 0; round < rounds; round += 1) {
      onProgress(`round ${round + 1} of ${rounds}, report`);
      const begun: [figure: string, at: number][] = [];
      const started = performance.now();
      const read: Figures = await readFigures(database.db, {
        ...refreshDefaults,
        onFigure: (figure) => begun.push([figure, performance.now()]),
      });
      const done = performance.now();
      for (const [index, [figure, at]] of begun.entries()) {
        figures[figure] ??= [];
        figures[figure].push((begun[index + 1]?.[1] ?? done) - at);
      }
      const page = await pageOf(read, 'Lead conversions');
      samples.reading.push(done - started);
      samples.drawing.push(performance.now() - done);
      samples.bytes.push(Buffer.byteLength(page));
    }
    return {
      ...size,
      figures: Object.fromEntries(
        Object.entries(figures).map(([figure, times]) => [figure, median(times)]),
      ),
      reading: median(samples.reading),
      drawing: median(samples.drawing),
      bytes: median(samples.bytes),
    };
  } finally {
    await database.close();
    await client.end();
  }
}
