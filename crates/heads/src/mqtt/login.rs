//! From an accepted socket to a session: TLS handshake, CONNECT, CONNACK.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use holdfast_model::ErrorCode;
use holdfast_mqtt::codec::{Connect, ConnectCode, encode_unsupported_level};
use holdfast_mqtt::server::Event as MqttEvent;
use holdfast_mqtt::{PacketType, ProtocolError, ServerSession, decode};
use holdfast_observe::Event as _;
use holdfast_ports::gateway::{AccessRequest, ConnectRequest, Connected, Credential, Persistence, Protocol};
use holdfast_ports::provisioning::{ProvisioningGateway, Registrant};
use holdfast_wire::{error, provisioning, topics, username};
use rustls::ServerConfig;
use tokio::io::ReadBuf;
use tokio::net::TcpStream;

use super::connection::{Connection, Will};
use super::{Pending, RUNNING, Shared};
use crate::dps::mqtt as dps;
use crate::events::{LoginRefused, RefusalReason, SessionStarted};
use crate::lobby::{Guest, Stage};
use crate::tls::TlsStream;
use crate::transport::{Socket, Transport};
use crate::websocket::FrameStream;

/// Largest CONNECT: the longest will with topic, and credentials.
const CONNECT_BYTES_MAX: usize = 192 * 1024;
/// Bytes read at once; most CONNECTs fit.
const READ_BYTES: usize = 1_024;
/// How long a refused client has to take its answer.
const FAREWELL: Duration = Duration::from_secs(2);

/// A connection that does not become a session.
struct Refused {
    reason: RefusalReason,
    detail: Box<dyn fmt::Display + Send>,
    client_id: String,
}

impl Refused {
    fn new(reason: RefusalReason, detail: impl fmt::Display + Send + 'static) -> Self {
        Refused {
            reason,
            detail: Box::new(detail),
            client_id: String::new(),
        }
    }

    fn lost(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData => Refused::new(RefusalReason::ProtocolError, error),
            _ => Refused::new(RefusalReason::ConnectionLost, error),
        }
    }
}

/// A client that has said who it wants to be.
struct Caller {
    transport: Transport,
    certificates: Vec<Bytes>,
    /// A whole CONNECT and whatever came with it.
    input: Vec<u8>,
    protocol: Protocol,
    peer: SocketAddr,
}

/// The task of a connection from its accept to the end of its log-in.
pub(super) async fn run(
    shared: Arc<Shared>,
    tcp: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    peer: SocketAddr,
    pending: Pending,
) {
    let guest = &pending.guest;
    let listen = async {
        // Not `readable`, which may be wrong.
        tcp.peek(&mut [0; 1]).await.map_err(Refused::lost)?;
        guest.wait_as(Stage::Speaking);
        let socket = match tls {
            None => Socket::Tcp(tcp),
            Some(config) => Socket::Tls(
                TlsStream::accept(tcp, config, &shared.handshakes)
                    .await
                    .map_err(|error| Refused::new(RefusalReason::Tls, error))?,
            ),
        };
        if let Socket::Tls(tls) = &socket
            && tls.resumed()
        {
            shared.metrics.tls_resumed.inc();
        }
        let certificates = socket.peer_certificates();
        let mut transport = Transport::from(socket);
        let input = read_connect(&mut transport, guest).await?;
        Ok(Caller {
            transport,
            certificates,
            input,
            protocol: Protocol::Mqtt,
            peer,
        })
    };
    let caller = in_time(&pending, listen).await;
    finish(&shared, peer, caller).await;
}

/// As [`run`], for a WebSocket.
pub(super) async fn run_websocket(
    shared: Arc<Shared>,
    frames: Box<FrameStream<Socket>>,
    certificates: Vec<Bytes>,
    peer: SocketAddr,
    pending: Pending,
) {
    let guest = &pending.guest;
    let listen = async {
        let mut transport = Transport::WebSocket(frames);
        let input = read_connect(&mut transport, guest).await?;
        Ok(Caller {
            transport,
            certificates,
            input,
            protocol: Protocol::MqttWebSocket,
            peer,
        })
    };
    let caller = in_time(&pending, listen).await;
    finish(&shared, peer, caller).await;
}

