//! Dead letters in memory.

use std::collections::VecDeque;

use crate::dead_letters::{DEAD_LETTERS_MAX, DeadLetter, DeadLetterStore};
use crate::{BoxFuture, StoreResult};

/// Oldest first.
pub(super) type DeadLetters = VecDeque<DeadLetter>;

fn same(left: &DeadLetter, right: &DeadLetter) -> bool {
    (&left.endpoint, left.partition, left.sequence_number)
        == (&right.endpoint, right.partition, right.sequence_number)
}

impl DeadLetterStore for super::MemoryStore {
    fn bury(&self, letters: Vec<DeadLetter>) -> BoxFuture<'_, StoreResult<()>> {
        self.run(move |state| {
            let kept = &mut state.dead_letters;
            for letter in letters {
                kept.retain(|known| !same(known, &letter));
                let mine = kept
                    .iter()
                    .filter(|known| known.endpoint == letter.endpoint)
                    .count();
                if mine >= DEAD_LETTERS_MAX
                    && let Some(oldest) = kept.iter().position(|known| known.endpoint == letter.endpoint)
                {
                    kept.remove(oldest);
                }
                kept.push_back(letter);
            }
            Ok(())
        })
    }

    fn dead_letters<'a>(
        &'a self,
        endpoint: &'a str,
        limit: usize,
    ) -> BoxFuture<'a, StoreResult<Vec<DeadLetter>>> {
        self.run(move |state| {
            let mine = state.dead_letters.iter().rev();
            Ok(mine
                .filter(|letter| letter.endpoint == endpoint)
                .take(limit)
                .cloned()
                .collect())
        })
    }

    fn count_dead_letters<'a>(&'a self, endpoint: &'a str) -> BoxFuture<'a, StoreResult<u64>> {
        self.run(move |state| {
            let mine = state
                .dead_letters
                .iter()
                .filter(|letter| letter.endpoint == endpoint);
            Ok(mine.count() as u64)
        })
    }

    fn remove_dead_letters<'a>(
        &'a self,
        endpoint: &'a str,
        events: Vec<(u16, u64)>,
    ) -> BoxFuture<'a, StoreResult<u64>> {
        self.run(move |state| {
            let before = state.dead_letters.len();
            state.dead_letters.retain(|letter| {
                letter.endpoint != endpoint || !events.contains(&(letter.partition, letter.sequence_number))
            });
            Ok((before - state.dead_letters.len()) as u64)
        })
    }

    fn clear_dead_letters<'a>(&'a self, endpoint: &'a str) -> BoxFuture<'a, StoreResult<u64>> {
        self.run(move |state| {
            let before = state.dead_letters.len();
            state.dead_letters.retain(|letter| letter.endpoint != endpoint);
            Ok((before - state.dead_letters.len()) as u64)
        })
    }
}
