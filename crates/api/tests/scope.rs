//! Edge hubs: what is below their edge device, and what they do for edge devices below it (REST contract, section 14.1).
//!
//! Three levels: `top` is the parent of `mid`, which is the parent of `low`; `leaf` is below `mid`, `stray` below nobody.

mod support;

use axum::http::StatusCode;
use holdfast_model::credential::{SymmetricKey, sign_sas};
use serde_json::{Value, json};
use support::{Answer, HOST, Service, hours_from_now};

const LIST: &str = "devicesAndModulesInTargetDeviceScope";
const ONE: &str = "getDeviceAndModuleOnBehalfOf";

struct Tree {
    service: Service,
}

impl Tree {
    async fn plant() -> Self {
        let tree = Tree {
            service: Service::start().await,
        };
        let edge = json!({"capabilities": {"iotEdge": true}});
        let scope = |answer: &Answer| answer.body["deviceScope"].as_str().expect("a scope").to_owned();
        let top = scope(&tree.put("top", edge.clone()).await);
        let below = |scope: &str| json!({"capabilities": {"iotEdge": true}, "parentScopes": [scope]});
        let mid = scope(&tree.put("mid", below(&top)).await);
        tree.put("low", below(&mid)).await;
        tree.put("leaf", json!({"deviceScope": mid})).await;
        tree.put("stray", edge).await;
        for module in ["leaf/modules/app", "low/modules/app", "mid/modules/app"] {
            let created = tree
                .service
                .owner("PUT", &format!("/devices/{module}"), Some(json!({})))
                .await;
            assert_eq!(created.status, StatusCode::OK);
        }
        tree
    }

    async fn put(&self, device: &str, body: Value) -> Answer {
        let answer = self
            .service
            .owner("PUT", &format!("/devices/{device}"), Some(body))
            .await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        answer
    }

    /// A token of a module, valid for an hour.
    async fn token(&self, device: &str, module: &str) -> String {
        let path = format!("/devices/{device}/modules/{module}");
        let record = self.service.owner("GET", &path, None).await;
        let key = record.body["authentication"]["symmetricKey"]["primaryKey"]
            .as_str()
            .expect("a key");
        let key = SymmetricKey::parse(key).expect("a key");
        sign_sas(
            &format!("{HOST}/devices/{device}/modules/{module}"),
            &key,
            hours_from_now(1),
            None,
        )
    }

    /// A call of the edge hub of `edge`.
    async fn call(&self, edge: &str, method: &str, operation: &str, body: Option<Value>) -> Answer {
        let token = self.token(edge, "$edgeHub").await;
        let path = format!("/devices/{edge}/modules/$edgeHub/{operation}");
        self.service
            .call(method, &path, &[("authorization", &token)], body)
            .await
    }

    async fn ids(&self, edge: &str, chain: &str) -> (Vec<String>, Vec<String>) {
        let answer = self
            .call(
                edge,
                "POST",
                LIST,
                Some(json!({"pageSize": 10, "authChain": chain})),
            )
            .await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        assert_eq!(answer.body["continuationLink"], Value::Null);
        ids(&answer)
    }
}

fn ids(answer: &Answer) -> (Vec<String>, Vec<String>) {
    let text = |value: &Value| value.as_str().expect("an id").to_owned();
    let devices = answer.body["devices"].as_array().expect("devices").iter();
    let modules = answer.body["modules"].as_array().expect("modules").iter();
    (
        devices.map(|device| text(&device["deviceId"])).collect(),
        modules
            .map(|module| format!("{}/{}", text(&module["deviceId"]), text(&module["moduleId"])))
            .collect(),
    )
}

#[tokio::test]
async fn an_edge_hub_sees_what_is_below_its_device_level_by_level() {
    let tree = Tree::plant().await;
    let (devices, modules) = tree.ids("top", "top").await;
    assert_eq!(devices, ["top", "mid"]);
    assert_eq!(modules, ["top/$edgeAgent", "top/$edgeHub"]);
    let (devices, modules) = tree.ids("top", "mid;top").await;
    assert_eq!(devices, ["mid", "leaf", "low"]);
    assert_eq!(modules, ["mid/$edgeAgent", "mid/$edgeHub", "mid/app", "leaf/app"]);
    let (devices, _) = tree.ids("top", "low;mid;top").await;
    assert_eq!(devices, ["low"]);
    // As an edge hub of the original names itself.
    let (devices, _) = tree.ids("mid", "mid/$edgeHub;mid").await;
    assert_eq!(devices, ["mid", "leaf", "low"]);
    let answer = tree
        .call("mid", "POST", LIST, Some(json!({"authChain": "mid"})))
        .await;
    assert!(answer.body["devices"][1]["authentication"]["symmetricKey"]["primaryKey"].is_string());
}

