//! Events, metric names, tracing and health set-up.
