//! The table of kinds and what operators see of settings.

use serde_json::json;

use super::*;

#[test]
fn unknown_kinds_name_the_known_ones() {
    let endpoints = Endpoints::new(testing::environment());
    let error = endpoints.check("fax", &json!({})).unwrap_err();
    assert!(error.contains("\"fax\"") && error.contains("http"), "{error}");
    assert_eq!(
        Endpoints::without_secrets("fax", &json!({"password": "p"})),
        json!({})
    );
}

#[test]
fn secrets_are_hidden_and_come_back() {
    let stored =
        json!({"url": "https://x/", "password": "p", "bearerToken": null, "headers": {"a": "1", "b": "2"}});
    let shown = Endpoints::without_secrets("http", &stored);
    assert_eq!(
        shown,
        json!({"url": "https://x/", "password": "***", "bearerToken": null, "headers": {"a": "***", "b": "***"}})
    );
    let mut changed = shown;
    changed["headers"]["b"] = json!("3");
    let merged = Endpoints::with_secrets_of("http", &changed, &stored);
    assert_eq!(
        merged,
        json!({"url": "https://x/", "password": "p", "bearerToken": null, "headers": {"a": "1", "b": "3"}})
    );
}

#[test]
fn secrets_do_not_print() {
    let secret = secret::Secret::from("abc");
    assert_eq!(format!("{secret:?}"), "(hidden)");
}
