//! The engine over in-memory stores and a clock that moves only when told. One file per subject; one binary, since
//! linking is what takes the time.

mod auth_chain;
mod authorities;
mod bulk;
mod c2d;
mod certificates;
mod connect;
mod files;
mod grants;
mod harness;
mod ingest;
mod methods;
mod policies;
mod registry;
mod revocation;
mod routing;
mod sessions;
mod sources;
mod twins;