/// The part that depends on the client: bounded in time, and ended when the client's place is given to another.
async fn in_time(
    pending: &Pending,
    listen: impl Future<Output = Result<Caller, Refused>>,
) -> Result<Caller, Refused> {
    let evicted = || {
        Refused::new(
            RefusalReason::Evicted,
            "too many log-ins are pending, and this was the oldest of them",
        )
    };
    let caller = tokio::select! {
        biased;
        () = pending.guest.evicted() => return Err(evicted()),
        caller = tokio::time::timeout(pending.timeout, listen) => caller,
    };
    let caller = caller.unwrap_or_else(|_| {
        let text = "no log-in within the connect timeout";
        Err(Refused::new(RefusalReason::Timeout, text))
    })?;
    match pending.guest.keep() {
        true => Ok(caller),
        false => Err(evicted()),
    }
}

/// The part that does not depend on the client, and so has no timeout: dropping the hub's `connect` in the middle could
/// leave a session behind that nobody ends.
async fn finish(shared: &Arc<Shared>, peer: SocketAddr, caller: Result<Caller, Refused>) {
    let outcome = match caller {
        Ok(caller) => {
            shared.connecting.fetch_add(1, Ordering::SeqCst);
            let outcome = log_in(shared, caller).await;
            shared.connecting.fetch_sub(1, Ordering::SeqCst);
            outcome
        }
        Err(refused) => Err(refused),
    };
    match outcome {
        // A task of its own, so that the memory of this one, sized for the log-in, is given back.
        Ok(LoggedIn::Device(connection)) => {
            tokio::spawn(*connection);
        }
        Ok(LoggedIn::Provisioning(session)) => {
            tokio::spawn(session.run());
        }
        Err(refused) => LoginRefused {
            peer,
            client_id: &refused.client_id,
            reason: refused.reason,
            detail: &refused.detail,
        }
        .emit(&shared.metrics),
    }
}

/// Whoever was let in.
enum LoggedIn {
    Device(Box<Connection>),
    Provisioning(Box<dps::Session>),
}

async fn log_in(shared: &Arc<Shared>, caller: Caller) -> Result<LoggedIn, Refused> {
    let Caller { transport, input, .. } = caller;
    let mut machine = ServerSession::new(&shared.limits, shared.clock.monotonic_millis());
    let (packet, rest) = match decode(&input, CONNECT_BYTES_MAX) {
        Ok(Some((packet, length))) => (packet, &input[length..]),
        // `read_connect` has seen a whole packet.
        Ok(None) => return Err(Refused::new(RefusalReason::ProtocolError, "packet is incomplete")),
        Err(error) => return Err(Refused::new(RefusalReason::ProtocolError, error)),
    };
    let connect = match machine.handle(packet, shared.clock.monotonic_millis()) {
        Ok(MqttEvent::Connect(connect)) => connect,
        Ok(_) => {
            return Err(Refused::new(
                RefusalReason::ProtocolError,
                "the first packet is not CONNECT",
            ));
        }
        Err(error @ ProtocolError::UnsupportedLevel { level }) => {
            let mut answer = Vec::new();
            encode_unsupported_level(&mut answer, level);
            say_farewell(transport, &answer).await;
            return Err(Refused::new(RefusalReason::ProtocolLevel, error));
        }
        Err(error) => return Err(Refused::new(RefusalReason::ProtocolError, error)),
    };
    if let Some(gateway) = &shared.provisioning
        && let Some(name) = connect.username.and_then(provisioning::parse_user_name)
    {
        let (certificates, protocol) = (&caller.certificates, caller.protocol);
        return match admit(shared, gateway, name, &connect, certificates, protocol).await {
            Ok(registrant) => {
                let state = Arc::clone(shared);
                Ok(LoggedIn::Provisioning(Box::new(dps::Session {
                    transport,
                    machine,
                    registrant,
                    gateway: Arc::clone(gateway),
                    clock: Arc::clone(&shared.clock),
                    peer: caller.peer,
                    stopping: Box::new(move || state.state() != RUNNING),
                    input: rest.to_vec(),
                    output: Vec::new(),
                    granted: None,
                })))
            }
            Err((code, refused)) => Err(refuse(machine, transport, code, refused, &connect).await),
        };
    }
    match authenticate(shared, &connect, &caller.certificates, caller.protocol).await {
        Ok(connected) => {
            SessionStarted {
                peer: caller.peer,
                identity: connected.session.identity().as_str(),
                protocol: caller.protocol,
            }
            .emit(&shared.metrics);
            let connection = begin(shared, transport, connected, machine, &connect, rest);
            Ok(LoggedIn::Device(Box::new(connection)))
        }
        Err((code, refused)) => Err(refuse(machine, transport, code, refused, &connect).await),
    }
}

