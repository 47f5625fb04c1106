//! The process: what it needs to start, what it listens on, and how it ends.

pub mod admin;
mod error;
mod health;
mod listen;
mod run;

pub use self::error::Error;
pub use self::health::{NotReady, health};
pub use self::run::run;
