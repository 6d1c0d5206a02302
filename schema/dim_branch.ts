import { sql } from 'drizzle-orm';
import { check, varchar } from 'drizzle-orm/pg-core';
import {
  calendarRangeRule,
  identifier,
  inCalendarRange,
  instant,
  isShort,
  publicTable,
  shortRule,
} from './columns.ts';
import { readerRole, withProperties } from './properties.ts';

/** The shapes of IANA time zone names, ignoring case. */
const ianaNames = [
  '[a-z]+(/[a-z_-]+)+', // an area and its locations: America/Argentina/Salta
  'Etc/GMT(0|[+-][0-9]|[+]1[0-2]|-1[0-4])',
  // The names without a slash: https://data.iana.org/time-zones/tzdb/backward
  'UTC|GMT|GMT[+-]?0|UCT|Greenwich|Universal|Zulu',
  'CST6CDT|EST5EDT|MST7MDT|PST8PDT|Navajo',
  'Cuba|Egypt|Eire|GB|GB-Eire|Hongkong|Iceland|Iran|Israel|Jamaica|Japan',
  'Kwajalein|Libya|NZ|NZ-CHAT|Poland|Portugal|PRC|ROC|ROK|Singapore|Turkey|W-SU',
];

/** One row per branch of a gym. */
export const dimBranch = withProperties(
  publicTable(
    'dim_branch',
    {
      branchId: identifier('branch_id').primaryKey(),
      name: varchar('name'),
      email: varchar('email'),
      city: varchar('city'),
      country: varchar('country'),
      timezoneId: varchar('timezone_id'),
      createdAt: instant('created_at'),
    },
    (table) => [
      // Postgres could not refresh the views with a zone that it does not know. So the zone is
      // refused here, when its branch is written.
      //
      // The list of names is checked first, because Postgres accepts more than IANA's names. It
      // reads any word with an offset behind it as a POSIX zone (FOO+3, Mars/Olympus+3). It reads
      // CET, EET, MET, WET, EST, MST and HST as abbreviations, offsets without summer time, so the
      // list leaves out these seven. If a name has the right shape but is not a zone, timezone()
      // raises its own error, with the name.
      // https://www.postgresql.org/docs/16/datatype-datetime.html#DATATYPE-TIMEZONES
      check(
        'dim_branch_timezone_id_check',
        sql`${table.timezoneId} is null or ${table.timezoneId} ~* ${sql.raw(`'^(${ianaNames.join('|')})$'`)} and timezone(${table.timezoneId}, to_timestamp(0)) is not null`,
      ),
      check('dim_branch_created_at_check', inCalendarRange(table.createdAt)),
      check('dim_branch_branch_id_check', isShort(table.branchId)),
    ],
  ),
  {
    comment: 'One row per branch of a gym.',
    columns: {
      branchId: 'Identifier of the branch.',
      name: 'Name of the branch.',
      email: 'E-mail address of the branch.',
      city: 'City where the branch is.',
      country: 'Country where the branch is.',
      timezoneId:
        'IANA time zone of the branch, such as Europe/Dublin. All local times of its users are in this time zone. NULL counts as UTC.',
      createdAt: 'Instant at which the branch was created.',
    },
    checks: {
      dim_branch_timezone_id_check:
        'must be an IANA time zone name that Postgres knows, such as Europe/Dublin, not an abbreviation (CET) or an offset (FOO+3)',
      dim_branch_created_at_check: calendarRangeRule,
      dim_branch_branch_id_check: shortRule,
    },
    // Reports need these columns to name a branch. They may not read its e-mail address.
    grants: {
      [readerRole]: { select: ['branchId', 'name', 'city', 'country', 'timezoneId'] },
    },
  },
);

/** A row of `dim_branch`. */
export type Branch = typeof dimBranch.$inferSelect;
