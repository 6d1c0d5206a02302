import fc from 'fast-check';
import { expect, test } from 'vitest';
import { fctClientConversionEvents, fctLeadConversions, refreshViews } from '../views/index.ts';
import { rowsOf, useDatabase } from './support/database.ts';
import { inputOf, store } from './support/generated.ts';
import { clientConversionEvents, leadConversions } from './support/model.ts';

const database = useDatabase();

// The values are few, so ties and matches are frequent, and each is a trap: byte order against the
// order of a language, zones on either side of UTC and far from it, instants around clock changes,
// a microsecond apart, and before 1970.
const identifiers = ['a', 'B', 'b-1', 'b_1', 'b10', 'é', 'Z', ''];
const zones = [
  'America/New_York',
  'America/St_Johns',
  'Asia/Kathmandu',
  'Australia/Lord_Howe',
  'Etc/GMT+12',
  'Europe/Dublin',
  'Pacific/Apia',
  'Pacific/Kiritimati',
  'UTC',
];
const instants = [
  '1969-12-31T23:59:59.999999Z',
  '2011-12-30T09:59:59Z', // Apia skips a day
  '2011-12-30T10:00:00Z',
  '2024-03-10T06:59:59.999999Z', // New York goes to summer time
  '2024-03-10T07:00:00Z',
  '2024-03-10T07:00:00.000001Z',
  '2024-03-31T00:59:59Z', // Dublin goes to summer time
  '2024-03-31T01:00:00Z',
  '2024-04-06T14:59:59Z', // Lord Howe goes back by half an hour
  '2024-04-06T15:00:00Z',
  '2024-10-27T00:59:59Z', // Dublin goes back
  '2024-10-27T01:00:00Z',
  '2024-11-03T05:30:00Z', // New York has this hour twice
  '2024-11-03T06:30:00Z',
];

const input = inputOf({
  ...{ identifiers, zones, instants },
  texts: ['Monthly', '5 classes', '', 'Zoë’s "special", \\ and \n'],
  ...{ maxBranches: 4, maxUsers: 6, maxPurchases: 20 },
});

test('both views equal what the model computes, for any input', async () => {
  await fc.assert(
    fc.asyncProperty(input, async (generated) => {
      await store(database, generated);
      await refreshViews(database.db, { maxLoss: '100%' });
      expect(await rowsOf(database, fctClientConversionEvents, 'user_id')).toEqual(
        clientConversionEvents(generated),
      );
      const order = ['user_id', 'client_conversion_event_filter'];
      expect(await rowsOf(database, fctLeadConversions, ...order)).toEqual(
        leadConversions(generated),
      );
    }),
    { numRuns: 100 },
  );
});
