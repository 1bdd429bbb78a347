//! Hub engine: registry, authentication, sessions, ingest, methods, cloud-to-device, twins.
