-- Says in the database what is declared of its tables and views.
COMMENT ON INDEX "public"."fct_client_conversion_events_user_id_key" IS 'One row per user_id. REFRESH MATERIALIZED VIEW CONCURRENTLY needs it.';--> statement-breakpoint
COMMENT ON INDEX "public"."fct_credit_pack_purchases_first" IS 'The purchases of a user in the order in which the first is found, which is read from the index alone.';--> statement-breakpoint
COMMENT ON INDEX "public"."fct_lead_conversions_branch_id_local_user_created_at_idx" IS 'Answers for the users of a branch, created between two dates.';--> statement-breakpoint
COMMENT ON INDEX "public"."fct_lead_conversions_user_id_client_conversion_event_filter_key" IS 'One row per user_id and client_conversion_event_filter. REFRESH MATERIALIZED VIEW CONCURRENTLY needs it.';--> statement-breakpoint
COMMENT ON INDEX "public"."fct_membership_purchases_first" IS 'The purchases of a user in the order in which the first is found, which is read from the index alone.';
