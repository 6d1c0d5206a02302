export { fctClientConversionEvents } from './fct_client_conversion_events.ts';
export { fctLeadConversions } from './fct_lead_conversions.ts';
export {
  type RefreshOptions,
  type RefreshReport,
  type RefreshStep,
  refreshDefaults,
  refreshViews,
  type ViewRefresh,
} from './refresh.ts';
export * from './values.ts';
export { viewRefreshes } from './view_refreshes.ts';
