//! Configurations and deployments: which devices they target, what they write there, and how far they have got.
