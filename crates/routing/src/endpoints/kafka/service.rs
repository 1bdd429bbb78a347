//! Connections to the brokers of a cluster.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::Instant;

use super::config::{KafkaConfig, Mechanism};
use super::login::{self, Scram};
use super::protocol::{
    self, Api, METADATA, Metadata, PRODUCE, Reader, Request, SASL_AUTHENTICATE, SASL_HANDSHAKE,
};
use crate::endpoints::socket::{Address, Socket, told};

/// Most bytes of an answer.
const ANSWER_BYTES_MAX: usize = 8 << 20;
/// How long a broker may wait for its replicas.
const REPLICAS_TIMEOUT_MS: i32 = 15_000;

/// A connection that has logged in.
struct Connection {
    socket: Box<dyn Socket>,
    asked: i32,
}

impl Connection {
    async fn open(address: &Address, config: &KafkaConfig) -> Result<Self, String> {
        let mut connection = Connection {
            socket: address.connect().await?,
            asked: 0,
        };
        if let (Some(username), Some(password)) = (&config.username, &config.password) {
            let login = connection.login(config.sasl_mechanism, username, password.reveal());
            login
                .await
                .map_err(|error| format!("{}:{}: {error}", address.host, address.port))?;
        }
        Ok(connection)
    }

    async fn login(&mut self, mechanism: Mechanism, username: &str, password: &str) -> Result<(), String> {
        let name = login::name(mechanism);
        let answer = self.ask(SASL_HANDSHAKE, |request| request.string(name)).await?;
        let code = Reader(&answer).i16().map_err(|error| error.to_string())?;
        if code != 0 {
            let (error, _) = protocol::error(code);
            return Err(format!("login: the broker does not take {name}: {error}"));
        }
        if mechanism == Mechanism::Plain {
            self.authenticate(&login::plain(username, password)).await?;
            return Ok(());
        }
        let scram = Scram::new(mechanism, username, uuid::Uuid::new_v4().simple().to_string());
        let challenge = self.authenticate(&scram.first()).await?;
        let (proof, expected) = scram.second(password, &challenge)?;
        let answer = self.authenticate(&proof).await?;
        login::refusal(&String::from_utf8_lossy(&answer))?;
        let answer = answer.split(|byte| *byte == b',').next().unwrap_or_default();
        // Not secret: an answer that is wrong only ends the attempt.
        if answer == expected.as_bytes() {
            Ok(())
        } else {
            Err("login: the broker did not prove that it knows the password".to_owned())
        }
    }

    async fn authenticate(&mut self, message: &[u8]) -> Result<Vec<u8>, String> {
        let answer = self
            .ask(SASL_AUTHENTICATE, |request| request.bytes(message))
            .await?;
        let mut reader = Reader(&answer);
        let mut read = || Ok((reader.i16()?, reader.string()?, reader.bytes()?));
        let (code, text, bytes) = read().map_err(|error: protocol::Malformed| format!("login: {error}"))?;
        if code == 0 {
            return Ok(bytes.to_vec());
        }
        let (error, _) = protocol::error(code);
        Err(told(&format!("login: {error}: {text}")))
    }

    /// Sends a request and reads its answer.
    async fn ask(&mut self, api: Api, write: impl FnOnce(&mut Request)) -> Result<Vec<u8>, String> {
        self.asked = self.asked.wrapping_add(1);
        let mut request = Request::new(api, self.asked);
        write(&mut request);
        let failed = |error: std::io::Error| format!("{}: {error}", api.name);
        self.socket.write_all(&request.finish()).await.map_err(failed)?;
        self.socket.flush().await.map_err(failed)?;
        let length = self.socket.read_i32().await.map_err(failed)?;
        let length = usize::try_from(length).unwrap_or(0);
        if !(4..=ANSWER_BYTES_MAX).contains(&length) {
            return Err(format!("{}: the answer is {length} bytes long", api.name));
        }
        let number = self.socket.read_i32().await.map_err(failed)?;
        if number != self.asked {
            return Err(format!("{}: an answer to something else", api.name));
        }
        let mut answer = vec![0; length - 4];
        self.socket.read_exact(&mut answer).await.map_err(failed)?;
        Ok(answer)
    }
}

