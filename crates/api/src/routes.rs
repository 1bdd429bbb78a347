//! All routes with the rights they need.

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Request};
use axum::http::{HeaderValue, StatusCode};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use holdfast_model::policy::Rights;
use holdfast_model::provisioning::ProvisioningRights;
use holdfast_model::{Error, ErrorCode};
use holdfast_wire::headers;
use tower::ServiceExt as _;

use crate::extract::BODY_BYTES_MAX;
use crate::operation::{EdgeHub, Operation, Operations, apply_method_override};
use crate::reply::Failure;
use crate::{
    Api, certificates, configurations, consumer_groups, digital_twins, events, feedback, identities, jobs,
    messages, methods, models, openapi, path, policies, provisioning, query, routing, scope, statistics,
    transfer, twins,
};

/// Largest plain text of a framework's rejection that is passed on.
const REJECTION_TEXT_MAX: usize = 4_096;

/// The HTTP service: every operation behind its access check, and the API document at `/holdfast/v1/openapi.json`.
///
/// Paths are taken in any case and with a trailing slash; what is not there is answered in the contract's error shape.
pub fn service(api: Api) -> Router {
    let (router, _) = declare(api.clone());
    let inner = router
        .route("/holdfast/v1/openapi.json", axum::routing::get(openapi::serve))
        .fallback(async || not_found())
        .method_not_allowed_fallback(async || method_not_allowed())
        .layer(middleware::map_response(complete))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .with_state(api);
    Router::new().fallback(async move |request: Request| {
        inner
            .oneshot(apply_method_override(path::canonicalize(request)))
            .await
    })
}

/// Every operation with the right it needs.
#[must_use]
pub fn operations(api: Api) -> Vec<Operation> {
    declare(api).1
}

fn declare(api: Api) -> (Router<Api>, Vec<Operation>) {
    let operations = Operations::new(api);
    let operations = own_operations(service_operations(registry_operations(operations)));
    let operations = model_operations(transfer_operations(operations));
    let operations = routing_operations(management_operations(operations));
    scope_operations(provisioning_settings(provisioning_operations(operations))).finish()
}

fn registry_operations(operations: Operations) -> Operations {
    let (read, write) = (Rights::REGISTRY_READ, Rights::REGISTRY_WRITE);
    operations
        .add("GET", "/devices", read, identities::list)
        .add("POST", "/devices", write, identities::bulk)
        .add(
            "POST",
            "/devices/keys/regenerate",
            write,
            identities::regenerate_keys,
        )
        .add("GET", "/devices/{id}", read, identities::get_device)
        .add("PUT", "/devices/{id}", write, identities::put_device)
        .add("DELETE", "/devices/{id}", write, identities::delete_device)
        .add_own_modules("GET", "/devices/{id}/modules", read, identities::list_modules)
        .add_own_modules("GET", "/devices/{id}/modules/{mid}", read, identities::get_module)
        .add_own_modules(
            "PUT",
            "/devices/{id}/modules/{mid}",
            write,
            identities::put_module,
        )
        .add_own_modules(
            "DELETE",
            "/devices/{id}/modules/{mid}",
            write,
            identities::delete_module,
        )
        .add("GET", "/statistics/devices", read, statistics::devices)
}

