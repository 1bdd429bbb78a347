//! Ids under which a failed request is found again in the log.

use std::cell::Cell;

use ring::rand::{SecureRandom, SystemRandom};

thread_local! {
    static STATE: Cell<Option<[u64; 2]>> = const { Cell::new(None) };
}

/// 128 bits that do not repeat. They are names, not secrets: drawn from a generator that is seeded once per thread, since
/// every HTTP answer carries one.
pub(crate) fn random() -> u128 {
    let [mut low, mut high] = STATE.get().unwrap_or_else(|| {
        let mut seed = [0; 16];
        // Without random numbers there is no TLS either; the ids then differ by thread and count only.
        let _ = SystemRandom::new().fill(&mut seed);
        let seed = u128::from_le_bytes(seed);
        [seed as u64, (seed >> 64) as u64 | 1]
    });
    let first = splitmix(&mut low, high);
    high = high.wrapping_add(2);
    let second = splitmix(&mut low, high);
    STATE.set(Some([low, high]));
    u128::from(first) << 64 | u128::from(second)
}

fn splitmix(state: &mut u64, stream: u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mixed = *state ^ stream.rotate_left(32);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
