//! A double of the hub above.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use holdfast_model::credential::SymmetricKey;
use holdfast_model::message::Message;
use holdfast_model::method::MethodResponse;
use holdfast_model::{Identity, Timestamp};
use holdfast_ports::BoxFuture;
use holdfast_upstream::port::{
    Account, Cloud, CloudClient, CloudError, CloudEvent, CloudRegistry, Interests, ModuleIdentity, Proof,
    Reach, ScopeIdentity, ScopePage, SendFailure, Settle, TokenSigner,
};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, watch};

/// The hub above, and what it saw.
pub(crate) struct FakeCloud {
    reach: watch::Sender<Reach>,
    pub(crate) state: Mutex<State>,
    /// The answer that ends a reading of the scope.
    pub(crate) scopes: Gate,
    /// Answers about single identities.
    pub(crate) identities: Gate,
}

/// Keeps answers back between their making and their arrival.
pub(crate) struct Gate {
    closed: watch::Sender<bool>,
    waiting: AtomicUsize,
}

impl Gate {
    fn open() -> Self {
        Gate {
            closed: watch::channel(false).0,
            waiting: AtomicUsize::new(0),
        }
    }

    /// From now on answers wait.
    pub(crate) fn hold(&self) {
        self.closed.send_replace(true);
    }

    /// They arrive.
    pub(crate) fn release(&self) {
        self.closed.send_replace(false);
    }

    /// How many wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    async fn pass(&self) {
        let mut closed = self.closed.subscribe();
        if *closed.borrow_and_update() {
            let _waits = Waits::of(self);
            let _ = closed.wait_for(|closed| !closed).await;
        }
    }
}

/// Counts an answer that waits, until it arrives or nobody asks any more.
struct Waits<'a>(&'a Gate);

impl<'a> Waits<'a> {
    fn of(gate: &'a Gate) -> Self {
        gate.waiting.fetch_add(1, Ordering::SeqCst);
        Waits(gate)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) online: bool,
    /// Messages in the order of their arrival, by sender.
    pub(crate) received: Vec<(String, Message)>,
    /// Senders that are refused.
    pub(crate) unauthorized: HashSet<String>,
    /// Bodies that are refused for good.
    pub(crate) refused: HashSet<Vec<u8>>,
    /// Takes so many messages, then the connection breaks; so many more arrive whose acknowledgement is lost.
    pub(crate) break_after: Option<(usize, usize)>,
    pub(crate) twins: HashMap<String, Twin>,
    pub(crate) twin_reads: usize,
    pub(crate) settled: Vec<(u64, Settle)>,
    pub(crate) answers: Vec<(u64, MethodResponse)>,
    pub(crate) interests: HashMap<String, Interests>,
    pub(crate) chains: HashMap<String, String>,
    pub(crate) scope: Vec<ScopeIdentity>,
    pub(crate) scope_reads: usize,
    pub(crate) identity_reads: Vec<String>,
    /// Questions for single identities get no answer.
    pub(crate) registry_fails: bool,
    /// Each page of the scope says that another follows.
    pub(crate) scope_is_endless: bool,
    /// Chains by which identities are found; whoever is not named here is found by any.
    pub(crate) ways: HashMap<String, String>,
    events: HashMap<String, mpsc::UnboundedSender<CloudEvent>>,
    /// Most calls of `send` under way at once.
    pub(crate) sending_max: usize,
    sending: usize,
}

#[derive(Clone, Default)]
pub(crate) struct Twin {
    pub(crate) desired: Map<String, Value>,
    pub(crate) desired_version: u64,
    pub(crate) reported: Map<String, Value>,
    pub(crate) reported_version: u64,
}

impl FakeCloud {
    pub(crate) fn new(online: bool) -> Arc<Self> {
        let cloud = FakeCloud {
            reach: watch::channel(Reach::Unknown).0,
            state: Mutex::default(),
            scopes: Gate::open(),
            identities: Gate::open(),
        };
        cloud.set_online(online);
        Arc::new(cloud)
    }

    pub(crate) fn set_online(&self, online: bool) {
        self.state.lock().online = online;
        let reach = match online {
            true => Reach::Online,
            false => Reach::Offline {
                since: Timestamp::from_seconds(1),
            },
        };
        self.reach.send_replace(reach);
    }

    /// Tells a client something, if it has a conversation.
    pub(crate) fn push(&self, identity: &str, event: CloudEvent) -> bool {
        let state = self.state.lock();
        state
            .events
            .get(identity)
            .is_some_and(|events| events.send(event).is_ok())
    }

    /// How often a single identity was asked for.
    pub(crate) fn reads_of(&self, identity: &str) -> usize {
        let state = self.state.lock();
        state.identity_reads.iter().filter(|id| *id == identity).count()
    }

    pub(crate) fn bodies(&self, sender: &str) -> Vec<String> {
        let state = self.state.lock();
        let of_sender = state.received.iter().filter(|(from, _)| from == sender);
        of_sender
            .map(|(_, message)| String::from_utf8_lossy(&message.body).into_owned())
            .collect()
    }

