//! Import and export of identities with their twins.
