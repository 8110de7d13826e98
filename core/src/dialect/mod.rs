//! How the tools of the meshes are told what to capture. Only here has a mesh a name.

mod error;
pub mod istio;
mod list;
pub mod native;
mod parts;
mod resolv_conf;

pub use error::{ConfigError, ConfigErrors};
pub use list::Reader;

use crate::ownership::Footprint;

/// How rules of every dialect are known.
pub static FOOTPRINTS: &[Footprint] = &[istio::FOOTPRINT, native::FOOTPRINT];
