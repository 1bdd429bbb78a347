//! Service REST API of the hub, with its OpenAPI document.
