//! When a hub that somebody waits for counts as gone, though nothing has said that the connection broke: a cut cable, a
//! network that drops what belongs to old connections.
//!
//! While something is awaited, a hub that is silent for [`Tuning::silence_before_ping`] is asked whether it is there, by
//! what the protocol has for that: PINGREQ, or a flow with `echo` (AMQP 2.7.4). Its answer, or anything else, begins the
//! time anew; silence for [`Tuning::silence_after_ping`] after the question ends the connection. Peers of AMQP need not
//! answer, so this counts for those only that have done so on this connection; the others have as long as they announced.
//!
//! While nothing is awaited, TCP asks instead, after [`Tuning::probe_after`]: that costs less, and no program wakes for it. It
//! finds out a path that is cut; of a hub that hangs behind a system that answers, or behind a proxy that has the other end of
//! the connection, it says nothing. There the keep-alive of the protocol remains.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Tuning;

pub(crate) struct Watch {
    heard: Instant,
    /// Since when something is awaited without a pause.
    awaiting_since: Option<Instant>,
    /// When the hub was asked whether it is there.
    asked: Option<Instant>,
}

/// What to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// Nothing is awaited.
    Unconcerned,
    /// Look again at that time.
    Patient(Instant),
    /// Ask the hub whether it is there, and look again at that time.
    Ask(Instant),
    /// It is gone.
    Silent,
}

impl Watch {
    pub(crate) fn new(now: Instant) -> Self {
        Watch {
            heard: now,
            awaiting_since: None,
            asked: None,
        }
    }

    /// Something came from the hub.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard = now;
    }

    /// `answers`: whether the hub is known to answer when it is asked.
    pub(crate) fn look(&mut self, tuning: &Tuning, now: Instant, awaiting: bool, answers: bool) -> Verdict {
        if !awaiting {
            self.awaiting_since = None;
            self.asked = None;
            return Verdict::Unconcerned;
        }
        let quiet_since = self.heard.max(*self.awaiting_since.get_or_insert(now));
        let patience = tuning.silence_after_ping;
        if !answers {
            return judge(
                now,
                quiet_since + tuning.silence_before_ping + patience.max(tuning.keep_alive),
            );
        }
        match self.asked {
            Some(asked) if quiet_since < asked => judge(now, asked + patience),
            _ => {
                let due = quiet_since + tuning.silence_before_ping;
                if now < due {
                    self.asked = None;
                    return Verdict::Patient(due);
                }
                // Whatever comes from now on is later than the question.
                self.asked = Some(now.max(quiet_since + Duration::from_nanos(1)));
                Verdict::Ask(now + patience)
            }
        }
    }
}

fn judge(now: Instant, end: Instant) -> Verdict {
    if now >= end {
        Verdict::Silent
    } else {
        Verdict::Patient(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    #[test]
    fn a_silent_hub_is_asked_once_and_then_given_up() {
        let (tuning, start) = (Tuning::default(), Instant::now());
        let mut watch = Watch::new(start);
        // What was silent before somebody waited does not count.
        let begun = start + seconds(50);
        assert_eq!(watch.look(&tuning, begun, false, true), Verdict::Unconcerned);
        assert_eq!(
            watch.look(&tuning, begun, true, true),
            Verdict::Patient(begun + seconds(5))
        );
        let asked = begun + seconds(5);
        assert_eq!(
            watch.look(&tuning, asked, true, true),
            Verdict::Ask(asked + seconds(10))
        );
        assert_eq!(
            watch.look(&tuning, asked + seconds(1), true, true),
            Verdict::Patient(asked + seconds(10))
        );
        assert_eq!(
            watch.look(&tuning, asked + seconds(10), true, true),
            Verdict::Silent
        );
    }

    #[test]
    fn a_hub_that_answers_has_all_the_time_it_needs() {
        let (tuning, mut now) = (Tuning::default(), Instant::now());
        let mut watch = Watch::new(now);
        let mut asked = 0;
        for _ in 0..600 {
            now += Duration::from_millis(100);
            match watch.look(&tuning, now, true, true) {
                Verdict::Ask(_) => {
                    asked += 1;
                    watch.heard(now + Duration::from_millis(30));
                }
                Verdict::Patient(_) => {}
                other => panic!("{other:?}"),
            }
        }
        assert!((10..13).contains(&asked), "asked {asked} times in a minute");
    }

    #[test]
    fn a_hub_that_is_not_known_to_answer_has_the_time_that_it_announced() {
        let (tuning, start) = (Tuning::default(), Instant::now());
        let mut watch = Watch::new(start);
        assert_eq!(
            watch.look(&tuning, start, true, false),
            Verdict::Patient(start + seconds(65))
        );
        assert_eq!(
            watch.look(&tuning, start + seconds(65), true, false),
            Verdict::Silent
        );
    }
}
