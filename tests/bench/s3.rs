//! Names of objects that nobody ever made.

use afterimage::entry::Key;

const NAMESPACE: &str = "images";

/// The key of an entry that nobody ever made; its object's name is as long as any other.
pub(crate) fn unused_key(number: u64) -> Key {
    let mut digest = [0xab; 32];
    digest[..8].copy_from_slice(&number.to_le_bytes());
    Key::from_parts(NAMESPACE, 1, digest, digest)
}
