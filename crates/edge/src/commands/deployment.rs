//! What became of the last deployment, for `list` and `check`: the daemon tells it as it reports it to the hub.

use serde_json::Value;

use super::check::Found;

/// Code of a deployment that was carried out (edge.md 2.6).
const DONE: u64 = 200;
/// Codes of manifests that cannot be used.
const REFUSED: [u64; 2] = [400, 412];
/// There are no desired properties.
const EMPTY: u64 = 417;

/// Whether the last deployment was accepted and carried out.
pub(super) fn accepted(told: &Value) -> Found {
    let in_force = told["versionInForce"].as_u64();
    let (code, description) = status(told);
    let stays = in_force.map_or_else(
        || "nothing is deployed".to_owned(),
        |version| format!("deployment {version} stays in force"),
    );
    let Some(version) = told["lastDesiredVersion"].as_u64() else {
        return match in_force {
            Some(version) => Found::Ok(format!("deployment {version} is in force")),
            None if told["connected"] == true => Found::Skipped("nothing has been deployed yet".to_owned()),
            None => Found::Skipped(
                "no deployment is known: the hub has not been reached since the daemon was started"
                    .to_owned(),
            ),
        };
    };
    if code == DONE {
        Found::Ok(format!("deployment {version} is carried out"))
    } else if code == EMPTY && in_force.is_none() {
        Found::Skipped("nothing has been deployed yet".to_owned())
    } else if code == EMPTY {
        Found::Failed(
            format!("deployment {version} is empty (code {code}); {stays}"),
            "deploy a manifest (`holdfast edge deploy`); one without modules removes them".to_owned(),
        )
    } else if REFUSED.contains(&code) {
        Found::Failed(
            format!("deployment {version} was refused (code {code}); {stays}: {description}"),
            "correct the manifest and deploy it again (`holdfast edge deploy`)".to_owned(),
        )
    } else if in_force == Some(version) {
        Found::Failed(
            format!("deployment {version} could not be carried out as a whole (code {code}): {description}"),
            "the daemon goes on trying; correct image, registry credentials or createOptions and deploy again, or see what the module says (`holdfast-edge logs MODULE`)"
                .to_owned(),
        )
    } else {
        Found::Failed(
            format!("deployment {version} was taken back (code {code}); {stays}: {description}"),
            "it is not tried again by itself: correct what the reason names and deploy again (`holdfast edge deploy`)"
                .to_owned(),
        )
    }
}

/// Whether the edge hub could use its configuration, with every route.
pub(super) fn routes(told: &Value) -> Found {
    let hub = &told["edgeHub"];
    if hub.is_null() {
        return Found::Skipped("the edge hub does not run, or has no configuration yet".to_owned());
    }
    let (code, description) = status(hub);
    if code == DONE {
        return Found::Ok("every route is in force".to_owned());
    }
    // Faults of single routes begin with the route's name.
    let others = if description.contains(" - route ") {
        "the other routes are in force"
    } else {
        "the configuration before stays in force"
    };
    let version = hub["lastDesiredVersion"].as_u64();
    let version = version.map_or_else(String::new, |version| format!(", version {version},"));
    Found::Failed(
        format!(
            "the configuration of the edge hub{version} has faults (code {code}); {others}: {description}"
        ),
        "correct `$edgeHub` in the manifest and deploy it again (`holdfast edge deploy`)".to_owned(),
    )
}

fn status(told: &Value) -> (u64, &str) {
    let status = &told["lastDesiredStatus"];
    let description = status["description"].as_str().unwrap_or_default();
    (status["code"].as_u64().unwrap_or_default(), description)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn told(version: Option<u64>, in_force: Option<u64>, code: u64, description: &str) -> Value {
        json!({
            "lastDesiredVersion": version, "versionInForce": in_force, "connected": true,
            "lastDesiredStatus": {"code": code, "description": description},
        })
    }

    #[test]
    fn what_is_in_order_is_not_blamed() {
        for (document, words) in [
            (told(Some(3), Some(3), 200, ""), "deployment 3 is carried out"),
            // The code is of the one before while a new one is being carried out.
            (told(None, Some(4), 500, "old"), "deployment 4 is in force"),
        ] {
            assert_eq!(accepted(&document), Found::Ok(words.to_owned()));
        }
        for document in [told(None, None, 406, ""), told(Some(1), None, 417, "")] {
            assert_eq!(
                accepted(&document),
                Found::Skipped("nothing has been deployed yet".to_owned())
            );
        }
        let offline = json!({"connected": false, "lastDesiredStatus": {"code": 406}});
        assert!(matches!(accepted(&offline), Found::Skipped(why) if why.contains("not been reached")));
        assert!(matches!(routes(&Value::Null), Found::Skipped(_)));
        assert!(matches!(
            routes(&json!({"edgeHub": {"lastDesiredStatus": {"code": 200}}})),
            Found::Ok(_)
        ));
    }

    #[test]
    fn what_failed_is_told_with_code_reason_and_remedy() {
        for (document, words) in [
            (
                told(Some(8), Some(7), 400, "modules.a: no image"),
                "deployment 8 was refused (code 400); deployment 7 stays in force: modules.a: no image",
            ),
            (
                told(Some(8), None, 412, "Invalid schema version."),
                "deployment 8 was refused (code 412); nothing is deployed: Invalid schema version.",
            ),
            (
                told(Some(8), Some(7), 500, "a: exit 1"),
                "deployment 8 was taken back (code 500); deployment 7 stays in force: a: exit 1",
            ),
            (
                told(Some(8), Some(8), 500, "a: no such image"),
                "deployment 8 could not be carried out as a whole (code 500): a: no such image",
            ),
            (
                told(Some(8), Some(7), 417, ""),
                "deployment 8 is empty (code 417); deployment 7 stays in force",
            ),
        ] {
            let Found::Failed(what, remedy) = accepted(&document) else {
                panic!("{document}");
            };
            assert_eq!(what, words);
            assert!(remedy.contains("deploy"), "{remedy}");
        }
        for (version, description, words) in [
            (
                json!(3),
                "Error while parsing desired properties - route bad: no INTO",
                "the configuration of the edge hub, version 3, has faults (code 400); the other routes are in force: \
                 Error while parsing desired properties - route bad: no INTO",
            ),
            (
                Value::Null,
                "Error while parsing desired properties - schemaVersion",
                "the configuration of the edge hub has faults (code 400); the configuration before stays in force: \
                 Error while parsing desired properties - schemaVersion",
            ),
        ] {
            let document = json!({"edgeHub": {
                "lastDesiredVersion": version, "lastDesiredStatus": {"code": 400, "description": description}}});
            let Found::Failed(what, _) = routes(&document) else {
                panic!("{document}");
            };
            assert_eq!(what, words);
        }
    }
}
