//! Devices of a test: registered in bulk with keys of our own, so that tokens are signed here without asking anybody.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use holdfast_model::Timestamp;
use holdfast_model::credential::{SymmetricKey, sign_sas};
use holdfast_program::failure::{Failure, Kind};
use serde_json::{Value, json};

use super::amqp_client::{self, WantedLink};
use super::fleet::{Account, Endpoint};
use crate::cli::client::{API_VERSION, Client};

/// Most entries of one bulk request (rest.md 5.4).
const BULK_MAX: usize = 100;

/// Bulk requests under way at once: enough to keep the hub's writer busy while another answer is read.
const REQUESTS_AT_ONCE: usize = 4;

/// Life of the tokens that devices log in with.
const TOKEN_LIFE: Duration = Duration::from_secs(24 * 3_600);

/// Longest keep-alive whose one and a half fold the hub still grants: no pings during a measurement.
pub(crate) const KEEP_ALIVE_SECONDS: u16 = 1_170;

/// A registered device.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    pub(crate) id: String,
    /// `None` for one that proves itself by the certificate of its [`Place`].
    pub(crate) key: Option<SymmetricKey>,
    /// Where it connects to, if not where the others do.
    pub(crate) place: Option<Arc<Place>>,
}

/// Where a device connects to.
pub(crate) struct Place {
    /// Host name in user names and tokens.
    pub(crate) host: String,
    pub(crate) endpoint: Endpoint,
}

impl std::fmt::Debug for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Place")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

/// Whom connections log in as.
pub(crate) enum Accounts {
    /// Nobody in particular, for brokers.
    Anonymous,
    /// Devices of a hub.
    Devices {
        /// Host name in user names and tokens.
        host: String,
        /// One per connection.
        devices: Vec<Device>,
    },
}

impl Accounts {
    /// What connection `index` says in CONNECT.
    pub(crate) fn account(&self, index: usize) -> Account {
        match self {
            Accounts::Anonymous => Account {
                client_id: format!("bench-{index}"),
                keep_alive: KEEP_ALIVE_SECONDS,
                clean_session: true,
                ..Account::default()
            },
            Accounts::Devices { host, devices } => {
                let device = &devices[index % devices.len()];
                Account {
                    keep_alive: KEEP_ALIVE_SECONDS,
                    clean_session: true,
                    ..device.account(host, TOKEN_LIFE)
                }
            }
        }
    }

    /// The id of the device that connection `index` logs in as; empty for nobody in particular.
    pub(crate) fn device_id(&self, index: usize) -> &str {
        match self {
            Accounts::Anonymous => "",
            Accounts::Devices { devices, .. } => &devices[index % devices.len()].id,
        }
    }

    /// What connection `index` says over AMQP, to attach `links`.
    pub(crate) fn amqp_account(&self, index: usize, links: Vec<WantedLink>) -> amqp_client::Account {
        let (host, audience, token) = match self {
            Accounts::Anonymous => Default::default(),
            Accounts::Devices { host, devices } => {
                let device = &devices[index % devices.len()];
                (
                    host.clone(),
                    device.audience(host),
                    device.token(host, TOKEN_LIFE).unwrap_or_default(),
                )
            }
        };
        amqp_client::Account {
            host,
            audience,
            token_type: "servicebus.windows.net:sastoken",
            token,
            links,
        }
    }

    /// Where connection `index` publishes telemetry.
    pub(crate) fn telemetry_topic(&self, index: usize) -> String {
        match self {
            Accounts::Anonymous => format!("bench/{index}"),
            Accounts::Devices { devices, .. } => devices[index % devices.len()].telemetry_topic(),
        }
    }

    /// What an ordinary device subscribes to: four filters, on a broker as on a hub.
    pub(crate) fn filters(&self, index: usize) -> Vec<String> {
        match self {
            Accounts::Anonymous => ["c2d", "twin", "desired", "methods"]
                .iter()
                .map(|name| format!("bench/{index}/{name}/#"))
                .collect(),
            Accounts::Devices { devices, .. } => devices[index % devices.len()].filters(),
        }
    }
}

impl Device {
    /// What the device says in CONNECT, with a token that lives for `life`.
    pub(crate) fn account(&self, host: &str, life: Duration) -> Account {
        Account {
            client_id: self.id.clone(),
            username: Some(format!(
                "{host}/{}/?api-version={API_VERSION}&DeviceClientType=holdfast",
                self.id
            )),
            password: self.token(host, life),
            ..Account::default()
        }
    }

    /// What the tokens of the device are for.
    fn audience(&self, host: &str) -> String {
        format!("{host}/devices/{}", self.id)
    }

    /// A token that lives for `life`; `None` for a device with a certificate.
    fn token(&self, host: &str, life: Duration) -> Option<String> {
        let expiry = now_seconds().saturating_add(i64::try_from(life.as_secs()).unwrap_or(i64::MAX));
        let expiry = Timestamp::from_seconds(expiry);
        let key = self.key.as_ref()?;
        Some(sign_sas(&self.audience(host), key, expiry, None))
    }

    /// Telemetry without properties.
    pub(crate) fn telemetry_topic(&self) -> String {
        format!("devices/{}/messages/events/", self.id)
    }

