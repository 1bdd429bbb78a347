//! PostgreSQL: placeholder.
