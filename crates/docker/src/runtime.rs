//! The runtime: what all calls share, and the port's methods in terms of them.

use std::net::IpAddr;
use std::time::Duration;

use bytes::Bytes;
use holdfast_agent::runtime::{
    Container, ContainerStats, EngineInfo, Image, LogQuery, LogStream, ModuleRuntime, NetworkSpec,
    PullProgress, RegistryAuth, RuntimeError,
};
use holdfast_ports::BoxFuture;
use hyper::Method;
use parking_lot::Mutex;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::answer;
use crate::connection::{Call, Connection, Timeouts};
use crate::endpoint::Endpoint;
use crate::events::Watch;
use crate::version::{Agreed, VersionAnswer};

/// A container engine at an endpoint.
pub struct DockerRuntime {
    pub(crate) endpoint: Endpoint,
    pub(crate) timeouts: Timeouts,
    /// Forgotten when the engine cannot be reached: another one may come back.
    agreed: Mutex<Option<Agreed>>,
    pub(crate) watch: Watch,
}

impl DockerRuntime {
    /// Speaks to nobody yet.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self::with_timeouts(endpoint, Timeouts::default())
    }

    /// With bounds of one's own.
    #[must_use]
    pub fn with_timeouts(endpoint: Endpoint, timeouts: Timeouts) -> Self {
        Self {
            endpoint,
            timeouts,
            agreed: Mutex::new(None),
            watch: Watch::default(),
        }
    }

    /// Where the engine listens.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// A new connection and the version to speak on it.
    pub(crate) async fn connect(&self) -> Result<Session, RuntimeError> {
        let mut connection = self.noting(Connection::open(&self.endpoint, &self.timeouts).await)?;
        let known = *self.agreed.lock();
        let agreed = match known {
            Some(agreed) => agreed,
            None => {
                let (_, agreed) = self.ask_version(&mut connection).await?;
                agreed
            }
        };
        Ok(Session { connection, agreed })
    }

    async fn ask_version(
        &self,
        connection: &mut Connection,
    ) -> Result<(VersionAnswer, Agreed), RuntimeError> {
        let call = Call {
            method: Method::GET,
            path: "/version".to_owned(),
            registry_auth: None,
            body: None,
        };
        let asked = connection.ask(call, self.timeouts.question).await;
        let body = answer::success(self.noting(asked)?)?;
        let told: VersionAnswer = answer::json("GET /version", &body)?;
        let agreed = told.agree().map_err(|cause| RuntimeError::Unavailable {
            endpoint: self.endpoint.to_string(),
            cause,
        })?;
        *self.agreed.lock() = Some(agreed);
        Ok((told, agreed))
    }

    /// Forgets the agreed version when the engine could not be used, or says that it does not speak it.
    pub(crate) fn noting<T>(&self, outcome: Result<T, RuntimeError>) -> Result<T, RuntimeError> {
        match &outcome {
            Err(RuntimeError::Unavailable { .. }) => self.forget_version(),
            Err(RuntimeError::Refused { status: 400, message }) if message.contains("client version") => {
                self.forget_version();
            }
            _ => {}
        }
        outcome
    }

    /// Another engine may be there next time.
    pub(crate) fn forget_version(&self) {
        *self.agreed.lock() = None;
    }

    /// A question on a connection of its own; the body of the answer.
    pub(crate) async fn get(&self, path: &str) -> Result<Bytes, RuntimeError> {
        let mut session = self.connect().await?;
        self.noting(session.get(path, self.timeouts.question).await)
    }

    async fn engine_info(&self) -> Result<EngineInfo, RuntimeError> {
        #[derive(Deserialize, Default)]
        #[serde(rename_all = "PascalCase", default)]
        struct Info {
            operating_system: String,
            architecture: String,
            #[serde(rename = "OSType")]
            os_type: String,
        }
        let mut connection = self.noting(Connection::open(&self.endpoint, &self.timeouts).await)?;
        let (told, agreed) = self.ask_version(&mut connection).await?;
        let mut session = Session { connection, agreed };
        let body = self.noting(session.get("/info", self.timeouts.question).await)?;
        let info: Info = answer::json("GET /info", &body)?;
        let or = |first: String, second: String| if first.is_empty() { second } else { first };
        Ok(EngineInfo {
            version: told.version,
            api_version: agreed.version.to_string(),
            os: or(info.os_type, told.os),
            architecture: kernel_name(or(info.architecture, told.arch)),
            operating_system: info.operating_system,
        })
    }
}

/// Go's names of architectures, which some engines tell, as the kernel has them.
fn kernel_name(architecture: String) -> String {
    match architecture.as_str() {
        "amd64" => "x86_64".to_owned(),
        "arm64" => "aarch64".to_owned(),
        "arm" => "armv7l".to_owned(),
        _ => architecture,
    }
}

