//! Enrollments, groups and registrations as operators see them (rest.md section 16).

use holdfast_model::provisioning::{
    AccessList, EnrollmentGroup, GROUPS_MAX, IndividualEnrollment, Registration, RegistrationId,
};
use holdfast_model::{Error, ErrorCode};
use holdfast_ports::StoreError;
use holdfast_ports::enrollment::Expected;

use crate::Provisioning;
use crate::failure::precondition_failed;
use crate::spec::{self, EnrollmentSpec, IndividualSpec};

/// How often a write is tried when others change the same entry.
const TRIES: usize = 8;

/// What a bulk request does with its entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BulkMode {
    /// Create; an error when it exists.
    Create,
    /// Update; an error when it does not exist.
    Update,
    /// Update if the entity tag matches.
    UpdateIfMatchETag,
    /// Delete.
    Delete,
}

/// An entry of a bulk request that was not carried out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BulkFailure {
    /// Its id, as sent.
    pub id: String,
    /// Why.
    pub error: Error,
}

impl BulkMode {
    /// What must be there; `version` is that of the entry's own tag.
    #[must_use]
    pub fn expected(self, version: Option<u64>) -> Expected {
        match (self, version) {
            (BulkMode::Create, _) => Expected::Absent,
            (BulkMode::UpdateIfMatchETag, Some(version)) => Expected::Version(version),
            (BulkMode::Delete, _) => Expected::Whatever,
            _ => Expected::Present,
        }
    }
}

impl Provisioning {
    /// An individual enrollment.
    ///
    /// # Errors
    /// `EnrollmentNotFound`.
    pub async fn enrollment(&self, id: &str) -> Result<IndividualEnrollment, Error> {
        let found = self.find_enrollment(&id.to_ascii_lowercase()).await?;
        found.ok_or_else(|| no_enrollment(id))
    }

    /// Creates or replaces an individual enrollment.
    ///
    /// # Errors
    /// `ArgumentInvalid`, `InvalidRegistrationId`; `EnrollmentNotFound`, `EnrollmentConflict`, `PreconditionFailed` as
    /// `expected` says.
    pub async fn put_enrollment(
        &self,
        id: &str,
        spec: IndividualSpec,
        expected: Expected,
    ) -> Result<IndividualEnrollment, Error> {
        let registration_id = RegistrationId::parse(id)?;
        let device_id = spec::check_device_id(spec.device_id)?;
        for _ in 0..TRIES {
            let present = self.find_enrollment(&registration_id.key()).await?;
            let version = present.as_ref().map(|present| present.enrollment.version);
            expected
                .check(version)
                .map_err(|error| self.enrollment_error(id, error))?;
            let enrollment = spec.enrollment.clone().make(
                false,
                present.as_ref().map(|present| &present.enrollment),
                self.next_version(version),
                self.now(),
            )?;
            let made = IndividualEnrollment {
                registration_id: registration_id.clone(),
                device_id: device_id.clone(),
                device_information: spec.device_information.clone(),
                enrollment,
            };
            let store = &self.drivers.store;
            match store.put_enrollment(made.clone(), exactly(version)).await {
                Ok(()) => return Ok(made),
                // Somebody else was faster: look again.
                Err(StoreError::Exists | StoreError::Missing | StoreError::Conflict) => {}
                Err(error) => return Err(self.store_error("save enrollment", error)),
            }
        }
        Err(precondition_failed())
    }

    /// Deletes an individual enrollment with its registration; the device stays on its hub.
    ///
    /// # Errors
    /// `EnrollmentNotFound`, `PreconditionFailed`.
    pub async fn delete_enrollment(&self, id: &str, expected: Expected) -> Result<(), Error> {
        let key = id.to_ascii_lowercase();
        let deleted = self.drivers.store.delete_enrollment(&key, expected).await;
        deleted.map_err(|error| self.enrollment_error(id, error))
    }

