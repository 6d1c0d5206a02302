export { readerRole } from '../schema/properties.ts';
export {
  type ClientConversionEvent,
  fctClientConversionEvents,
} from './fct_client_conversion_events.ts';
export { fctLeadConversions, type LeadConversion } from './fct_lead_conversions.ts';
export {
  type RefreshOptions,
  type RefreshReport,
  type RefreshStep,
  refreshDefaults,
  refreshViews,
  type ViewRefresh,
} from './refresh.ts';
export * from './values.ts';
export { type RecordedRefresh, viewRefreshes } from './view_refreshes.ts';
