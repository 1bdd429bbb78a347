//! Which identities are asked for above, and when again: one question at a time for each, and none too often.
//!
//! Only an answer of the hub counts against the rate. A question that got none may be asked again soon, and after a
//! reconnection everything may be asked again at once, also what was under way when the connection came back.

use std::collections::HashMap;
use std::time::Duration;

use holdfast_model::Identity;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Questions that are remembered, so that they are not repeated too soon.
const QUESTIONS_MAX: usize = 1_000;
/// Pause after a question that got no answer.
const UNANSWERED_PAUSE_MILLIS: u64 = 5_000;
/// Least time between two questions for the same identity, while `REPEATS_PER_MINUTE` allows it.
const REPEAT_PAUSE_MILLIS: u64 = 5_000;
/// Questions a minute, of all identities together, that are repeated before their time: whoever is given rights is let in
/// soon, and whoever has none cannot make this edge hub flood the hub above.
const REPEATS_PER_MINUTE: u64 = 60;

/// A question: an identity, and the way up from it where a child names one.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Question {
    pub(crate) identity: Identity,
    pub(crate) chain: Option<Box<str>>,
}

/// How a question ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outcome {
    Answered,
    /// The hub could not be reached, or gave up.
    Unanswered,
    /// The answer was not used: a later reading knows better, and perhaps not this.
    Overtaken,
}

/// What to do about a question.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Turn {
    /// Ask, and tell how it ended under this number.
    Ask(u64),
    /// It is being asked.
    Wait,
    /// It was asked not long ago.
    No,
}

enum Standing {
    UnderWay,
    /// Not before that millisecond, unless as one of the repeats from the second one on.
    Resting {
        until: u64,
        repeat_from: u64,
    },
}

#[derive(Default)]
struct State {
    questions: HashMap<Question, Standing>,
    /// Raised by each reconnection.
    era: u64,
    /// The minute, and repeats in it.
    repeats: (u64, u64),
}

/// All questions.
#[derive(Default)]
pub(crate) struct Questions {
    state: Mutex<State>,
    done: Notify,
}

impl Questions {
    /// Whether to ask now.
    pub(crate) fn begin(&self, question: &Question, now: u64) -> Turn {
        let mut state = self.state.lock();
        let state = &mut *state;
        match state.questions.get(question) {
            Some(Standing::UnderWay) => return Turn::Wait,
            Some(Standing::Resting { until, repeat_from }) if now < *until => {
                if now < *repeat_from || !may_repeat(&mut state.repeats, now) {
                    return Turn::No;
                }
            }
            Some(Standing::Resting { .. }) | None => {}
        }
        if state.questions.len() >= QUESTIONS_MAX && !state.questions.contains_key(question) {
            let rests = |standing: &Standing| match standing {
                Standing::UnderWay => true,
                Standing::Resting { until, .. } => now < *until,
            };
            state.questions.retain(|_, standing| rests(standing));
            if state.questions.len() >= QUESTIONS_MAX {
                // Somebody asks for ever new names: no more until the oldest are forgotten.
                return Turn::No;
            }
        }
        state.questions.insert(question.clone(), Standing::UnderWay);
        Turn::Ask(state.era)
    }

    /// A question has ended that was begun under `era`; `every` is the least time between two answers, apart from a few
    /// repeats.
    pub(crate) fn end(&self, question: &Question, era: u64, outcome: Outcome, now: u64, every: Duration) {
        {
            let mut state = self.state.lock();
            let every = u64::try_from(every.as_millis()).unwrap_or(u64::MAX);
            let rest = match outcome {
                _ if era != state.era => None,
                Outcome::Overtaken => None,
                Outcome::Answered => Some((every, REPEAT_PAUSE_MILLIS.min(every))),
                Outcome::Unanswered => {
                    let pause = UNANSWERED_PAUSE_MILLIS.min(every);
                    Some((pause, pause))
                }
            };
            match rest {
                Some((pause, repeat)) => {
                    let standing = Standing::Resting {
                        until: now.saturating_add(pause),
                        repeat_from: now.saturating_add(repeat),
                    };
                    state.questions.insert(question.clone(), standing);
                }
                None => {
                    state.questions.remove(question);
                }
            }
        }
        self.done.notify_waiters();
    }

    /// Everything may be asked again: the hub is back, or there is news of who stands below whom.
    pub(crate) fn forget(&self) {
        let mut state = self.state.lock();
        state.era += 1;
        state
            .questions
            .retain(|_, standing| matches!(standing, Standing::UnderWay));
    }

