//! DTDL v2 and v3 (languages.md section 7), pure: identifiers, models, values checked against models, and the digital
//! twin view of a device twin.
//!
//! | Module | What |
//! |---|---|
//! | [`dtmi`] | identifiers of models and their elements |
//! | [`model`] | what a model says |
//! | [`parse`] | model documents into [`model`], with every fault named |
//! | [`set`] | models that belong together: references, inheritance, their limits |
//! | [`repository`] | where a model lies in a repository folder |
//! | [`quantities`] | semantic types and units |
//! | [`value`], [`twin`] | values and twins against models |
//! | [`view`], [`patch`], [`change`] | a twin as digital twin, wanted changes of that view, and what changed in it |
//!
//! Nothing here does I/O or recurses deeper than the limits below allow; sizes are checked before anything is parsed.

pub mod change;
pub mod dtmi;
pub mod fault;
pub mod model;
pub mod parse;
pub mod patch;
pub mod quantities;
pub mod repository;
pub mod set;
pub mod twin;
pub mod value;
pub mod view;

pub use dtmi::Dtmi;
pub use fault::Fault;
pub use parse::parse_document;
pub use set::ModelSet;
