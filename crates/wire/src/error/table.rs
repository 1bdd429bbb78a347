//! The one table of error codes.

use holdfast_model::ErrorCode;

use super::ErrorRow;

/// CONNACK: not authorized.
const REFUSED: u8 = 5;
/// CONNACK: server unavailable; every SDK tries again.
const LATER: u8 = 3;

const ARGUMENT: &str = "com.microsoft:argument-error";
const UNAUTHORIZED: &str = "amqp:unauthorized-access";
const NOT_FOUND: &str = "amqp:not-found";
const NOT_ALLOWED: &str = "amqp:not-allowed";
const LIMIT: &str = "amqp:resource-limit-exceeded";
const EXISTS: &str = "com.microsoft:device-already-exists";
const INTERNAL: &str = "amqp:internal-error";

const fn known(name: &'static str, number: u32, connack: u8, amqp_condition: &'static str) -> ErrorRow {
    ErrorRow {
        name,
        http_status: (number / 1_000) as u16,
        number,
        number_verified: true,
        connack,
        amqp_condition,
    }
}

const fn chosen(name: &'static str, number: u32, connack: u8, amqp_condition: &'static str) -> ErrorRow {
    ErrorRow {
        number_verified: false,
        ..known(name, number, connack, amqp_condition)
    }
}