    /// Changes desired properties, and pushes the change if asked to.
    pub(crate) fn desire(&self, identity: &str, change: Value, push: bool) {
        let version = {
            let mut state = self.state.lock();
            let twin = state.twins.entry(identity.to_owned()).or_default();
            for (key, value) in change.as_object().expect("an object") {
                match value {
                    Value::Null => twin.desired.remove(key),
                    value => twin.desired.insert(key.clone(), value.clone()),
                };
            }
            twin.desired_version += 1;
            twin.desired_version
        };
        if push {
            let mut patch = change;
            patch["$version"] = version.into();
            self.push(
                identity,
                CloudEvent::Desired {
                    version,
                    patch: patch.to_string().into(),
                },
            );
        }
    }

    pub(crate) fn reported(&self, identity: &str) -> Value {
        let state = self.state.lock();
        state
            .twins
            .get(identity)
            .map_or(Value::Null, |twin| Value::Object(twin.reported.clone()))
    }
}

fn unreachable() -> CloudError {
    CloudError::Unreachable("the cable is cut".to_owned())
}

struct FakeClient {
    cloud: Arc<FakeCloud>,
    identity: String,
    events: tokio::sync::Mutex<mpsc::UnboundedReceiver<CloudEvent>>,
}

pub(crate) struct CloudHandle(pub(crate) Arc<FakeCloud>);

impl Cloud for CloudHandle {
    fn client(&self, account: Account) -> Arc<dyn CloudClient> {
        let identity = account.identity.as_str().to_owned();
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.0.state.lock();
        if let Proof::OnBehalf { chain, .. } = &account.proof {
            state.chains.insert(identity.clone(), chain.clone());
        }
        if state.online {
            let _ = sender.send(CloudEvent::Connected);
        }
        state.events.insert(identity.clone(), sender);
        Arc::new(FakeClient {
            cloud: Arc::clone(&self.0),
            identity,
            events: tokio::sync::Mutex::new(receiver),
        })
    }

    fn reach(&self) -> watch::Receiver<Reach> {
        self.0.reach.subscribe()
    }

    fn nudge(&self) {}
}

impl FakeClient {
    fn take(&self, messages: &[Message]) -> Result<(), SendFailure> {
        let mut state = self.cloud.state.lock();
        let failed = |accepted, cause| Err(SendFailure { accepted, cause });
        if !state.online {
            return failed(0, unreachable());
        }
        let known = state
            .scope
            .iter()
            .any(|entry| entry.identity.as_str() == self.identity);
        if !known || state.unauthorized.contains(&self.identity) {
            return failed(0, CloudError::Unauthorized("disabled".to_owned()));
        }
        for (index, message) in messages.iter().enumerate() {
            if state.refused.contains(&message.body[..]) {
                let message = "not like this".to_owned();
                return failed(index, CloudError::Refused { status: 400, message });
            }
            if let Some((left, lost)) = state.break_after {
                if left == 0 {
                    state.break_after = None;
                    for more in messages[index..].iter().take(lost) {
                        state.received.push((self.identity.clone(), more.clone()));
                    }
                    return failed(index, unreachable());
                }
                state.break_after = Some((left - 1, lost));
            }
            state.received.push((self.identity.clone(), message.clone()));
        }
        Ok(())
    }
}

impl CloudClient for FakeClient {
    fn want(&self, interests: Interests) {
        let mut state = self.cloud.state.lock();
        state.interests.insert(self.identity.clone(), interests);
    }

    fn send<'a>(&'a self, messages: &'a [Message]) -> BoxFuture<'a, Result<(), SendFailure>> {
        Box::pin(async move {
            {
                let mut state = self.cloud.state.lock();
                state.sending += 1;
                state.sending_max = state.sending_max.max(state.sending);
            }
            tokio::time::sleep(std::time::Duration::from_millis(1)).await;
            let outcome = self.take(messages);
            self.cloud.state.lock().sending -= 1;
            outcome
        })
    }

