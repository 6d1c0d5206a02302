/** Whether a user has converted: has bought something that counts as a conversion. */
export const leadStatuses = ['LEAD', 'CLIENT'] as const;
export type LeadStatus = (typeof leadStatuses)[number];

/** The kinds of purchase that convert a lead into a client. */
export const conversionEventTypes = ['MEMBERSHIP', 'USER_CREDIT'] as const;
export type ConversionEventType = (typeof conversionEventTypes)[number];

/** What a report user can count as a conversion. */
export const conversionEventFilters = ['MEMBERSHIP', 'USER_CREDIT', 'ALL'] as const;
export type ConversionEventFilter = (typeof conversionEventFilters)[number];

/**
 * How a refresh brought a view up to date:
 * - `concurrently`: with REFRESH … CONCURRENTLY, which changes only the rows that differ;
 * - `populate`: with a plain REFRESH, because the view was not populated;
 * - `unchanged`: not at all, because nothing that it reads had changed.
 */
export const refreshModes = ['concurrently', 'populate', 'unchanged'] as const;
export type RefreshMode = (typeof refreshModes)[number];
