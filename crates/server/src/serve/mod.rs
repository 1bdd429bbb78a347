//! `holdfast serve`: configuration, data directory, certificates, composition, signals.

pub mod certificates;
pub mod config;
pub mod connection_env;
pub mod data_dir;
mod rsa_key;
pub mod units;