#[tokio::test]
async fn chains_that_are_not_registered_are_refused() {
    let tree = Tree::plant().await;
    let refused = async |edge: &str, chain: &str| {
        let answer = tree
            .call(edge, "POST", LIST, Some(json!({"authChain": chain})))
            .await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{edge}: {chain}");
        let body = json!({"targetDeviceId": "low", "authChain": chain});
        let answer = tree.call(edge, "POST", ONE, Some(body)).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{edge}: {chain}");
        let body = json!({"module": {"moduleId": "evil"}, "authChain": chain});
        let answer = tree.call(edge, "POST", "putModuleOnBehalfOf", Some(body)).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{edge}: {chain}");
    };
    for (edge, chain) in [
        ("top", "stray;top"),
        ("top", "stray"),
        ("top", "mid"),
        ("top", "low;top"),
        ("top", "top;mid"),
        ("top", "mid;top;mid"),
        ("mid", "top;mid"),
        ("mid", "low;mid;top"),
        ("stray", "low;mid;stray"),
        ("top", ";;"),
        ("top", "nobody;top"),
        ("top", "low;mid;low;mid;low;mid;low;mid;top"),
    ] {
        refused(edge, chain).await;
    }
    let missing = tree.call("top", "POST", LIST, Some(json!({"pageSize": 3}))).await;
    assert_eq!(missing.status, StatusCode::BAD_REQUEST);
    // A disabled edge device in the middle cuts off what is below it.
    let mid = tree.service.owner("GET", "/devices/mid", None).await.body;
    let mut body = mid.clone();
    body["status"] = json!("disabled");
    let token = tree.service.token("iothubowner");
    let headers = [("authorization", token.as_str()), ("if-match", "*")];
    let disabled = tree
        .service
        .call("PUT", "/devices/mid", &headers, Some(body))
        .await;
    assert_eq!(disabled.status, StatusCode::OK);
    refused("top", "low;mid;top").await;
    refused("mid", "mid").await;
}

#[tokio::test]
async fn only_the_edge_hub_itself_is_let_in() {
    let tree = Tree::plant().await;
    let service = &tree.service;
    let (list, body) = (
        format!("/devices/top/modules/$edgeHub/{LIST}"),
        json!({"authChain": "top"}),
    );
    let tokens = [
        ("the device", service.device_token("top").await),
        ("its agent", tree.token("top", "$edgeAgent").await),
        ("another edge hub", tree.token("mid", "$edgeHub").await),
        ("the owner of the hub", service.token("iothubowner")),
        ("the policy of devices", service.token("device")),
    ];
    for (who, token) in &tokens {
        let answer = service
            .call("POST", &list, &[("authorization", token)], Some(body.clone()))
            .await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{who}");
    }
    // Its own token is good for its own path only, whatever module the path names.
    let token = tree.token("top", "$edgeHub").await;
    for path in [
        format!("/devices/mid/modules/$edgeHub/{LIST}"),
        format!("/devices/top/modules/$edgeAgent/{LIST}"),
        format!("/devices/top/modules/app/{LIST}"),
    ] {
        let answer = service
            .call("POST", &path, &[("authorization", &token)], Some(body.clone()))
            .await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    // The dollar sign may be encoded.
    let path = format!("/devices/top/modules/%24edgeHub/{LIST}");
    let answer = service
        .call("POST", &path, &[("authorization", &token)], Some(body))
        .await;
    assert_eq!(answer.status, StatusCode::OK);
}

#[tokio::test]
async fn scopes_come_in_pages() {
    let tree = Tree::plant().await;
    let mid = tree.service.owner("GET", "/devices/mid", None).await.body;
    for number in 0..5 {
        tree.put(&format!("x{number}"), json!({"deviceScope": mid["deviceScope"]}))
            .await;
    }
    let mut seen = Vec::new();
    let mut link = Value::Null;
    loop {
        let body = json!({"pageSize": 3, "continuationLink": link, "authChain": "mid;top"});
        let answer = tree.call("top", "POST", LIST, Some(body)).await;
        seen.extend(ids(&answer).0);
        link = answer.body["continuationLink"].clone();
        if link.is_null() {
            break;
        }
    }
    let all = ["mid", "leaf", "low", "x0", "x1", "x2", "x3", "x4"];
    assert_eq!(seen, all);
    // The older form: a link to follow.
    let token = tree.token("mid", "$edgeHub").await;
    let headers = [("authorization", token.as_str())];
    let mut seen = Vec::new();
    let first = "/devices/mid/modules/%24edgeHub/devicesAndModulesInDeviceScope";
    let mut link = Some(format!(
        "{first}?deviceCount=2&continuationToken=&api-version=2018-08-30-preview"
    ));
    while let Some(path) = link.take() {
        let answer = tree.service.raw("GET", &path, &headers, None).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.body);
        seen.extend(ids(&answer).0);
        link = answer.body["continuationLink"].as_str().map(str::to_owned);
    }
    assert_eq!(seen, all);
}

