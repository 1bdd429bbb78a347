//! MQTT 5 packets.
