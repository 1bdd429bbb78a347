//! Twins of connected senders, while a route's condition asks for them: no message costs a read.
//!
//! A session's twin is read when it begins, and noted again after every change. Notes of one twin may come in another
//! order than the changes, so the newer one stays. Senders over HTTPS have no session: theirs is read when they are
//! admitted, and stays for [`ADMITTED_MAX`] of them.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use holdfast_model::twin::Twin;
use holdfast_model::{Error, Identity};
use holdfast_routing::sources::twin_document;
use parking_lot::{Mutex, RwLock};
use serde_json::Value;

use crate::Hub;

/// Most twins of senders without a session.
const ADMITTED_MAX: usize = 10_000;

/// The twins.
#[derive(Debug, Default)]
pub(crate) struct Senders {
    wanted: AtomicBool,
    twins: RwLock<HashMap<Identity, Noted, foldhash::fast::RandomState>>,
    /// Senders without a session, oldest first.
    admitted: Mutex<VecDeque<Identity>>,
}

#[derive(Clone, Debug)]
struct Noted {
    /// Grows with every change of the twin.
    age: u64,
    document: Arc<Value>,
}

impl Senders {
    pub(crate) fn set_wanted(&self, wanted: bool) {
        self.wanted.store(wanted, Ordering::SeqCst);
        if !wanted {
            *self.twins.write() = HashMap::default();
            self.admitted.lock().clear();
        }
    }

    pub(crate) fn are_wanted(&self) -> bool {
        self.wanted.load(Ordering::SeqCst)
    }

    /// The twin of a sender, as conditions see it.
    pub(crate) fn twin(&self, sender: &Identity) -> Option<Arc<Value>> {
        let twins = self.twins.read();
        twins.get(sender).map(|noted| Arc::clone(&noted.document))
    }

    /// Notes the twin of a sender.
    fn note(&self, sender: &Identity, twin: &Twin) {
        let noted = Noted {
            age: age(twin),
            document: Arc::new(twin_document(twin)),
        };
        let mut twins = self.twins.write();
        match twins.get_mut(sender) {
            Some(known) if known.age > noted.age => {}
            Some(known) => *known = noted,
            None => drop(twins.insert(sender.clone(), noted)),
        }
    }

    /// Notes a changed twin, if its owner is a known sender.
    pub(crate) fn changed(&self, sender: &Identity, twin: &Twin) {
        if self.are_wanted() && self.twins.read().contains_key(sender) {
            self.note(sender, twin);
        }
    }

    /// The sender's session has ended.
    pub(crate) fn forget(&self, sender: &Identity) {
        if self.are_wanted() {
            self.twins.write().remove(sender);
        }
    }

    /// Keeps count of a sender without a session; returns the one that is forgotten for it.
    fn admit(&self, sender: &Identity) -> Option<Identity> {
        let mut admitted = self.admitted.lock();
        if admitted.contains(sender) {
            return None;
        }
        admitted.push_back(sender.clone());
        if admitted.len() > ADMITTED_MAX {
            admitted.pop_front()
        } else {
            None
        }
    }
}

fn age(twin: &Twin) -> u64 {
    twin.version + twin.desired.version + twin.reported.version
}

impl Hub {
    /// Reads the twin of a sender whose session begins, if conditions ask for twins.
    pub(crate) async fn note_sender(&self, sender: &Identity) -> Result<(), Error> {
        let senders = &self.routing.senders;
        if !senders.are_wanted() {
            return Ok(());
        }
        let read = self.stores.twins.twin(sender).await;
        let twin = read.map_err(|error| self.store_error("read twin", error))?;
        if let Some(twin) = twin {
            senders.note(sender, &twin);
        }
        Ok(())
    }

    /// As [`Hub::note_sender`], for one without a session.
    pub(crate) async fn note_admitted(&self, sender: &Identity) -> Result<(), Error> {
        let senders = &self.routing.senders;
        if !senders.are_wanted() || senders.twin(sender).is_some() {
            return Ok(());
        }
        self.note_sender(sender).await?;
        if let Some(oldest) = senders.admit(sender)
            && self.sessions.get(oldest.as_str()).is_none()
        {
            senders.forget(&oldest);
        }
        Ok(())
    }

    /// Reads the twins of all who are connected.
    pub(crate) async fn note_all_senders(&self) -> Result<(), Error> {
        for session in self.sessions.select(|_| true) {
            let sender = session.identity();
            if self.routing.senders.twin(sender).is_none() {
                self.note_sender(sender).await?;
            }
        }
        Ok(())
    }
}
