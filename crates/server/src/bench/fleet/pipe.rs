//! A socket in an epoll loop, with what it has no room for and what is no whole packet yet. Empty buffers hold no memory.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Context as _;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, EventData, EventFlags};

use super::socket::{Endpoint, Socket};

/// Puts what is ready into `events`, in place of what was in it; waits no longer than `timeout`.
///
/// # Errors
/// When the loop cannot be used.
pub(crate) fn wait(epoll: &OwnedFd, events: &mut Vec<epoll::Event>, timeout: Duration) -> anyhow::Result<()> {
    let timeout = rustix::event::Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    events.clear();
    match epoll::wait(epoll, spare_capacity(events), Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(io::Error::from(error)).context("epoll failed"),
    }
}

/// See the module documentation.
pub(crate) struct Pipe {
    socket: Socket,
    /// The beginning of a packet whose end has not come.
    partial: Vec<u8>,
    /// What the socket did not take yet.
    pending: Vec<u8>,
    /// The loop wants to know when the socket is writable.
    awaits_room: bool,
}

impl Pipe {
    /// Begins to connect; it is done when the socket becomes writable. `number` chooses the source address on loopback.
    pub(crate) fn connect(endpoint: &Endpoint, number: usize) -> io::Result<Pipe> {
        Ok(Pipe {
            socket: Socket::connect(endpoint, number)?,
            partial: Vec::new(),
            pending: Vec::new(),
            awaits_room: true,
        })
    }

    /// Puts the socket into the loop, under the number `index`.
    ///
    /// # Errors
    /// When the system has no room for it.
    pub(crate) fn watch(&self, epoll: &OwnedFd, index: usize) -> anyhow::Result<()> {
        let flags = EventFlags::IN | EventFlags::OUT;
        epoll::add(epoll, &self.socket, EventData::new_u64(index as u64), flags)
            .context("a socket cannot be watched")
    }

    /// The socket itself.
    pub(crate) const fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Reads once; `None` when there is nothing now, 0 at the end.
    pub(crate) fn read(&mut self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        loop {
            match self.socket.read(buffer) {
                Ok(read) => return Ok(Some(read)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// What earlier reads left over. Give it to [`with_rest`], and back with [`Pipe::keep_rest`].
    pub(crate) fn take_rest(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.partial)
    }

    pub(crate) fn keep_rest(&mut self, rest: Vec<u8>) {
        self.partial = rest;
    }

    /// Writes `bytes` after what waits; what the socket does not take waits too.
    pub(crate) fn write(&mut self, epoll: &OwnedFd, index: usize, bytes: &[u8]) -> io::Result<()> {
        if !self.pending.is_empty() {
            self.pending.extend_from_slice(bytes);
            return self.flush(epoll, index);
        }
        if !bytes.is_empty() {
            let written = self.socket.write(bytes)?;
            self.pending.extend_from_slice(&bytes[written..]);
        }
        self.flush(epoll, index)
    }

    /// Writes what waits, and watches for room exactly while something waits.
    pub(crate) fn flush(&mut self, epoll: &OwnedFd, index: usize) -> io::Result<()> {
        if !self.pending.is_empty() {
            let written = self.socket.write(&self.pending)?;
            self.pending.drain(..written);
            if self.pending.is_empty() {
                self.pending = Vec::new();
            }
        }
        let waits = !self.socket.flush()? || !self.pending.is_empty();
        if waits != self.awaits_room {
            let flags = if waits {
                EventFlags::IN | EventFlags::OUT
            } else {
                EventFlags::IN
            };
            epoll::modify(epoll, &self.socket, EventData::new_u64(index as u64), flags)?;
            self.awaits_room = waits;
        }
        Ok(())
    }
}

/// Gives `bytes`, after what earlier reads left over, to `take`, which says how many it used; keeps the others.
pub(crate) fn with_rest<T, E>(
    rest: &mut Vec<u8>,
    bytes: &[u8],
    take: impl FnOnce(&[u8]) -> Result<(usize, T), E>,
) -> Result<T, E> {
    if rest.is_empty() {
        let (used, result) = take(bytes)?;
        if used < bytes.len() {
            *rest = bytes[used..].to_vec();
        }
        return Ok(result);
    }
    rest.extend_from_slice(bytes);
    let (used, result) = take(rest)?;
    rest.drain(..used);
    if rest.is_empty() {
        *rest = Vec::new();
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_put_together_however_they_are_cut() {
        let stream = b"abc|d||efgh|";
        for cut in 0..=stream.len() {
            let (mut rest, mut packets) = (Vec::new(), Vec::new());
            for bytes in [&stream[..cut], &stream[cut..]] {
                let taken: Result<(), ()> = with_rest(&mut rest, bytes, |bytes| {
                    let mut used = 0;
                    while let Some(length) = bytes[used..].iter().position(|byte| *byte == b'|') {
                        packets.push(bytes[used..used + length].to_vec());
                        used += length + 1;
                    }
                    Ok((used, ()))
                });
                assert_eq!(taken, Ok(()));
            }
            assert_eq!(packets, [&b"abc"[..], b"d", b"", b"efgh"], "cut at {cut}");
            assert_eq!(rest.capacity(), 0);
        }
    }
}
