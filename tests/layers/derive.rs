//! `ojail layer derive`.