#[tokio::test]
async fn one_identity_is_found_where_it_is_and_nowhere_else() {
    let tree = Tree::plant().await;
    let one = async |edge: &str, chain: &str, device: &str, module: Option<&str>| {
        let body = json!({"targetDeviceId": device, "targetModuleId": module, "authChain": chain});
        let answer = tree.call(edge, "POST", ONE, Some(body)).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.body);
        ids(&answer)
    };
    let none = (Vec::<String>::new(), Vec::<String>::new());
    let found = |device: &str, module: &[&str]| {
        (
            vec![device.to_owned()],
            module.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>(),
        )
    };
    assert_eq!(one("mid", "mid", "leaf", None).await, found("leaf", &[]));
    assert_eq!(
        one("mid", "mid", "leaf", Some("app")).await,
        found("leaf", &["leaf/app"])
    );
    assert_eq!(
        one("top", "mid;top", "leaf", Some("app")).await,
        found("leaf", &["leaf/app"])
    );
    assert_eq!(
        one("mid", "mid", "mid", Some("app")).await,
        found("mid", &["mid/app"])
    );
    assert_eq!(one("mid", "mid", "mid", Some("gone")).await, none);
    assert_eq!(one("mid", "mid", "nobody", None).await, none);
    assert_eq!(one("mid", "mid", "stray", None).await, none);
    assert_eq!(one("top", "top", "leaf", None).await, none);
    let path = "deviceAndModuleInDeviceScope?targetDeviceId=leaf&targetModuleId=";
    assert_eq!(
        ids(&tree.call("mid", "GET", path, None).await),
        found("leaf", &[])
    );
    let path = "deviceAndModuleInDeviceScope?targetDeviceId=stray&targetModuleId=";
    assert_eq!(ids(&tree.call("mid", "GET", path, None).await), none);
    // A chain that begins with the identity itself; that it is disabled is for the answer to say.
    let mut disabled = tree.service.owner("GET", "/devices/leaf", None).await.body;
    disabled["status"] = json!("disabled");
    let owner = [
        ("authorization", &*tree.service.token("iothubowner")),
        ("if-match", "*"),
    ];
    let changed = tree
        .service
        .call("PUT", "/devices/leaf", &owner, Some(disabled))
        .await;
    assert_eq!(changed.status, StatusCode::OK, "{}", changed.body);
    assert_eq!(one("mid", "leaf;mid", "leaf", None).await, found("leaf", &[]));
    assert_eq!(
        one("mid", "leaf/app;leaf;mid", "leaf", Some("app")).await,
        found("leaf", &["leaf/app"])
    );
}

#[tokio::test]
async fn modules_are_managed_on_behalf_of_an_edge_device_below() {
    let tree = Tree::plant().await;
    let call = async |method: &str, operation: &str, body: Value| {
        tree.call("top", method, operation, Some(body)).await
    };
    let chain = "low;mid;top";
    let module = json!({"moduleId": "new", "deviceId": "low", "managedBy": "IotEdge"});
    let body = json!({"authChain": chain, "module": module});
    let made = call("POST", "putModuleOnBehalfOf", body.clone()).await;
    assert_eq!(made.status, StatusCode::OK, "{}", made.body);
    assert_eq!(made.body["managedBy"], "IotEdge");
    let again = call("PUT", "putModuleOnBehalfOf", body).await;
    assert_eq!(again.status, StatusCode::CONFLICT);
    let foreign = json!({"authChain": chain, "module": {"moduleId": "new", "deviceId": "stray"}});
    let foreign = call("POST", "putModuleOnBehalfOf", foreign).await;
    assert_eq!(foreign.status, StatusCode::BAD_REQUEST);

    let key = "MDEyMzQ1Njc4OWFiY2RlZg==";
    let keys = json!({"authChain": chain, "module": {"moduleId": "new",
        "authentication": {"type": "sas", "symmetricKey": {"primaryKey": key, "secondaryKey": key}}}});
    let token = tree.token("top", "$edgeHub").await;
    let headers = [("authorization", token.as_str()), ("if-match", "*")];
    let path = "/devices/top/modules/$edgeHub/putModuleOnBehalfOf";
    let changed = tree.service.call("POST", path, &headers, Some(keys)).await;
    assert_eq!(changed.status, StatusCode::OK, "{}", changed.body);
    let read = json!({"authChain": chain, "targetModuleId": "new"});
    let read = call("POST", "getModuleOnBehalfOf", read).await;
    assert_eq!(read.body["authentication"]["symmetricKey"]["primaryKey"], key);
    let listed = call("POST", "getModulesOnTargetDevice", json!({"authChain": chain})).await;
    assert_eq!(listed.body.as_array().map(Vec::len), Some(4), "{}", listed.body);
    let delete = json!({"authChain": chain, "moduleId": "new"});
    let deleted = call("POST", "deleteModuleOnBehalfOf", delete.clone()).await;
    assert_eq!(deleted.status, StatusCode::NO_CONTENT);
    let deleted = call("POST", "deleteModuleOnBehalfOf", delete).await;
    assert_eq!(deleted.status, StatusCode::NOT_FOUND);
}
