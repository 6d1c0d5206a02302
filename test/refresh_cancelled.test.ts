import { expect, test } from 'vitest';
import { dimUser } from '../schema/index.ts';
import { fctClientConversionEvents, refreshViews } from '../views/index.ts';
import { rowsOf, useDatabase } from './support/database.ts';

const database = useDatabase();

test.each([
  { at: 'fct_client_conversion_events', begun: ['fct_client_conversion_events'] },
  { at: 'fct_lead_conversions', begun: ['fct_client_conversion_events', 'fct_lead_conversions'] },
])(
  'a refresh changes nothing, and begins nothing more, once its signal is aborted at $at',
  async (expected) => {
    const { db } = database;
    await refreshViews(db);
    await db.insert(dimUser).values({ userId: 'a' });
    const cancellation = new AbortController();
    const reason = new Error('enough');
    const begun: string[] = [];
    const cancelled = refreshViews(db, {
      signal: cancellation.signal,
      onStep: ({ view }) => {
        begun.push(view);
        if (view === expected.at) {
          cancellation.abort(reason);
        }
      },
    });
    await expect(cancelled).rejects.toBe(reason);
    expect(begun).toEqual(expected.begun);
    expect(await rowsOf(database, fctClientConversionEvents)).toEqual([]);
  },
);
