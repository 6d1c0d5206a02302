export { fctClientConversionEvents } from './fct_client_conversion_events.ts';
export { fctLeadConversions } from './fct_lead_conversions.ts';
export * from './values.ts';
