//! Command lines. Types of the parser stay in here.

mod commands;
pub(crate) mod istio;
pub(crate) mod own;
