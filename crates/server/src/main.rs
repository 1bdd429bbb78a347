//! The `holdfast` program: `serve` and the operator's command line.

fn main() {}
