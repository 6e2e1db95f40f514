//! Placeholder until its content lands in the next commits.
