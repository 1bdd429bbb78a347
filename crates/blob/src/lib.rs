//! Embedded blob store: containers and block blobs in a folder, behind the part of the Blob REST API that devices and
//! tools use.
//!
//! - [`store`]: what is kept, and what is durable when;
//! - [`signature`]: SharedKey and service SAS, both ways (checking and signing);
//! - [`service`]: the REST API as a router, for any listener;
//! - `checksum`, `structured`: what clients send to have their bodies checked;
//! - `xml`: the documents of the API.
//!
//! One account; its name is not a container's. Addresses may be host style (`/{container}/{blob}`) or path style
//! (`/{account}/{container}/{blob}`), as clients choose by the host name.

mod checksum;
mod conditions;
mod download;
mod error;
pub mod service;
pub mod signature;
pub mod store;
mod structured;
mod upload;
mod xml;

pub use error::BlobError;
pub use service::{BlobService, router};
pub use store::BlobStore;
