//! The CNI protocol (CNI specification 1.1.0, sections 2 and 5), pure: what the runtime says, and
//! what it is told.

mod args;
mod error;
mod object;
mod request;
mod result;
mod version;

pub use args::{ArgsError, PodArgs};
pub use error::{CniError, Code};
pub use object::{Object, member_is};
pub(crate) use request::is_identifier;
pub use request::{Attachment, Command, Environment, Request};
pub use result::{empty_result, pass_on, version_reply};
pub use version::Version;
