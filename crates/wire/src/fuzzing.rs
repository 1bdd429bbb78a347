//! Bodies of the fuzz targets in `fuzz/`, and the mutator that runs them without a fuzzer.
//!
//! Each takes any bytes, panics on a broken promise and returns nothing. The targets of `cargo fuzz` only call them;
//! the test below runs them over seeds and mutations on the stable toolchain.

use holdfast_model::Identity;
use holdfast_model::credential::{SasToken, SymmetricKey};
use holdfast_model::event::Records;
use holdfast_model::message::Message;

use crate::bag::{self, BagWriter};
use crate::{http_device, topics, username};

/// Topics and filters: parsing any text never panics, and a telemetry topic gives back its bag.
pub fn topic(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    for (device, module) in [("d1", None), ("d1", Some("m1"))] {
        if let Ok(topics::DeviceTopic::Telemetry { bag }) = topics::parse_publish(text, device, module) {
            assert!(text.ends_with(bag));
            bag_text(bag);
        }
        assert_eq!(
            topics::parse_will(text, device, module).is_some(),
            matches!(
                topics::parse_publish(text, device, module),
                Ok(topics::DeviceTopic::Telemetry { .. })
            )
        );
        if let Ok(identity) = Identity::new(device, module) {
            let _ = topics::parse_filter(text, &identity);
        }
    }
    let _ = topics::parse_method_request_id(text);
}

/// User names: what parses is made of parts of the text, and its identity matches its own client id.
pub fn user_name(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let Ok(name) = username::parse(text) else {
        return;
    };
    let client_id = match name.module_id {
        None => name.device_id.to_owned(),
        Some(module_id) => format!("{}/{module_id}", name.device_id),
    };
    assert!(name.matches_client_id(&client_id));
    assert!(text.starts_with(&format!("{}/{client_id}/", name.host)));
    let _ = name.identity();
    let _ = name.chain().count();
}

/// Property bags: reading never fails, and writing what was read reads the same again.
pub fn property_bag(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        bag_text(text);
    }
}

fn bag_text(text: &str) {
    let mut records = Records::new();
    let mut record = records.record();
    bag::write_record(text, &mut record);
    let _ = record.finish(b"");
    let first = bag::read_message(text, bytes::Bytes::new());
    let mut written = String::new();
    BagWriter::new(&mut written).message(&first);
    let again = bag::read_message(&written, bytes::Bytes::new());
    assert_eq!(without_empty_system(first), again, "{written}");
}

/// The writer leaves out empty system properties.
fn without_empty_system(mut message: Message) -> Message {
    message.system.retain(|(_, value)| !value.is_empty());
    message
}

/// Shared access signatures: any text is parsed or refused, and no key of ours has signed it.
pub fn sas_token(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    if let Ok(token) = SasToken::parse(text) {
        let _ = token.covers(&["hub.test"], "devices/d1/modules/m1");
        if let Ok(key) = SymmetricKey::parse("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=") {
            assert!(!token.verify(&key));
        }
    }
}

