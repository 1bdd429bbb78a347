//! The queues against a model, on a disk that tears, fills up, fails and loses power; and the edge hub between clients and a
//! double of the hub above.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says where")]

mod access;
mod cloud;
mod downlinks;
mod edge;
mod forwarding;
mod look_ups;
mod oracle;
mod queue_basics;
mod queue_cuts;
mod queue_faults;
mod rig;
mod routing;
