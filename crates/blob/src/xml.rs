//! The XML documents of the API. Only what a block list needs is read: elements with text and nothing inside.

use std::fmt::Write as _;

use crate::error::BlobError;
use crate::store::{BLOCKS_MAX, Block, From};

/// Largest block list that is read: 50,000 ids of 64 bytes in base64 with their tags fit.
pub(crate) const BLOCK_LIST_BYTES_MAX: u64 = 8 << 20;

/// Appends a text with the characters escaped that XML reserves, and those it cannot hold replaced.
pub(crate) fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        match c {
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            '"' => out.push_str("&quot;"),
            '\t' | '\n' | '\r' => {
                let _ = write!(out, "&#{};", c as u32);
            }
            c if c < ' ' || c == '\u{fffe}' || c == '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
}

/// Appends `<name>text</name>`.
pub(crate) fn element(name: &str, text: &str, out: &mut String) {
    let _ = write!(out, "<{name}>");
    escape(text, out);
    let _ = write!(out, "</{name}>");
}

/// Begins a document.
pub(crate) fn document() -> String {
    "<?xml version=\"1.0\" encoding=\"utf-8\"?>".to_owned()
}

/// Appends blocks of a list.
pub(crate) fn blocks(name: &str, blocks: &[Block], out: &mut String) {
    let _ = write!(out, "<{name}>");
    for block in blocks {
        out.push_str("<Block>");
        element("Name", &block.id, out);
        element("Size", &block.size.to_string(), out);
        out.push_str("</Block>");
    }
    let _ = write!(out, "</{name}>");
}

/// Reads a block list.
pub(crate) fn parse_block_list(text: &str) -> Result<Vec<(From, String)>, BlobError> {
    let bad = || BlobError::new(400, "InvalidXmlDocument", "The body is not a block list.");
    let text = text.trim_start_matches('\u{feff}').trim();
    let mut rest = match text.strip_prefix("<?") {
        Some(declaration) => declaration.split_once("?>").ok_or_else(bad)?.1.trim_start(),
        None => text,
    };
    rest = match rest.strip_prefix("<BlockList") {
        Some(tail) if tail.trim_start().starts_with("/>") => return Ok(Vec::new()),
        Some(tail) => tail.split_once('>').ok_or_else(bad)?.1,
        None => return Err(bad()),
    };
    let mut list = Vec::new();
    loop {
        rest = rest.trim_start();
        if let Some(end) = rest.strip_prefix("</BlockList>") {
            return if end.trim().is_empty() {
                Ok(list)
            } else {
                Err(bad())
            };
        }
        let (name, tail) = rest
            .strip_prefix('<')
            .and_then(|rest| rest.split_once('>'))
            .ok_or_else(bad)?;
        let from = match name.trim() {
            "Latest" => From::Latest,
            "Committed" => From::Committed,
            "Uncommitted" => From::Staged,
            _ => return Err(bad()),
        };
        let (id, tail) = tail.split_once("</").ok_or_else(bad)?;
        let (closed, tail) = tail.split_once('>').ok_or_else(bad)?;
        if closed.trim() != name.trim() {
            return Err(bad());
        }
        if list.len() >= BLOCKS_MAX {
            let message = "The block list has more than 50,000 blocks.";
            return Err(BlobError::new(400, "BlockListTooLong", message));
        }
        list.push((from, id.trim().to_owned()));
        rest = tail;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_lists_of_the_sdks_are_read() {
        let text = "\u{feff}<?xml version=\"1.0\" encoding=\"utf-8\"?>\n<BlockList><Latest>MDA=</Latest>\n <Committed>MQ==</Committed><Uncommitted>Mg==</Uncommitted></BlockList>\n";
        let list = parse_block_list(text).unwrap();
        assert_eq!(
            list,
            [
                (From::Latest, "MDA=".to_owned()),
                (From::Committed, "MQ==".to_owned()),
                (From::Staged, "Mg==".to_owned())
            ]
        );
        assert_eq!(parse_block_list("<BlockList />").unwrap(), []);
        for bad in [
            "",
            "<BlockList>",
            "<BlockList><Latest>a</Committed></BlockList>",
            "<x/>",
            "<BlockList></BlockList>x",
            "<BlockList>x</BlockList>",
        ] {
            assert_eq!(
                parse_block_list(bad).unwrap_err().code,
                "InvalidXmlDocument",
                "{bad}"
            );
        }
    }
}
