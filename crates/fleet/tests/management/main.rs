//! Configurations and jobs on a hub with in-memory stores.

mod configurations;
mod harness;
mod jobs;
