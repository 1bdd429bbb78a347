//! The queues against a model, on a disk that tears, fills up, fails and loses power.

mod basics;
mod faults;
mod rig;