    /// Everything a hub may send to a device.
    pub(crate) fn filters(&self) -> Vec<String> {
        vec![
            format!("devices/{}/messages/devicebound/#", self.id),
            "$iothub/twin/res/#".to_owned(),
            "$iothub/twin/PATCH/properties/desired/#".to_owned(),
            "$iothub/methods/POST/#".to_owned(),
        ]
    }
}

/// Seconds since 1970.
pub(crate) fn now_seconds() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Registers `count` devices called `{prefix}{number}`, or gives them new keys if they exist.
pub(crate) fn register(
    client: &Client,
    prefix: &str,
    count: usize,
    progress: impl Fn(usize) + Sync,
) -> anyhow::Result<Vec<Device>> {
    let width = count.saturating_sub(1).to_string().len();
    let devices: Vec<Device> = (0..count)
        .map(|number| Device {
            id: format!("{prefix}{number:0width$}"),
            key: Some(SymmetricKey::generate()),
            place: None,
        })
        .collect();
    let entry = |device: &Device| {
        let key = device.key.as_ref().map(SymmetricKey::reveal);
        json!({
            "id": device.id,
            "importMode": "createOrUpdate",
            "status": "enabled",
            "authentication": { "type": "sas", "symmetricKey": { "primaryKey": key, "secondaryKey": key } },
        })
    };
    bulk(client, &devices, &entry, &progress)?;
    Ok(devices)
}

/// Deletes devices.
pub(crate) fn delete(
    client: &Client,
    devices: &[Device],
    progress: impl Fn(usize) + Sync,
) -> anyhow::Result<()> {
    let entry = |device: &Device| json!({ "id": device.id, "importMode": "delete" });
    bulk(client, devices, &entry, &progress)
}

/// Deletes devices by id.
pub(crate) fn delete_ids(client: &Client, ids: Vec<String>) -> anyhow::Result<()> {
    let devices: Vec<Device> = ids
        .into_iter()
        .map(|id| Device {
            id,
            key: None,
            place: None,
        })
        .collect();
    delete(client, &devices, |_| {})
}

/// Sends an entry per device, in full requests, several at once.
fn bulk(
    client: &Client,
    devices: &[Device],
    entry: &(dyn Fn(&Device) -> Value + Sync),
    progress: &(dyn Fn(usize) + Sync),
) -> anyhow::Result<()> {
    let chunks: Vec<&[Device]> = devices.chunks(BULK_MAX).collect();
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let error = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..REQUESTS_AT_ONCE.min(chunks.len()) {
            scope.spawn(|| {
                while !failed.load(Ordering::Relaxed) {
                    let Some(chunk) = chunks.get(next.fetch_add(1, Ordering::Relaxed)) else {
                        return;
                    };
                    match send(client, chunk.iter().map(entry).collect()) {
                        Ok(()) => progress(chunk.len()),
                        Err(why) => {
                            failed.store(true, Ordering::Relaxed);
                            error
                                .lock()
                                .unwrap_or_else(PoisonError::into_inner)
                                .get_or_insert(why);
                        }
                    }
                }
            });
        }
    });
    match error.into_inner().unwrap_or_else(PoisonError::into_inner) {
        None => Ok(()),
        Some(error) => Err(error),
    }
}

fn send(client: &Client, entries: Vec<Value>) -> anyhow::Result<()> {
    let answer = client
        .post("/devices")
        .json(Value::Array(entries))
        .send()
        .context("the bulk change of devices failed")?;
    if answer.get("isSuccessful").and_then(Value::as_bool) == Some(true) {
        return Ok(());
    }
    let first = answer.pointer("/errors/0").cloned().unwrap_or(answer);
    Err(Failure::new(
        Kind::Failed,
        format!("the hub did not take every device; the first fault: {first}"),
    )
    .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        let devices = ["a", "b"].map(|id| Device {
            id: id.to_owned(),
            key: Some(SymmetricKey::generate()),
            place: None,
        });
        Accounts::Devices {
            host: "hub.test".to_owned(),
            devices: devices.into(),
        }
    }

    #[test]
    fn devices_log_in_with_tokens_for_themselves() {
        let accounts = accounts();
        let account = accounts.account(1);
        assert_eq!(account.client_id, "b");
        let name = account.username.unwrap();
        let name = holdfast_wire::username::parse(&name).unwrap();
        assert_eq!((name.host, name.device_id), ("hub.test", "b"));
        let password = account.password.unwrap();
        let token = holdfast_model::credential::SasToken::parse(&password).unwrap();
        assert!(token.covers(&["hub.test"], "devices/b"));
        let Accounts::Devices { devices, .. } = &accounts else {
            unreachable!()
        };
        assert!(token.verify(devices[1].key.as_ref().unwrap()));
        assert_eq!(accounts.telemetry_topic(0), "devices/a/messages/events/");
        // More connections than devices go round.
        assert_eq!(accounts.account(2).client_id, "a");
    }

    #[test]
    fn nobody_in_particular_has_no_password() {
        let account = Accounts::Anonymous.account(7);
        assert_eq!((account.client_id.as_str(), account.password), ("bench-7", None));
        assert_eq!(Accounts::Anonymous.filters(7).len(), 4);
        assert_eq!(accounts().filters(0).len(), 4);
    }
}
