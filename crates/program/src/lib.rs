//! What `holdfast` and `holdfast-edge` do alike because both are programs, so that whoever knows one of them knows the other.
//!
//! Exit codes and error texts ([`failure`]), durations and sizes in configuration files ([`units`]), what is wrong in such a
//! file ([`toml_error`]), small files that survive a power cut ([`files`]), signals ([`signals`]), the system around a daemon
//! ([`process`]), logs ([`logging`]), printed lines ([`output`]) and the pages that a program writes about itself
//! ([`reference`]).
//!
//! Architecture invariant: nothing here knows a hub, a device or a protocol. What only one of the two programs needs stays
//! in that program, with what it would bring along.

pub mod failure;
pub mod files;
pub mod logging;
pub mod output;
pub mod process;
pub mod reference;
pub mod signals;
pub mod toml_error;
pub mod units;