    fn twin(&self) -> BoxFuture<'_, Result<Bytes, CloudError>> {
        Box::pin(async move {
            let mut state = self.cloud.state.lock();
            if !state.online {
                return Err(unreachable());
            }
            state.twin_reads += 1;
            let twin = state.twins.entry(self.identity.clone()).or_insert_with(|| Twin {
                desired_version: 1,
                reported_version: 1,
                ..Twin::default()
            });
            let section = |properties: &Map<String, Value>, version: u64| {
                let mut section = properties.clone();
                section.insert("$version".to_owned(), version.into());
                section
            };
            let json = json!({
                "desired": section(&twin.desired, twin.desired_version),
                "reported": section(&twin.reported, twin.reported_version),
            });
            Ok(json.to_string().into())
        })
    }

    fn patch_reported(&self, patch: Bytes) -> BoxFuture<'_, Result<u64, CloudError>> {
        Box::pin(async move {
            let mut state = self.cloud.state.lock();
            if !state.online {
                return Err(unreachable());
            }
            let twin = state.twins.entry(self.identity.clone()).or_default();
            let patch: Value = serde_json::from_slice(&patch).expect("JSON");
            let mut reported = Value::Object(twin.reported.clone());
            apply(&mut reported, &patch);
            twin.reported = reported.as_object().expect("an object").clone();
            twin.reported_version += 1;
            Ok(twin.reported_version)
        })
    }

    fn answer(&self, request_id: u64, response: MethodResponse) {
        self.cloud.state.lock().answers.push((request_id, response));
    }

    fn settle(&self, token: u64, how: Settle) {
        self.cloud.state.lock().settled.push((token, how));
    }

    fn next(&self) -> BoxFuture<'_, CloudEvent> {
        Box::pin(async move {
            match self.events.lock().await.recv().await {
                Some(event) => event,
                None => std::future::pending().await,
            }
        })
    }
}

/// A merge patch, as a hub applies it.
fn apply(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    let target = target.as_object_mut().expect("an object");
    for (key, value) in patch {
        match value {
            Value::Null => {
                target.remove(key);
            }
            value => apply(target.entry(key.clone()).or_insert(Value::Null), value),
        }
    }
}

pub(crate) struct Signer(pub(crate) SymmetricKey);

impl TokenSigner for Signer {
    fn sign<'a>(&'a self, text: &'a [u8]) -> BoxFuture<'a, Result<[u8; 32], CloudError>> {
        Box::pin(async move { Ok(self.0.sign(&[text])) })
    }
}

pub(crate) struct Registry(pub(crate) Arc<FakeCloud>);

impl CloudRegistry for Registry {
    fn modules(&self) -> BoxFuture<'_, Result<Vec<ModuleIdentity>, CloudError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn create_module<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
    ) -> BoxFuture<'a, Result<ModuleIdentity, CloudError>> {
        Box::pin(async { Err(unreachable()) })
    }

    fn set_module_keys<'a>(
        &'a self,
        module: &'a ModuleIdentity,
        _: &'a SymmetricKey,
        _: &'a SymmetricKey,
    ) -> BoxFuture<'a, Result<ModuleIdentity, CloudError>> {
        Box::pin(async { Ok(module.clone()) })
    }

    fn delete_module<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<(), CloudError>> {
        Box::pin(async { Ok(()) })
    }

    /// Two identities a page; a child edge device has its own.
    fn scope_page<'a>(
        &'a self,
        target: &'a str,
        _: &'a str,
        continuation: Option<&'a str>,
    ) -> BoxFuture<'a, Result<ScopePage, CloudError>> {
        Box::pin(async move {
            let page = self.page(target, continuation);
            // The end of a reading, good or bad.
            if page.as_ref().map_or(true, |page| page.continuation.is_none()) {
                self.0.scopes.pass().await;
            }
            page
        })
    }

    fn scope_identity<'a>(
        &'a self,
        target: &'a Identity,
        chain: &'a str,
    ) -> BoxFuture<'a, Result<Vec<ScopeIdentity>, CloudError>> {
        Box::pin(async move {
            let answer = self.identity(target, chain);
            self.0.identities.pass().await;
            answer
        })
    }
}

impl Registry {
    fn page(&self, target: &str, continuation: Option<&str>) -> Result<ScopePage, CloudError> {
        let mut state = self.0.state.lock();
        if !state.online {
            return Err(unreachable());
        }
        state.scope_reads += 1;
        let own_scope = state
            .scope
            .iter()
            .find(|entry| entry.identity.as_str() == target)
            .and_then(|entry| entry.device_scope.clone());
        let below: Vec<ScopeIdentity> = state
            .scope
            .iter()
            .filter(|entry| {
                entry.identity.device_id() == target
                    || own_scope
                        .as_ref()
                        .is_some_and(|scope| entry.parent_scopes.contains(scope))
            })
            .cloned()
            .collect();
        let start: usize = continuation.map_or(0, |at| at.parse().expect("our own"));
        let end = below.len().min(start + 2);
        Ok(ScopePage {
            continuation: match state.scope_is_endless {
                true => Some("0".to_owned()),
                false => (end < below.len()).then(|| end.to_string()),
            },
            identities: below[start..end].to_vec(),
        })
    }

    fn identity(&self, target: &Identity, chain: &str) -> Result<Vec<ScopeIdentity>, CloudError> {
        let mut state = self.0.state.lock();
        if !state.online || state.registry_fails {
            return Err(unreachable());
        }
        state.identity_reads.push(target.as_str().to_owned());
        if state.ways.get(target.as_str()).is_some_and(|way| way != chain) {
            return Err(CloudError::Unauthorized("the chain is none".to_owned()));
        }
        let found = state.scope.iter().filter(|entry| entry.identity == *target);
        Ok(found.cloned().collect())
    }
}
