//! Edge agent: from the twin of `$edgeAgent` to running containers.
//!
//! The agent reads a deployment, compares it with what the container engine runs, makes a pure plan and carries it out
//! through [`runtime::ModuleRuntime`]; identities come through [`identities::ModuleIdentities`]. It knows no engine, no
//! hub and no socket.

pub mod identities;
pub mod runtime;