fn scope_operations(operations: Operations) -> Operations {
    operations
        .add(
            "GET",
            "/devices/{id}/modules/{mid}/devicesAndModulesInDeviceScope",
            EdgeHub,
            scope::list_own,
        )
        .add(
            "GET",
            "/devices/{id}/modules/{mid}/deviceAndModuleInDeviceScope",
            EdgeHub,
            scope::get_own,
        )
        .add(
            "POST",
            "/devices/{id}/modules/{mid}/devicesAndModulesInTargetDeviceScope",
            EdgeHub,
            scope::list_target,
        )
        .add(
            "POST",
            "/devices/{id}/modules/{mid}/getDeviceAndModuleOnBehalfOf",
            EdgeHub,
            scope::get_on_behalf,
        )
        .add(
            "POST",
            "/devices/{id}/modules/{mid}/putModuleOnBehalfOf",
            EdgeHub,
            scope::put_module,
        )
        .add(
            "PUT",
            "/devices/{id}/modules/{mid}/putModuleOnBehalfOf",
            EdgeHub,
            scope::put_module_as_put,
        )
        .add(
            "POST",
            "/devices/{id}/modules/{mid}/getModuleOnBehalfOf",
            EdgeHub,
            scope::get_module,
        )
        .add(
            "POST",
            "/devices/{id}/modules/{mid}/getModulesOnTargetDevice",
            EdgeHub,
            scope::list_modules,
        )
        .add(
            "POST",
            "/devices/{id}/modules/{mid}/deleteModuleOnBehalfOf",
            EdgeHub,
            scope::delete_module,
        )
}

fn service_operations(operations: Operations) -> Operations {
    let service = Rights::SERVICE_CONNECT;
    operations
        .add("GET", "/statistics/service", service, statistics::service)
        .add("POST", "/devices/query", service, query::run)
        .add("GET", "/twins/{id}", service, twins::get_device)
        .add("PATCH", "/twins/{id}", service, twins::patch_device)
        .add("PUT", "/twins/{id}", service, twins::put_device)
        .add("GET", "/twins/{id}/modules/{mid}", service, twins::get_module)
        .add("PATCH", "/twins/{id}/modules/{mid}", service, twins::patch_module)
        .add("PUT", "/twins/{id}/modules/{mid}", service, twins::put_module)
        .add("POST", "/twins/{id}/methods", service, methods::invoke_device)
        .add(
            "POST",
            "/twins/{id}/modules/{mid}/methods",
            service,
            methods::invoke_module,
        )
        .add("DELETE", "/devices/{id}/commands", service, messages::purge)
        .add(
            "GET",
            "/messages/serviceBound/feedback",
            service,
            feedback::receive,
        )
        .add(
            "DELETE",
            "/messages/serviceBound/feedback/{token}",
            service,
            feedback::complete,
        )
        .add(
            "POST",
            "/messages/serviceBound/feedback/{token}/abandon",
            service,
            feedback::abandon,
        )
}

fn own_operations(operations: Operations) -> Operations {
    let (read, write, service) = (
        Rights::REGISTRY_READ,
        Rights::REGISTRY_WRITE,
        Rights::SERVICE_CONNECT,
    );
    let all = write.union(service).union(Rights::DEVICE_CONNECT);
    operations
        .add(
            "POST",
            "/holdfast/v1/devices/{id}/messages",
            service,
            messages::send,
        )
        .add("GET", "/holdfast/v1/events", service, events::stream_events)
        .add(
            "GET",
            "/holdfast/v1/consumerGroups",
            service,
            consumer_groups::list,
        )
        .add(
            "PUT",
            "/holdfast/v1/consumerGroups/{name}",
            service,
            consumer_groups::create,
        )
        .add(
            "DELETE",
            "/holdfast/v1/consumerGroups/{name}",
            service,
            consumer_groups::delete,
        )
        .add(
            "GET",
            "/holdfast/v1/consumerGroups/{name}/checkpoints",
            service,
            consumer_groups::checkpoints,
        )
        .add(
            "PUT",
            "/holdfast/v1/consumerGroups/{name}/checkpoints",
            service,
            consumer_groups::save_checkpoints,
        )
        .add("GET", "/holdfast/v1/policies", all, policies::list)
        .add("GET", "/holdfast/v1/policies/{name}", all, policies::get)
        .add("PUT", "/holdfast/v1/policies/{name}", all, policies::put)
        .add("DELETE", "/holdfast/v1/policies/{name}", all, policies::delete)
        .add(
            "POST",
            "/holdfast/v1/policies/{name}/regenerate",
            all,
            policies::regenerate,
        )
        .add("GET", "/holdfast/v1/certificates", read, certificates::list)
        .add("GET", "/holdfast/v1/certificates/{name}", read, certificates::get)
        .add(
            "PUT",
            "/holdfast/v1/certificates/{name}",
            write,
            certificates::put,
        )
        .add(
            "DELETE",
            "/holdfast/v1/certificates/{name}",
            write,
            certificates::delete,
        )
        .add(
            "POST",
            "/holdfast/v1/certificates/{name}/generateVerificationCode",
            write,
            certificates::generate_code,
        )
        .add(
            "POST",
            "/holdfast/v1/certificates/{name}/verify",
            write,
            certificates::verify,
        )
}