/// The brokers of a cluster, and which of them leads which partition.
pub(super) struct Cluster {
    /// Leaders of the topic's partitions.
    pub(super) leaders: Vec<Option<i32>>,
    addresses: HashMap<i32, Address>,
    /// Connections while nothing is under way on them.
    rest: Mutex<HashMap<i32, Connection>>,
}

impl Cluster {
    /// Asks the servers of the settings, one after the other, until one answers.
    ///
    /// # Errors
    /// What the last of them said.
    pub(super) async fn discover(
        config: &KafkaConfig,
        tls: Option<&Arc<ClientConfig>>,
    ) -> Result<Self, String> {
        let address = |host: String, port: u16| Address {
            host,
            port,
            tls: tls.cloned(),
            timeout: config.connect_timeout(),
        };
        let end = Instant::now() + config.connect_timeout();
        let mut failure = "there is no server".to_owned();
        for (host, port) in config.servers()? {
            let address_of_it = address(host, port);
            let asking = tokio::time::timeout_at(end, metadata(&address_of_it, config));
            let metadata = match asking.await {
                Ok(Ok(metadata)) => metadata,
                Ok(Err(error)) => {
                    failure = error;
                    continue;
                }
                Err(_) => {
                    let seconds = config.connect_timeout_seconds;
                    let place = format!("{}:{}", address_of_it.host, address_of_it.port);
                    failure = format!("{place} did not tell of the cluster within {seconds} s");
                    continue;
                }
            };
            let brokers = metadata.brokers.into_iter();
            return Ok(Cluster {
                leaders: metadata.leaders,
                addresses: brokers
                    .map(|broker| (broker.id, address(broker.host, broker.port)))
                    .collect(),
                rest: Mutex::new(HashMap::new()),
            });
        }
        Err(failure)
    }

    /// Sends batches of records to the leader of their partitions. The outcome of each partition, 0 or an error.
    ///
    /// # Errors
    /// Why nothing is known of them.
    pub(super) async fn produce(
        &self,
        leader: i32,
        config: &KafkaConfig,
        batches: &[(i32, Vec<u8>)],
        time: Duration,
    ) -> Result<Vec<(i32, i16)>, String> {
        let address = self.addresses.get(&leader);
        let address = address.ok_or_else(|| format!("the cluster did not say where broker {leader} is"))?;
        let place = format!("{}:{}", address.host, address.port);
        let exchange = async {
            let rested = self.rest.lock().remove(&leader);
            let mut connection = match rested {
                Some(connection) => connection,
                None => tokio::time::timeout(config.connect_timeout(), Connection::open(address, config))
                    .await
                    .map_err(|_| "no login within the time for it".to_owned())??,
            };
            let answer = connection
                .ask(PRODUCE, |request| {
                    protocol::put_produce(&config.topic, REPLICAS_TIMEOUT_MS, batches, request);
                })
                .await?;
            let outcomes = protocol::read_produce(&answer).map_err(|error| format!("Produce: {error}"))?;
            self.rest.lock().insert(leader, connection);
            Ok(outcomes)
        };
        match tokio::time::timeout(time, exchange).await {
            Ok(outcome) => outcome.map_err(|error: String| told(&format!("{place}: {error}"))),
            Err(_) => Err(format!("{place}: no answer within {} s", time.as_secs_f32())),
        }
    }
}

async fn metadata(address: &Address, config: &KafkaConfig) -> Result<Metadata, String> {
    let mut connection = Connection::open(address, config).await?;
    let topic = &config.topic;
    let place = format!("{}:{}", address.host, address.port);
    let answer = connection
        .ask(METADATA, |request| protocol::put_metadata(topic, request))
        .await
        .map_err(|error| format!("{place}: {error}"))?;
    let metadata = protocol::read_metadata(&answer).map_err(|error| format!("{place}: Metadata: {error}"))?;
    match metadata.error {
        0 if metadata.leaders.is_empty() => Err(format!("{place}: the topic {topic} has no partition")),
        0 => Ok(metadata),
        code => Err(format!("{place}: topic {topic}: {}", protocol::error(code).0)),
    }
}
