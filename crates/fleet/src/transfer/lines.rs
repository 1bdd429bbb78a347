//! Cuts a stream of bytes into lines, with a bound on their length.

use bytes::{Bytes, BytesMut};

use super::LINE_BYTES_MAX;

/// A line of the input.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Line {
    /// From 1.
    pub(super) number: u64,
    /// Without its end; `None` when it is longer than [`LINE_BYTES_MAX`].
    pub(super) text: Option<Bytes>,
}

/// Takes pieces of the input and gives lines. Blank lines count and are not given.
#[derive(Debug, Default)]
pub(super) struct Lines {
    partial: BytesMut,
    /// The line under way is too long; its rest is dropped.
    too_long: bool,
    number: u64,
}

impl Lines {
    /// Adds a piece; calls `take` with every line that it completes.
    pub(super) fn push(&mut self, mut piece: Bytes, take: &mut impl FnMut(Line)) {
        while let Some(end) = memchr::memchr(b'\n', &piece) {
            let head = piece.split_to(end + 1);
            self.complete(head.slice(..end), take);
        }
        if self.too_long {
            return;
        }
        if self.partial.len() + piece.len() > LINE_BYTES_MAX {
            self.partial = BytesMut::new();
            self.too_long = true;
            return;
        }
        self.partial.extend_from_slice(&piece);
    }

    /// Gives the last line, which needs no end.
    pub(super) fn finish(&mut self, take: &mut impl FnMut(Line)) {
        if !self.partial.is_empty() || self.too_long {
            self.complete(Bytes::new(), take);
        }
    }

    fn complete(&mut self, tail: Bytes, take: &mut impl FnMut(Line)) {
        self.number += 1;
        let number = self.number;
        if std::mem::take(&mut self.too_long) || self.partial.len() + tail.len() > LINE_BYTES_MAX {
            self.partial = BytesMut::new();
            take(Line { number, text: None });
            return;
        }
        let text = if self.partial.is_empty() {
            tail
        } else {
            let mut whole = std::mem::take(&mut self.partial);
            whole.extend_from_slice(&tail);
            whole.freeze()
        };
        let text = if number == 1 && text.starts_with(b"\xef\xbb\xbf") {
            // The mark that some editors put before UTF-8.
            text.slice(3..)
        } else {
            text
        };
        if !text.trim_ascii().is_empty() {
            take(Line {
                number,
                text: Some(text),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(pieces: &[&[u8]]) -> Vec<(u64, Option<String>)> {
        let (mut lines, mut found) = (Lines::default(), Vec::new());
        let mut take = |line: Line| {
            let text = line.text.map(|text| String::from_utf8_lossy(&text).into_owned());
            found.push((line.number, text));
        };
        for piece in pieces {
            lines.push(Bytes::copy_from_slice(piece), &mut take);
        }
        lines.finish(&mut take);
        found
    }

    fn line(number: u64, text: &str) -> (u64, Option<String>) {
        (number, Some(text.to_owned()))
    }

    #[test]
    fn lines_do_not_depend_on_the_pieces() {
        let text = b"\xef\xbb\xbfone\r\n\ntwo\n  \nthree";
        let whole = cut(&[text]);
        assert_eq!(whole, [line(1, "one\r"), line(3, "two"), line(5, "three")]);
        for at in 0..text.len() {
            let (head, tail) = text.split_at(at);
            assert_eq!(cut(&[head, tail]), whole, "cut at {at}");
        }
        assert_eq!(cut(&[]), []);
        assert_eq!(cut(&[b"\n\n"]), []);
    }

    #[test]
    fn long_lines_are_counted_and_not_kept() {
        let long = vec![b'x'; LINE_BYTES_MAX + 1];
        assert_eq!(cut(&[&long]), [(1, None)]);
        assert_eq!(
            cut(&[b"a\n", &long, &long, b"x\nb\n"]),
            [line(1, "a"), (2, None), line(3, "b")]
        );
        assert_eq!(
            cut(&[&long[1..], b"\n"])[0].1.as_ref().map(String::len),
            Some(LINE_BYTES_MAX)
        );
        assert_eq!(cut(&[&long[1..], b"x\n"]), [(1, None)]);
    }
}
