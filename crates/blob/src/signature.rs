//! SharedKey and service SAS: texts to sign, signing and checking.
//!
//! Sources: the Blob service's documentation of both, and what azure-storage-blob and @azure/storage-blob send.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use holdfast_model::Timestamp;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use ring::hmac;
use subtle::ConstantTimeEq as _;

use crate::error::BlobError;

/// Version of the API whose text to sign [`sign_blob`] uses.
pub const SIGNED_VERSION: &str = "2021-08-06";
/// How far a request's date may be from ours, as the Blob service allows.
const DATE_SKEW_SECONDS: i64 = 15 * 60;

/// An account: its name and key. Neither prints the key.
#[derive(Clone)]
pub struct Account {
    name: String,
    key: hmac::Key,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Account")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Account {
    /// An account with its key in base64; `None` if that is not base64 or empty.
    #[must_use]
    pub fn new(name: &str, key: &str) -> Option<Self> {
        let key = STANDARD.decode(key).ok().filter(|key| !key.is_empty())?;
        Some(Account {
            name: name.to_owned(),
            key: hmac::Key::new(hmac::HMAC_SHA256, &key),
        })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn sign(&self, text: &str) -> String {
        STANDARD.encode(hmac::sign(&self.key, text.as_bytes()))
    }

    fn proves(&self, text: &str, signature: &str) -> bool {
        self.sign(text).as_bytes().ct_eq(signature.as_bytes()).into()
    }

    /// The `Authorization` header of a request without a body that a client sends: method, path as sent, decoded query,
    /// and all of its `x-ms-` headers.
    #[must_use]
    pub fn authorize(
        &self,
        method: &str,
        path: &str,
        query: &[(String, String)],
        fields: &[(&'static str, &str)],
    ) -> String {
        let fields = fields.iter().filter_map(|(name, value)| {
            Some((HeaderName::from_static(name), HeaderValue::from_str(value).ok()?))
        });
        let request = Signed {
            method,
            path,
            query,
            headers: &HeaderMap::from_iter(fields),
            container: "",
            blob: "",
        };
        let signature = self.sign(&shared_key_text(&self.name, &request));
        format!("SharedKey {}:{signature}", self.name)
    }

    /// A query (`sv=…&sig=…`, without `?`) that allows `permissions` (such as `rw`) on one blob until `expires_at`. With
    /// `id`, the signature can be ended before that ([`crate::BlobStore::revoke`]).
    #[must_use]
    pub fn sign_blob(
        &self,
        container: &str,
        blob: &str,
        permissions: &str,
        expires_at: Timestamp,
        id: Option<&str>,
    ) -> String {
        let expiry = rfc3339(expires_at);
        let resource = format!("/blob/{}/{container}/{blob}", self.name);
        let id = id.unwrap_or_default();
        let text =
            format!("{permissions}\n\n{expiry}\n{resource}\n{id}\n\n\n{SIGNED_VERSION}\nb\n\n\n\n\n\n\n");
        let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
        let si = if id.is_empty() {
            String::new()
        } else {
            format!("&si={}", encode(id))
        };
        format!(
            "sv={SIGNED_VERSION}&sr=b&se={}&sp={permissions}{si}&sig={}",
            encode(&expiry),
            encode(&self.sign(&text))
        )
    }
}

fn rfc3339(at: Timestamp) -> String {
    let at = time::OffsetDateTime::from_unix_timestamp(at.as_seconds())
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let (date, clock) = (at.date(), at.time());
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        clock.hour(),
        clock.minute(),
        clock.second()
    )
}

/// The request as far as signatures see it.
#[derive(Clone, Copy)]
pub struct Signed<'a> {
    /// HTTP method.
    pub method: &'a str,
    /// Path as it was sent.
    pub path: &'a str,
    /// Query parameters, decoded.
    pub query: &'a [(String, String)],
    /// Headers.
    pub headers: &'a axum::http::HeaderMap,
    /// Container, decoded; empty for the account.
    pub container: &'a str,
    /// Blob, decoded; empty for the container.
    pub blob: &'a str,
}

/// What a proven request may do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Access {
    /// Everything: it knows the account's key.
    Owner,
    /// What the letters of a service SAS say.
    Sas {
        /// `sp`
        permissions: String,
        /// It is for the container and not for one blob.
        container: bool,
        /// `si`
        id: Option<String>,
    },
}

