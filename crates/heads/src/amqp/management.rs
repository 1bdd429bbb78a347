//! `$management` of the event endpoint (AMQP contract, section 5.3).

use holdfast_amqp::LinkId;
use holdfast_amqp::connection::Delivery;
use holdfast_amqp::message::{MessageIdBuf, Properties, Writer};
use holdfast_amqp::types::{ArrayBuf, Map, MapBuf, Value};
use holdfast_model::{Error, ErrorCode};
use holdfast_wire::error;
use holdfast_wire::links::EVENT_HUB_NAME;

use super::attach::Link;
use super::core::Core;
use super::failure::End;

const EVENT_HUB: &str = "com.microsoft:eventhub";
const PARTITION: &str = "com.microsoft:partition";

impl Core {
    /// A request: answered at once, since everything asked for is in memory.
    pub(super) fn take_management(
        &mut self,
        link: LinkId,
        delivery: &Delivery<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), End> {
        let Some(request) = self.decode(link, delivery, out) else {
            return Ok(());
        };
        self.accept_one(link, delivery, out);
        let outcome = match request.application_properties {
            Some(properties) => self.read_entity(properties),
            None => Err(Error::new(
                ErrorCode::ArgumentInvalid,
                "the request has no operation",
            )),
        };
        let (status, text) = match &outcome {
            Ok(_) => (200, "OK"),
            Err(error) => (
                i32::from(error::row(error.code).http_status),
                error.message.as_str(),
            ),
        };
        let condition = outcome
            .as_ref()
            .err()
            .map(|error| error::row(error.code).amqp_condition);
        let mut message = Vec::new();
        let mut writer = Writer::new(&mut message);
        let id = request.properties.message_id.map(|id| id.to_buf());
        writer.properties(&Properties {
            correlation_id: id.as_ref().map(MessageIdBuf::as_id),
            ..Properties::default()
        });
        writer.application_properties(|map| {
            map.string("status-code", &Value::Int(status));
            map.string("status-description", &Value::String(text));
            if let Some(condition) = condition {
                map.string("error-condition", &Value::Symbol(condition));
            }
        });
        match &outcome {
            Ok(entity) => writer.value(&Value::Map(entity.as_map())),
            Err(_) => writer.value(&Value::Null),
        };
        let answers = |kind: &Link| matches!(kind, Link::ManagementAnswers { .. });
        if let Some((link, settled)) = self.answers_for(link, request.properties.reply_to, answers) {
            self.send(link, message, settled, out);
        }
        Ok(())
    }

    fn read_entity(&self, properties: Map<'_>) -> Result<MapBuf, Error> {
        let text = |key| properties.get(key).and_then(|value| value.as_str());
        if !text("operation").is_some_and(|operation| operation.eq_ignore_ascii_case("READ")) {
            return Err(Error::new(
                ErrorCode::InvalidOperation,
                "the operation is not READ",
            ));
        }
        if !text("name").is_some_and(|name| name.eq_ignore_ascii_case(EVENT_HUB_NAME)) {
            return Err(Error::new(
                ErrorCode::ResourceNotFound,
                format!("there is no event hub of this name; it is called {EVENT_HUB_NAME}"),
            ));
        }
        match text("type") {
            Some(EVENT_HUB) => Ok(self.describe_hub()),
            Some(PARTITION) => {
                let partition = properties.get("partition");
                let number = partition.and_then(|value| match value.as_str() {
                    Some(text) => text.parse().ok(),
                    None => value.as_i64().and_then(|number| u16::try_from(number).ok()),
                });
                self.describe_partition(number)
            }
            _ => Err(Error::new(
                ErrorCode::ArgumentInvalid,
                format!("the type is neither {EVENT_HUB} nor {PARTITION}"),
            )),
        }
    }

    fn describe_hub(&self) -> MapBuf {
        let partitions = self.shared.log.partitions();
        let ids: Vec<String> = (0..partitions).map(|id| id.to_string()).collect();
        let ids = ArrayBuf::strings(ids.iter().map(String::as_str));
        let mut entity = MapBuf::new();
        entity.string("name", &Value::String(EVENT_HUB_NAME));
        entity.string("type", &Value::String(EVENT_HUB));
        entity.string(
            "created_at",
            &Value::Timestamp(self.shared.started_at.as_millis()),
        );
        entity.string("partition_count", &Value::Int(i32::from(partitions)));
        entity.string("partition_ids", &Value::Array(ids.as_array()));
        entity
    }

    fn describe_partition(&self, number: Option<u16>) -> Result<MapBuf, Error> {
        let missing = || Error::new(ErrorCode::ResourceNotFound, "there is no such partition");
        let number = number.ok_or_else(missing)?;
        let info = self.shared.log.info(number).map_err(|_| missing())?;
        let last = info.next.checked_sub(1);
        let offset = last.map_or_else(|| "-1".to_owned(), |last| last.to_string());
        let mut entity = MapBuf::new();
        entity.string("name", &Value::String(EVENT_HUB_NAME));
        entity.string("type", &Value::String(PARTITION));
        entity.string("partition", &Value::String(&number.to_string()));
        entity.string("begin_sequence_number", &Value::Long(info.first.cast_signed()));
        entity.string(
            "last_enqueued_sequence_number",
            &Value::Long(last.map_or(-1, u64::cast_signed)),
        );
        entity.string("last_enqueued_offset", &Value::String(&offset));
        // Of an empty partition there is no such time; clients want a date they can print.
        entity.string(
            "last_enqueued_time_utc",
            &Value::Timestamp(info.last_enqueued_at.as_millis().max(0)),
        );
        entity.string("is_partition_empty", &Value::Bool(info.first == info.next));
        Ok(entity)
    }
}
