//! The closed list of errors that a client of the hub can see.

use std::fmt;

/// What went wrong, in the words of IoT Hub's error names (rest.md 4.2).
///
/// The list is closed: `holdfast-wire` maps every code to an HTTP status, a number, an MQTT answer and an AMQP
/// condition in one table, and a test proves that table total.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum ErrorCode {
    /// The api-version is missing or not of a known form.
    InvalidProtocolVersion,
    /// The operation is not valid on this resource.
    InvalidOperation,
    /// A value is malformed or outside its range.
    ArgumentInvalid,
    /// A required member is missing or null.
    ArgumentNull,
    /// The JSON has another shape than the operation takes.
    IotHubFormatError,
    /// A blob container of an import or export job cannot be used.
    BlobContainerValidationError,
    /// The same device id stands twice in a bulk list.
    DeviceDefinedMultipleTimes,
    /// The body could not be parsed.
    DeserializationError,
    /// A bulk registry request failed as a whole.
    BulkRegistryOperationFailure,
    /// A module cannot have modules.
    CannotRegisterModuleToModule,
    /// `deviceScope` or `parentScopes` names no known edge device.
    InvalidDeviceScope,
    /// No storage account is configured for file upload.
    DefaultStorageEndpointNotConfigured,
    /// No upload of the device has this correlation id, or it has ended.
    InvalidFileUploadCorrelationId,
    /// The upload was not notified before its signature ended.
    ExpiredFileUploadCorrelationId,
    /// A notification of an upload does not say how it ended.
    InvalidFileUploadCompletionStatus,
    /// The blob of an upload is not in the storage account, or that cannot be used.
    InvalidStorageEndpointOrBlob,
    /// The host named in the request is not this hub.
    IotHubNotFound,
    /// The credential is wrong or lacks the needed right.
    IotHubUnauthorizedAccess,
    /// The token cannot be validated: expired, malformed, or for another resource.
    IotHubUnauthorized,
    /// A service may not change the reserved edge modules directly.
    SystemModuleModifyUnauthorizedAccess,
    /// A quota of the hub is used up.
    IotHubQuotaExceeded,
    /// A job of the same kind is under way already.
    JobQuotaExceeded,
    /// The cloud-to-device queue of the device is full.
    DeviceMaximumQueueDepthExceeded,
    /// The device has as many file uploads under way as it may.
    DeviceMaximumActiveFileUploadLimitExceeded,
    /// No such device.
    DeviceNotFound,
    /// No such module.
    ModuleNotFound,
    /// No such job.
    JobNotFound,
    /// The target of a method is not connected or has not subscribed to methods.
    DeviceNotOnline,
    /// The target's connection ended while it worked on a method.
    DeviceConnectionClosedRemotely,
    /// No such resource of another kind (consumer group, policy, certificate).
    ResourceNotFound,
    /// The device exists already.
    DeviceAlreadyExists,
    /// The module exists already.
    ModuleAlreadyExistsOnDevice,
    /// A resource of another kind exists already.
    ResourceConflict,
    /// The entity tag does not match.
    PreconditionFailed,
    /// The lock token is unknown or its lock has ended.
    DeviceMessageLockLost,
    /// The message is larger than allowed.
    MessageTooLarge,
    /// The registry holds as many identities as it may.
    TooManyDevices,
    /// The device has as many modules as it may.
    TooManyModulesOnDevice,
    /// The media type is not one the operation takes.
    GenericUnsupportedMediaType,
    /// The HTTP method is not one the resource takes.
    MethodNotAllowed,
    /// The caller is too fast.
    ThrottlingException,
    /// Something failed inside the hub; the log has the details.
    ServerError,
    /// The device answered a method with something that is not JSON or is too large.
    GenericBadGateway,
    /// The hub cannot serve right now (starting, stopping, storage failed); try again later.
    ServiceUnavailable,
    /// The device did not answer a method in time.
    GatewayTimeout,
    /// A registration id is malformed, or not the one that was proven.
    InvalidRegistrationId,
    /// An enrollment group id is malformed.
    InvalidEnrollmentGroupId,
    /// The webhook that chooses a hub failed or answered nonsense.
    CustomAllocationFailed,
    /// No linked hub could be chosen for the device.
    CustomAllocationIotHubNotSpecified,
    /// No such enrollment, or no such id scope.
    EnrollmentNotFound,
    /// The device has not registered.
    DeviceRegistrationNotFound,
    /// No such registration operation.
    AsyncOperationNotFound,
    /// No such enrollment group.
    EnrollmentGroupNotFound,
    /// The enrollment exists already.
    EnrollmentConflict,
    /// The enrollment group exists already.
    EnrollmentGroupConflict,
    /// The target condition of a configuration cannot be used; the text says where.
    InvalidConfigurationTargetCondition,
    /// The content of a configuration is not what its kind takes.
    InvalidConfigurationContent,
    /// The content of a configuration cannot be changed after its creation.
    CannotModifyImmutableConfigurationContent,
    /// A metric of a configuration is no valid query; the text says where.
    InvalidConfigurationCustomMetricsQuery,
    /// No such configuration or deployment.
    ConfigurationNotFound,
    /// The configuration or deployment exists already.
    ConfigurationAlreadyExists,
    /// Content is being applied to the device by another request.
    ApplyConfigurationAlreadyInProgressOnDevice,
    /// The hub holds as many configurations or deployments as it may.
    ConfigurationCountLimitExceeded,
    /// As many jobs as may be are waiting or running.
    ThrottlingMaxActiveJobCountExceeded,
    /// A job with this id exists already.
    JobAlreadyExists,
}