impl Access {
    /// # Errors
    /// `AuthorizationPermissionMismatch` unless one of the letters is allowed.
    pub fn need(&self, any: &str) -> Result<(), BlobError> {
        match self {
            Access::Sas { permissions, .. } if !permissions.chars().any(|letter| any.contains(letter)) => {
                Err(BlobError::new(
                    403,
                    "AuthorizationPermissionMismatch",
                    format!("The signature allows {permissions}, the operation needs one of {any}."),
                ))
            }
            _ => Ok(()),
        }
    }

    /// # Errors
    /// `AuthorizationResourceTypeMismatch` unless the account's key was used.
    pub fn owner(&self) -> Result<(), BlobError> {
        match self {
            Access::Owner => Ok(()),
            Access::Sas { .. } => Err(mismatch()),
        }
    }

    /// # Errors
    /// `AuthorizationResourceTypeMismatch` if the signature is for one blob.
    pub fn container(&self) -> Result<(), BlobError> {
        match self {
            Access::Sas { container: false, .. } => Err(mismatch()),
            _ => Ok(()),
        }
    }
}

fn mismatch() -> BlobError {
    BlobError::new(
        403,
        "AuthorizationResourceTypeMismatch",
        "The signature is not for this kind of resource.",
    )
}

impl Account {
    /// Checks the proof of a request.
    ///
    /// # Errors
    /// `AuthenticationFailed` and its like; `NoAuthenticationInformation` without any.
    pub fn check(&self, request: &Signed<'_>, tls: bool, now: Timestamp) -> Result<Access, BlobError> {
        let authorization = request.headers.get(axum::http::header::AUTHORIZATION);
        match authorization {
            Some(value) => {
                let value = value.to_str().unwrap_or_default();
                self.check_shared_key(request, value, now)
            }
            None if parameter(request.query, "sig").is_some() => self.check_sas(request, tls, now),
            None => Err(BlobError::new(
                401,
                "NoAuthenticationInformation",
                "The request has neither a SharedKey authorization nor a shared access signature.",
            )),
        }
    }

    fn check_shared_key(
        &self,
        request: &Signed<'_>,
        value: &str,
        now: Timestamp,
    ) -> Result<Access, BlobError> {
        let (account, signature) = value
            .strip_prefix("SharedKey ")
            .and_then(|rest| rest.split_once(':'))
            .ok_or_else(|| {
                BlobError::unauthenticated("The Authorization header is not SharedKey account:signature.")
            })?;
        if account != self.name || !self.proves(&shared_key_text(&self.name, request), signature) {
            return Err(BlobError::unauthenticated(
                "The signature of the request is wrong: account, key or canonical text differ.",
            ));
        }
        let header = |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok());
        let date = header("x-ms-date").or(header("date")).and_then(parse_http_date);
        match date {
            Some(date) if (date - now.as_seconds()).abs() <= DATE_SKEW_SECONDS => Ok(Access::Owner),
            _ => Err(BlobError::unauthenticated(
                "The date of the request is missing or more than 15 minutes off.",
            )),
        }
    }

    fn check_sas(&self, request: &Signed<'_>, tls: bool, now: Timestamp) -> Result<Access, BlobError> {
        let value = |name: &str| parameter(request.query, name).unwrap_or_default();
        let (version, resource) = (value("sv"), value("sr"));
        let path = match resource {
            "b" => format!("/blob/{}/{}/{}", self.name, request.container, request.blob),
            "c" => format!("/blob/{}/{}", self.name, request.container),
            _ => {
                return Err(BlobError::unauthenticated(
                    "sr must be b or c: other signatures are not served.",
                ));
            }
        };
        // Versions are dates, so they compare as texts.
        if version.len() != 10 || version < "2015-04-05" {
            return Err(BlobError::unauthenticated(
                "sv is missing or older than 2015-04-05.",
            ));
        }
        let mut lines = vec![
            value("sp"),
            value("st"),
            value("se"),
            path.as_str(),
            value("si"),
            value("sip"),
            value("spr"),
            version,
        ];
        if version >= "2018-11-09" {
            lines.extend([resource, value("snapshot")]);
        }
        if version >= "2020-12-06" {
            lines.push(value("ses"));
        }
        lines.extend(["rscc", "rscd", "rsce", "rscl", "rsct"].map(value));
        if !self.proves(&lines.join("\n"), value("sig")) {
            return Err(BlobError::unauthenticated(
                "The signature is wrong: it is for another resource or account, or was changed.",
            ));
        }
        let begins = match value("st") {
            "" => Some(Timestamp::from_seconds(0)),
            text => parse_time(text),
        };
        // Without `se` a stored access policy would have to say when it ends, and there are none.
        match (begins, parse_time(value("se"))) {
            (Some(begins), Some(ends)) if begins <= now && now < ends => {}
            _ => {
                return Err(BlobError::unauthenticated(
                    "The signature is not valid now: see its st and se.",
                ));
            }
        }
        if value("spr") == "https" && !tls {
            return Err(BlobError::new(
                403,
                "AuthorizationProtocolMismatch",
                "The signature is for HTTPS only.",
            ));
        }
        if !value("sip").is_empty() {
            return Err(BlobError::new(
                403,
                "AuthorizationSourceIPMismatch",
                "Signatures for an address range are not served.",
            ));
        }
        Ok(Access::Sas {
            permissions: value("sp").to_owned(),
            container: resource == "c",
            id: Some(value("si").to_owned()).filter(|id| !id.is_empty()),
        })
    }
}

