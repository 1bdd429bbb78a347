//! Ports: driving and driven traits, in-memory doubles, behaviour suite.
