//! The table of operations: each route is declared together with the right it needs.
//!
//! The access test walks this table, so an operation that forgets its check cannot exist.

use axum::Router;
use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::http::Method;
use axum::http::request::Parts;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, on};
use holdfast_hub::ServiceCaller;
use holdfast_model::credential::SasToken;
use holdfast_model::policy::Rights;
use holdfast_model::provisioning::ProvisioningRights;
use holdfast_model::{Error, ErrorCode};
use holdfast_ports::gateway::{AccessRequest, Credential, PeerCertificates, Protocol};

use crate::Api;
use crate::extract::BODY_BYTES_MAX;
use crate::reply::Failure;

/// What a policy must allow. The hub and the provisioning service each have policies of their own.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Needed {
    /// Rights at the hub.
    Hub(Rights),
    /// Rights at the provisioning service.
    Provisioning(ProvisioningRights),
    /// No policy will do: only the edge hub `{mid}` of the device `{id}` itself.
    EdgeHub,
}

impl From<Rights> for Needed {
    fn from(rights: Rights) -> Self {
        Needed::Hub(rights)
    }
}

/// Marks operations of edge hubs, for [`Operations::add`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct EdgeHub;

impl From<EdgeHub> for Needed {
    fn from(_: EdgeHub) -> Self {
        Needed::EdgeHub
    }
}

impl From<ProvisioningRights> for Needed {
    fn from(rights: ProvisioningRights) -> Self {
        Needed::Provisioning(rights)
    }
}

/// One operation of the API.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Operation {
    /// HTTP method.
    pub method: &'static str,
    /// Path with `{name}` for parameters.
    pub path: &'static str,
    /// What a policy must allow.
    pub rights: Needed,
    /// Whether a device may call it with its own token for its own modules.
    pub own_modules: bool,
    /// Whether its request body is read as it comes and so may be of any length. Others are refused when they announce
    /// more than the bound of the HTTP layer.
    pub streams: bool,
}

/// Collects routes and their operations.
pub(crate) struct Operations {
    api: Api,
    router: Router<Api>,
    table: Vec<Operation>,
}

impl Operations {
    pub(crate) fn new(api: Api) -> Self {
        Operations {
            api,
            router: Router::new(),
            table: Vec::new(),
        }
    }

    /// Declares an operation for services.
    pub(crate) fn add<H, T>(
        self,
        method: &'static str,
        path: &'static str,
        rights: impl Into<Needed>,
        handler: H,
    ) -> Self
    where
        H: Handler<T, Api>,
        T: 'static,
    {
        self.declare(
            Operation {
                method,
                path,
                rights: rights.into(),
                own_modules: false,
                streams: false,
            },
            handler,
        )
    }

    /// Declares an operation for services whose request body is read as it comes.
    pub(crate) fn add_streaming<H, T>(
        self,
        method: &'static str,
        path: &'static str,
        rights: impl Into<Needed>,
        handler: H,
    ) -> Self
    where
        H: Handler<T, Api>,
        T: 'static,
    {
        self.declare(
            Operation {
                method,
                path,
                rights: rights.into(),
                own_modules: false,
                streams: true,
            },
            handler,
        )
    }

    /// Declares an operation that a device may call too, for its own modules.
    pub(crate) fn add_own_modules<H, T>(
        self,
        method: &'static str,
        path: &'static str,
        rights: Rights,
        handler: H,
    ) -> Self
    where
        H: Handler<T, Api>,
        T: 'static,
    {
        self.declare(
            Operation {
                method,
                path,
                rights: rights.into(),
                own_modules: true,
                streams: false,
            },
            handler,
        )
    }

    fn declare<H, T>(mut self, operation: Operation, handler: H) -> Self
    where
        H: Handler<T, Api>,
        T: 'static,
    {
        let gate = middleware::from_fn_with_state((self.api.clone(), operation), authorize);
        self.router = self
            .router
            .route(operation.path, on(filter(operation.method), handler).layer(gate));
        self.table.push(operation);
        self
    }

    pub(crate) fn finish(self) -> (Router<Api>, Vec<Operation>) {
        (self.router, self.table)
    }
}

fn filter(method: &str) -> MethodFilter {
    match method {
        "GET" => MethodFilter::GET,
        "PUT" => MethodFilter::PUT,
        "POST" => MethodFilter::POST,
        "PATCH" => MethodFilter::PATCH,
        _ => MethodFilter::DELETE,
    }
}

async fn authorize(
    State((api, operation)): State<(Api, Operation)>,
    request: Request,
    next: Next,
) -> Response {
    // The body stays out of the check: it is not Sync, and nothing of it is read before the caller is known.
    let (mut parts, body) = request.into_parts();
    match check(&api, operation, &parts).await {
        Ok(Caller::Hub(caller)) => {
            parts.extensions.insert(caller);
            next.run(Request::from_parts(parts, body)).await
        }
        Ok(Caller::Provisioning) => {
            let response = next.run(Request::from_parts(parts, body)).await;
            Failure::flatten(response)
        }
        Err(error) => match operation.rights {
            Needed::Hub(_) | Needed::EdgeHub => Failure::from(error).into_response(),
            Needed::Provisioning(_) => Failure::flatten(Failure::from(error).into_response()),
        },
    }
}

