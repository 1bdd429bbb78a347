//! Behaviour suites that every implementation of a driven port passes.
