//! Domain words: identities, credentials, message, event, twin, method, error codes, limits. No I/O.
