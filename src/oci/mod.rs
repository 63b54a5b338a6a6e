//! Trees as the Open Container Initiative writes them, so that registries and the tools of containers understand them. Host root.
//!
//! * [`tar`]: a tree as the tar of one layer, and back.
//! * [`layout`]: images of such layers, as they lie in a directory.
//! * [`skopeo`]: what carries images to and from registries.
//! * [`packed`]: what is compressed, recognised and unpacked.

pub mod layout;
pub mod packed;
pub mod skopeo;
pub mod tar;
