//! From events to PUBLISH packets.

use holdfast_model::message::SystemProperty;
use holdfast_mqtt::codec::{self, PacketId, QoS};
use holdfast_mqtt::v5;
use holdfast_mqtt::v5::{Property, PropertyList};
use holdfast_ports::endpoint::Outbound;
use holdfast_wire::routed::storage;

use super::config::{Payload, Version};
use crate::endpoints::{device_of, routed};

/// Longest topic template, in bytes.
const TEMPLATE_BYTES_MAX: usize = 512;

/// A topic with places to fill in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Topic(Vec<Part>);

#[derive(Clone, PartialEq, Eq, Debug)]
enum Part {
    Text(String),
    Hub,
    DeviceId,
    ModuleId,
    Source,
}

impl Topic {
    /// Reads a template.
    ///
    /// # Errors
    /// What it must not contain.
    pub(super) fn parse(template: &str) -> Result<Self, String> {
        if template.is_empty() || template.len() > TEMPLATE_BYTES_MAX {
            return Err(format!("topic must have 1 to {TEMPLATE_BYTES_MAX} bytes"));
        }
        if template.contains(['+', '#', '\0']) {
            return Err("topic must not contain +, # or zero characters".to_owned());
        }
        let mut parts = Vec::new();
        let mut rest = template;
        while let Some((text, behind)) = rest.split_once('{') {
            let (name, behind) = behind.split_once('}').ok_or("topic has a { without a }")?;
            parts.push(Part::Text(text.to_owned()));
            parts.push(match name {
                "hub" => Part::Hub,
                "deviceId" => Part::DeviceId,
                "moduleId" => Part::ModuleId,
                "source" => Part::Source,
                other => {
                    return Err(format!(
                        "topic: {{{other}}} is not known; there are {{hub}}, {{deviceId}}, {{moduleId}} and {{source}}"
                    ));
                }
            });
            rest = behind;
        }
        parts.push(Part::Text(rest.to_owned()));
        Ok(Topic(parts))
    }

    /// The topic of an event. What ids may contain and topics may not is percent-encoded.
    pub(super) fn of(&self, outbound: &Outbound<'_>, hub_name: &str) -> String {
        let event = &outbound.event;
        let mut topic = String::with_capacity(64);
        for part in &self.0 {
            match part {
                Part::Text(text) => topic.push_str(text),
                Part::Hub => put_level(hub_name, &mut topic),
                Part::DeviceId => put_level(device_of(event).unwrap_or("-"), &mut topic),
                Part::ModuleId => put_level(event.module_id().unwrap_or("-"), &mut topic),
                Part::Source => topic.push_str(event.source.as_str()),
            }
        }
        topic
    }
}

fn put_level(text: &str, topic: &mut String) {
    for c in text.chars() {
        match c {
            '+' => topic.push_str("%2B"),
            '#' => topic.push_str("%23"),
            '/' => topic.push_str("%2F"),
            '%' => topic.push_str("%25"),
            other => topic.push(other),
        }
    }
}

/// How events become packets.
#[derive(Clone, Debug)]
pub(super) struct Shape {
    pub(super) version: Version,
    pub(super) topic: Topic,
    pub(super) payload: Payload,
    pub(super) retain: bool,
    pub(super) hub_name: String,
}

impl Shape {
    /// Appends the packet, of QoS 1 if it has an identifier.
    ///
    /// # Errors
    /// Why the event cannot be one.
    pub(super) fn write(
        &self,
        outbound: &Outbound<'_>,
        packet_id: Option<PacketId>,
        out: &mut Vec<u8>,
    ) -> Result<(), String> {
        let topic = self.topic.of(outbound, &self.hub_name);
        let mut record = Vec::new();
        let payload = match self.payload {
            Payload::Body => outbound.event.body,
            Payload::Record => {
                storage::write(routed(outbound), &mut record);
                &record
            }
        };
        let qos = if packet_id.is_some() {
            QoS::AtLeastOnce
        } else {
            QoS::AtMostOnce
        };
        let written = match self.version {
            Version::V3 => codec::encode_publish(
                out,
                &codec::Publish {
                    topic: &topic,
                    payload,
                    qos,
                    retain: self.retain,
                    packet_id,
                    ..codec::Publish::default()
                },
            ),
            Version::V5 => self.properties(outbound).and_then(|properties| {
                v5::Packet::Publish(v5::Publish {
                    topic: &topic,
                    payload,
                    qos,
                    retain: self.retain,
                    packet_id,
                    properties: properties.as_properties(),
                    ..v5::Publish::default()
                })
                .encode(out)
            }),
        };
        written.map_err(|error| format!("the event cannot be a PUBLISH: {error}"))
    }

    fn properties(&self, outbound: &Outbound<'_>) -> Result<PropertyList, holdfast_mqtt::EncodeError> {
        let mut list = PropertyList::new();
        let content_type = match self.payload {
            Payload::Record => Some("application/json"),
            Payload::Body => outbound.event.system(SystemProperty::ContentType),
        };
        if let Some(content_type) = content_type {
            list.push(&Property::ContentType(content_type))?;
        }
        // A record holds them already.
        if self.payload == Payload::Record {
            return Ok(list);
        }
        let event = routed(outbound);
        for (key, value) in event.properties() {
            list.push(&Property::UserProperty(key, value.unwrap_or_default()))?;
        }
        list.push(&Property::UserProperty(
            "iothub-message-source",
            event.event.source.as_str(),
        ))?;
        for (name, value) in storage::system_properties(event) {
            if name != "contentType" {
                list.push(&Property::UserProperty(&format!("iothub-{name}"), &value))?;
            }
        }
        Ok(list)
    }
}