/// Tells a client that it is not let in.
async fn refuse(
    mut machine: ServerSession,
    transport: Transport,
    code: ConnectCode,
    mut refused: Refused,
    connect: &Connect<'_>,
) -> Refused {
    let mut answer = Vec::new();
    machine.refuse(code, &mut answer);
    refused.client_id = connect.client_id.to_owned();
    say_farewell(transport, &answer).await;
    refused
}

/// Judges a provisioning device.
async fn admit(
    shared: &Shared,
    gateway: &Arc<dyn ProvisioningGateway>,
    name: provisioning::UserName<'_>,
    connect: &Connect<'_>,
    certificates: &[Bytes],
    protocol: Protocol,
) -> Result<Registrant, (ConnectCode, Refused)> {
    if shared.state() != RUNNING {
        let refused = Refused::new(RefusalReason::Unavailable, "the hub stops");
        return Err((ConnectCode::ServerUnavailable, refused));
    }
    let admitted = dps::admit(&**gateway, name, connect, certificates, protocol).await;
    admitted.map_err(|refusal| {
        let reason = match refusal.is_unavailable {
            true => RefusalReason::Unavailable,
            false => RefusalReason::Unauthorized,
        };
        (refusal.code, Refused::new(reason, refusal.detail))
    })
}

/// Makes the live session of a client that was let in. `rest` is what came after its CONNECT.
fn begin(
    shared: &Arc<Shared>,
    transport: Transport,
    connected: Connected,
    mut machine: ServerSession,
    connect: &Connect<'_>,
    rest: &[u8],
) -> Connection {
    let session = connected.session;
    let mut answer = Vec::with_capacity(4);
    machine.accept(connected.session_present, &mut answer);
    // Another range of packet identifiers for each connection of an identity, so that a late PUBACK from an earlier one
    // does not complete another message.
    machine.continue_packet_ids((session.epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u16);
    let identity = session.identity();
    let will = connect.will.and_then(|will| {
        // A will on any other topic is dropped, the connection is fine (mqtt.md section 2.6).
        let bag = topics::parse_will(will.topic, identity.device_id(), identity.module_id())?;
        Some(Box::new(Will {
            bag: bag.into(),
            payload: will.payload.into(),
            retain: will.retain,
        }))
    });
    let silence = shared.config.silence_seconds(connect.keep_alive);
    session.touch(shared.second());
    Connection::new(shared, transport, session, machine, will, silence, answer, rest)
}

/// Reads until a whole CONNECT is there, and perhaps more. Whatever else it is, it is no client of ours, and is told
/// nothing (mqtt.md section 2.7).
async fn read_connect(transport: &mut Transport, guest: &Guest) -> Result<Vec<u8>, Refused> {
    let mut input = Vec::new();
    let mut filled = 0;
    loop {
        if let Some(first) = input[..filled].first()
            && first >> 4 != PacketType::Connect as u8
        {
            // Before its length is believed: only a CONNECT may make us buffer.
            return Err(Refused::new(
                RefusalReason::ProtocolError,
                "the first packet is not CONNECT",
            ));
        }
        match holdfast_mqtt::codec::packet_len(&input[..filled], CONNECT_BYTES_MAX) {
            Ok(Some(length)) if length <= filled => {
                input.truncate(filled);
                return Ok(input);
            }
            Ok(_) => {}
            Err(error) => return Err(Refused::new(RefusalReason::ProtocolError, error)),
        }
        input.resize(filled + READ_BYTES.max(filled), 0);
        let room = &mut input[filled..];
        let mut buffer = ReadBuf::new(room);
        poll_fn(|context| transport.poll_read(context, &mut buffer))
            .await
            .map_err(Refused::lost)?;
        let received = buffer.filled().len();
        if received == 0 {
            return Err(Refused::lost(io::ErrorKind::UnexpectedEof.into()));
        }
        if filled == 0 {
            guest.wait_as(Stage::Speaking);
        }
        filled += received;
    }
}

async fn authenticate(
    shared: &Shared,
    connect: &Connect<'_>,
    certificates: &[Bytes],
    protocol: Protocol,
) -> Result<Connected, (ConnectCode, Refused)> {
    if shared.state() != RUNNING {
        let refused = Refused::new(RefusalReason::Unavailable, "the hub stops");
        return Err((ConnectCode::ServerUnavailable, refused));
    }
    let malformed = |detail: String| {
        let refused = Refused::new(RefusalReason::Malformed, detail);
        (ConnectCode::NotAuthorized, refused)
    };
    let name = connect
        .username
        .ok_or_else(|| malformed("there is no user name".into()))?;
    let name = username::parse(name).map_err(|error| malformed(error.to_string()))?;
    if !name.matches_client_id(connect.client_id) {
        return Err(malformed(
            "client id and user name name different identities".into(),
        ));
    }
    // A password wins over a certificate (mqtt.md section 2.2).
    let credential = match connect.password {
        Some(password) => match std::str::from_utf8(password) {
            Ok(token) => Credential::Sas(token),
            Err(_) => return Err(malformed("the password is not UTF-8".into())),
        },
        None if certificates.is_empty() => Credential::None,
        None => Credential::Certificates(certificates),
    };
    let request = ConnectRequest {
        access: AccessRequest {
            device_id: name.device_id,
            module_id: name.module_id,
            credential,
            auth_chain: name.auth_chain.as_deref(),
            protocol,
        },
        persistence: if connect.clean_session {
            Persistence::Forgotten
        } else {
            Persistence::Stored
        },
        model_id: name.model_id.as_deref(),
        client_type: name.client_type.as_deref(),
    };
    shared.gateway.connect(request).await.map_err(|error| {
        // 3 makes every SDK try again; 5 stands for every refusal (mqtt.md section 2.7).
        let retry = error::row(error.code).connack == ConnectCode::ServerUnavailable as u8;
        let (code, reason) = match (retry, error.code) {
            (true, _) | (false, ErrorCode::ServerError) => {
                (ConnectCode::ServerUnavailable, RefusalReason::Unavailable)
            }
            (false, _) => (ConnectCode::NotAuthorized, RefusalReason::Unauthorized),
        };
        (code, Refused::new(reason, error))
    })
}

/// Sends a last answer and waits for the client to close: closing first, with input unread, would reset the connection
/// and could take the answer away from it.
async fn say_farewell(mut transport: Transport, answer: &[u8]) {
    let farewell = async {
        let mut sent = 0;
        while sent < answer.len() {
            sent += match poll_fn(|context| transport.poll_write(context, &answer[sent..])).await {
                Ok(0) | Err(_) => return,
                Ok(more) => more,
            };
        }
        if poll_fn(|context| transport.poll_shutdown(context)).await.is_err() {
            return;
        }
        let mut ignored = vec![0; READ_BYTES];
        loop {
            let mut buffer = ReadBuf::new(&mut ignored);
            let read = poll_fn(|context| transport.poll_read(context, &mut buffer)).await;
            if read.is_err() || buffer.filled().is_empty() {
                return;
            }
        }
    };
    // Whoever takes longer has been told nothing worth waiting for.
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
}
