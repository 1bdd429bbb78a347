//! Content applied to one device by request (`applyConfigurationContent`).

use holdfast_model::configuration::{Content, EDGE_AGENT, EDGE_HUB};
use holdfast_model::twin::{ChangeMode, Twin, TwinChange};
use holdfast_model::{Error, ErrorCode, Identity};
use serde_json::{Map, Value};

use super::Configurations;

/// Marks a device as being written to, for as long as it lives.
struct Applying<'a> {
    all: &'a Configurations,
    device: Identity,
}

impl Drop for Applying<'_> {
    fn drop(&mut self) {
        self.all.applying.lock().remove(&self.device);
    }
}

impl Configurations {
    /// Applies content to one device: each module named gets exactly the desired properties given, and is made if it is
    /// missing; content for the device itself is put at its paths. Everything is checked before anything is written. A
    /// deployment that targets the device writes over it again.
    ///
    /// # Errors
    /// `InvalidConfigurationContent`; `InvalidOperation` for modules of a device that is no edge device;
    /// `ApplyConfigurationAlreadyInProgressOnDevice`; `DeviceNotFound`, `TooManyModulesOnDevice`, `ServiceUnavailable`.
    pub async fn apply_content(&self, device: &Identity, content: &Content) -> Result<(), Error> {
        content.check()?;
        let record = self.hub.identity(device).await?;
        if !self.applying.lock().insert(device.clone()) {
            return Err(Error::new(
                ErrorCode::ApplyConfigurationAlreadyInProgressOnDevice,
                format!("content is being applied to {device} by another request; try again"),
            ));
        }
        let _applying = Applying {
            all: self,
            device: device.clone(),
        };
        match content {
            Content::Edge(modules) if record.iot_edge => {
                let wanted = modules
                    .iter()
                    .map(|(id, entries)| Ok((Identity::module(device.device_id(), id)?, whole(id, entries)?)))
                    .collect::<Result<Vec<_>, Error>>()?;
                self.apply_modules(wanted).await
            }
            Content::Edge(_) => Err(Error::new(
                ErrorCode::InvalidOperation,
                format!("{device} is not an edge device; modulesContent is for edge devices"),
            )),
            Content::Device(_) => self.apply_device(device, content).await,
            Content::Module(_) => Err(Error::new(
                ErrorCode::InvalidConfigurationContent,
                "content for modules in general cannot be applied to one device; use modulesContent",
            )),
        }
    }

    async fn apply_modules(&self, mut wanted: Vec<(Identity, Map<String, Value>)>) -> Result<(), Error> {
        for (module, desired) in &wanted {
            check_content(module, desired, self.drivers.clock.now())?;
        }
        // The agent last: when it hears of its modules, their twins are there.
        wanted.sort_by_key(|(module, _)| match module.module_id() {
            Some(EDGE_AGENT) => 2,
            Some(EDGE_HUB) => 1,
            _ => 0,
        });
        for (module, desired) in wanted {
            self.hub.ensure_edge_module(&module).await?;
            self.hub.replace_desired(&module, desired).await?;
        }
        Ok(())
    }

    async fn apply_device(&self, device: &Identity, content: &Content) -> Result<(), Error> {
        let mut desired = self.hub.twin(device).await?.desired.properties;
        for write in content.writes() {
            put(&mut desired, write.path.names(), write.value);
        }
        check_content(device, &desired, self.drivers.clock.now())?;
        self.hub.replace_desired(device, desired).await.map(drop)
    }
}

/// The one entry that content for a module has here.
fn whole(id: &str, entries: &Map<String, Value>) -> Result<Map<String, Value>, Error> {
    match entries.get("properties.desired") {
        Some(Value::Object(desired)) if entries.len() == 1 => Ok(desired.clone()),
        _ => Err(Error::new(
            ErrorCode::InvalidConfigurationContent,
            format!(
                "modulesContent.{id} must be {{\"properties.desired\":{{…}}}}; only deployments can have layers"
            ),
        )),
    }
}

/// Tries the content on a twin of nobody.
fn check_content(
    identity: &Identity,
    desired: &Map<String, Value>,
    now: holdfast_model::Timestamp,
) -> Result<(), Error> {
    let change = TwinChange {
        tags: None,
        desired: Some(desired.clone()),
    };
    let tried = Twin::new(now).apply(ChangeMode::Replace, &change, now);
    tried.map_err(|error| {
        Error::new(
            ErrorCode::InvalidConfigurationContent,
            format!("{identity}: {error}"),
        )
    })
}

fn put(object: &mut Map<String, Value>, path: &[String], value: Value) {
    match path {
        [] => *object = value.as_object().cloned().unwrap_or_default(),
        [name] => {
            object.insert(name.clone(), value);
        }
        [name, rest @ ..] => {
            let slot = object.entry(name.clone()).or_insert(Value::Null);
            if !slot.is_object() {
                *slot = Value::Object(Map::new());
            }
            if let Value::Object(inner) = slot {
                put(inner, rest, value);
            }
        }
    }
}
