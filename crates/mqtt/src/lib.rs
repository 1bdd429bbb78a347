//! MQTT 3.1.1 and 5 codec and session machine, client and server role. No I/O, no clock.
