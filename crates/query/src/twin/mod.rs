//! Queries over twins, modules and jobs, and target conditions (languages.md section 1).
//!
//! ```text
//! text ─ lex ─ parse ─▶ Select ─┬─ evaluate  over a Row           (in memory; says what is right)
//!                              └─ plan ─▶ Predicate ─ sql ─▶ text with parameters   (what a store can say)
//! ```
//!
//! [`parse`] reads a query and [`parse_condition`] a target condition. [`matches`] decides whether a
//! [`Row`] passes a filter, [`project`] makes a result of it and [`Groups`] the figures over many. [`Plan`] is what a
//! store can check by itself: it lets every row through that passes, and if [`Plan::exact`] no other one, else the
//! store asks [`matches`] again.
//!
//! # Semantics where the contract is silent
//! * Values of different types compare to *undefined*, as do objects, arrays and missing places; only `null` equals or
//!   differs from any primitive (`tags.a != null`: there, and not null). Booleans and null have no order.
//! * NOT, AND and OR are three-valued; a filter keeps a row only if it is true.
//! * Arithmetic on anything but numbers, and a result that is not finite, is undefined.
//! * The hub's own times compare by time with a text that is a date (`lastActivityTime > '2026-08-01'`), else as text.
//! * `modelId` is missing, not empty, for a device that announced none.
//! * `ORDER BY` is an extension: missing < null < false < true < numbers < texts < objects and arrays, of texts the
//!   first 256 bytes count.
//! * Rows come in the order of the store, not of their ids; GROUP BY gives at most 10,000 groups; an aggregate without
//!   an alias is called `$1`, `$2`, …; two columns of one name are refused.
//! * A name that no document has is refused, with a suggestion; below tags and properties every name may exist.

pub mod aggregate;
pub mod ast;
pub mod condition;
pub mod evaluate;
mod lex;
pub mod order;
pub mod page;
pub mod parse;
pub mod plan;
pub mod project;
pub mod row;
pub mod sql;

pub use aggregate::Groups;
pub use ast::{ItemType, Path, Root, Segment, Select, Source};
pub use condition::{Condition, Filter};
pub use evaluate::{matches, truth};
pub use page::{Cursor, Position};
pub use parse::{parse, parse_condition, parse_path};
pub use plan::Plan;
pub use project::project;
pub use row::{JobRow, Row, TwinRow};

/// FNV-1a, 64 bits: the same on every machine and in every release.
pub(crate) fn stable_hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
