//! From what is there and what is wanted to a list of effects.

mod effect;

pub use effect::{Change, Effect};
