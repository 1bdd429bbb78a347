//! Paths as the SDKs send them, brought to the form in which the routes are declared.
//!
//! The SDKs differ in the case of literal segments (`deviceBound`/`devicebound`) and in trailing slashes
//! (`/devices/?top=1`); ids are case-sensitive and must stay as they are (REST contract, section 0). Which segment is
//! a literal follows from its place, since a device may well be called `modules`.

use axum::extract::Request;
use axum::http::uri::PathAndQuery;
use axum::http::{Method, Uri};

/// Literal segments in the spelling of the routes.
const LITERALS: &[&str] = &[
    "devices",
    "modules",
    "twins",
    "methods",
    "statistics",
    "service",
    "commands",
    "messages",
    "serviceBound",
    "feedback",
    "abandon",
    "keys",
    "regenerate",
    "holdfast",
    "v1",
    "policies",
    "certificates",
    "generateVerificationCode",
    "verify",
    "consumerGroups",
    "events",
    "jobs",
    "v2",
    "cancel",
    "testQueries",
    "applyConfigurationContent",
    "configurations",
    "query",
    "enrollments",
    "enrollmentGroups",
    "attestationmechanism",
    "registrations",
    "linkedHubs",
    "provisioningPolicies",
    "routing",
    "routes",
    "fallbackRoute",
    "enrichments",
    "endpoints",
    "deadLetters",
    "replay",
    "health",
    "definition",
    "$testlive",
    "$testnew",
    "$testall",
    "routingEndpointsHealth",
    "devicesAndModulesInDeviceScope",
    "deviceAndModuleInDeviceScope",
    "devicesAndModulesInTargetDeviceScope",
    "getDeviceAndModuleOnBehalfOf",
    "putModuleOnBehalfOf",
    "getModuleOnBehalfOf",
    "getModulesOnTargetDevice",
    "deleteModuleOnBehalfOf",
];

/// First segments whose second segment is a literal too, not an id.
const LITERAL_SECOND: &[&str] = &["statistics", "messages"];

/// `POST` here runs a query; every other method is about a device of that name.
const QUERIES: &str = "/devices/query";

/// The same path to whoever decodes it, but not to the router.
const DEVICE_CALLED_QUERY: &str = "/devices/%71uery";

/// Rewrites the request's path; for use before routing.
pub(crate) fn canonicalize(mut request: Request) -> Request {
    let path = canonical(request.uri().path());
    let is_query = path.as_deref().unwrap_or(request.uri().path()) == QUERIES;
    let path = if is_query && request.method() != Method::POST {
        Some(DEVICE_CALLED_QUERY.to_owned())
    } else {
        path
    };
    if let Some(path) = path {
        let query = request
            .uri()
            .query()
            .map_or(String::new(), |query| format!("?{query}"));
        let mut parts = request.uri().clone().into_parts();
        if let Ok(path_and_query) = PathAndQuery::try_from(format!("{path}{query}")) {
            parts.path_and_query = Some(path_and_query);
            if let Ok(uri) = Uri::from_parts(parts) {
                *request.uri_mut() = uri;
            }
        }
    }
    request
}

/// The canonical form of `path`; `None` when it has that form already.
fn canonical(path: &str) -> Option<String> {
    let trimmed = if path.len() > 1 {
        path.strip_suffix('/').unwrap_or(path)
    } else {
        path
    };
    let segments: Vec<&str> = trimmed.split('/').skip(1).collect();
    let mut changed = trimmed.len() != path.len();
    let mut out = String::with_capacity(path.len());
    for (index, segment) in segments.iter().enumerate() {
        let spelling = if is_literal_place(&segments, index) {
            literal(segment)
        } else {
            None
        };
        changed |= spelling.is_some_and(|spelling| spelling != *segment);
        out.push('/');
        out.push_str(spelling.unwrap_or(segment));
    }
    changed.then_some(out)
}

fn is_literal_place(segments: &[&str], index: usize) -> bool {
    let first = segments[0];
    if first.eq_ignore_ascii_case("holdfast") {
        if segments
            .get(2)
            .is_some_and(|routing| routing.eq_ignore_ascii_case("routing"))
        {
            // /holdfast/v1/routing/{collection}/{name}/{verb}
            return index != 4 || segments[4].starts_with('$');
        }
        // /holdfast/v1/{collection}/{id}/{verb}
        return index != 3;
    }
    if first.eq_ignore_ascii_case("routing") {
        // /routing/routes/$testnew
        return true;
    }
    if LITERAL_SECOND
        .iter()
        .any(|literal| literal.eq_ignore_ascii_case(first))
    {
        // /statistics/devices, /messages/serviceBound/feedback/{token}/abandon
        return index != 3;
    }
    if segments.len() == 3
        && first.eq_ignore_ascii_case("devices")
        && segments[1].eq_ignore_ascii_case("keys")
    {
        return segments[2].eq_ignore_ascii_case("regenerate");
    }
    if first.eq_ignore_ascii_case("jobs") && segments.get(1).is_some_and(|v2| v2.eq_ignore_ascii_case("v2")) {
        // /jobs/v2/query, /jobs/v2/{id}, /jobs/v2/{id}/cancel
        return index != 2 || segments[2].eq_ignore_ascii_case("query") && segments.len() == 3;
    }
    if first.eq_ignore_ascii_case("configurations") && segments.len() == 2 {
        return index == 0 || segments[1].eq_ignore_ascii_case("testQueries");
    }
    index.is_multiple_of(2)
}

fn literal(segment: &str) -> Option<&'static str> {
    LITERALS
        .iter()
        .copied()
        .find(|literal| literal.eq_ignore_ascii_case(segment))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_spelled_and_ids_kept() {
        for (given, expected) in [
            ("/Devices/D1/Modules/M1", Some("/devices/D1/modules/M1")),
            ("/devices/Modules/modules/TWINS", None),
            ("/devices/", Some("/devices")),
            ("/TWINS/a%2Fb/METHODS", Some("/twins/a%2Fb/methods")),
            (
                "/messages/servicebound/Feedback/Tok/ABANDON",
                Some("/messages/serviceBound/feedback/Tok/abandon"),
            ),
            ("/Statistics/Devices", Some("/statistics/devices")),
            ("/devices/keys/REGENERATE", Some("/devices/keys/regenerate")),
            (
                "/holdfast/V1/Policies/Devices",
                Some("/holdfast/v1/policies/Devices"),
            ),
            ("/Jobs/V2/Query", Some("/jobs/v2/query")),
            ("/jobs/v2/Job-1/Cancel", Some("/jobs/v2/Job-1/cancel")),
            ("/jobs/v2/cancel", None),
            ("/Configurations/TESTQUERIES", Some("/configurations/testQueries")),
            ("/Configurations/Devices", Some("/configurations/Devices")),
            (
                "/devices/D1/applyconfigurationcontent",
                Some("/devices/D1/applyConfigurationContent"),
            ),
            (
                "/holdfast/v1/Routing/Routes/Devices",
                Some("/holdfast/v1/routing/routes/Devices"),
            ),
            (
                "/holdfast/v1/routing/Endpoints/Routes/DEADLETTERS/Replay",
                Some("/holdfast/v1/routing/endpoints/Routes/deadLetters/replay"),
            ),
            ("/Routing/Routes/$TestNew", Some("/routing/routes/$testnew")),
            ("/routingendpointshealth", Some("/routingEndpointsHealth")),
            ("/", None),
        ] {
            assert_eq!(canonical(given).as_deref(), expected, "{given}");
        }
    }
}
