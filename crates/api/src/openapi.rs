//! The OpenAPI document, made from the handlers' own declarations.

use axum::http::{HeaderValue, header};
use axum::response::IntoResponse;
use holdfast_wire::headers;
use utoipa::OpenApi;

use crate::{
    certificates, configurations, consumer_groups, digital_twins, events, feedback, identities, jobs,
    messages, methods, models, policies, provisioning, query, routing, statistics, transfer, twins,
};

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Holdfast service API",
        description = "IoT Hub's service operations, and Holdfast's own below /holdfast/v1. Every request carries a \
                       shared access signature in the header Authorization; IoT Hub's operations also carry the query \
                       parameter api-version, any date."
    ),
    paths(
        identities::list,
        identities::bulk,
        identities::regenerate_keys,
        identities::get_device,
        identities::put_device,
        identities::delete_device,
        identities::list_modules,
        identities::get_module,
        identities::put_module,
        identities::delete_module,
        statistics::devices,
        statistics::service,
        query::run,
        configurations::list,
        configurations::get,
        configurations::put,
        configurations::delete,
        configurations::test_queries,
        configurations::apply_content,
        jobs::list,
        jobs::get,
        jobs::create,
        jobs::cancel,
        twins::get_device,
        twins::patch_device,
        twins::put_device,
        twins::get_module,
        twins::patch_module,
        twins::put_module,
        methods::invoke_device,
        methods::invoke_module,
        digital_twins::get,
        digital_twins::patch,
        digital_twins::invoke,
        digital_twins::invoke_component,
        models::list,
        models::validate,
        models::get,
        models::put,
        models::delete,
        models::check_device,
        models::check_module,
        transfer::create_job,
        transfer::list_jobs,
        transfer::get_job,
        transfer::cancel_job,
        transfer::import,
        transfer::export,
        messages::purge,
        messages::send,
        feedback::receive,
        feedback::complete,
        feedback::abandon,
        events::stream_events,
        consumer_groups::list,
        consumer_groups::create,
        consumer_groups::delete,
        consumer_groups::checkpoints,
        consumer_groups::save_checkpoints,
        routing::routes::list,
        routing::routes::get,
        routing::routes::put,
        routing::routes::delete,
        routing::routes::get_fallback,
        routing::routes::put_fallback,
        routing::trial::test_new,
        routing::trial::test_all,
        routing::trial::own_test_new,
        routing::trial::own_test_all,
        routing::live::test_live,
        routing::enrichments::list,
        routing::enrichments::put,
        routing::enrichments::delete,
        routing::endpoints::list,
        routing::endpoints::get,
        routing::endpoints::put,
        routing::endpoints::delete,
        routing::endpoints::health,
        routing::endpoints::health_list,
        routing::dead_letters::list,
        routing::dead_letters::clear,
        routing::dead_letters::replay,
        routing::definition::get,
        routing::definition::put,
        policies::list,
        policies::get,
        policies::put,
        policies::delete,
        policies::regenerate,
        certificates::list,
        certificates::get,
        certificates::put,
        certificates::delete,
        certificates::generate_code,
        certificates::verify,
        provisioning::enrollments::bulk,
        provisioning::enrollments::list,
        provisioning::enrollments::get,
        provisioning::enrollments::put,
        provisioning::enrollments::delete,
        provisioning::enrollments::attestation,
        provisioning::groups::bulk,
        provisioning::groups::list,
        provisioning::groups::get,
        provisioning::groups::put,
        provisioning::groups::delete,
        provisioning::groups::attestation,
        provisioning::registrations::get,
        provisioning::registrations::delete,
        provisioning::registrations::list,
        provisioning::access::get,
        provisioning::access::put,
        provisioning::certificates::list,
        provisioning::certificates::get,
        provisioning::certificates::put,
        provisioning::certificates::delete,
        provisioning::certificates::generate_code,
        provisioning::certificates::verify,
        provisioning::linked_hubs::list,
        provisioning::linked_hubs::get,
        provisioning::linked_hubs::put,
        provisioning::linked_hubs::delete,
        provisioning::policies::list,
        provisioning::policies::get,
        provisioning::policies::put,
        provisioning::policies::delete,
    )
)]
struct Document;

/// The document as JSON, for `openapi/hub.json` and for `GET /holdfast/v1/openapi.json`.
#[must_use]
pub fn document() -> String {
    // The document is static; serializing it cannot fail.
    Document::openapi().to_pretty_json().unwrap_or_default()
}

/// Serves the document, to anybody: it holds nothing that the source does not.
pub(crate) async fn serve() -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, HeaderValue::from_static(headers::JSON))],
        document(),
    )
}
