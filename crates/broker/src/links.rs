//! Conversations with the hub above, one for each client that needs one, each as that client.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use holdfast_model::Identity;
use holdfast_model::limits::METHOD_RESPONSE_TIMEOUT_SECONDS;
use holdfast_model::method::{MethodCall, MethodRequest, MethodResponse};
use holdfast_model::subscription::Channel;
use holdfast_model::{Error, ErrorCode};
use holdfast_observe::tracing;
use holdfast_ports::session::SessionHandle;
use holdfast_upstream::port::{
    Account, Cloud, CloudClient, CloudError, CloudEvent, Interests, Proof, Reach, TokenSigner,
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::Broker;

/// How long a conversation is kept that nobody uses.
const IDLE_MILLIS: u64 = 120_000;

/// The hub above, as the edge hub reaches it.
#[derive(Clone)]
pub struct Above {
    /// Conversations.
    pub cloud: Arc<dyn Cloud>,
    /// Scopes; signs as `$edgeHub`.
    pub registry: Arc<dyn holdfast_upstream::port::CloudRegistry>,
    /// Key of the module `$edgeHub`, which also acts for all clients.
    pub signer: Arc<dyn TokenSigner>,
}

/// One conversation.
pub(crate) struct Link {
    pub(crate) identity: Identity,
    pub(crate) client: Arc<dyn CloudClient>,
    interests: Mutex<Interests>,
    /// Millisecond of the monotonic clock of the last use.
    used: AtomicU64,
    task: Mutex<Option<AbortHandle>>,
}

impl Drop for Link {
    fn drop(&mut self) {
        if let Some(task) = self.task.get_mut().take() {
            task.abort();
        }
    }
}

/// All conversations.
pub(crate) struct Links {
    above: Option<Above>,
    reach: Option<watch::Receiver<Reach>>,
    links: Mutex<HashMap<Identity, Arc<Link>>>,
}

impl Links {
    pub(crate) fn new(above: Option<Above>) -> Self {
        Links {
            reach: above.as_ref().map(|above| above.cloud.reach()),
            above,
            links: Mutex::default(),
        }
    }

    /// Changes of [`Broker::reach`]; `None` when there is no hub above.
    pub(crate) fn watch(&self) -> Option<watch::Receiver<Reach>> {
        self.reach.clone()
    }

    pub(crate) fn get(&self, identity: &Identity) -> Option<Arc<Link>> {
        self.links.lock().get(identity).cloned()
    }

    pub(crate) fn drop_link(&self, identity: &Identity) {
        let dropped = self.links.lock().remove(identity);
        if let Some(link) = dropped
            && let Some(task) = link.task.lock().take()
        {
            task.abort();
        }
    }

    pub(crate) fn drop_all(&self) {
        let all: Vec<Identity> = self.links.lock().keys().cloned().collect();
        for identity in all {
            self.drop_link(&identity);
        }
    }
}

impl Broker {
    /// Whether there is a hub above at all.
    pub(crate) fn has_above(&self) -> bool {
        self.links.above.is_some()
    }

    /// Whether the hub above can be reached; without one it never can.
    pub(crate) fn reach(&self) -> Reach {
        self.links.reach.as_ref().map_or(
            Reach::Offline {
                since: holdfast_model::Timestamp::NEVER,
            },
            |reach| *reach.borrow(),
        )
    }

    /// The conversation of a client, begun when there is none; `None` without a hub above, or when the scope does not have
    /// the client (any more).
    pub(crate) fn link(&self, identity: &Identity) -> Option<Arc<Link>> {
        let above = self.links.above.as_ref()?;
        let now = self.clock.monotonic_millis();
        if let Some(link) = self.links.get(identity) {
            link.used.store(now, Ordering::Relaxed);
            return Some(link);
        }
        let account = self.account(above, identity)?;
        let runtime = self.runtime.get()?;
        let mut links = self.links.links.lock();
        if let Some(link) = links.get(identity) {
            return Some(Arc::clone(link));
        }
        let link = Arc::new(Link {
            identity: identity.clone(),
            client: above.cloud.client(account),
            interests: Mutex::new(Interests::default()),
            used: AtomicU64::new(now),
            task: Mutex::new(None),
        });
        let task = runtime.spawn(converse(
            self.me.clone(),
            Arc::downgrade(&link),
            Arc::clone(&link.client),
        ));
        *link.task.lock() = Some(task.abort_handle());
        links.insert(identity.clone(), Arc::clone(&link));
        Some(link)
    }

    fn account(&self, above: &Above, identity: &Identity) -> Option<Account> {
        let own = *identity == self.own;
        let proof = if own {
            Proof::Key(Arc::clone(&above.signer))
        } else {
            // The hub above refuses whom it does not know; so do we, and without asking.
            self.scope.get(identity)?;
            Proof::OnBehalf {
                actor: self.own.clone(),
                signer: Arc::clone(&above.signer),
                chain: self.scope.chain(identity)?.join(";"),
            }
        };
        Some(Account {
            identity: identity.clone(),
            proof,
            product_info: self.config.product_info.clone(),
            model_id: self
                .sessions
                .get(identity)
                .and_then(|session| session.data_schema().map(str::to_owned)),
        })
    }

    /// A client has come, gone, or changed its subscriptions: the hub above is told what to push.
    pub(crate) fn interests_changed(&self, identity: &Identity) {
        let interests = if *identity == self.own {
            Interests {
                methods: true,
                desired: true,
                cloud_to_device: false,
            }
        } else {
            self.sessions
                .get(identity)
                .filter(|session| !session.is_ended())
                .map_or_else(Interests::default, |session| Interests {
                    methods: session.subscribed(Channel::Methods),
                    desired: session.subscribed(Channel::DesiredProperties),
                    cloud_to_device: session.subscribed(Channel::CloudToDevice) && !identity.is_module(),
                })
        };
        let link = match interests == Interests::default() {
            true => self.links.get(identity),
            false => self.link(identity),
        };
        if let Some(link) = link {
            let mut known = link.interests.lock();
            if *known != interests {
                *known = interests;
                link.client.want(interests);
            }
        }
    }

    /// Ends conversations that nobody uses, so that the hub above does not keep connections for clients that are gone.
    pub(crate) fn drop_idle_links(&self) {
        let now = self.clock.monotonic_millis();
        let idle: Vec<Identity> = {
            let links = self.links.links.lock();
            let is_idle = |link: &&Arc<Link>| {
                *link.interests.lock() == Interests::default()
                    && now.saturating_sub(link.used.load(Ordering::Relaxed)) > IDLE_MILLIS
                    && Arc::strong_count(link) == 1
            };
            links
                .values()
                .filter(is_idle)
                .map(|link| link.identity.clone())
                .collect()
        };
        for identity in idle {
            self.links.drop_link(&identity);
        }
    }

    async fn relay_method(&self, link: Arc<Link>, request: MethodRequest) {
        let (_, usual, _) = METHOD_RESPONSE_TIMEOUT_SECONDS;
        let call = MethodCall {
            name: request.name.clone(),
            payload: request.payload.clone(),
            connect_timeout: Duration::ZERO,
            // The hub above has its own, which it does not tell; this one only bounds what is kept here.
            response_timeout: Duration::from_secs(usual * 10),
        };
        let response = if link.identity == self.own {
            self.answer_own(&request).await
        } else {
            match self.call("upstream", &link.identity, call).await {
                Ok(response) => response,
                Err(error) => failed_method(&error),
            }
        };
        link.client.answer(request.request_id, response);
    }
}

/// What the hub above is answered for a client that does not answer.
fn failed_method(error: &Error) -> MethodResponse {
    let status = match error.code {
        ErrorCode::DeviceNotOnline => 404,
        ErrorCode::GatewayTimeout | ErrorCode::DeviceConnectionClosedRemotely => 504,
        ErrorCode::ThrottlingException => 429,
        _ => 500,
    };
    let payload = serde_json::json!({ "message": error.message });
    MethodResponse {
        status,
        payload: payload.to_string().into(),
    }
}

/// Takes what the hub above says to one client, until the conversation is dropped.
async fn converse(broker: Weak<Broker>, link: Weak<Link>, client: Arc<dyn CloudClient>) {
    loop {
        let event = client.next().await;
        let (Some(broker), Some(link)) = (broker.upgrade(), link.upgrade()) else {
            return;
        };
        let identity = &link.identity;
        match event {
            CloudEvent::Connected => {
                tracing::debug!(identity = identity.as_str(), "edge hub connected upstream");
                broker.opened.lock().insert(identity.clone());
                broker.forward_now();
                broker.read_twin_again(identity).await;
            }
            CloudEvent::Disconnected(cause) => {
                tracing::debug!(identity = identity.as_str(), %cause, "edge hub disconnected upstream");
                broker.drop_relayed(identity);
                if matches!(cause, CloudError::Unauthorized(_)) && *identity != broker.own {
                    broker.look_up(identity).await;
                }
            }
            CloudEvent::Method(request) => {
                let (broker, link) = (Arc::clone(&broker), Arc::clone(&link));
                tokio::spawn(async move { broker.relay_method(link, request).await });
            }
            CloudEvent::Desired { version, patch } => {
                broker.desired_pushed(identity, version, &patch).await;
            }
            CloudEvent::CloudToDevice(message) => broker.relay(&link, message),
        }
    }
}

/// Whether a session is one that gets cloud-to-device messages.
pub(crate) fn takes_c2d(session: &SessionHandle) -> bool {
    !session.identity().is_module() && session.subscribed(Channel::CloudToDevice)
}
