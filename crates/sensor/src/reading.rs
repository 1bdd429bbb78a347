//! The machine whose temperatures are simulated.

use holdfast_model::Timestamp;
use serde_json::json;

const COOL: f64 = 21.0;
const HOT: f64 = 100.0;
const COOL_PRESSURE: f64 = 1.0;
const HOT_PRESSURE: f64 = 10.0;
const AMBIENT: f64 = 21.0;
const HUMIDITY: f64 = 25.0;

/// A machine that heats up, and how many messages are still to be sent about it.
pub(crate) struct Machine {
    temperature: f64,
    noise: u64,
    sent: u64,
    count: Option<u64>,
}

impl Machine {
    pub(crate) fn new(count: Option<u64>) -> Self {
        Self {
            temperature: COOL,
            noise: 0x9e37_79b9_7f4a_7c15,
            sent: 0,
            count,
        }
    }

    /// Cool again, and nothing sent.
    pub(crate) fn reset(&mut self) {
        *self = Self {
            noise: self.noise,
            ..Self::new(self.count)
        };
    }

    /// Whether there is something left to send.
    pub(crate) fn is_due(&self) -> bool {
        self.count.is_none_or(|count| self.sent < count)
    }

    /// Messages that were acknowledged since the last reset.
    pub(crate) fn sent(&self) -> u64 {
        self.sent
    }

    /// The message was taken.
    pub(crate) fn acknowledged(&mut self) {
        self.sent += 1;
    }

    /// The next reading.
    pub(crate) fn read(&mut self, now: Timestamp) -> String {
        // Heats up, and turns around where it is hot.
        let step = self.between(-0.25, 0.5);
        self.temperature = if self.temperature > HOT {
            HOT - 10.0
        } else {
            (self.temperature + step).max(COOL)
        };
        let share = (self.temperature - COOL) / (HOT - COOL);
        let pressure = COOL_PRESSURE + share * (HOT_PRESSURE - COOL_PRESSURE);
        let ambient = AMBIENT + self.between(-0.5, 0.5);
        json!({
            "machine": {"temperature": self.temperature, "pressure": pressure},
            "ambient": {"temperature": ambient, "humidity": (HUMIDITY + self.between(-1.0, 1.0)).round()},
            "timeCreated": now.to_string(),
        })
        .to_string()
    }

    /// Noise need not be good (xorshift64).
    fn between(&mut self, low: f64, high: f64) -> f64 {
        self.noise ^= self.noise << 13;
        self.noise ^= self.noise >> 7;
        self.noise ^= self.noise << 17;
        #[expect(clippy::cast_precision_loss, reason = "53 bits of noise are enough")]
        let share = (self.noise >> 11) as f64 / (1_u64 << 53) as f64;
        low + share * (high - low)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readings_are_in_range_and_shaped_as_tutorials_expect() {
        let mut machine = Machine::new(None);
        for _ in 0..10_000 {
            let value: serde_json::Value =
                serde_json::from_str(&machine.read(Timestamp::from_seconds(0))).unwrap();
            let temperature = value["machine"]["temperature"].as_f64().unwrap();
            let pressure = value["machine"]["pressure"].as_f64().unwrap();
            assert!((COOL..=HOT + 1.0).contains(&temperature), "{temperature}");
            assert!(
                (COOL_PRESSURE..=HOT_PRESSURE + 1.0).contains(&pressure),
                "{pressure}"
            );
            assert!(value["ambient"]["humidity"].is_number());
            assert_eq!(value["timeCreated"], "1970-01-01T00:00:00Z");
        }
    }

    #[test]
    fn counts_what_was_acknowledged_and_begins_anew() {
        let mut machine = Machine::new(Some(2));
        machine.acknowledged();
        assert!(machine.is_due());
        machine.acknowledged();
        assert!(!machine.is_due());
        machine.reset();
        assert!(machine.is_due());
        assert_eq!(machine.sent(), 0);
    }
}
