//! What the engine tells while it pulls: one JSON object per line; a failure comes inside, after status 200.

use std::collections::BTreeMap;

use holdfast_agent::runtime::PullProgress;
use serde::Deserialize;

/// Longer lines end the pull with an error.
pub const LINE_BYTES_MAX: usize = 64 << 10;
/// Layers whose progress is summed. The engine itself takes no image with more than 127.
pub const LAYERS_MAX: usize = 256;

/// Reads a pull's progress, in whatever pieces it comes.
#[derive(Debug, Default)]
pub struct Progress {
    line: Vec<u8>,
    layers: BTreeMap<String, PullProgress>,
}

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    id: String,
    #[serde(default)]
    status: String,
    #[serde(rename = "progressDetail")]
    detail: Option<Detail>,
    #[serde(rename = "errorDetail")]
    error_detail: Option<ErrorDetail>,
    error: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Detail {
    current: i64,
    total: i64,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct ErrorDetail {
    message: String,
}

impl Progress {
    /// Takes the next bytes; says whether the sum has changed.
    ///
    /// # Errors
    /// The engine's words, when the pull has failed, or what cannot be read.
    pub fn take(&mut self, bytes: &[u8]) -> Result<bool, String> {
        let mut changed = false;
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.line.len() + part.len() > LINE_BYTES_MAX {
                return Err(format!(
                    "the engine told a line of more than {LINE_BYTES_MAX} bytes"
                ));
            }
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                changed |= self.line_ended()?;
            }
        }
        Ok(changed)
    }

    /// The stream has ended; the last line need not have an end.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn finish(&mut self) -> Result<(), String> {
        self.line_ended().map(drop)
    }

    /// The sum over all layers.
    #[must_use]
    pub fn sum(&self) -> PullProgress {
        self.layers
            .values()
            .fold(PullProgress::default(), |sum, layer| PullProgress {
                current: sum.current.saturating_add(layer.current),
                total: sum.total.saturating_add(layer.total),
            })
    }

    fn line_ended(&mut self) -> Result<bool, String> {
        let line = std::mem::take(&mut self.line);
        let text = line.trim_ascii();
        if text.is_empty() {
            return Ok(false);
        }
        let line: Line = serde_json::from_slice(text)
            .map_err(|error| format!("what the engine tells cannot be read: {error}"))?;
        if let Some(message) = line.failure() {
            return Err(message);
        }
        Ok(self.note(&line))
    }

    fn note(&mut self, line: &Line) -> bool {
        let known = self.layers.contains_key(&line.id);
        if line.id.is_empty() || (!known && self.layers.len() >= LAYERS_MAX) {
            return false;
        }
        match line.status.as_str() {
            "Downloading" => {
                let Some(detail) = &line.detail else { return false };
                let layer = PullProgress {
                    current: u64::try_from(detail.current).unwrap_or(0),
                    total: u64::try_from(detail.total).unwrap_or(0),
                };
                self.layers.insert(line.id.clone(), layer) != Some(layer)
            }
            "Download complete" | "Pull complete" => {
                let Some(layer) = self.layers.get_mut(&line.id) else {
                    return false;
                };
                let changed = layer.current != layer.total;
                layer.current = layer.total;
                changed
            }
            _ => false,
        }
    }
}

impl Line {
    fn failure(&self) -> Option<String> {
        let detail = self.error_detail.as_ref().map(|detail| detail.message.clone());
        let told = detail
            .filter(|message| !message.is_empty())
            .or_else(|| self.error.clone())?;
        Some(if told.is_empty() {
            "it gave no reason".to_owned()
        } else {
            told
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_over_layers_in_any_pieces() {
        let text = concat!(
            "{\"status\":\"Pulling from x\",\"id\":\"1.0\"}\r\n",
            "{\"status\":\"Pulling fs layer\",\"progressDetail\":{},\"id\":\"a\"}\r\n",
            "{\"status\":\"Downloading\",\"progressDetail\":{\"current\":10,\"total\":100},\"id\":\"a\"}\r\n",
            "{\"status\":\"Downloading\",\"progressDetail\":{\"current\":5,\"total\":50},\"id\":\"b\"}\r\n",
            "{\"status\":\"Download complete\",\"progressDetail\":{},\"id\":\"b\"}\r\n",
            "{\"status\":\"Extracting\",\"progressDetail\":{\"current\":1,\"total\":2},\"id\":\"b\"}\r\n",
        );
        for step in [1, 7, 64, text.len()] {
            let mut progress = Progress::default();
            let mut changes = 0;
            for piece in text.as_bytes().chunks(step) {
                changes += u32::from(progress.take(piece).unwrap());
            }
            progress.finish().unwrap();
            assert_eq!(
                progress.sum(),
                PullProgress {
                    current: 60,
                    total: 150
                },
                "{step}"
            );
            assert!(changes >= 1);
        }
    }

    #[test]
    fn a_failure_comes_inside_the_stream() {
        let mut progress = Progress::default();
        let text = b"{\"status\":\"Pulling\"}\r\n{\"errorDetail\":{\"message\":\"manifest unknown\"},\"error\":\"x\"}\r\n";
        assert_eq!(progress.take(text).unwrap_err(), "manifest unknown");
        // Podman gives the text alone, and no end of line.
        let mut progress = Progress::default();
        assert!(!progress.take(b"{\"error\":\"unauthorized\"}").unwrap());
        assert_eq!(progress.finish().unwrap_err(), "unauthorized");
    }

    #[test]
    fn garbage_and_floods_are_refused() {
        assert!(
            Progress::default()
                .take(b"<html>\n")
                .unwrap_err()
                .contains("cannot be read")
        );
        let mut progress = Progress::default();
        let piece = vec![b'x'; LINE_BYTES_MAX / 2];
        progress.take(&piece).unwrap();
        progress.take(&piece).unwrap();
        assert!(progress.take(b"x").unwrap_err().contains("more than"));
        let mut progress = Progress::default();
        for layer in 0..LAYERS_MAX * 2 {
            let line = format!(
                "{{\"status\":\"Downloading\",\"progressDetail\":{{\"current\":1,\"total\":1}},\"id\":\"{layer}\"}}\n"
            );
            progress.take(line.as_bytes()).unwrap();
        }
        assert_eq!(progress.sum().total, LAYERS_MAX as u64);
        let negative =
            b"{\"status\":\"Downloading\",\"progressDetail\":{\"current\":-1,\"total\":-1},\"id\":\"1\"}\n";
        progress.take(negative).unwrap();
    }
}
