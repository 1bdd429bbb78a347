//! `holdfast-simulated-sensor`: a module that sends simulated temperatures, for demos and tests of the edge runtime.
//!
//! It behaves like the simulated temperature sensor that tutorials deploy, and starts "from edge environment" as any
//! module does: identity and addresses from `IOTEDGE_…` variables, trust bundle and signatures from the workload socket,
//! then MQTT over TLS to the gateway.
//!
//! | Variable | Meaning | Default |
//! | --- | --- | --- |
//! | `MessageCount` | messages to send in all; `-1` without end | 500 |
//! | `MessageDelay` | between two messages: `hh:mm:ss[.fff]` or seconds | `00:00:05` |
//!
//! Input `control` takes `{"command":"reset"}`, as does the direct method `reset`: the machine is cool again, and the count
//! begins anew. Telemetry leaves by output `temperatureOutput`; a message counts when the edge hub has acknowledged it.

mod connection;
mod reading;
mod settings;
mod workload;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use connection::Connection;
use reading::Machine;
use settings::Settings;

/// Pause between two attempts to connect; doubled up to a minute.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);

#[expect(clippy::print_stdout, reason = "a module's log is its standard output")]
fn say(text: &str) {
    println!("{text}");
}

fn main() -> anyhow::Result<()> {
    // The first process of a container gets no signal that it has no handler for: without one, every stop would take the
    // engine's patience.
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register_conditional_shutdown(signal, 0, Arc::new(AtomicBool::new(true)))?;
    }
    let settings = Settings::from_environment(|name| std::env::var(name).ok())?;
    say(&format!(
        "simulated sensor {}: {} messages, one each {:?}",
        settings.identity,
        settings
            .count
            .map_or_else(|| "unlimited".to_owned(), |count| count.to_string()),
        settings.delay
    ));
    let mut machine = Machine::new(settings.count);
    let mut pause = PAUSE;
    loop {
        match Connection::open(&settings) {
            Ok(mut connection) => {
                say("connected");
                pause = PAUSE;
                let ended = connection.run(&settings, &mut machine);
                say(&format!("connection lost: {ended:#}"));
            }
            Err(error) => say(&format!("cannot connect: {error:#}")),
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(PAUSE_MAX);
    }
}
