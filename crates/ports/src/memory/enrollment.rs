//! Enrollments, registrations, linked hubs and provisioning policies in memory.

use std::collections::BTreeMap;
use std::ops::Bound;

use holdfast_model::provisioning::{
    EnrollmentGroup, IndividualEnrollment, LinkedHub, ProvisioningPolicy, Registration,
};

use super::MemoryStore;
use crate::enrollment::{EnrollmentStore, Expected};
use crate::{BoxFuture, StoreError, StoreResult};

/// What the provisioning service keeps.
#[derive(Default)]
pub(super) struct Provisioning {
    enrollments: BTreeMap<String, IndividualEnrollment>,
    groups: BTreeMap<String, EnrollmentGroup>,
    registrations: BTreeMap<String, Registration>,
    hubs: BTreeMap<String, LinkedHub>,
    policies: BTreeMap<String, ProvisioningPolicy>,
}

fn page<T: Clone>(map: &BTreeMap<String, T>, after: Option<&str>, limit: usize) -> Vec<T> {
    let from = after.map_or(Bound::Unbounded, Bound::Excluded);
    map.range::<str, _>((from, Bound::Unbounded))
        .map(|(_, item)| item.clone())
        .take(limit)
        .collect()
}

impl EnrollmentStore for MemoryStore {
    fn enrollment<'a>(&'a self, key: &'a str) -> BoxFuture<'a, StoreResult<Option<IndividualEnrollment>>> {
        self.run(move |state| Ok(state.provisioning.enrollments.get(key).cloned()))
    }

    fn put_enrollment(
        &self,
        enrollment: IndividualEnrollment,
        expected: Expected,
    ) -> BoxFuture<'_, StoreResult<()>> {
        self.run(move |state| {
            let map = &mut state.provisioning.enrollments;
            let key = enrollment.registration_id.key();
            expected.check(map.get(&key).map(|present| present.enrollment.version))?;
            map.insert(key, enrollment);
            Ok(())
        })
    }

    fn delete_enrollment<'a>(&'a self, key: &'a str, expected: Expected) -> BoxFuture<'a, StoreResult<()>> {
        self.run(move |state| {
            let all = &mut state.provisioning;
            let present = all.enrollments.get(key).ok_or(StoreError::Missing)?;
            expected.check(Some(present.enrollment.version))?;
            all.enrollments.remove(key);
            if all
                .registrations
                .get(key)
                .is_some_and(|found| found.group_id.is_none())
            {
                all.registrations.remove(key);
            }
            Ok(())
        })
    }

    fn list_enrollments<'a>(
        &'a self,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<IndividualEnrollment>>> {
        self.run(move |state| Ok(page(&state.provisioning.enrollments, after, limit)))
    }

    fn group<'a>(&'a self, key: &'a str) -> BoxFuture<'a, StoreResult<Option<EnrollmentGroup>>> {
        self.run(move |state| Ok(state.provisioning.groups.get(key).cloned()))
    }

    fn put_group(&self, group: EnrollmentGroup, expected: Expected) -> BoxFuture<'_, StoreResult<()>> {
        self.run(move |state| {
            let map = &mut state.provisioning.groups;
            let key = group.group_id.key();
            expected.check(map.get(&key).map(|present| present.enrollment.version))?;
            map.insert(key, group);
            Ok(())
        })
    }

    fn delete_group<'a>(&'a self, key: &'a str, expected: Expected) -> BoxFuture<'a, StoreResult<()>> {
        self.run(move |state| {
            let all = &mut state.provisioning;
            let present = all.groups.get(key).ok_or(StoreError::Missing)?;
            expected.check(Some(present.enrollment.version))?;
            all.groups.remove(key);
            all.registrations
                .retain(|_, found| found.group_id.as_ref().is_none_or(|group| group.key() != key));
            Ok(())
        })
    }

    fn list_groups<'a>(
        &'a self,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<EnrollmentGroup>>> {
        self.run(move |state| Ok(page(&state.provisioning.groups, after, limit)))
    }

    fn registration<'a>(&'a self, key: &'a str) -> BoxFuture<'a, StoreResult<Option<Registration>>> {
        self.run(move |state| Ok(state.provisioning.registrations.get(key).cloned()))
    }

    fn put_registration(
        &self,
        registration: Registration,
        expected: Expected,
    ) -> BoxFuture<'_, StoreResult<()>> {
        self.run(move |state| {
            let map = &mut state.provisioning.registrations;
            let key = registration.registration_id.key();
            expected.check(map.get(&key).map(|present| present.version))?;
            map.insert(key, registration);
            Ok(())
        })
    }

    fn delete_registration<'a>(&'a self, key: &'a str, expected: Expected) -> BoxFuture<'a, StoreResult<()>> {
        self.run(move |state| {
            let map = &mut state.provisioning.registrations;
            expected.check(Some(map.get(key).ok_or(StoreError::Missing)?.version))?;
            map.remove(key);
            Ok(())
        })
    }

    fn list_registrations<'a>(
        &'a self,
        group: &'a str,
        after: Option<&'a str>,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<Registration>>> {
        self.run(move |state| {
            let all = page(&state.provisioning.registrations, after, usize::MAX).into_iter();
            let of_group = all.filter(|found| found.group_id.as_ref().is_some_and(|id| id.key() == group));
            Ok(of_group.take(limit).collect())
        })
    }

    fn linked_hubs(&self) -> BoxFuture<'_, StoreResult<Vec<LinkedHub>>> {
        self.run(|state| Ok(state.provisioning.hubs.values().cloned().collect()))
    }

    fn put_linked_hub(&self, hub: LinkedHub) -> BoxFuture<'_, StoreResult<()>> {
        self.run(move |state| {
            state.provisioning.hubs.insert(hub.host.clone(), hub);
            Ok(())
        })
    }

    fn delete_linked_hub<'a>(&'a self, host: &'a str) -> BoxFuture<'a, StoreResult<()>> {
        self.run(move |state| {
            let removed = state.provisioning.hubs.remove(host);
            removed.map(drop).ok_or(StoreError::Missing)
        })
    }

    fn provisioning_policies(&self) -> BoxFuture<'_, StoreResult<Vec<ProvisioningPolicy>>> {
        self.run(|state| Ok(state.provisioning.policies.values().cloned().collect()))
    }

    fn put_provisioning_policy(&self, policy: ProvisioningPolicy) -> BoxFuture<'_, StoreResult<()>> {
        self.run(move |state| {
            state.provisioning.policies.insert(policy.name.clone(), policy);
            Ok(())
        })
    }

    fn delete_provisioning_policy<'a>(&'a self, name: &'a str) -> BoxFuture<'a, StoreResult<()>> {
        self.run(move |state| {
            let removed = state.provisioning.policies.remove(name);
            removed.map(drop).ok_or(StoreError::Missing)
        })
    }
}