    /// Up to `limit` individual enrollments in the order of their lower-case ids.
    ///
    /// # Errors
    /// `ServiceUnavailable`.
    pub async fn list_enrollments(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<IndividualEnrollment>, Error> {
        let listed = self.drivers.store.list_enrollments(after, limit).await;
        listed.map_err(|error| self.store_error("list enrollments", error))
    }

    /// A group.
    ///
    /// # Errors
    /// `EnrollmentGroupNotFound`.
    pub async fn group(&self, id: &str) -> Result<EnrollmentGroup, Error> {
        let found = self.find_group(&id.to_ascii_lowercase()).await?;
        found.ok_or_else(|| no_group(id))
    }

    /// Creates or replaces a group.
    ///
    /// # Errors
    /// As [`Provisioning::put_enrollment`], with the codes of groups.
    pub async fn put_group(
        &self,
        id: &str,
        spec: EnrollmentSpec,
        expected: Expected,
    ) -> Result<EnrollmentGroup, Error> {
        let group_id = spec::group_id(id)?;
        for _ in 0..TRIES {
            let present = self.find_group(&group_id.key()).await?;
            let version = present.as_ref().map(|present| present.enrollment.version);
            expected
                .check(version)
                .map_err(|error| self.group_error(id, error))?;
            if present.is_none() {
                self.check_room().await?;
            }
            let enrollment = spec.clone().make(
                true,
                present.as_ref().map(|present| &present.enrollment),
                self.next_version(version),
                self.now(),
            )?;
            let made = EnrollmentGroup {
                group_id: group_id.clone(),
                // Service SDKs do not know the list, so what they write back must not end it.
                access: present.map(|present| present.access).unwrap_or_default(),
                enrollment,
            };
            let store = &self.drivers.store;
            match store.put_group(made.clone(), exactly(version)).await {
                Ok(()) => return Ok(made),
                Err(StoreError::Exists | StoreError::Missing | StoreError::Conflict) => {}
                Err(error) => return Err(self.store_error("save enrollment group", error)),
            }
        }
        Err(precondition_failed())
    }

    /// Says which devices of a group are let in. Registrations that ended stay as they are.
    ///
    /// # Errors
    /// `ArgumentInvalid`; `EnrollmentGroupNotFound`, `PreconditionFailed`.
    pub async fn put_group_access(
        &self,
        id: &str,
        access: AccessList,
        expected: Expected,
    ) -> Result<EnrollmentGroup, Error> {
        access.check()?;
        for _ in 0..TRIES {
            let mut group = self.group(id).await?;
            let version = group.enrollment.version;
            expected
                .check(Some(version))
                .map_err(|error| self.group_error(id, error))?;
            group.access = access.clone();
            group.enrollment.version = self.next_version(Some(version));
            group.enrollment.updated_at = self.now();
            let store = &self.drivers.store;
            match store.put_group(group.clone(), Expected::Version(version)).await {
                Ok(()) => return Ok(group),
                Err(StoreError::Missing | StoreError::Conflict) => {}
                Err(error) => return Err(self.store_error("save enrollment group", error)),
            }
        }
        Err(precondition_failed())
    }

    /// Every token is tried against every group, so there is a bound.
    async fn check_room(&self) -> Result<(), Error> {
        let listed = self.drivers.store.list_groups(None, GROUPS_MAX).await;
        let groups = listed.map_err(|error| self.store_error("list enrollment groups", error))?;
        if groups.len() < GROUPS_MAX {
            return Ok(());
        }
        Err(Error::new(
            ErrorCode::InvalidOperation,
            format!("there can be {GROUPS_MAX} enrollment groups at most"),
        ))
    }

    /// Deletes a group with its registrations; the devices stay on their hubs.
    ///
    /// # Errors
    /// `EnrollmentGroupNotFound`, `PreconditionFailed`.
    pub async fn delete_group(&self, id: &str, expected: Expected) -> Result<(), Error> {
        let key = id.to_ascii_lowercase();
        let deleted = self.drivers.store.delete_group(&key, expected).await;
        deleted.map_err(|error| self.group_error(id, error))
    }

    /// Up to `limit` groups in the order of their lower-case ids.
    ///
    /// # Errors
    /// `ServiceUnavailable`.
    pub async fn list_groups(
        &self,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<EnrollmentGroup>, Error> {
        let listed = self.drivers.store.list_groups(after, limit).await;
        listed.map_err(|error| self.store_error("list enrollment groups", error))
    }

    /// The registration of a device.
    ///
    /// # Errors
    /// `DeviceRegistrationNotFound`.
    pub async fn registration(&self, id: &str) -> Result<Registration, Error> {
        let read = self.drivers.store.registration(&id.to_ascii_lowercase()).await;
        let found = read.map_err(|error| self.store_error("read registration", error))?;
        found
            .map(|registration| self.told(registration))
            .ok_or_else(|| no_registration(id))
    }

    /// Deletes a registration, so that the device's next one is its first; the device stays on its hub.
    ///
    /// # Errors
    /// `DeviceRegistrationNotFound`, `PreconditionFailed`.
    pub async fn delete_registration(&self, id: &str, expected: Expected) -> Result<(), Error> {
        let key = id.to_ascii_lowercase();
        let deleted = self.drivers.store.delete_registration(&key, expected).await;
        deleted.map_err(|error| match error {
            StoreError::Missing => no_registration(id),
            other => self.store_error("delete registration", other),
        })
    }

    /// Up to `limit` registrations of a group in the order of their lower-case ids.
    ///
    /// # Errors
    /// `EnrollmentGroupNotFound`.
    pub async fn list_registrations(
        &self,
        group: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<Registration>, Error> {
        self.group(group).await?;
        let key = group.to_ascii_lowercase();
        let listed = self.drivers.store.list_registrations(&key, after, limit).await;
        let registrations = listed.map_err(|error| self.store_error("list registrations", error))?;
        Ok(registrations.into_iter().map(|one| self.told(one)).collect())
    }

    pub(crate) async fn find_enrollment(&self, key: &str) -> Result<Option<IndividualEnrollment>, Error> {
        let read = self.drivers.store.enrollment(key).await;
        read.map_err(|error| self.store_error("read enrollment", error))
    }

    pub(crate) async fn find_group(&self, key: &str) -> Result<Option<EnrollmentGroup>, Error> {
        let read = self.drivers.store.group(key).await;
        read.map_err(|error| self.store_error("read enrollment group", error))
    }

    fn enrollment_error(&self, id: &str, error: StoreError) -> Error {
        match error {
            StoreError::Missing => no_enrollment(id),
            StoreError::Exists => Error::new(
                ErrorCode::EnrollmentConflict,
                format!("the enrollment {id:?} exists already"),
            ),
            other => self.store_error("change enrollment", other),
        }
    }

    fn group_error(&self, id: &str, error: StoreError) -> Error {
        match error {
            StoreError::Missing => no_group(id),
            StoreError::Exists => Error::new(
                ErrorCode::EnrollmentGroupConflict,
                format!("the enrollment group {id:?} exists already"),
            ),
            other => self.store_error("change enrollment group", other),
        }
    }
}

/// Just what was read.
fn exactly(version: Option<u64>) -> Expected {
    version.map_or(Expected::Absent, Expected::Version)
}

fn no_enrollment(id: &str) -> Error {
    Error::new(
        ErrorCode::EnrollmentNotFound,
        format!("there is no enrollment {id:?}"),
    )
}

fn no_group(id: &str) -> Error {
    Error::new(
        ErrorCode::EnrollmentGroupNotFound,
        format!("there is no enrollment group {id:?}"),
    )
}

fn no_registration(id: &str) -> Error {
    Error::new(
        ErrorCode::DeviceRegistrationNotFound,
        format!("the device {id:?} has not registered"),
    )
}
