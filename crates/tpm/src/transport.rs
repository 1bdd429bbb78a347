//! Ways to a TPM: a device node, or the socket of `swtpm`. Both take a command and give an answer, byte for byte.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs as _};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use zeroize::Zeroizing;

use crate::address::Address;
use crate::wire::{ANSWER_BYTES_MAX, HEADER_BYTES};

/// Making an RSA key takes a slow TPM half a minute, and another client may be served first.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(90);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Takes a command to a TPM and brings its answer.
pub(crate) trait Transport: Send {
    /// One command, one answer. Answers may hold secrets.
    fn exchange(&mut self, command: &[u8]) -> io::Result<Zeroizing<Vec<u8>>>;
}

/// Opens the way to a TPM.
pub(crate) fn open(address: &Address) -> io::Result<Box<dyn Transport>> {
    Ok(match address {
        Address::Device(path) => Box::new(Device(OpenOptions::new().read(true).write(true).open(path)?)),
        Address::SwtpmTcp { host, port } => Box::new(Stream(connect(host, *port)?)),
        Address::SwtpmUnix(path) => {
            let stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
            stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
            Box::new(Stream(stream))
        }
    })
}

fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    for address in (host, port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, CONNECT_TIMEOUT) {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
                stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// A device node. The kernel takes a command in one write, and gives its answer in one read; it bounds the time itself.
struct Device(File);

impl Transport for Device {
    fn exchange(&mut self, command: &[u8]) -> io::Result<Zeroizing<Vec<u8>>> {
        let written = self.0.write(command)?;
        if written != command.len() {
            return Err(io::Error::new(
                io::ErrorKind::WriteZero,
                "the device took a part of the command",
            ));
        }
        let mut answer = Zeroizing::new(vec![0; ANSWER_BYTES_MAX]);
        loop {
            match self.0.read(&mut answer) {
                Ok(count) => {
                    answer.truncate(count);
                    return Ok(answer);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// A stream: the size in an answer's header says where it ends.
struct Stream<S>(S);

impl<S: Read + Write + Send> Transport for Stream<S> {
    fn exchange(&mut self, command: &[u8]) -> io::Result<Zeroizing<Vec<u8>>> {
        self.0.write_all(command).map_err(in_words)?;
        let mut answer = Zeroizing::new(vec![0; HEADER_BYTES]);
        self.0.read_exact(&mut answer).map_err(in_words)?;
        let size = u32::from_be_bytes([answer[2], answer[3], answer[4], answer[5]]) as usize;
        if !(HEADER_BYTES..=ANSWER_BYTES_MAX).contains(&size) {
            let words = format!("an answer cannot have {size} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, words));
        }
        answer.resize(size, 0);
        self.0.read_exact(&mut answer[HEADER_BYTES..]).map_err(in_words)?;
        Ok(answer)
    }
}

/// What the system says of a time-out says nothing.
fn in_words(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "none within {} s; another program may hold it",
                ANSWER_TIMEOUT.as_secs()
            ),
        ),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Serves one exchange on a socket: reads `expected` bytes, writes `answer`, and goes.
    fn exchange(answer: &'static [u8]) -> io::Result<Zeroizing<Vec<u8>>> {
        let (near, mut far) = UnixStream::pair()?;
        let served = std::thread::spawn(move || {
            let mut command = [0; 3];
            far.read_exact(&mut command).and_then(|()| far.write_all(answer))
        });
        let outcome = Stream(near).exchange(b"cmd");
        served.join().expect("a thread that ends")?;
        outcome
    }

    #[test]
    fn an_answer_ends_where_it_says() {
        let answer = exchange(b"\x80\x01\x00\x00\x00\x0c\x00\x00\x00\x00ab").expect("an answer");
        assert_eq!(answer.len(), 12);
        for cut in [
            &b""[..],
            b"\x80\x01\x00\x00\x00\x0c\x00\x00\x00\x00a",
            b"\x80\x01\x00\x00",
        ] {
            let error = exchange(cut).expect_err("cut off");
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }
        for size in [
            &b"\x80\x01\x00\x00\x00\x09\x00\x00\x00\x00"[..],
            b"\x80\x01\xff\xff\xff\xff\x00\x00\x00\x00",
            b"\x80\x01\x00\x00\x10\x01\x00\x00\x00\x00",
        ] {
            let error = exchange(size).expect_err("a size that cannot be");
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
    }

    #[test]
    fn devices_that_are_none_are_told() {
        let missing = open(&Address::Device("/nonexistent/tpm0".into())).err();
        assert_eq!(missing.map(|error| error.kind()), Some(io::ErrorKind::NotFound));
        // Takes everything and answers nothing.
        let mut null = open(&Address::Device("/dev/null".into())).expect("a device");
        assert!(null.exchange(b"command").expect("an end").is_empty());
        let nobody = Address::SwtpmTcp {
            host: "127.0.0.1".to_owned(),
            port: 1,
        };
        assert!(open(&nobody).is_err());
        assert!(open(&Address::SwtpmUnix("/nonexistent/socket".into())).is_err());
    }
}