fn transfer_operations(operations: Operations) -> Operations {
    let write = Rights::REGISTRY_WRITE;
    operations
        .add("POST", "/jobs/create", write, transfer::create_job)
        .add("GET", "/jobs", write, transfer::list_jobs)
        .add("GET", "/jobs/{id}", write, transfer::get_job)
        .add("DELETE", "/jobs/{id}", write, transfer::cancel_job)
        .add_streaming("POST", "/holdfast/v1/import", write, transfer::import)
        .add("GET", "/holdfast/v1/export", write, transfer::export)
}

fn model_operations(operations: Operations) -> Operations {
    let (read, write, service) = (
        Rights::REGISTRY_READ,
        Rights::REGISTRY_WRITE,
        Rights::SERVICE_CONNECT,
    );
    operations
        .add("GET", "/digitaltwins/{id}", service, digital_twins::get)
        .add("PATCH", "/digitaltwins/{id}", service, digital_twins::patch)
        .add(
            "POST",
            "/digitaltwins/{id}/commands/{name}",
            service,
            digital_twins::invoke,
        )
        .add(
            "POST",
            "/digitaltwins/{id}/components/{component}/commands/{name}",
            service,
            digital_twins::invoke_component,
        )
        .add("GET", "/holdfast/v1/models", read, models::list)
        .add("POST", "/holdfast/v1/models/validate", read, models::validate)
        .add("GET", "/holdfast/v1/models/{id}", read, models::get)
        .add("PUT", "/holdfast/v1/models/{id}", write, models::put)
        .add("DELETE", "/holdfast/v1/models/{id}", write, models::delete)
        .add(
            "GET",
            "/holdfast/v1/devices/{id}/modelCheck",
            service,
            models::check_device,
        )
        .add(
            "GET",
            "/holdfast/v1/devices/{id}/modules/{mid}/modelCheck",
            service,
            models::check_module,
        )
}

fn management_operations(operations: Operations) -> Operations {
    let (read, write, service) = (
        Rights::REGISTRY_READ,
        Rights::REGISTRY_WRITE,
        Rights::SERVICE_CONNECT,
    );
    operations
        .add("GET", "/configurations", read, configurations::list)
        .add("GET", "/configurations/{id}", read, configurations::get)
        .add("PUT", "/configurations/{id}", write, configurations::put)
        .add("DELETE", "/configurations/{id}", write, configurations::delete)
        .add(
            "POST",
            "/configurations/testQueries",
            write,
            configurations::test_queries,
        )
        .add(
            "POST",
            "/devices/{id}/applyConfigurationContent",
            write,
            configurations::apply_content,
        )
        .add("GET", "/jobs/v2/query", service, jobs::list)
        .add("GET", "/jobs/v2/{id}", service, jobs::get)
        .add("PUT", "/jobs/v2/{id}", service, jobs::create)
        .add("POST", "/jobs/v2/{id}/cancel", service, jobs::cancel)
}

