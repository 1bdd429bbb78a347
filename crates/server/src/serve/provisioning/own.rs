//! The hub of this process.

use std::sync::Arc;

use holdfast_hub::{AuthenticationSpec, BulkEntry, Hub, IdentitySpec, IfMatch, ImportMode, ServiceCaller};
use holdfast_model::provisioning::InitialTwin;
use holdfast_model::registry::{Authentication, IdentityRecord};
use holdfast_model::twin::{ChangeMode, TwinChange};
use holdfast_model::{Error, ErrorCode, Identity};
use holdfast_ports::BoxFuture;
use holdfast_ports::enrollment::{HubCredential, HubRegistry, ProvisionedDevice};

pub(super) struct OwnHub {
    hub: Arc<Hub>,
}

impl OwnHub {
    pub(super) fn new(hub: Arc<Hub>) -> Self {
        OwnHub { hub }
    }

    /// Creates the device together with its twin; `false` when it exists.
    async fn create(&self, device: &ProvisionedDevice) -> Result<bool, Error> {
        let entry = BulkEntry {
            device_id: device.device_id.clone(),
            mode: ImportMode::Create,
            spec: IdentitySpec {
                authentication: specified(&device.credential),
                iot_edge: device.iot_edge,
                ..IdentitySpec::default()
            },
            twin: twin_of(device),
            ..BulkEntry::default()
        };
        let failures = self.hub.bulk(&ServiceCaller::Local, vec![entry]).await?;
        match failures.into_iter().next() {
            None => Ok(true),
            Some(failure) if failure.error.code == ErrorCode::DeviceAlreadyExists => Ok(false),
            Some(failure) => Err(failure.error),
        }
    }

    /// Gives a device that is there its credential; what else operators set stays.
    async fn update(&self, identity: &Identity, device: &ProvisionedDevice) -> Result<(), Error> {
        let record = self.hub.identity(identity).await?;
        let same = matches(&record, &device.credential);
        if same && (record.iot_edge || !device.iot_edge) {
            // A change of credentials would end the device's live session.
            return Ok(());
        }
        let spec = IdentitySpec {
            status: record.status,
            status_reason: record.status_reason,
            authentication: specified(&device.credential),
            iot_edge: record.iot_edge || device.iot_edge,
            device_scope: None,
            parent_scopes: record.parent_scopes,
            managed_by: None,
        };
        let if_match = IfMatch::Version(record.version);
        let updated = self
            .hub
            .update_identity(&ServiceCaller::Local, identity, &spec, if_match)
            .await;
        updated.map(drop).map_err(|error| match error.code {
            ErrorCode::PreconditionFailed => Error::new(
                ErrorCode::ServiceUnavailable,
                "the device has changed meanwhile; try again",
            ),
            _ => error,
        })
    }
}

impl HubRegistry for OwnHub {
    fn put_device<'a>(&'a self, device: &'a ProvisionedDevice) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            if self.create(device).await? {
                return Ok(());
            }
            let identity = Identity::device(&device.device_id)?;
            self.update(&identity, device).await?;
            if device.replace_twin {
                let change = twin_of(device);
                self.hub
                    .change_twin(
                        &ServiceCaller::Local,
                        &identity,
                        ChangeMode::Replace,
                        change,
                        IfMatch::Absent,
                    )
                    .await?;
            }
            Ok(())
        })
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(std::future::ready(Ok(())))
    }

    fn twin<'a>(&'a self, device_id: &'a str) -> BoxFuture<'a, Result<Option<InitialTwin>, Error>> {
        Box::pin(async move {
            match self.hub.twin(&Identity::device(device_id)?).await {
                Ok(twin) => Ok(Some(InitialTwin {
                    tags: twin.tags,
                    desired: twin.desired.properties,
                })),
                Err(error) if error.code == ErrorCode::DeviceNotFound => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    fn delete_device<'a>(&'a self, device_id: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let identity = Identity::device(device_id)?;
            match self.hub.delete_identity(&identity, IfMatch::Absent).await {
                Err(error) if error.code == ErrorCode::DeviceNotFound => Ok(()),
                outcome => outcome,
            }
        })
    }
}

fn twin_of(device: &ProvisionedDevice) -> TwinChange {
    TwinChange {
        tags: Some(device.twin.tags.clone()),
        desired: Some(device.twin.desired.clone()),
    }
}

fn specified(credential: &HubCredential) -> AuthenticationSpec {
    match credential.clone() {
        HubCredential::Keys { primary, secondary } => AuthenticationSpec::Sas {
            primary_key: Some(primary),
            secondary_key: Some(secondary),
        },
        HubCredential::Thumbprints { primary, secondary } => AuthenticationSpec::SelfSigned {
            primary_thumbprint: Some(primary),
            secondary_thumbprint: secondary,
        },
    }
}

fn matches(record: &IdentityRecord, credential: &HubCredential) -> bool {
    match (&record.authentication, credential) {
        (
            Authentication::Sas {
                primary_key,
                secondary_key,
            },
            HubCredential::Keys { primary, secondary },
        ) => primary_key == primary && secondary_key == secondary,
        (
            Authentication::SelfSigned {
                primary_thumbprint,
                secondary_thumbprint,
            },
            HubCredential::Thumbprints { primary, secondary },
        ) => primary_thumbprint.as_ref() == Some(primary) && secondary_thumbprint == secondary,
        _ => false,
    }
}
