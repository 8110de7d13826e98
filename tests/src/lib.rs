//! What the live suites stand on: network namespaces that clean up after themselves, and pods in
//! them.

pub mod namespace;
pub mod pod;

pub use namespace::{Namespace, Run};
pub use pod::{Families, Pod};
