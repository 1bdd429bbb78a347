//! Embedded stores: SQLite for state, a segmented append-only log for events.

pub mod log;
pub mod sqlite;
