//! In-memory doubles of the driven ports.
