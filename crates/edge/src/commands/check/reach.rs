//! Reaching others: TCP, TLS, time.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls_pki_types::ServerName;
use tokio::net::{TcpStream, UdpSocket};
use tokio_rustls::TlsConnector;

use crate::config::Settings;
use crate::upstream;

/// For each step.
const TIMEOUT: Duration = Duration::from_secs(5);
/// From the beginning of NTP's time to that of Unix, in seconds.
const NTP_TO_UNIX: f64 = 2_208_988_800.0;

/// Opens a connection and closes it.
pub(super) async fn tcp(host: &str, port: u16) -> Result<(), String> {
    connect(host, port).await.map(drop)
}

async fn connect(host: &str, port: u16) -> Result<TcpStream, String> {
    let connecting = TcpStream::connect((host, port));
    match tokio::time::timeout(TIMEOUT, connecting).await {
        Ok(Ok(stream)) => Ok(stream),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer within 5 s".to_owned()),
    }
}

/// Opens a TLS connection with the daemon's trust, and closes it. Behind a proxy only the proxy can be reached from here.
pub(super) async fn tls(settings: &Settings, host: &str, port: u16) -> Result<(), String> {
    let trust = upstream::trust(settings).map_err(|error| error.message)?;
    let config = upstream::client_tls(&trust)?;
    let name = ServerName::try_from(host.to_owned()).map_err(|_| format!("{host} is not a host name"))?;
    let stream = connect(host, port).await?;
    let shaking = TlsConnector::from(Arc::new(config)).connect(name, stream);
    match tokio::time::timeout(TIMEOUT, shaking).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(format!("TLS: {error}")),
        Err(_) => Err("TLS: no answer within 5 s".to_owned()),
    }
}

/// Seconds by which this machine's clock is behind that of a time server (RFC 5905, as a simple client).
pub(super) async fn clock_difference(server: &str) -> Result<f64, String> {
    let asking = async {
        let address = tokio::net::lookup_host(server)
            .await
            .map_err(|error| error.to_string())?
            .next();
        let address = address.ok_or("the name does not resolve")?;
        let local = if address.is_ipv6() { "[::]:0" } else { "0.0.0.0:0" };
        let socket = UdpSocket::bind(local).await.map_err(|error| error.to_string())?;
        let mut packet = [0u8; 48];
        // Version 4, client.
        packet[0] = 0x23;
        let sent = now();
        socket
            .send_to(&packet, address)
            .await
            .map_err(|error| error.to_string())?;
        let (length, _) = socket
            .recv_from(&mut packet)
            .await
            .map_err(|error| error.to_string())?;
        if length < 48 || packet[1] == 0 {
            return Err("its answer is none".to_owned());
        }
        let seconds = u32::from_be_bytes([packet[40], packet[41], packet[42], packet[43]]);
        let fraction = u32::from_be_bytes([packet[44], packet[45], packet[46], packet[47]]);
        let server = f64::from(seconds) + f64::from(fraction) / 4_294_967_296.0 - NTP_TO_UNIX;
        Ok(server - (sent + now()) / 2.0)
    };
    match tokio::time::timeout(TIMEOUT, asking).await {
        Ok(outcome) => outcome,
        Err(_) => Err("no answer within 5 s".to_owned()),
    }
}

fn now() -> f64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs_f64()
}
