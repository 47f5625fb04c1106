//! What the fuzz targets in `fuzz/` call. No interface: it is there for fuzzing and tests alone.
//!
//! Each function takes any bytes, several inputs on lines of their own, and panics where a property
//! of the code that reads them does not hold.

pub use crate::extproc::fuzzing::route_metadata;
pub use crate::policy::fuzzing::{accept, cache_control, dates, imgproxy_path, range};

#[cfg(test)]
mod tests;
