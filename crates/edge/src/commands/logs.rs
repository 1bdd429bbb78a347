//! `logs`: the engine's framed stream, taken apart again.

use std::io::Write as _;

use clap::Args;
use holdfast_program::failure::Failure;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};

use super::Global;
use crate::time_text;

/// Flags of `logs`.
#[derive(Args, Debug)]
pub(super) struct LogsArgs {
    /// Module
    module: String,
    /// Go on as lines come
    #[arg(long, short)]
    follow: bool,
    /// Only the last lines: a number, or all
    #[arg(long, default_value = "all", value_name = "LINES")]
    tail: String,
    /// Not before: a time, Unix seconds, or how long ago ("1 day", "90m")
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Not after
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Begin each line with its time
    #[arg(long, short)]
    timestamps: bool,
}

pub(super) fn run(global: &Global, args: &LogsArgs) -> anyhow::Result<()> {
    let encode = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let mut path = format!(
        "/modules/{}/logs?follow={}&timestamps={}&tail={}",
        encode(&args.module),
        args.follow,
        args.timestamps,
        encode(&args.tail)
    );
    for (name, value) in [("since", &args.since), ("until", &args.until)] {
        if let Some(text) = value {
            let at = time_text::parse(text, time_text::now())
                .ok_or_else(|| Failure::usage(format!("--{name} {text}: {}", time_text::EXPECTED)))?;
            path.push_str(&format!("&{name}={}", at.as_seconds()));
        }
    }
    let mut frames = Frames::default();
    let told = global.client()?.stream(&path, |piece| {
        frames.take(piece, |stderr, text| {
            let written = if stderr {
                std::io::stderr().lock().write_all(text)
            } else {
                let mut out = std::io::stdout().lock();
                out.write_all(text).and_then(|()| out.flush())
            };
            Ok(written?)
        })
    });
    told.map_err(|error| match error.downcast::<Failure>() {
        Ok(failure) => super::list::unknown(failure, &args.module).into(),
        Err(error) => error,
    })
}

/// Takes frames apart wherever the stream is cut.
#[derive(Default)]
struct Frames {
    header: Vec<u8>,
    left: usize,
    stderr: bool,
}

impl Frames {
    fn take(
        &mut self,
        mut piece: &[u8],
        mut write: impl FnMut(bool, &[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        while !piece.is_empty() {
            if self.left == 0 {
                let wanted = (8 - self.header.len()).min(piece.len());
                self.header.extend_from_slice(&piece[..wanted]);
                piece = &piece[wanted..];
                if let Ok(header) = <[u8; 8]>::try_from(self.header.as_slice()) {
                    self.stderr = header[0] == 2;
                    self.left = u32::from_be_bytes([header[4], header[5], header[6], header[7]]) as usize;
                    self.header.clear();
                }
                continue;
            }
            let (text, rest) = piece.split_at(self.left.min(piece.len()));
            write(self.stderr, text)?;
            self.left -= text.len();
            piece = rest;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_wherever_they_are_cut() {
        let stream = b"\x01\0\0\0\0\0\0\x03abc\x02\0\0\0\0\0\0\x02de\x01\0\0\0\0\0\0\x00";
        for cut in 1..stream.len() {
            let mut frames = Frames::default();
            let (mut out, mut errors) = (Vec::new(), Vec::new());
            for piece in stream.chunks(cut) {
                let taken = frames.take(piece, |stderr, text| {
                    if stderr { &mut errors } else { &mut out }.extend_from_slice(text);
                    Ok(())
                });
                taken.unwrap();
            }
            assert_eq!(
                (out.as_slice(), errors.as_slice()),
                (&b"abc"[..], &b"de"[..]),
                "{cut}"
            );
        }
    }
}