/// Batches over HTTPS: all or nothing.
pub fn batch_json(data: &[u8]) {
    let mut records = Records::new();
    match http_device::parse_batch(data, &mut records) {
        Ok(count) => assert_eq!(records.count() as usize, count),
        Err(_) => assert!(records.is_empty() && records.as_bytes().is_empty()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SplitMix64: enough for mutations, and the same everywhere for one seed.
    struct Random(u64);

    impl Random {
        fn next(&mut self) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }

        fn below(&mut self, end: usize) -> usize {
            (self.next() % end.max(1) as u64) as usize
        }
    }

    const TOKENS: &[&str] = &[
        "/",
        "&",
        "=",
        "?",
        "%",
        "%24.",
        "$.",
        "$rid=",
        "$version=",
        "devices/",
        "d1",
        "/modules/m1",
        "m1",
        "/messages/events",
        "$iothub/",
        "twin/GET/?",
        "mid",
        "iothub-ack",
        "%2",
        "%ff",
        "ä",
        "\u{0}",
        "[",
        "]",
        "{",
        "}",
        "\"",
        ",",
        ":",
        "\"body\":",
        "null",
        "AAAA",
        "sr=",
        "sig=",
        "se=",
        "api-version=2021-04-12",
        "SharedAccessSignature ",
        "9999999999999999999999",
        "-1",
    ];

    fn mutate(random: &mut Random, seeds: &[&str]) -> Vec<u8> {
        let mut data = seeds[random.below(seeds.len())].as_bytes().to_vec();
        for _ in 0..random.below(6) {
            let at = random.below(data.len() + 1);
            match random.below(6) {
                0 if at < data.len() => data[at] ^= 1 << random.below(8),
                1 if at < data.len() => {
                    let end = (at + 1 + random.below(8)).min(data.len());
                    data.drain(at..end);
                }
                2 => data.truncate(at),
                3 => {
                    let copy = data[at..].to_vec();
                    data.extend_from_slice(&copy);
                }
                _ => {
                    let token = TOKENS[random.below(TOKENS.len())].as_bytes();
                    data.splice(at..at, token.iter().copied());
                }
            }
        }
        data.truncate(4_096);
        data
    }

    fn run(name: &str, target: fn(&[u8]), seeds: &[&str]) {
        let seed = std::env::var("HOLDFAST_FUZZ_SEED")
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or_else(|| u64::from(std::process::id()) << 32 | 0x5eed);
        println!("{name}: HOLDFAST_FUZZ_SEED={seed}");
        let mut random = Random(seed);
        for seed in seeds {
            target(seed.as_bytes());
        }
        for _ in 0..100_000 {
            let data = mutate(&mut random, seeds);
            let shown = String::from_utf8_lossy(&data).into_owned();
            let outcome = std::panic::catch_unwind(|| target(&data));
            assert!(outcome.is_ok(), "{name} failed on {shown:?}");
        }
    }

    #[test]
    fn topics_hold() {
        run(
            "topic",
            topic,
            &[
                "devices/d1/messages/events/%24.mid=1&a=b/",
                "devices/d1/modules/m1/messages/events/%24.on=out",
                "devices/d2/messages/events/",
                "$iothub/twin/GET/?$rid=1",
                "$iothub/twin/PATCH/properties/reported/?$rid=1&$version=2",
                "$iothub/methods/res/200/?$rid=1f",
                "devices/d1/modules/m1/inputs/#",
                "",
            ],
        );
    }

    #[test]
    fn user_names_hold() {
        run(
            "user name",
            user_name,
            &[
                "h/d/?api-version=2021-04-12&DeviceClientType=a%2Fb",
                "h/d/m/?api-version=2021-04-12&model-id=dtmi:a;1&auth-chain=d%2Fm%3Be",
                "h/d/api-version=2016-11-14",
                "",
            ],
        );
    }

    #[test]
    fn bags_hold() {
        run(
            "bag",
            property_bag,
            &[
                "%24.mid=1&%24.ct=application%2Fjson&%24.ce=utf-8&a=b&c=&d",
                "a=1&b=2&$.mid=m&$.cdid=x&iothub-ack=full/",
                "?a=b&a=c&%24.mid=1&%24.mid=2&&=x",
                "a1=1&a2=1&a3=1&a4=1&a5=1&a6=1&a7=1&a8=1&a9=1&b1=1&b2=1&b3=1&b4=1&b5=1&b6=1&b7=1&b8=1&b9=1&c1=1&c2=1&c3=1&c4=1&c5=1&c6=1&c7=1",
                "",
            ],
        );
    }

    #[test]
    fn sas_tokens_hold() {
        run(
            "SAS token",
            sas_token,
            &[
                "SharedAccessSignature sr=hub.test%2Fdevices%2Fd1&sig=AAAA&se=1900000000&skn=",
                "SharedAccessSignature sr=hub.test&skn=device&sig=AAAA%3D&se=1",
                "",
            ],
        );
    }

    #[test]
    fn batches_hold() {
        run(
            "batch",
            batch_json,
            &[
                r#"[{"body":"aGVsbG8=","properties":{"iothub-app-a":"1","iothub-messageid":"m"}}]"#,
                r#"[{"body":"text","base64Encoded":false},{"body":"","base64Encoded":true,"properties":null}]"#,
                "[]",
                "",
            ],
        );
    }
}
