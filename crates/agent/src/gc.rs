//! Removal of images that this runtime pulled and nobody has used for long (edge.md 3.9).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use holdfast_model::Timestamp;
use holdfast_observe::tracing;
use serde::{Deserialize, Serialize};

use crate::runtime::{ModuleRuntime, RuntimeError};

const DAY: Duration = Duration::from_secs(86_400);
/// Before this program existed: a clock that shows less has not been set yet.
const CLOCK_MIN: Timestamp = Timestamp::from_seconds(1_735_689_600);
/// The wall clock was set when it went another way than the monotonic one by more than this.
const JUMP: Duration = Duration::from_secs(86_400);

/// When images are removed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ImageCollection {
    /// Time of day of the first run, UTC. 00:00.
    pub time_of_day: Duration,
    /// Between runs. 1 day.
    pub recurrence: Duration,
    /// Last use of an image that is removed. 7 days.
    pub age: Duration,
}

impl Default for ImageCollection {
    fn default() -> Self {
        ImageCollection {
            time_of_day: Duration::ZERO,
            recurrence: DAY,
            age: 7 * DAY,
        }
    }
}

impl ImageCollection {
    /// From now to the first run.
    #[must_use]
    pub fn first_after(&self, now: Timestamp) -> Duration {
        let day = i64::try_from(DAY.as_micros()).unwrap_or(i64::MAX);
        let at = i64::try_from(self.time_of_day.as_micros()).unwrap_or(0);
        let wait = (at - now.as_micros()).rem_euclid(day);
        Duration::from_micros(u64::try_from(wait).unwrap_or(0))
    }
}

/// Last uses of images that this runtime pulled.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ImageUse {
    images: BTreeMap<String, Timestamp>,
    #[serde(skip)]
    dirty: bool,
    #[serde(skip)]
    clock: Option<(Timestamp, i64)>,
}

impl ImageUse {
    /// An image was pulled.
    pub fn pulled(&mut self, image: &str, now: Timestamp) {
        self.images.insert(image.to_owned(), now);
        self.dirty = true;
    }

    /// A container was made of an image. One that was never pulled here was brought by somebody, and stays.
    pub fn used(&mut self, image: &str, now: Timestamp) {
        if let Some(last) = self.images.get_mut(image) {
            *last = now;
            self.dirty = true;
        }
    }

    /// Whether something has changed since the last call.
    pub fn take_changes(&mut self) -> bool {
        std::mem::take(&mut self.dirty)
    }

    /// Images that have not been used for `age`. Ages mean something only while the wall clock does: times that lie in the
    /// future, from before the clock was set, or from before it was set anew begin again now.
    pub fn old(
        &mut self,
        age: Duration,
        in_use: &BTreeSet<String>,
        now: Timestamp,
        monotonic: i64,
    ) -> Vec<String> {
        let jumped = self.clock.is_some_and(|(wall, before)| {
            let passed = crate::restart::millis(now.since(wall)) - crate::restart::millis(wall.since(now));
            passed.abs_diff(monotonic - before) > JUMP.as_millis() as u64
        });
        self.clock = Some((now, monotonic));
        let mut old = Vec::new();
        for (image, last) in &mut self.images {
            if in_use.contains(image) || jumped || *last > now || *last < CLOCK_MIN {
                self.dirty |= *last != now;
                *last = now;
            } else if now.since(*last) > age {
                old.push(image.clone());
            }
        }
        old
    }

    /// An image is no longer here.
    pub fn gone(&mut self, image: &str) {
        self.dirty |= self.images.remove(image).is_some();
    }
}

/// Removes images; those that are gone afterwards.
pub(crate) async fn remove(runtime: &dyn ModuleRuntime, images: Vec<String>) -> Vec<String> {
    let mut gone = Vec::new();
    for image in images {
        match runtime.remove_image(&image).await {
            Ok(()) | Err(RuntimeError::NotFound(_)) => {
                tracing::info!(image, "an image that is no longer used was removed");
                gone.push(image);
            }
            // In use by a container that is not ours.
            Err(RuntimeError::Conflict(_)) => {}
            Err(error) => {
                tracing::warn!(image, %error, "an image that is no longer used cannot be removed");
            }
        }
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_at_the_time_of_day() {
        let collection = ImageCollection {
            time_of_day: Duration::from_secs(3 * 3600),
            ..ImageCollection::default()
        };
        let now = Timestamp::parse("2026-11-21T02:00:00Z").unwrap();
        assert_eq!(collection.first_after(now), Duration::from_secs(3600));
        let now = Timestamp::parse("2026-11-21T04:00:00Z").unwrap();
        assert_eq!(collection.first_after(now), Duration::from_secs(23 * 3600));
    }

    #[test]
    fn old_ones_only_and_never_by_a_wrong_clock() {
        let mut images = ImageUse::default();
        let start = Timestamp::parse("2026-11-01T00:00:00Z").unwrap();
        let week = 7 * DAY;
        let ms = |days: i64| days * 86_400_000;
        images.pulled("old:1", start);
        images.pulled("kept:1", start);
        images.pulled("early:1", Timestamp::from_seconds(0));
        images.used("brought:1", start);
        let in_use = BTreeSet::from(["kept:1".to_owned()]);
        assert!(images.old(week, &in_use, start, 0).is_empty());
        let later = start.plus(8 * DAY);
        let none = BTreeSet::new();
        assert_eq!(images.old(week, &in_use, later, ms(8)), ["early:1", "old:1"]);
        images.gone("old:1");
        images.gone("early:1");
        // The clock is set forward by years: nothing has become old by that.
        let wrong = later.plus(3000 * DAY);
        assert!(images.old(week, &none, wrong, ms(8)).is_empty());
        assert!(images.old(week, &none, wrong.plus(6 * DAY), ms(14)).is_empty());
        // And back.
        assert!(images.old(week, &none, later.plus(7 * DAY), ms(15)).is_empty());
        assert_eq!(images.old(week, &none, later.plus(15 * DAY), ms(23)), ["kept:1"]);
    }
}
