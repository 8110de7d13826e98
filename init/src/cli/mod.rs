//! Command lines. Types of the parser stay in here.

pub(crate) mod ambient;
pub(crate) mod appmesh;
mod args;
pub(crate) mod ask;
mod commands;
pub(crate) mod consul;
mod goflag;
mod help;
pub(crate) mod istio;
pub(crate) mod kuma;
pub(crate) mod linkerd;
pub(crate) mod node;
pub(crate) mod osm;
pub(crate) mod own;
mod pflag;
pub(crate) mod tool;
pub(crate) mod trace;

pub(crate) use commands::command;