/// Whose policy the caller holds.
enum Caller {
    Hub(ServiceCaller),
    Provisioning,
}

async fn check(api: &Api, operation: Operation, request: &Parts) -> Result<Caller, Error> {
    let token = request
        .headers
        .get(axum::http::header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let path = decoded_path(request.uri.path());
    let caller = match operation.rights {
        Needed::Provisioning(rights) => {
            api.provisioning.authorize_service(token, &path, rights)?;
            Caller::Provisioning
        }
        Needed::EdgeHub => {
            let mut segments = path.split('/').skip(1).step_by(2);
            let (device, module) = (segments.next(), segments.next());
            let (device, module) = (device.unwrap_or_default(), module.unwrap_or_default());
            Caller::Hub(api.hub.authorize_edge_hub(token, device, module).await?)
        }
        Needed::Hub(_) if operation.own_modules && !is_policy_token(token) => {
            Caller::Hub(own_modules(api, token, &path, request).await?)
        }
        Needed::Hub(rights) => Caller::Hub(api.hub.authorize_service(token, &path, rights)?),
    };
    check_version(request)?;
    check_announced_length(operation, request)?;
    Ok(caller)
}

/// Whether a policy signed the token. Tokens of devices name no policy (REST contract, section 2.1).
fn is_policy_token(token: Option<&str>) -> bool {
    token
        .and_then(|token| SasToken::parse(token).ok())
        .is_some_and(|token| token.policy().is_some())
}

/// The device of `devices/{id}/modules…` proves itself with its own token or certificate.
async fn own_modules(
    api: &Api,
    token: Option<&str>,
    path: &str,
    request: &Parts,
) -> Result<ServiceCaller, Error> {
    let certificates = request.extensions.get::<PeerCertificates>();
    let credential = match (token, certificates) {
        (Some(token), _) => Credential::Sas(token),
        (None, Some(certificates)) => Credential::Certificates(&certificates.0),
        (None, None) => Credential::None,
    };
    let access = AccessRequest {
        device_id: path.split('/').nth(1).unwrap_or_default(),
        module_id: None,
        credential,
        auth_chain: None,
        protocol: Protocol::Https,
    };
    api.hub.authorize_own_modules(access).await
}

/// A body that announces to be too long is refused before anything of it is read.
fn check_announced_length(operation: Operation, request: &Parts) -> Result<(), Error> {
    let announced = request
        .headers
        .get(axum::http::header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<u64>().ok())
        .unwrap_or(0);
    if operation.streams || announced <= BODY_BYTES_MAX as u64 {
        return Ok(());
    }
    let text = format!("the body has {announced} bytes; at most {BODY_BYTES_MAX} are taken");
    Err(Error::new(ErrorCode::MessageTooLarge, text))
}

/// The path without its leading slash, segments decoded; ids hold no slash, so segments stay apart.
fn decoded_path(path: &str) -> String {
    percent_encoding::percent_decode_str(path.trim_start_matches('/'))
        .decode_utf8_lossy()
        .into_owned()
}

/// The contract asks for an api-version on every request of IoT Hub's own operations; Holdfast's have it in the path.
fn check_version(request: &Parts) -> Result<(), Error> {
    if request.uri.path().starts_with("/holdfast/") {
        return Ok(());
    }
    let version = request
        .uri
        .query()
        .into_iter()
        .flat_map(|query| query.split('&'))
        .filter_map(|pair| pair.split_once('='))
        .find(|(name, _)| name.eq_ignore_ascii_case(holdfast_wire::api_version::PARAMETER))
        .map(|(_, value)| value);
    match version {
        Some(version) if holdfast_wire::api_version::is_date_shaped(version) => Ok(()),
        Some(_) => Err(Error::new(
            ErrorCode::InvalidProtocolVersion,
            "the api-version is not of the form YYYY-MM-DD",
        )),
        None => Err(Error::new(
            ErrorCode::InvalidProtocolVersion,
            "the query parameter api-version is missing",
        )),
    }
}

/// The method a request means: the Java service client sends PATCH as POST with a header.
pub(crate) fn apply_method_override(mut request: Request) -> Request {
    let wanted = request
        .headers()
        .get(holdfast_wire::headers::METHOD_OVERRIDE)
        .and_then(|value| Method::from_bytes(value.as_bytes()).ok());
    if request.method() == Method::POST && wanted == Some(Method::PATCH) {
        *request.method_mut() = Method::PATCH;
    }
    request
}
