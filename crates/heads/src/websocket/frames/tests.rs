use super::*;

/// A client's frame.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x11, 0x22, 0x33, 0x44];
    let mut out = vec![first];
    match payload.len() {
        short @ 0..=125 => out.push(0x80 | short as u8),
        middle @ 126..=65_535 => {
            out.push(0x80 | 126);
            out.extend_from_slice(&(middle as u16).to_be_bytes());
        }
        long => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(long as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
    out.extend(
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, key)| byte ^ key),
    );
    out
}

/// Unframes `raw` in pieces of `step` bytes.
fn unframe(stream: &mut FrameStream<()>, raw: &[u8], step: usize) -> Result<Vec<u8>, u16> {
    let mut data = Vec::new();
    for piece in raw.chunks(step) {
        let mut piece = piece.to_vec();
        let length = stream.unframe(&mut piece).map_err(|violation| violation.0)?;
        data.extend_from_slice(&piece[..length]);
    }
    Ok(data)
}

#[test]
fn any_split_gives_the_same_bytes() {
    let long: Vec<u8> = (0..70_000u32).map(|at| at as u8).collect();
    let mut raw = frame(0x02, b"abc");
    raw.extend(frame(0x89, b"ping"));
    raw.extend(frame(0x80, b"defg"));
    raw.extend(frame(0x8a, b""));
    raw.extend(frame(0x82, &long[..300]));
    raw.extend(frame(0x82, b""));
    raw.extend(frame(0x82, &long));
    let mut expected = b"abcdefg".to_vec();
    expected.extend_from_slice(&long[..300]);
    expected.extend_from_slice(&long);
    for step in [1, 2, 3, 5, 7, 64, 1_000, raw.len()] {
        let mut stream = FrameStream::new((), &[]);
        assert_eq!(
            unframe(&mut stream, &raw, step).as_deref(),
            Ok(&expected[..]),
            "step {step}"
        );
        let waiting = stream.waiting.expect("the pong waits");
        assert_eq!(waiting.outgoing, b"\x8a\x04ping", "step {step}");
    }
}

#[test]
fn violations_have_their_status() {
    let mut unmasked = frame(0x82, b"x");
    unmasked[1] &= 0x7f;
    for (raw, status) in [
        (frame(0x81, b"text"), STATUS_UNSUPPORTED_DATA),
        (frame(0xc2, b"compressed"), STATUS_PROTOCOL_ERROR),
        (frame(0x83, b"reserved"), STATUS_PROTOCOL_ERROR),
        (frame(0x09, b"fragmented ping"), STATUS_PROTOCOL_ERROR),
        (frame(0x89, &[0; 126]), STATUS_PROTOCOL_ERROR),
        (unmasked, STATUS_PROTOCOL_ERROR),
    ] {
        let mut stream = FrameStream::new((), &[]);
        assert_eq!(unframe(&mut stream, &raw, 1), Err(status), "{raw:x?}");
    }
}

#[test]
fn close_is_answered_and_ends_the_stream() {
    let mut stream = FrameStream::new((), &[]);
    let mut raw = frame(0x88, &1001u16.to_be_bytes());
    raw.extend(frame(0x82, b"late"));
    assert_eq!(unframe(&mut stream, &raw, raw.len()).as_deref(), Ok(&b""[..]));
    assert!(stream.ended);
    assert_eq!(
        stream.waiting.expect("the answer waits").outgoing,
        b"\x88\x02\x03\xe8"
    );
}

#[test]
fn pings_without_reading_are_bounded() {
    let mut stream = FrameStream::new((), &[]);
    let ping = frame(0x89, &[7; 125]);
    let flooded = (0..1_000).any(|_| unframe(&mut stream, &ping, ping.len()).is_err());
    assert!(flooded);
}
