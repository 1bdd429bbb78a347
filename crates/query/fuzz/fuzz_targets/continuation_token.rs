//! A continuation token of anybody: what is read is written again the same.
#![no_main]

use holdfast_query::twin::Cursor;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(cursor) = Cursor::from_token(text) {
        assert_eq!(Cursor::from_token(&cursor.to_token()), Some(cursor));
    }
});