/// The row of a code (REST contract, section 4.2; MQTT contract, section 2.7; AMQP contract, section 7).
///
/// Where no witness of Azure's number is known, Holdfast chose: `000` after the status for the `Generic…` names, as
/// the provisioning service's 401000 does, and `900` upwards for the rest, a range Azure is not seen to use.
#[must_use]
pub const fn row(code: ErrorCode) -> ErrorRow {
    use ErrorCode as C;
    match code {
        C::InvalidProtocolVersion => known("InvalidProtocolVersion", 400_001, REFUSED, ARGUMENT),
        C::InvalidOperation => known("InvalidOperation", 400_003, REFUSED, NOT_ALLOWED),
        C::ArgumentInvalid => known("ArgumentInvalid", 400_004, REFUSED, ARGUMENT),
        C::ArgumentNull => known("ArgumentNull", 400_005, REFUSED, ARGUMENT),
        C::IotHubFormatError => known("IotHubFormatError", 400_006, REFUSED, ARGUMENT),
        C::BlobContainerValidationError => known("BlobContainerValidationError", 400_008, REFUSED, ARGUMENT),
        C::DeviceDefinedMultipleTimes => known("DeviceDefinedMultipleTimes", 400_011, REFUSED, ARGUMENT),
        C::DeserializationError => known("DeserializationError", 400_012, REFUSED, ARGUMENT),
        C::BulkRegistryOperationFailure => known("BulkRegistryOperationFailure", 400_013, REFUSED, ARGUMENT),
        C::CannotRegisterModuleToModule => known("CannotRegisterModuleToModule", 400_301, REFUSED, ARGUMENT),
        C::InvalidDeviceScope => chosen("InvalidDeviceScope", 400_901, REFUSED, ARGUMENT),
        C::DefaultStorageEndpointNotConfigured => chosen(
            "DefaultStorageEndpointNotConfigured",
            400_902,
            REFUSED,
            NOT_ALLOWED,
        ),
        C::InvalidFileUploadCorrelationId => {
            chosen("InvalidFileUploadCorrelationId", 400_903, REFUSED, ARGUMENT)
        }
        C::ExpiredFileUploadCorrelationId => {
            chosen("ExpiredFileUploadCorrelationId", 400_904, REFUSED, ARGUMENT)
        }
        C::InvalidFileUploadCompletionStatus => {
            chosen("InvalidFileUploadCompletionStatus", 400_905, REFUSED, ARGUMENT)
        }
        C::InvalidStorageEndpointOrBlob => {
            chosen("InvalidStorageEndpointOrBlob", 400_906, REFUSED, NOT_ALLOWED)
        }
        C::IotHubNotFound => known(
            "IotHubNotFound",
            401_001,
            REFUSED,
            "com.microsoft:iot-hub-not-found-error",
        ),
        C::IotHubUnauthorizedAccess => known("IotHubUnauthorizedAccess", 401_002, REFUSED, UNAUTHORIZED),
        C::IotHubUnauthorized => known("IotHubUnauthorized", 401_003, REFUSED, UNAUTHORIZED),
        C::SystemModuleModifyUnauthorizedAccess => chosen(
            "SystemModuleModifyUnauthorizedAccess",
            401_901,
            REFUSED,
            UNAUTHORIZED,
        ),
        C::IotHubQuotaExceeded => known(
            "IotHubQuotaExceeded",
            403_002,
            LATER,
            "com.microsoft:quota-exceeded",
        ),
        C::JobQuotaExceeded => known("JobQuotaExceeded", 403_003, REFUSED, LIMIT),
        C::DeviceMaximumQueueDepthExceeded => {
            known("DeviceMaximumQueueDepthExceeded", 403_004, REFUSED, LIMIT)
        }
        C::DeviceMaximumActiveFileUploadLimitExceeded => known(
            "DeviceMaximumActiveFileUploadLimitExceeded",
            403_006,
            REFUSED,
            LIMIT,
        ),
        C::DeviceNotFound => known("DeviceNotFound", 404_001, REFUSED, NOT_FOUND),
        C::JobNotFound => known("JobNotFound", 404_002, REFUSED, NOT_FOUND),
        C::ModuleNotFound => known("ModuleNotFound", 404_010, REFUSED, NOT_FOUND),
        C::DeviceNotOnline => known("DeviceNotOnline", 404_103, REFUSED, NOT_FOUND),
        C::DeviceConnectionClosedRemotely => {
            known("DeviceConnectionClosedRemotely", 404_104, REFUSED, NOT_FOUND)
        }
        C::ResourceNotFound => chosen("ResourceNotFound", 404_901, REFUSED, NOT_FOUND),
        C::MethodNotAllowed => chosen("GenericMethodNotAllowed", 405_000, REFUSED, NOT_ALLOWED),
        C::DeviceAlreadyExists => known("DeviceAlreadyExists", 409_001, REFUSED, EXISTS),
        C::ModuleAlreadyExistsOnDevice => known("ModuleAlreadyExistsOnDevice", 409_301, REFUSED, EXISTS),
        C::ResourceConflict => chosen("ResourceConflict", 409_901, REFUSED, NOT_ALLOWED),
        C::PreconditionFailed => known(
            "PreconditionFailed",
            412_001,
            REFUSED,
            "com.microsoft:precondition-failed",
        ),
        C::DeviceMessageLockLost => known(
            "DeviceMessageLockLost",
            412_002,
            REFUSED,
            "com.microsoft:message-lock-lost",
        ),
        C::MessageTooLarge => known(
            "MessageTooLarge",
            413_001,
            REFUSED,
            "amqp:link:message-size-exceeded",
        ),
        C::TooManyDevices => known("TooManyDevices", 413_002, REFUSED, LIMIT),
        C::TooManyModulesOnDevice => known("TooManyModulesOnDevice", 413_003, REFUSED, LIMIT),
        C::GenericUnsupportedMediaType => chosen("GenericUnsupportedMediaType", 415_000, REFUSED, ARGUMENT),
        C::ThrottlingException => known(
            "ThrottlingException",
            429_001,
            LATER,
            "com.microsoft:device-container-throttled",
        ),
        C::ServerError => known("ServerError", 500_001, LATER, INTERNAL),
        C::GenericBadGateway => chosen("GenericBadGateway", 502_000, LATER, INTERNAL),
        C::ServiceUnavailable => known("ServiceUnavailable", 503_001, LATER, INTERNAL),
        C::InvalidRegistrationId => chosen("InvalidRegistrationId", 400_202, REFUSED, ARGUMENT),
        C::InvalidEnrollmentGroupId => chosen("InvalidEnrollmentGroupId", 400_204, REFUSED, ARGUMENT),
        C::CustomAllocationFailed => known("CustomAllocationFailed", 400_207, REFUSED, ARGUMENT),
        C::CustomAllocationIotHubNotSpecified => {
            chosen("CustomAllocationIotHubNotSpecified", 400_208, REFUSED, ARGUMENT)
        }
        C::EnrollmentNotFound => known("EnrollmentNotFound", 404_201, REFUSED, NOT_FOUND),
        C::DeviceRegistrationNotFound => known("DeviceRegistrationNotFound", 404_202, REFUSED, NOT_FOUND),
        C::AsyncOperationNotFound => chosen("AsyncOperationNotFound", 404_203, REFUSED, NOT_FOUND),
        C::EnrollmentGroupNotFound => chosen("EnrollmentGroupNotFound", 404_204, REFUSED, NOT_FOUND),
        C::EnrollmentConflict => chosen("EnrollmentConflict", 409_201, REFUSED, NOT_ALLOWED),
        C::EnrollmentGroupConflict => chosen("EnrollmentGroupConflict", 409_202, REFUSED, NOT_ALLOWED),
        C::InvalidConfigurationTargetCondition => {
            chosen("InvalidConfigurationTargetCondition", 400_911, REFUSED, ARGUMENT)
        }
        C::InvalidConfigurationContent => chosen("InvalidConfigurationContent", 400_912, REFUSED, ARGUMENT),
        C::CannotModifyImmutableConfigurationContent => chosen(
            "CannotModifyImmutableConfigurationContent",
            400_913,
            REFUSED,
            NOT_ALLOWED,
        ),
        C::InvalidConfigurationCustomMetricsQuery => chosen(
            "InvalidConfigurationCustomMetricsQuery",
            400_914,
            REFUSED,
            ARGUMENT,
        ),
        C::ConfigurationNotFound => chosen("ConfigurationNotFound", 404_911, REFUSED, NOT_FOUND),
        C::ConfigurationAlreadyExists => chosen("ConfigurationAlreadyExists", 409_911, REFUSED, NOT_ALLOWED),
        C::ApplyConfigurationAlreadyInProgressOnDevice => chosen(
            "ApplyConfigurationAlreadyInProgressOnDevice",
            409_912,
            REFUSED,
            NOT_ALLOWED,
        ),
        C::ConfigurationCountLimitExceeded => {
            chosen("ConfigurationCountLimitExceeded", 413_911, REFUSED, LIMIT)
        }
        C::ThrottlingMaxActiveJobCountExceeded => {
            known("ThrottlingMaxActiveJobCountExceeded", 429_004, LATER, LIMIT)
        }
        C::JobAlreadyExists => chosen("JobAlreadyExists", 409_913, REFUSED, NOT_ALLOWED),
        C::GatewayTimeout => known("GatewayTimeout", 504_101, LATER, "com.microsoft:timeout"),
    }
}