    /// Waits until a question is not under way.
    pub(crate) async fn ended(&self, question: &Question) {
        loop {
            let done = self.done.notified();
            tokio::pin!(done);
            done.as_mut().enable();
            if !matches!(
                self.state.lock().questions.get(question),
                Some(Standing::UnderWay)
            ) {
                return;
            }
            done.await;
        }
    }
}

fn may_repeat(repeats: &mut (u64, u64), now: u64) -> bool {
    let minute = now / 60_000;
    if repeats.0 != minute {
        *repeats = (minute, 0);
    }
    repeats.1 += u64::from(repeats.1 < REPEATS_PER_MINUTE + 1);
    repeats.1 <= REPEATS_PER_MINUTE
}

#[cfg(test)]
mod tests {
    use super::*;

    const EVERY: Duration = Duration::from_secs(120);

    fn question(identity: &str) -> Question {
        Question {
            identity: Identity::parse(identity).expect("an id"),
            chain: None,
        }
    }

    /// Asks and answers.
    fn ask(questions: &Questions, identity: &str, now: u64, outcome: Outcome) -> bool {
        let question = question(identity);
        match questions.begin(&question, now) {
            Turn::Ask(era) => {
                questions.end(&question, era, outcome, now, EVERY);
                true
            }
            Turn::Wait => panic!("nobody else asks"),
            Turn::No => false,
        }
    }

    #[test]
    fn an_answer_holds_for_a_while_and_the_lack_of_one_does_not() {
        let questions = Questions::default();
        assert!(ask(&questions, "a", 0, Outcome::Answered));
        assert!(!ask(&questions, "a", 4_999, Outcome::Answered));
        assert!(ask(&questions, "b", 0, Outcome::Unanswered));
        assert!(!ask(&questions, "b", 4_999, Outcome::Unanswered));
        assert!(ask(&questions, "b", 5_000, Outcome::Answered));
        assert!(ask(&questions, "c", 0, Outcome::Overtaken));
        assert!(ask(&questions, "c", 0, Outcome::Answered));
    }

    #[test]
    fn repeats_are_bounded_for_all_together() {
        let questions = Questions::default();
        let names: Vec<String> = (0..100).map(|number| format!("d{number}")).collect();
        let count = |now: u64| {
            let asked = |name: &&String| ask(&questions, name, now, Outcome::Answered);
            names.iter().filter(asked).count()
        };
        assert_eq!(count(0), 100);
        assert_eq!(count(30_000), 60, "before their time");
        assert_eq!(count(40_000), 0);
        assert_eq!(count(60_000), 60, "in the next minute");
        // Those that were not repeated are due, the others may be as repeats.
        assert_eq!(count(121_000), 100);
    }

    #[test]
    fn a_reconnection_lets_everybody_ask_again_also_who_asks_at_that_moment() {
        let questions = Questions::default();
        assert!(ask(&questions, "a", 0, Outcome::Answered));
        let under_way = question("b");
        let Turn::Ask(era) = questions.begin(&under_way, 0) else {
            panic!("its turn");
        };
        questions.forget();
        assert_eq!(questions.begin(&under_way, 0), Turn::Wait);
        assert!(ask(&questions, "a", 0, Outcome::Answered));
        questions.end(&under_way, era, Outcome::Answered, 0, EVERY);
        assert!(ask(&questions, "b", 0, Outcome::Answered));
        assert!(!ask(&questions, "b", 0, Outcome::Answered));
    }

    #[test]
    fn ever_new_names_are_bounded_and_do_not_harm_what_is_known() {
        let questions = Questions::default();
        for number in 0..QUESTIONS_MAX {
            assert!(ask(&questions, &format!("d{number}"), 0, Outcome::Answered));
        }
        assert!(!ask(&questions, "one-too-many", 0, Outcome::Answered));
        assert!(ask(&questions, "d7", 10_000, Outcome::Answered));
        assert!(ask(&questions, "one-too-many", 120_000, Outcome::Answered));
        assert!(questions.state.lock().questions.len() < 3);
    }

    #[test]
    fn a_claim_of_a_way_does_not_use_up_the_question_without_one() {
        let questions = Questions::default();
        assert!(ask(&questions, "a", 0, Outcome::Answered));
        let by_child = Question {
            chain: Some("a;child".into()),
            ..question("a")
        };
        assert!(matches!(questions.begin(&by_child, 0), Turn::Ask(_)));
    }
}