fn routing_operations(operations: Operations) -> Operations {
    use routing::{dead_letters, definition, endpoints, enrichments, live, routes, trial};
    let (read, write) = (Rights::REGISTRY_READ, Rights::REGISTRY_WRITE);
    const ROUTE: &str = "/holdfast/v1/routing/routes/{name}";
    const FALLBACK: &str = "/holdfast/v1/routing/fallbackRoute";
    const ENRICHMENT: &str = "/holdfast/v1/routing/enrichments/{name}";
    const ENDPOINT: &str = "/holdfast/v1/routing/endpoints/{name}";
    const DEAD_LETTERS: &str = "/holdfast/v1/routing/endpoints/{name}/deadLetters";
    const REPLAY: &str = "/holdfast/v1/routing/endpoints/{name}/deadLetters/replay";
    const DEFINITION: &str = "/holdfast/v1/routing/definition";
    operations
        .add("GET", "/holdfast/v1/routing/routes", read, routes::list)
        .add("GET", ROUTE, read, routes::get)
        .add("PUT", ROUTE, write, routes::put)
        .add("DELETE", ROUTE, write, routes::delete)
        .add("GET", FALLBACK, read, routes::get_fallback)
        .add("PUT", FALLBACK, write, routes::put_fallback)
        .add("GET", "/holdfast/v1/routing/enrichments", read, enrichments::list)
        .add("PUT", ENRICHMENT, write, enrichments::put)
        .add("DELETE", ENRICHMENT, write, enrichments::delete)
        .add("GET", "/holdfast/v1/routing/endpoints", read, endpoints::list)
        .add("GET", ENDPOINT, read, endpoints::get)
        .add("PUT", ENDPOINT, write, endpoints::put)
        .add("DELETE", ENDPOINT, write, endpoints::delete)
        .add("GET", "/holdfast/v1/routing/health", read, endpoints::health)
        .add("GET", "/routingEndpointsHealth", read, endpoints::health_list)
        .add("GET", DEAD_LETTERS, read, dead_letters::list)
        .add("DELETE", DEAD_LETTERS, write, dead_letters::clear)
        .add("POST", REPLAY, write, dead_letters::replay)
        .add("GET", DEFINITION, read, definition::get)
        .add("PUT", DEFINITION, write, definition::put)
        .add("POST", "/routing/routes/$testnew", read, trial::test_new)
        .add("POST", "/routing/routes/$testall", read, trial::test_all)
        .add(
            "POST",
            "/holdfast/v1/routing/routes/$testnew",
            read,
            trial::own_test_new,
        )
        .add(
            "POST",
            "/holdfast/v1/routing/routes/$testall",
            read,
            trial::own_test_all,
        )
        .add(
            "POST",
            "/holdfast/v1/routing/routes/$testlive",
            read,
            live::test_live,
        )
}

fn provisioning_operations(operations: Operations) -> Operations {
    use provisioning::{enrollments, groups, registrations};
    let (read, write) = (
        ProvisioningRights::ENROLLMENT_READ,
        ProvisioningRights::ENROLLMENT_WRITE,
    );
    let status = ProvisioningRights::REGISTRATION_STATUS_READ;
    operations
        .add("POST", "/enrollments", write, enrollments::bulk)
        .add("POST", "/enrollments/query", read, enrollments::list)
        .add("GET", "/enrollments/{id}", read, enrollments::get)
        .add("PUT", "/enrollments/{id}", write, enrollments::put)
        .add("DELETE", "/enrollments/{id}", write, enrollments::delete)
        .add(
            "POST",
            "/enrollments/{id}/attestationmechanism",
            write,
            enrollments::attestation,
        )
        .add("POST", "/enrollmentGroups", write, groups::bulk)
        .add("POST", "/enrollmentGroups/query", read, groups::list)
        .add("GET", "/enrollmentGroups/{id}", read, groups::get)
        .add("PUT", "/enrollmentGroups/{id}", write, groups::put)
        .add("DELETE", "/enrollmentGroups/{id}", write, groups::delete)
        .add(
            "POST",
            "/enrollmentGroups/{id}/attestationmechanism",
            write,
            groups::attestation,
        )
        .add("GET", "/registrations/{id}", status, registrations::get)
        .add(
            "DELETE",
            "/registrations/{id}",
            ProvisioningRights::REGISTRATION_STATUS_WRITE,
            registrations::delete,
        )
        .add("POST", "/registrations/{id}/query", status, registrations::list)
}

