//! Lines of imports and exports in the contract's form.

use holdfast_fleet::transfer::{BadLine, LineError, LineFormat};
use holdfast_hub::{ImportEntry, ImportMode, Restored};
use holdfast_model::registry::IdentityRecord;
use holdfast_model::twin::Twin;
use holdfast_model::{Error, ErrorCode};
use holdfast_wire::dto::{ExportImportDevice, ExportLine, ImportLineErrorDto, from_json};
use serde_json::{Map, Value};

use crate::identities::bulk_entry;

/// One [`ExportImportDevice`] a line, as IoT Hub writes them.
#[derive(Clone, Copy, Debug)]
pub struct JsonLines;

impl LineFormat for JsonLines {
    fn read(&self, line: &[u8]) -> Result<ImportEntry, BadLine> {
        let mut device: ExportImportDevice = from_json(line).map_err(|error| Error {
            message: error.message.replacen("the body", "the line", 1),
            ..error
        })?;
        if device.id.is_empty() {
            return Err(Error::new(ErrorCode::ArgumentNull, "the line has no id").into());
        }
        let entry = bulk_entry(&device).map_err(|error| BadLine {
            device_id: Some(device.id.clone()),
            module_id: device.module_id.clone(),
            error,
        })?;
        let properties = device.properties.take().unwrap_or_default();
        let version = |section: &Option<Map<String, Value>>| section.as_ref()?.get("$version")?.as_u64();
        let creates = matches!(
            entry.mode,
            ImportMode::Create | ImportMode::CreateOrUpdate | ImportMode::CreateOrUpdateIfMatchETag
        );
        let restored = Restored {
            desired_version: version(&properties.desired),
            reported_version: version(&properties.reported),
            reported: properties.reported,
            model_id: device.model_id.take(),
            edge_scope: device.device_scope.take().filter(|_| entry.spec.iot_edge),
        };
        Ok(ImportEntry {
            entry,
            restored: if creates { restored } else { Restored::default() },
        })
    }

    fn write(&self, out: &mut Vec<u8>, record: &IdentityRecord, twin: &Twin, exclude_keys: bool) {
        // Writing to memory does not fail, and neither do these types.
        let _ = serde_json::to_writer(&mut *out, &ExportLine::new(record, twin, exclude_keys));
        out.push(b'\n');
    }

    fn write_error(&self, out: &mut Vec<u8>, error: &LineError<'_>) {
        let dto = ImportLineErrorDto::new(error.line, error.device_id, error.module_id, error.error);
        let _ = serde_json::to_writer(&mut *out, &dto);
        out.push(b'\n');
    }
}