impl ErrorCode {
    /// Every code, for tables and tests.
    pub const ALL: &'static [ErrorCode] = &[
        ErrorCode::InvalidProtocolVersion,
        ErrorCode::InvalidOperation,
        ErrorCode::ArgumentInvalid,
        ErrorCode::ArgumentNull,
        ErrorCode::IotHubFormatError,
        ErrorCode::BlobContainerValidationError,
        ErrorCode::DeviceDefinedMultipleTimes,
        ErrorCode::DeserializationError,
        ErrorCode::BulkRegistryOperationFailure,
        ErrorCode::CannotRegisterModuleToModule,
        ErrorCode::InvalidDeviceScope,
        ErrorCode::DefaultStorageEndpointNotConfigured,
        ErrorCode::InvalidFileUploadCorrelationId,
        ErrorCode::ExpiredFileUploadCorrelationId,
        ErrorCode::InvalidFileUploadCompletionStatus,
        ErrorCode::InvalidStorageEndpointOrBlob,
        ErrorCode::IotHubNotFound,
        ErrorCode::IotHubUnauthorizedAccess,
        ErrorCode::IotHubUnauthorized,
        ErrorCode::SystemModuleModifyUnauthorizedAccess,
        ErrorCode::IotHubQuotaExceeded,
        ErrorCode::JobQuotaExceeded,
        ErrorCode::DeviceMaximumQueueDepthExceeded,
        ErrorCode::DeviceMaximumActiveFileUploadLimitExceeded,
        ErrorCode::DeviceNotFound,
        ErrorCode::ModuleNotFound,
        ErrorCode::JobNotFound,
        ErrorCode::DeviceNotOnline,
        ErrorCode::DeviceConnectionClosedRemotely,
        ErrorCode::ResourceNotFound,
        ErrorCode::DeviceAlreadyExists,
        ErrorCode::ModuleAlreadyExistsOnDevice,
        ErrorCode::ResourceConflict,
        ErrorCode::PreconditionFailed,
        ErrorCode::DeviceMessageLockLost,
        ErrorCode::MessageTooLarge,
        ErrorCode::TooManyDevices,
        ErrorCode::TooManyModulesOnDevice,
        ErrorCode::GenericUnsupportedMediaType,
        ErrorCode::MethodNotAllowed,
        ErrorCode::ThrottlingException,
        ErrorCode::ServerError,
        ErrorCode::GenericBadGateway,
        ErrorCode::ServiceUnavailable,
        ErrorCode::GatewayTimeout,
        ErrorCode::InvalidRegistrationId,
        ErrorCode::InvalidEnrollmentGroupId,
        ErrorCode::CustomAllocationFailed,
        ErrorCode::CustomAllocationIotHubNotSpecified,
        ErrorCode::EnrollmentNotFound,
        ErrorCode::DeviceRegistrationNotFound,
        ErrorCode::AsyncOperationNotFound,
        ErrorCode::EnrollmentGroupNotFound,
        ErrorCode::EnrollmentConflict,
        ErrorCode::EnrollmentGroupConflict,
        ErrorCode::InvalidConfigurationTargetCondition,
        ErrorCode::InvalidConfigurationContent,
        ErrorCode::CannotModifyImmutableConfigurationContent,
        ErrorCode::InvalidConfigurationCustomMetricsQuery,
        ErrorCode::ConfigurationNotFound,
        ErrorCode::ConfigurationAlreadyExists,
        ErrorCode::ApplyConfigurationAlreadyInProgressOnDevice,
        ErrorCode::ConfigurationCountLimitExceeded,
        ErrorCode::ThrottlingMaxActiveJobCountExceeded,
        ErrorCode::JobAlreadyExists,
    ];
}

/// An error meant for the client: a code and a sentence that says what happened, where, and what to do.
///
/// It never carries a key, a token or a stored secret. Internal causes are logged where they are handled and
/// arrive here as [`ErrorCode::ServerError`] or [`ErrorCode::ServiceUnavailable`].
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct Error {
    /// The code that the protocol heads map to their own numbers.
    pub code: ErrorCode,
    /// Text for the client.
    pub message: String,
}

/// Result with the client-facing [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error of `code` with a text for the client.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Error {
            code,
            message: message.into(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
