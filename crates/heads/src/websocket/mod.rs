//! MQTT over WebSocket.

mod frames;

pub use frames::FrameStream;
