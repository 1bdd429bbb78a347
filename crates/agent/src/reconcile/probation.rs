//! Whether a new deployment becomes healthy in time.

use crate::restart::millis;
use crate::settings::Rollback;

/// What a look at a deployment on trial says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// Still on trial; nothing changes before this time if all stays as it is.
    Open(i64),
    /// All has been well for long enough.
    Good,
    /// Time is up.
    Overdue,
}

/// A deployment on trial. Times are monotonic milliseconds.
#[derive(Clone, Debug)]
pub(super) struct Probation {
    spent: i64,
    looked: i64,
    was_counting: bool,
    well_since: Option<i64>,
}

impl Probation {
    pub(super) const fn begin(now: i64) -> Self {
        Probation {
            spent: 0,
            looked: now,
            was_counting: true,
            well_since: None,
        }
    }

    /// A look: `well` when every module is as it should be, `counting` when time counts against the deployment.
    pub(super) fn look(&mut self, rules: &Rollback, now: i64, well: bool, counting: bool) -> Outcome {
        if self.was_counting {
            self.spent = self.spent.saturating_add(now - self.looked);
        }
        self.looked = now;
        self.was_counting = counting && !well;
        let overdue = now.saturating_add(millis(rules.healthy_within) - self.spent);
        if !well {
            self.well_since = None;
            if counting && now >= overdue {
                return Outcome::Overdue;
            }
            return Outcome::Open(if counting { overdue } else { i64::MAX });
        }
        let since = *self.well_since.get_or_insert(now);
        let good = since.saturating_add(millis(rules.stable_for.min(rules.healthy_within)));
        if now >= good {
            Outcome::Good
        } else {
            Outcome::Open(good)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_when_well_for_long_enough() {
        let rules = Rollback::default();
        let mut trial = Probation::begin(0);
        assert_eq!(trial.look(&rules, 10_000, false, true), Outcome::Open(300_000));
        assert_eq!(trial.look(&rules, 20_000, true, true), Outcome::Open(40_000));
        // It fails once: the time of being well begins anew.
        assert_eq!(trial.look(&rules, 30_000, false, true), Outcome::Open(310_000));
        assert_eq!(trial.look(&rules, 40_000, true, true), Outcome::Open(60_000));
        assert_eq!(trial.look(&rules, 60_000, true, true), Outcome::Good);
    }

    #[test]
    fn overdue_without_the_time_of_pulls() {
        let rules = Rollback::default();
        let mut trial = Probation::begin(0);
        assert_eq!(trial.look(&rules, 100_000, false, false), Outcome::Open(i64::MAX));
        assert_eq!(trial.look(&rules, 900_000, false, true), Outcome::Open(1_100_000));
        assert_eq!(
            trial.look(&rules, 1_099_999, false, true),
            Outcome::Open(1_100_000)
        );
        assert_eq!(trial.look(&rules, 1_100_000, false, true), Outcome::Overdue);
    }
}
