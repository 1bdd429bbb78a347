//! What the environment says.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use holdfast_model::Identity;

/// Who the module is, whom it speaks to, and what it sends.
pub(crate) struct Settings {
    pub(crate) identity: Identity,
    pub(crate) generation: String,
    /// Host name of the hub: part of what tokens are for.
    pub(crate) hub: String,
    /// Host name to connect to.
    pub(crate) gateway: String,
    /// Path of the workload socket.
    pub(crate) workload: String,
    pub(crate) api_version: String,
    /// Port of MQTT over TLS; 8883 unless `GatewayMqttPort` says otherwise.
    pub(crate) port: u16,
    /// `None`: without end.
    pub(crate) count: Option<u64>,
    pub(crate) delay: Duration,
}

impl Settings {
    pub(crate) fn from_environment(variable: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let needed = |name: &str| {
            variable(name).with_context(|| {
                format!("{name} is not set: this program is a module and runs on an edge device")
            })
        };
        let workload = needed("IOTEDGE_WORKLOADURI")?;
        let workload = workload
            .strip_prefix("unix://")
            .with_context(|| format!("IOTEDGE_WORKLOADURI is {workload}, not unix://PATH"))?;
        let hub = needed("IOTEDGE_IOTHUBHOSTNAME")?;
        let count = match variable("MessageCount") {
            None => Some(500),
            Some(text) => match text.trim().parse::<i64>() {
                Ok(count) => u64::try_from(count).ok(),
                Err(_) => bail!("MessageCount is {text:?}, not a whole number"),
            },
        };
        let delay = match variable("MessageDelay") {
            None => Duration::from_secs(5),
            Some(text) => time_span(&text)
                .with_context(|| format!("MessageDelay is {text:?}, neither hh:mm:ss nor seconds"))?,
        };
        let port = match variable("GatewayMqttPort") {
            None => 8883,
            Some(text) => text
                .parse()
                .with_context(|| format!("GatewayMqttPort is {text:?}, not a port"))?,
        };
        Ok(Self {
            identity: Identity::module(&needed("IOTEDGE_DEVICEID")?, &needed("IOTEDGE_MODULEID")?)
                .context("IOTEDGE_DEVICEID and IOTEDGE_MODULEID")?,
            generation: needed("IOTEDGE_MODULEGENERATIONID")?,
            gateway: variable("IOTEDGE_GATEWAYHOSTNAME").unwrap_or_else(|| hub.clone()),
            hub,
            workload: workload.to_owned(),
            api_version: variable("IOTEDGE_APIVERSION").unwrap_or_else(|| "2018-06-28".to_owned()),
            port,
            count,
            delay,
        })
    }
}

/// `hh:mm:ss`, `hh:mm:ss.fff` or a number of seconds.
fn time_span(text: &str) -> Option<Duration> {
    let parts: Vec<&str> = text.trim().split(':').collect();
    let (hours, minutes, seconds) = match parts[..] {
        [seconds] => (0, 0, seconds),
        [hours, minutes, seconds] => (hours.parse::<u32>().ok()?, minutes.parse::<u32>().ok()?, seconds),
        _ => return None,
    };
    let seconds: f64 = seconds.parse().ok()?;
    let whole = Duration::from_secs(u64::from(hours) * 3600 + u64::from(minutes) * 60);
    Duration::try_from_secs_f64(seconds).ok().map(|rest| whole + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(extra: &'static [(&str, &str)]) -> impl Fn(&str) -> Option<String> {
        const WHOLE: [(&str, &str); 6] = [
            ("IOTEDGE_WORKLOADURI", "unix:///var/run/iotedge/workload.sock"),
            ("IOTEDGE_IOTHUBHOSTNAME", "hub.example"),
            ("IOTEDGE_GATEWAYHOSTNAME", "gateway"),
            ("IOTEDGE_DEVICEID", "edge"),
            ("IOTEDGE_MODULEID", "sensor"),
            ("IOTEDGE_MODULEGENERATIONID", "7"),
        ];
        move |name| {
            let pair = extra.iter().chain(&WHOLE).find(|(key, _)| *key == name);
            pair.map(|(_, value)| (*value).to_owned())
                .filter(|value| !value.is_empty())
        }
    }

    #[test]
    fn defaults_are_those_of_the_tutorials() {
        let settings = Settings::from_environment(environment(&[])).unwrap();
        assert_eq!(settings.identity.to_string(), "edge/sensor");
        assert_eq!(
            (settings.count, settings.delay),
            (Some(500), Duration::from_secs(5))
        );
        assert_eq!((settings.gateway.as_str(), settings.port), ("gateway", 8883));
        assert_eq!(settings.workload, "/var/run/iotedge/workload.sock");
    }

    #[test]
    fn counts_and_delays() {
        let settings = Settings::from_environment(environment(&[
            ("MessageCount", "-1"),
            ("MessageDelay", "00:01:00.250"),
            ("IOTEDGE_GATEWAYHOSTNAME", ""),
        ]))
        .unwrap();
        assert_eq!(
            (settings.count, settings.delay),
            (None, Duration::from_millis(60_250))
        );
        assert_eq!(settings.gateway, "hub.example");
        assert_eq!(time_span("0.1"), Some(Duration::from_millis(100)));
        for wrong in ["", "1:2", "a", "1:2:3:4", "-1", "00:00:-5"] {
            assert_eq!(time_span(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn says_what_is_missing() {
        let error = Settings::from_environment(|_| None).err().unwrap().to_string();
        assert!(error.contains("IOTEDGE_WORKLOADURI"), "{error}");
        let http = Settings::from_environment(environment(&[("IOTEDGE_WORKLOADURI", "http://x")]));
        assert!(http.err().unwrap().to_string().contains("unix://"));
    }
}
