//! A hit, ready to go out.

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use crate::cache::VerifiedBody;

/// A whole answer out of the store. Nothing comes after it.
#[derive(Debug)]
pub struct Delivery {
    /// Status of the answer.
    pub status: StatusCode,
    /// All its fields but `content-length`.
    pub headers: HeaderMap,
    /// Its body.
    pub body: DeliveryBody,
}

/// The body of a delivery.
#[derive(Debug)]
pub enum DeliveryBody {
    /// None, and no length: 304, 416.
    Nothing,
    /// None, but the length of one: HEAD.
    Length(u64),
    /// Here, whole and proved.
    Held {
        /// Its bytes.
        chunks: Vec<Bytes>,
        /// How many.
        length: u64,
    },
    /// It comes from the store while it goes out.
    Streamed {
        /// Its bytes.
        body: Box<VerifiedBody>,
        /// How many.
        length: u64,
    },
}