fn provisioning_authorities(operations: Operations) -> Operations {
    use provisioning::certificates;
    let config = ProvisioningRights::SERVICE_CONFIG;
    let (all, one) = (
        "/holdfast/v1/provisioning/certificates",
        "/holdfast/v1/provisioning/certificates/{name}",
    );
    operations
        .add("GET", all, config, certificates::list)
        .add("GET", one, config, certificates::get)
        .add("PUT", one, config, certificates::put)
        .add("DELETE", one, config, certificates::delete)
        .add(
            "POST",
            "/holdfast/v1/provisioning/certificates/{name}/generateVerificationCode",
            config,
            certificates::generate_code,
        )
        .add(
            "POST",
            "/holdfast/v1/provisioning/certificates/{name}/verify",
            config,
            certificates::verify,
        )
}

fn provisioning_settings(operations: Operations) -> Operations {
    use provisioning::{access, linked_hubs, policies};
    let (config, all) = (ProvisioningRights::SERVICE_CONFIG, ProvisioningRights::ALL);
    provisioning_authorities(operations)
        .add(
            "GET",
            "/holdfast/v1/enrollmentGroups/{id}/access",
            ProvisioningRights::ENROLLMENT_READ,
            access::get,
        )
        .add(
            "PUT",
            "/holdfast/v1/enrollmentGroups/{id}/access",
            ProvisioningRights::ENROLLMENT_WRITE,
            access::put,
        )
        .add("GET", "/holdfast/v1/linkedHubs", config, linked_hubs::list)
        .add("GET", "/holdfast/v1/linkedHubs/{name}", config, linked_hubs::get)
        .add("PUT", "/holdfast/v1/linkedHubs/{name}", config, linked_hubs::put)
        .add(
            "DELETE",
            "/holdfast/v1/linkedHubs/{name}",
            config,
            linked_hubs::delete,
        )
        .add("GET", "/holdfast/v1/provisioningPolicies", all, policies::list)
        .add(
            "GET",
            "/holdfast/v1/provisioningPolicies/{name}",
            all,
            policies::get,
        )
        .add(
            "PUT",
            "/holdfast/v1/provisioningPolicies/{name}",
            all,
            policies::put,
        )
        .add(
            "DELETE",
            "/holdfast/v1/provisioningPolicies/{name}",
            all,
            policies::delete,
        )
}

fn not_found() -> Response {
    Failure::from(Error::new(
        ErrorCode::ResourceNotFound,
        "there is no such resource",
    ))
    .into_response()
}

fn method_not_allowed() -> Response {
    Failure::from(Error::new(
        ErrorCode::MethodNotAllowed,
        "the resource does not take this method",
    ))
    .into_response()
}

/// Gives every answer its request id, and turns the framework's own rejections (body too large, bad query) into the
/// contract's error shape.
async fn complete(response: Response) -> Response {
    let status = response.status();
    let foreign = (status.is_client_error() || status.is_server_error())
        && !response.headers().contains_key(headers::ERROR_CODE)
        && status != StatusCode::MULTI_STATUS
        && !is_json(&response);
    let mut response = if foreign {
        rejection(response).await
    } else {
        response
    };
    let id = uuid::Uuid::new_v4().to_string();
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(headers::REQUEST_ID, id);
    }
    response
}

/// Key regeneration answers 400 with a result list, which is no error shape.
fn is_json(response: &Response) -> bool {
    let content_type = response.headers().get(axum::http::header::CONTENT_TYPE);
    content_type
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.starts_with("application/json"))
}

async fn rejection(response: Response) -> Response {
    let code = match response.status() {
        StatusCode::PAYLOAD_TOO_LARGE => ErrorCode::MessageTooLarge,
        StatusCode::UNSUPPORTED_MEDIA_TYPE => ErrorCode::GenericUnsupportedMediaType,
        status if status.is_server_error() => ErrorCode::ServerError,
        _ => ErrorCode::ArgumentInvalid,
    };
    let text: Bytes = axum::body::to_bytes(response.into_body(), REJECTION_TEXT_MAX)
        .await
        .unwrap_or_default();
    Failure::from(Error::new(code, String::from_utf8_lossy(&text).into_owned())).into_response()
}
