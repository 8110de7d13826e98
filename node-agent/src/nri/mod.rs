//! The Node Resource Interface (NRI): how a container runtime tells plugins of each pod sandbox before the
//! pod's containers start, and takes a refusal.
//!
//! ```text
//! the runtime's socket ◄─► frames, messages (pure)
//! ```

pub mod frames;
pub mod messages;
