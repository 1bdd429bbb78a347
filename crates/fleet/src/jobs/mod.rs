//! Jobs: twin updates and direct methods over a query, scheduled, bounded and restart-safe.
