//! Embedded stores: SQLite for state, a segmented append-only log for events.

pub mod sqlite;

pub mod log;
