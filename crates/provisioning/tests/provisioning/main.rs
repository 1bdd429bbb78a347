//! The provisioning engine on in-memory stores, with hubs and webhooks that a test can look into and break.

mod harness;
mod registering;
mod soft_tpm;
mod tpm;
mod trust;
