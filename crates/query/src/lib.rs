//! Query languages of the hub, without I/O.
//!
//! * [`twin`]: queries over twins, modules and jobs, and target conditions (languages.md section 1): parse, check,
//!   evaluate in memory, plan to SQL.
//! * [`route`]: conditions of message routes (languages.md section 2): parse, check, evaluate.
//!
//! The two languages look alike and differ in tokens, precedence, functions and the treatment of missing values, so
//! they share only the [`value`] domain and the [`error`] type.

pub mod error;
pub mod route;
pub mod twin;
pub mod value;