/// A parameter of a decoded query.
pub(crate) fn parameter<'q>(query: &'q [(String, String)], name: &str) -> Option<&'q str> {
    query
        .iter()
        .find(|(known, _)| known == name)
        .map(|(_, value)| value.as_str())
}

/// Takes a query apart; names and values are decoded, and a plus sign is one.
pub(crate) fn parse_query(query: &str) -> Vec<(String, String)> {
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let pairs = query.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (decode(name).to_ascii_lowercase(), decode(value)))
        .collect()
}

fn shared_key_text(account: &str, request: &Signed<'_>) -> String {
    let header = |name: &str| {
        request
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let length = match header("content-length") {
        "0" => "",
        length => length,
    };
    let date = if request.headers.contains_key("x-ms-date") {
        ""
    } else {
        header("date")
    };
    let mut text = [
        request.method,
        header("content-encoding"),
        header("content-language"),
        length,
        header("content-md5"),
        header("content-type"),
        date,
        header("if-modified-since"),
        header("if-match"),
        header("if-none-match"),
        header("if-unmodified-since"),
        header("range"),
    ]
    .join("\n");
    text.push('\n');
    let mut own: Vec<(&str, &str)> = request
        .headers
        .iter()
        .filter(|(name, _)| name.as_str().starts_with("x-ms-"))
        .map(|(name, value)| (name.as_str(), value.to_str().unwrap_or_default().trim()))
        .collect();
    own.sort_unstable();
    for (name, value) in own {
        text.push_str(name);
        text.push(':');
        text.push_str(value);
        text.push('\n');
    }
    text.push('/');
    text.push_str(account);
    text.push_str(request.path);
    let mut query: Vec<(&str, &str)> = request
        .query
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    query.sort_unstable();
    let mut last = None;
    for (name, value) in query {
        if last == Some(name) {
            text.push(',');
        } else {
            text.push('\n');
            text.push_str(name);
            text.push(':');
        }
        text.push_str(value);
        last = Some(name);
    }
    text
}

/// `2026-01-01`, `2026-01-01T00:00Z` or with seconds.
fn parse_time(text: &str) -> Option<Timestamp> {
    match text.len() {
        10 => Timestamp::parse(&format!("{text}T00:00:00Z")),
        17 => Timestamp::parse(&format!("{}:00Z", text.strip_suffix('Z')?)),
        _ => Timestamp::parse(text),
    }
}

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`.
#[must_use]
pub fn parse_http_date(text: &str) -> Option<i64> {
    let mut words = text.split_once(", ")?.1.split(' ');
    let day = words.next()?.parse().ok()?;
    let month = words.next()?;
    let month = MONTHS.iter().position(|known| *known == month)?;
    let month = time::Month::try_from(u8::try_from(month).ok()? + 1).ok()?;
    let year = words.next()?.parse().ok()?;
    let mut clock = words.next()?.split(':').map(|part| part.parse::<u8>().ok());
    let date = time::Date::from_calendar_date(year, month, day).ok()?;
    let at = date
        .with_hms(clock.next()??, clock.next()??, clock.next()??)
        .ok()?;
    Some(at.assume_utc().unix_timestamp())
}

/// `Sun, 06 Nov 1994 08:49:37 GMT`
#[must_use]
pub fn http_date(at: Timestamp) -> String {
    let at = time::OffsetDateTime::from_unix_timestamp(at.as_seconds())
        .unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
    let weekday = at.weekday().to_string();
    format!(
        "{}, {:02} {} {:04} {:02}:{:02}:{:02} GMT",
        &weekday[..3],
        at.day(),
        MONTHS[usize::from(u8::from(at.month())) - 1],
        at.year(),
        at.hour(),
        at.minute(),
        at.second()
    )
}

const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];
