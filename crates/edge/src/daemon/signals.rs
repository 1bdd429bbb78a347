//! Signals of the operator and of systemd.

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What the operator asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Asked {
    /// End in order.
    Stop,
    /// Read given certificates again and look at everything.
    Reload,
}

/// The signals that the daemon listens to.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
    /// Held and never read: with a handler in place, a write beyond the limit of file sizes (`ulimit -f`) is an error that
    /// is answered in order, where the default action would kill the process.
    _file_size: Signal,
}

impl Signals {
    /// Takes the signals from their default actions. Must be called inside the runtime.
    pub(super) fn listen() -> std::io::Result<Self> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
            _file_size: signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?,
        })
    }

    /// The next request.
    pub(super) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hang_up.recv() => Asked::Reload,
        }
    }

    /// Waits for another request to stop; who asks twice is in a hurry.
    pub(super) async fn stop_again(&mut self) {
        while self.next().await != Asked::Stop {}
    }
}
