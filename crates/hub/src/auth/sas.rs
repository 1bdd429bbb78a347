//! Which resource a shared access signature is for.

pub(crate) use holdfast_model::audience::{identity_of, names, path_of, path_on};
