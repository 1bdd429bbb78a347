//! Writing a bag.

use holdfast_model::message::{Message, SystemProperty};

use super::{Meaning, PLAIN_KEYS, SYSTEM_KEYS, meaning};
use crate::percent;

/// Appends pairs to a topic in the one form that all five SDKs read (MQTT contract, section 3.2).
///
/// Values and keys are percent-encoded but for `A-Za-z0-9-_.~`; system keys are spelled `%24.…`; no trailing slash.
/// Write system properties first: Java loses everything before the first `%24`.
#[derive(Debug)]
pub struct BagWriter<'a> {
    out: &'a mut String,
    first: bool,
}

impl<'a> BagWriter<'a> {
    /// Starts a bag at the end of `out`, which ends with `/`.
    #[must_use]
    pub fn new(out: &'a mut String) -> Self {
        BagWriter { out, first: true }
    }

    /// Adds a system property. An empty value is left out, since Java fails on it; so is a property that has no key
    /// in bags ([`SystemProperty::DataSchema`], which belongs to the connection).
    pub fn system(&mut self, property: SystemProperty, value: &str) {
        if value.is_empty() {
            return;
        }
        if let Some((key, _)) = PLAIN_KEYS.iter().find(|(_, known)| *known == property) {
            self.separate();
            self.out.push_str(key);
        } else if let Some((key, _)) = SYSTEM_KEYS.iter().find(|(_, known)| *known == property) {
            self.separate();
            self.out.push_str("%24.");
            self.out.push_str(key);
        } else {
            return;
        }
        self.value(value);
    }

    /// Adds `%24.cdid` and, for a module, `%24.cmid`: the sender of a message for a module input.
    pub fn connection(&mut self, device_id: &str, module_id: Option<&str>) {
        let keys = [("%24.cdid", Some(device_id)), ("%24.cmid", module_id)];
        for (key, value) in keys.into_iter().filter_map(|(key, id)| id.map(|id| (key, id))) {
            self.separate();
            self.out.push_str(key);
            self.value(value);
        }
    }

    /// Adds an application property; `None` is written as a key without `=`.
    ///
    /// A key that would read as a system property (`$.mid`, `iothub-ack`) and an empty one are left out: the
    /// receiver could not tell them from what the hub stamps, or would fail.
    pub fn application(&mut self, key: &str, value: Option<&str>) {
        if key.is_empty() || !matches!(meaning(key), Meaning::Application) {
            return;
        }
        self.separate();
        percent::encode_into(self.out, key);
        if let Some(value) = value {
            self.value(value);
        }
    }

    /// Adds all application properties of a message.
    pub fn applications(&mut self, message: &Message) {
        for (key, value) in &message.properties {
            self.application(key, value.as_deref());
        }
    }

    /// Adds all properties of a message, system properties first.
    pub fn message(&mut self, message: &Message) {
        for (property, value) in &message.system {
            self.system(*property, value);
        }
        self.applications(message);
    }

    fn separate(&mut self) {
        if !std::mem::take(&mut self.first) {
            self.out.push('&');
        }
    }

    fn value(&mut self, value: &str) {
        self.out.push('=');
        percent::encode_into(self.out, value);
    }
}
