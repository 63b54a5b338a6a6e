//! Layers as OCI has them: the tar of one, out and in, and what registries and other tools make of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a panic is how a test fails")]
#![allow(clippy::print_stderr, reason = "how much was tried is told, not asserted")]

mod bytes;
