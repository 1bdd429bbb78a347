//! Processes of a container as the host numbers them, and its use of resources.

use std::path::Path;

use holdfast_agent::runtime::{ContainerStats, RuntimeError};
use serde::Deserialize;

use crate::answer;
use crate::containers::Inspected;
use crate::runtime::{DockerRuntime, Session, escape};
use crate::usage;

/// Answer of `GET /containers/{id}/top`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Top {
    titles: Vec<String>,
    processes: Option<Vec<Vec<String>>>,
}

impl Top {
    fn pids(&self) -> Option<Vec<u32>> {
        let column = self.titles.iter().position(|title| title == "PID")?;
        let rows = self.processes.as_deref().unwrap_or_default();
        rows.iter()
            .map(|row| row.get(column)?.trim().parse().ok())
            .collect()
    }
}

impl DockerRuntime {
    pub(crate) async fn container_processes(&self, name: &str) -> Result<Vec<u32>, RuntimeError> {
        let mut session = self.connect().await?;
        let container = self.own(&mut session, name).await?;
        let Some(pid) = container.pid() else {
            return Ok(Vec::new());
        };
        if !session.agreed.podman
            && let Some(pids) = self.top(&mut session, &container).await?
        {
            return Ok(pids);
        }
        // Podman tells the ids that the container sees; Docker has no answer where the host lacks `ps`.
        let pids = tokio::task::spawn_blocking(move || of_control_group(Path::new("/proc"), pid)).await;
        Ok(pids.unwrap_or_default())
    }

    /// `None` when the engine cannot tell.
    async fn top(
        &self,
        session: &mut Session,
        container: &Inspected,
    ) -> Result<Option<Vec<u32>>, RuntimeError> {
        let path = format!("/containers/{}/top?ps_args=-eo%20pid", escape(&container.id));
        match self.noting(session.get(&path, self.timeouts.question).await) {
            Ok(body) => Ok(answer::json::<Top>("GET /containers/ID/top", &body)?.pids()),
            // It has ended meanwhile.
            Err(RuntimeError::Conflict(_) | RuntimeError::NotFound(_)) => Ok(Some(Vec::new())),
            Err(RuntimeError::Refused { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn container_stats(&self, name: &str) -> Result<ContainerStats, RuntimeError> {
        let mut session = self.connect().await?;
        let id = self.own(&mut session, name).await?.id;
        let path = format!("/containers/{}/stats?stream=false", escape(&id));
        let body = self.noting(session.get(&path, self.timeouts.question).await)?;
        let raw = answer::json("GET /containers/ID/stats", &body)?;
        usage::read(name, raw).map_err(|error| RuntimeError::Refused {
            status: 200,
            message: format!("its statistics cannot be read: {error}"),
        })
    }
}

/// All processes in the control group of `pid`, below the mount of procfs. None when it has ended, or when it shares a
/// control group with this very process, which cannot be a container's.
fn of_control_group(proc: &Path, pid: u32) -> Vec<u32> {
    let group = |pid: &str| std::fs::read_to_string(proc.join(pid).join("cgroup")).ok();
    let Some(wanted) = group(&pid.to_string()) else {
        return Vec::new();
    };
    if wanted.is_empty() || group("self").as_deref() == Some(&wanted) {
        return Vec::new();
    }
    let entries = std::fs::read_dir(proc).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let numbers = names.filter_map(|name| name.parse::<u32>().ok());
    numbers
        .filter(|pid| group(&pid.to_string()).as_deref() == Some(&wanted))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_column_of_ids() {
        let top: Top =
            serde_json::from_str(r#"{"Titles":["UID","PID"],"Processes":[["root","12"],["root"," 34 "]]}"#)
                .unwrap();
        assert_eq!(top.pids(), Some(vec![12, 34]));
        let top: Top = serde_json::from_str(r#"{"Titles":["PID"],"Processes":null}"#).unwrap();
        assert_eq!(top.pids(), Some(vec![]));
        let top: Top = serde_json::from_str(r#"{"Titles":["HPID"],"Processes":[["1"]]}"#).unwrap();
        assert_eq!(top.pids(), None);
        let top: Top = serde_json::from_str(r#"{"Titles":["PID"],"Processes":[["x"]]}"#).unwrap();
        assert_eq!(top.pids(), None);
    }

    #[test]
    fn finds_the_members_of_a_control_group() {
        let proc = tempfile::tempdir().unwrap();
        let add = |name: &str, group: &str| {
            std::fs::create_dir(proc.path().join(name)).unwrap();
            std::fs::write(proc.path().join(name).join("cgroup"), group).unwrap();
        };
        add("self", "0::/system");
        add("10", "0::/libpod-ab");
        add("11", "0::/libpod-ab");
        add("12", "0::/libpod-cd");
        add("13", "0::/system");
        add("bus", "0::/libpod-ab");
        let mut members = of_control_group(proc.path(), 10);
        members.sort_unstable();
        assert_eq!(members, [10, 11]);
        assert!(of_control_group(proc.path(), 13).is_empty());
        assert!(of_control_group(proc.path(), 99).is_empty());
    }
}
