//! Buffers that all connections of a thread share.
//!
//! A poll of a connection is one synchronous run, so one set per worker thread is enough, and idle connections hold
//! none. Taken out of its cell for the time of the run: a nested use would get a fresh set, not a panic.

use std::cell::Cell;

use holdfast_model::event::Records;

/// Bytes read at once. Large enough that a window of publishes comes in one system call.
pub(super) const INPUT_BYTES: usize = 64 * 1024;
/// An output or record buffer that grew beyond this for one large message is given back.
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
    /// A topic being written.
    pub(super) topic: String,
    /// Telemetry decoded and not handed to the hub yet. Empty between runs.
    pub(super) records: Records,
    /// QoS 1 publishes among the records.
    pub(super) run_ids: u32,
    /// Milliseconds of the monotonic clock, read once a run.
    pub(super) now: u64,
}

pub(super) fn with_scratch<T>(work: impl FnOnce(&mut Scratch) -> T) -> T {
    let mut scratch = SCRATCH.take().unwrap_or_else(|| {
        Box::new(Scratch {
            input: vec![0; INPUT_BYTES],
            output: Vec::with_capacity(INPUT_BYTES),
            topic: String::with_capacity(256),
            records: Records::new(),
            run_ids: 0,
            now: 0,
        })
    });
    let result = work(&mut scratch);
    scratch.output.clear();
    scratch.records.clear();
    scratch.run_ids = 0;
    if scratch.output.capacity() > KEPT_BYTES_MAX {
        scratch.output = Vec::with_capacity(INPUT_BYTES);
    }
    if scratch.records.as_bytes().len() > KEPT_BYTES_MAX {
        scratch.records = Records::new();
    }
    SCRATCH.set(Some(scratch));
    result
}
