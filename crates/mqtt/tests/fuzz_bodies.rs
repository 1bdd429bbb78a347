//! Runs the bodies of the fuzz targets over random and mutated input, without a fuzzer.
//!
//! The seed is printed; `HOLDFAST_SEED=<number>` repeats a run, `HOLDFAST_FUZZ_ROUNDS` makes it longer.

#[path = "../fuzz/bodies.rs"]
mod bodies;

use std::hash::{BuildHasher, Hasher, RandomState};

/// SplitMix64: enough randomness for choosing bytes, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

fn environment(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Packets to start from, one of each kind at least.
fn samples(v5: bool) -> Vec<Vec<u8>> {
    let level = if v5 { 5 } else { 4 };
    let mut samples: Vec<Vec<u8>> = [
        &b"\x20\x02\x01\x00"[..],
        b"\x32\x06\x00\x01t\x00\x01p",
        b"\x30\x05\x00\x03a/bhi",
        b"\x40\x02\x00\x01",
        b"\x40\x02\x00\x02",
        b"\x50\x02\x00\x01",
        b"\x62\x02\x00\x01",
        b"\x70\x02\x00\x01",
        b"\xb0\x02\x00\x01",
        b"\x90\x04\x00\x01\x00\x80",
        b"\x82\x0a\x00\x01\x00\x01a\x00\x00\x01b\x01",
        b"\xa2\x05\x00\x01\x00\x01a",
        b"\xc0\x00",
        b"\xd0\x00",
        b"\xe0\x00",
    ]
    .map(<[u8]>::to_vec)
    .to_vec();
    if v5 {
        samples.extend(
            [
                &b"\x32\x0d\x00\x01t\x00\x01\x07\x26\x00\x01k\x00\x01vp"[..],
                b"\x30\x06\x00\x00\x03\x23\x00\x01",
                b"\x40\x04\x00\x01\x87\x00",
                b"\xe0\x07\x8e\x05\x1f\x00\x02no",
                b"\xf0\x06\x18\x04\x15\x00\x01m",
                b"\x20\x06\x00\x00\x03\x21\x00\x10",
                b"\x82\x07\x00\x01\x00\x00\x01a\x2d",
                b"\x90\x04\x00\x01\x00\x87",
                b"\x10\x12\x00\x04MQTT\x05\x02\x00\x3c\x05\x11\x00\x00\x00\x0a\x00\x00",
            ]
            .map(<[u8]>::to_vec),
        );
    }
    let mut connect =
        b"\x10\x1c\x00\x04MQTT\x04\xee\x00\x3c\x00\x01c\x00\x01t\x00\x02\x00w\x00\x02us\x00\x02p\x00"
            .to_vec();
    connect[8] = level;
    samples.push(connect);
    samples
}

/// A few packets in a row, then damage: flipped bits, lost, doubled or random bytes, mended lengths.
fn mutate(random: &mut Random, samples: &[Vec<u8>], first: &[u8]) -> Vec<u8> {
    let mut data = first.to_vec();
    for _ in 0..random.below(8) {
        data.extend_from_slice(&samples[random.below(samples.len())]);
    }
    for _ in 0..random.below(4) {
        if data.is_empty() {
            break;
        }
        let at = random.below(data.len());
        match random.below(5) {
            0 => data[at] ^= 1 << random.below(8),
            1 => data[at] = random.next() as u8,
            2 => drop(data.remove(at)),
            3 => data.insert(at, random.next() as u8),
            _ => data.truncate(at),
        }
    }
    data
}

fn noise(random: &mut Random) -> Vec<u8> {
    (0..random.below(64)).map(|_| random.next() as u8).collect()
}

fn run(body: fn(&[u8]), samples: &[Vec<u8>], first: &[u8]) {
    let seed = environment("HOLDFAST_SEED").unwrap_or_else(|| RandomState::new().build_hasher().finish());
    let rounds = environment("HOLDFAST_FUZZ_ROUNDS").unwrap_or(200_000);
    eprintln!("HOLDFAST_SEED={seed}");
    let mut random = Random(seed);
    for round in 0..rounds {
        let data = if round % 8 == 0 {
            noise(&mut random)
        } else {
            mutate(&mut random, samples, first)
        };
        if std::panic::catch_unwind(|| body(&data)).is_err() {
            panic!("seed {seed}, round {round}, input {data:02x?}");
        }
    }
}

#[test]
fn v4_decode() {
    run(bodies::v4_decode, &samples(false), b"");
}

#[test]
fn v5_decode() {
    run(bodies::v5_decode, &samples(true), b"");
}

/// Starts with a CONNECT, and goes on mostly with what a client may send.
#[test]
fn server_session() {
    let client_only: Vec<_> = samples(false)
        .into_iter()
        .filter(|packet| matches!(packet[0] >> 4, 3 | 4 | 8 | 10 | 12))
        .collect();
    run(
        bodies::server_session,
        &client_only,
        b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00",
    );
}
