//! Buffers that all connections of a thread share, as with the MQTT head: a poll is one synchronous run, so one set per
//! worker thread is enough, and idle connections hold none.

use std::cell::Cell;

use holdfast_model::event::Records;

/// Bytes read at once; a frame of the largest size announced fits.
pub(super) const INPUT_BYTES: usize = 128 * 1024;
/// A buffer that grew beyond this is given back.
const KEPT_BYTES_MAX: usize = 1024 * 1024;

thread_local! {
    static SCRATCH: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
}

/// What one run works with.
pub(super) struct Scratch {
    /// What was read.
    pub(super) input: Vec<u8>,
    /// What is to be written. Empty between runs.
    pub(super) output: Vec<u8>,
    /// Telemetry decoded and not handed to the hub yet. Empty between runs.
    pub(super) records: Records,
}

pub(super) fn with_scratch<T>(work: impl FnOnce(&mut Scratch) -> T) -> T {
    let mut scratch = SCRATCH.take().unwrap_or_else(|| {
        Box::new(Scratch {
            input: vec![0; INPUT_BYTES],
            output: Vec::with_capacity(INPUT_BYTES),
            records: Records::new(),
        })
    });
    let result = work(&mut scratch);
    scratch.output.clear();
    scratch.records.clear();
    if scratch.output.capacity() > KEPT_BYTES_MAX {
        scratch.output = Vec::with_capacity(INPUT_BYTES);
    }
    if scratch.records.as_bytes().len() > KEPT_BYTES_MAX {
        scratch.records = Records::new();
    }
    SCRATCH.set(Some(scratch));
    result
}
