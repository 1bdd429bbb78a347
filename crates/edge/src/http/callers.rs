//! Which module a process belongs to.
//!
//! The caller's process id comes from the kernel (`SO_PEERCRED`), already as this process sees it; the engine tells the
//! processes of a container by their ids on the host. Both are the same as long as the daemon runs in the host's process
//! namespace, which it must. The engine is asked once per process: what it said is kept with the time at which the process
//! was started, so that a later process with the same id is another one.

use std::collections::HashMap;
use std::sync::Arc;

use holdfast_agent::runtime::{ModuleRuntime, RuntimeError};
use holdfast_observe::Repeats;
use parking_lot::Mutex;

use super::{Answer, Peer};

/// Processes that are remembered.
const KEPT_MAX: usize = 1_024;
static NOT_VISIBLE: Repeats = Repeats::new();

/// Knows processes of modules.
pub struct Callers {
    runtime: Arc<dyn ModuleRuntime>,
    known: Mutex<HashMap<u32, Known>>,
}

struct Known {
    started: u64,
    container: String,
}

impl Callers {
    /// Asks this engine.
    #[must_use]
    pub fn new(runtime: Arc<dyn ModuleRuntime>) -> Self {
        Callers {
            runtime,
            known: Mutex::new(HashMap::new()),
        }
    }

    /// Lets a call through when its process runs in the module's container.
    ///
    /// # Errors
    /// 403, or 500 when the engine cannot be asked.
    pub async fn require(&self, peer: Peer, module_id: &str) -> Result<(), Answer> {
        let container = container_of(module_id);
        let Some(pid) = peer.pid.filter(|pid| *pid != 0) else {
            if let Some(times) = NOT_VISIBLE.happened(module_id) {
                tracing::warn!(
                    module = module_id,
                    times,
                    "a caller's process is not visible from here; the daemon must run in the host's process namespace"
                );
            }
            return Err(forbidden());
        };
        let Some(started) = start_time(pid) else {
            return Err(forbidden());
        };
        if let Some(known) = self.known.lock().get(&pid)
            && known.started == started
        {
            return if known.container == container {
                Ok(())
            } else {
                Err(forbidden())
            };
        }
        let processes = match self.runtime.processes(container).await {
            Ok(processes) => processes,
            Err(RuntimeError::NotFound(_) | RuntimeError::Conflict(_)) => return Err(forbidden()),
            Err(error) => return Err(Answer::error(500, &error.to_string())),
        };
        // Still the same process: else its id could have passed to another one while the engine was asked.
        if !processes.contains(&pid) || start_time(pid) != Some(started) {
            return Err(forbidden());
        }
        let mut known = self.known.lock();
        if known.len() >= KEPT_MAX {
            known.retain(|pid, known| start_time(*pid) == Some(known.started));
            if known.len() >= KEPT_MAX {
                known.clear();
            }
        }
        let container = container.to_owned();
        known.insert(pid, Known { started, container });
        Ok(())
    }
}

/// Containers are called like modules without the `$` of system modules.
#[must_use]
pub fn container_of(module_id: &str) -> &str {
    module_id.strip_prefix('$').unwrap_or(module_id)
}

fn forbidden() -> Answer {
    Answer::error(403, "forbidden")
}

/// When a process was started, in ticks since the machine was: field 22 of `/proc/<pid>/stat`, counted behind the name,
/// which may hold anything.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.iter().rposition(|byte| *byte == b')')? + 1;
    let fields = std::str::from_utf8(stat.get(after_name..)?).ok()?;
    fields.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_of_a_process_is_read() {
        let own = start_time(std::process::id()).unwrap();
        assert!(own > 0);
        assert!(start_time(1).unwrap() <= own);
        assert_eq!(start_time(u32::MAX), None);
    }
}
