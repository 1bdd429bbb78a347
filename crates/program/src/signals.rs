//! Signals of the operator and of systemd.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What the operator asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// End in order (SIGTERM, SIGINT).
    Stop,
    /// Read the certificates again (SIGHUP).
    Reload,
}

/// The signals that a daemon listens to.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    /// Held and never read: with a handler in place, a write beyond the limit of file sizes (`ulimit -f`) is an error that
    /// is answered in order, where the default action would kill the process.
    _file_size: Signal,
}

impl Signals {
    /// Takes the signals from their default actions. Must be called inside the runtime.
    ///
    /// # Errors
    /// When the system does not let us.
    pub fn listen() -> std::io::Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            _file_size: signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?,
        })
    }

    /// The next request.
    pub async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hang_up.recv() => Asked::Reload,
        }
    }

    /// Waits for another request to stop; who asks twice is in a hurry.
    pub async fn stop_again(&mut self) {
        while self.next().await != Asked::Stop {}
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal, getpid, kill_process};

    use super::*;

    /// All in one test: signals are the process's, and another test would get them, too.
    #[tokio::test]
    async fn signals_are_requests_and_no_end() {
        let mut signals = Signals::listen().unwrap();
        for (signal, asked) in [
            (Signal::HUP, Asked::Reload),
            (Signal::TERM, Asked::Stop),
            (Signal::INT, Asked::Stop),
        ] {
            kill_process(getpid(), signal).unwrap();
            assert_eq!(signals.next().await, asked, "{signal:?}");
        }
        // Reloading is no answer to who waits for a stop.
        kill_process(getpid(), Signal::HUP).unwrap();
        kill_process(getpid(), Signal::TERM).unwrap();
        signals.stop_again().await;
    }
}
