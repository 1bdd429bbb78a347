//! Protocol heads: MQTT, device HTTPS, WebSocket; sockets, TLS and tasks.
