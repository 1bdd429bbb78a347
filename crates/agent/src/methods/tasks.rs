//! Uploads in the background and what became of them.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Value, json};
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::{TASKS_MAX, UPLOADS_MAX};

/// State of a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    NotStarted,
    Running,
    Completed,
    Cancelled,
    Failed,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            State::NotStarted => "NotStarted",
            State::Running => "Running",
            State::Completed => "Completed",
            State::Cancelled => "Cancelled",
            State::Failed => "Failed",
        }
    }

    const fn is_over(self) -> bool {
        matches!(self, State::Completed | State::Cancelled | State::Failed)
    }
}

struct Entry {
    id: String,
    state: State,
    message: String,
}

/// The tasks, oldest first.
pub(super) struct Tasks {
    entries: Mutex<VecDeque<Entry>>,
    running: Arc<Semaphore>,
}

impl Default for Tasks {
    fn default() -> Self {
        Tasks {
            entries: Mutex::default(),
            running: Arc::new(Semaphore::new(UPLOADS_MAX)),
        }
    }
}

impl Tasks {
    /// Begins a task in the background and answers with its state. When there are too many that have not ended, the new one
    /// is not begun and is answered as failed.
    pub(super) fn begin(
        self: &Arc<Self>,
        work: impl Future<Output = Result<(), String>> + Send + 'static,
    ) -> Value {
        let id = Uuid::new_v4().to_string();
        {
            let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
            if entries.len() >= TASKS_MAX {
                let Some(over) = entries.iter().position(|entry| entry.state.is_over()) else {
                    let message = format!("{TASKS_MAX} uploads wait already; try again later");
                    return answer(&id, State::Failed, &message);
                };
                entries.remove(over);
            }
            entries.push_back(Entry {
                id: id.clone(),
                state: State::NotStarted,
                message: String::new(),
            });
        }
        let tasks = Arc::clone(self);
        let task = Guard {
            tasks: Arc::clone(self),
            id: id.clone(),
        };
        tokio::spawn(async move {
            let running = Arc::clone(&tasks.running);
            let _permit = running.acquire_owned().await;
            task.set(State::Running, "");
            match work.await {
                Ok(()) => task.set(State::Completed, ""),
                Err(message) => {
                    holdfast_observe::tracing::warn!(task = task.id, message, "an upload failed");
                    task.set(State::Failed, &message);
                }
            }
        });
        self.status(&id)
    }

    /// State of a task as GetTaskStatus answers it.
    pub(super) fn status(&self, id: &str) -> Value {
        let entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        match entries.iter().find(|entry| entry.id.eq_ignore_ascii_case(id)) {
            Some(entry) => answer(&entry.id, entry.state, &entry.message),
            None => json!({"status": "Unknown", "message": "", "correlationId": id}),
        }
    }

    fn set(&self, id: &str, state: State, message: &str) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = entries.iter_mut().find(|entry| entry.id == id) {
            entry.state = state;
            message.clone_into(&mut entry.message);
        }
    }
}

/// Makes a task that ends in any way end in the list, too.
struct Guard {
    tasks: Arc<Tasks>,
    id: String,
}

impl Guard {
    fn set(&self, state: State, message: &str) {
        self.tasks.set(&self.id, state, message);
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let is_open = {
            let entries = self.tasks.entries.lock().unwrap_or_else(PoisonError::into_inner);
            entries
                .iter()
                .any(|entry| entry.id == self.id && !entry.state.is_over())
        };
        if is_open {
            self.set(State::Cancelled, "the agent ended");
        }
    }
}

fn answer(id: &str, state: State, message: &str) -> Value {
    json!({"status": state.name(), "message": message, "correlationId": id})
}
