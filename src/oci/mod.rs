//! Trees as the Open Container Initiative writes them, so that registries and the tools of containers understand them. Host root.
//!
//! * [`tar`](self::tar): a tree as the tar of one layer, and back.
//! * [`packed`]: what is compressed, recognised and unpacked.

pub mod packed;
pub mod tar;
