//! What every [`crate::configuration::ConfigurationStore`] does.
#![allow(missing_docs, clippy::missing_panics_doc, reason = "the names say it")]

use std::collections::BTreeSet;
use std::sync::Arc;

use holdfast_model::Identity;
use holdfast_model::configuration::{Configuration, ConfigurationStatus, Content};
use serde_json::json;

use super::StateStore;
use super::fixtures::{at, create, id};
use crate::assert_fails;
use crate::configuration::{Reach, ReachCounts};
use crate::enrollment::Expected;

/// A configuration of devices.
#[must_use]
pub fn configuration(id: &str, version: u64) -> Configuration {
    let content = json!({"properties.desired.a": {"x": 1.5, "text": "ä"}, "properties.desired.b": [1, "2"]});
    Configuration {
        id: id.into(),
        schema_version: Some("2.0".into()),
        labels: [("site".to_owned(), "north".to_owned())].into(),
        content: Content::Device(content.as_object().cloned().unwrap_or_default()),
        target_condition: "tags.site = 'north'".into(),
        priority: 7,
        metrics: [("n".to_owned(), "SELECT deviceId FROM devices".to_owned())].into(),
        created_at: at(1),
        updated_at: at(2),
        version,
    }
}

async fn show<S: StateStore>(store: &S, identity: &str, shown: &[(&str, ConfigurationStatus)]) {
    let shown: Vec<(String, ConfigurationStatus)> = shown
        .iter()
        .map(|(id, status)| ((*id).to_owned(), *status))
        .collect();
    let mutation = Arc::new(move |twin: &mut holdfast_model::twin::Twin| {
        twin.configurations = shown.iter().cloned().collect();
        Ok(())
    });
    store
        .mutate_twin(&id(identity), mutation)
        .await
        .expect("it is there");
}

async fn all_configured<S: StateStore>(store: &S, limit: usize) -> BTreeSet<Identity> {
    let (mut all, mut after) = (BTreeSet::new(), None);
    loop {
        let page = store.configured(after.as_deref(), limit).await.expect("readable");
        assert!(page.identities.len() <= limit);
        for identity in page.identities {
            assert!(all.insert(identity), "each once");
        }
        match page.next {
            None => return all,
            next => after = next,
        }
    }
}

pub async fn configurations_are_kept_whole<S: StateStore>(store: Arc<S>) {
    let (b, a) = (configuration("b", 1), configuration("a", 2));
    let edge = Configuration {
        content: Content::Edge(
            [(
                "$edgeAgent".to_owned(),
                json!({"properties.desired": {}})
                    .as_object()
                    .cloned()
                    .unwrap_or_default(),
            )]
            .into(),
        ),
        ..configuration("c", 3)
    };
    for one in [&b, &a, &edge] {
        store
            .put_configuration(one.clone(), Expected::Absent)
            .await
            .expect("new");
    }
    assert_eq!(store.configurations().await.expect("readable"), [a, b, edge]);
}

pub async fn writes_of_configurations_are_conditional<S: StateStore>(store: Arc<S>) {
    let put = |version, expected| store.put_configuration(configuration("a", version), expected);
    assert_fails!(put(1, Expected::Version(1)).await, Missing);
    put(1, Expected::Absent).await.expect("new");
    assert_fails!(put(2, Expected::Absent).await, Exists);
    assert_fails!(put(2, Expected::Version(5)).await, Conflict);
    put(2, Expected::Version(1)).await.expect("it matches");
    assert_fails!(
        store.delete_configuration("a", Expected::Version(1)).await,
        Conflict
    );
    store
        .delete_configuration("a", Expected::Whatever)
        .await
        .expect("it is there");
    assert_fails!(store.delete_configuration("a", Expected::Whatever).await, Missing);
}

pub async fn twins_are_found_by_what_they_show<S: StateStore>(store: Arc<S>) {
    use ConfigurationStatus::{Applied, Targeted};
    create(&*store, &["d1", "d2", "d3", "d3/m1", "d3/$edgeAgent", "d4"]).await;
    assert_eq!(all_configured(&*store, 2).await, BTreeSet::new());
    show(&*store, "d1", &[("a", Applied), ("b", Targeted)]).await;
    show(&*store, "d2", &[("b", Applied)]).await;
    show(&*store, "d3/m1", &[("b", Applied)]).await;
    show(&*store, "d3/$edgeAgent", &[("b", Targeted)]).await;
    let expected: BTreeSet<Identity> = ["d1", "d2", "d3/m1", "d3/$edgeAgent"].map(id).into();
    for limit in [1, 2, 10] {
        assert_eq!(all_configured(&*store, limit).await, expected, "pages of {limit}");
    }
    let count = |reach| store.count_configured("b", reach);
    let counts = |targeted, applied| ReachCounts { targeted, applied };
    assert_eq!(count(Reach::Devices).await.expect("readable"), counts(2, 1));
    assert_eq!(count(Reach::Modules).await.expect("readable"), counts(2, 1));
    assert_eq!(count(Reach::EdgeAgents).await.expect("readable"), counts(1, 0));

    show(&*store, "d2", &[]).await;
    store.delete(&id("d3"), None).await.expect("it is there");
    assert_eq!(all_configured(&*store, 10).await, BTreeSet::from([id("d1")]));
    assert_eq!(count(Reach::Devices).await.expect("readable"), counts(1, 0));
    assert_eq!(count(Reach::EdgeAgents).await.expect("readable"), counts(0, 0));
}

pub async fn paging_skips_nobody_while_twins_change<S: StateStore>(store: Arc<S>) {
    let names: Vec<String> = (0..20).map(|number| format!("d{number:02}")).collect();
    create(&*store, &names.iter().map(String::as_str).collect::<Vec<_>>()).await;
    for name in &names {
        show(&*store, name, &[("a", ConfigurationStatus::Applied)]).await;
    }
    let (mut seen, mut after) = (0, None);
    loop {
        let page = store.configured(after.as_deref(), 3).await.expect("readable");
        seen += page.identities.len();
        for identity in &page.identities {
            show(&*store, identity.as_str(), &[]).await;
        }
        match page.next {
            None => break,
            next => after = next,
        }
    }
    assert_eq!(seen, 20);
    assert_eq!(all_configured(&*store, 10).await, BTreeSet::new());
}