/// A connection on which the version is agreed.
pub(crate) struct Session {
    pub(crate) connection: Connection,
    pub(crate) agreed: Agreed,
}

impl Session {
    /// `path` begins with `/` and has no version.
    pub(crate) fn call<'a>(&self, method: Method, path: &str) -> Call<'a> {
        Call {
            method,
            path: format!("/v{}{path}", self.agreed.version),
            registry_auth: None,
            body: None,
        }
    }

    /// Asks; the body of a successful answer.
    pub(crate) async fn get(&mut self, path: &str, within: Duration) -> Result<Bytes, RuntimeError> {
        let call = self.call(Method::GET, path);
        answer::success(self.connection.ask(call, within).await?)
    }

    /// Sends JSON; the body of a successful answer.
    pub(crate) async fn post<T: serde::Serialize>(
        &mut self,
        path: &str,
        body: &T,
        within: Duration,
    ) -> Result<Bytes, RuntimeError> {
        let mut call = self.call(Method::POST, path);
        let text = serde_json::to_vec(body).map_err(|error| RuntimeError::Refused {
            status: 400,
            message: format!("the request cannot be written as JSON: {error}"),
        })?;
        call.body = Some(Bytes::from(text));
        answer::success(self.connection.ask(call, within).await?)
    }
}

/// What stands for itself in a path or a query: RFC 3986's unreserved characters.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~');
/// Names of images hold slashes, and engines match them in the path as they are.
const ESCAPED_IN_IMAGE: &AsciiSet = &ESCAPED.remove(b'/').remove(b':').remove(b'@');

/// A name for a segment of a path, or a value for a query.
pub(crate) fn escape(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

/// An image's name for a path.
pub(crate) fn escape_image(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED_IN_IMAGE).to_string()
}

impl ModuleRuntime for DockerRuntime {
    fn info(&self) -> BoxFuture<'_, Result<EngineInfo, RuntimeError>> {
        Box::pin(self.engine_info())
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<Container>, RuntimeError>> {
        Box::pin(self.list_owned())
    }

    fn ensure_network<'a>(&'a self, network: &'a NetworkSpec) -> BoxFuture<'a, Result<IpAddr, RuntimeError>> {
        Box::pin(self.network_made(network))
    }

    fn pull<'a>(
        &'a self,
        image: &'a str,
        auth: Option<&'a RegistryAuth>,
        progress: &'a (dyn Fn(PullProgress) + Send + Sync),
    ) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.pull_image(image, auth, progress))
    }

    fn image_id<'a>(&'a self, image: &'a str) -> BoxFuture<'a, Result<Option<String>, RuntimeError>> {
        Box::pin(self.find_image(image))
    }

    fn images(&self) -> BoxFuture<'_, Result<Vec<Image>, RuntimeError>> {
        Box::pin(self.list_images())
    }

    fn remove_image<'a>(&'a self, image: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.delete_image(image))
    }

    fn create<'a>(
        &'a self,
        name: &'a str,
        body: &'a Map<String, Value>,
    ) -> BoxFuture<'a, Result<String, RuntimeError>> {
        Box::pin(self.create_container(name, body))
    }

    fn start<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.start_container(name))
    }

    fn stop<'a>(&'a self, name: &'a str, grace: Duration) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.stop_container(name, grace))
    }

    fn remove<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<(), RuntimeError>> {
        Box::pin(self.remove_container(name))
    }

    fn logs<'a>(
        &'a self,
        name: &'a str,
        query: &'a LogQuery,
    ) -> BoxFuture<'a, Result<Box<dyn LogStream>, RuntimeError>> {
        Box::pin(self.open_log(name, query))
    }

    fn inspect<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Value, RuntimeError>> {
        Box::pin(self.inspect_container(name))
    }

    fn inspect_network<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Value, RuntimeError>> {
        Box::pin(self.network_as_told(name))
    }

    fn processes<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<Vec<u32>, RuntimeError>> {
        Box::pin(self.container_processes(name))
    }

    fn stats<'a>(&'a self, name: &'a str) -> BoxFuture<'a, Result<ContainerStats, RuntimeError>> {
        Box::pin(self.container_stats(name))
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.wait_for_change())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_place() {
        assert_eq!(escape("a b/../c?x"), "a%20b%2F..%2Fc%3Fx");
        assert_eq!(
            escape_image("127.0.0.1:5000/team/x:1.0@sha256:ab"),
            "127.0.0.1:5000/team/x:1.0@sha256:ab"
        );
        assert_eq!(escape_image("x?force=1#"), "x%3Fforce%3D1%23");
    }

    #[test]
    fn architectures_as_the_kernel_names_them() {
        assert_eq!(kernel_name("amd64".to_owned()), "x86_64");
        assert_eq!(kernel_name("aarch64".to_owned()), "aarch64");
    }
}
