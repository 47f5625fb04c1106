//! What this process knows beside the store: entries in memory, fills on their way, and what requests
//! for the same entry know of each other.

pub mod body_reader;
pub mod budget;
pub mod collapse;
pub mod fill;
pub mod in_flight;
pub mod invalidations;
pub mod memory_tier;
pub mod refreshes;
