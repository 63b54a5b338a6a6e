//! `ojail layer promote`.
