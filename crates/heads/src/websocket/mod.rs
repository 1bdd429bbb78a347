//! WebSockets: the upgrade of an HTTPS connection, and the byte stream in its frames (mqtt.md section 1).

mod frames;
pub(crate) mod upgrade;

pub use frames::FrameStream;
