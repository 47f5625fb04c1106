//! Lays out and reads the file of an entry.
//!
//! A file is the body, then the encoded record, then a footer: the record's length in four bytes,
//! big endian, and a magic number. So a body can be written before its record is known, and a file
//! that was cut short shows it by its missing end.

use std::fs::File;
use std::os::unix::fs::FileExt;

use bytes::Bytes;

use super::super::{Error, decode_stored};
use super::by_meaning;
use crate::entry::{MAX_ENCODED_BYTES, Record};

/// Ends every entry. The number is raised when the layout of the file changes.
const MAGIC: &[u8; 12] = b"afterimage/1";
const FOOTER_BYTES: usize = 4 + MAGIC.len();
/// Bytes at the end of a file that hold any record with its footer.
pub(super) const TAIL_BYTES: u64 = (MAX_ENCODED_BYTES + FOOTER_BYTES) as u64;
/// Files up to this size are read by one call; larger bodies are read in chunks.
const WHOLE_BYTES: u64 = 1024 * 1024 + TAIL_BYTES;

/// A stored body, read or still in its file.
pub(super) enum Body {
    Whole(Bytes),
    InFile { file: File, length: u64 },
}

/// Length of the file with a body of `body` bytes and this record.
pub(super) fn file_bytes(body: u64, encoded: &str) -> u64 {
    body + (encoded.len() + FOOTER_BYTES) as u64
}

/// The end of a file with this record.
pub(super) fn footer(encoded: &str) -> Bytes {
    let length = u32::try_from(encoded.len()).expect("a record has at most MAX_ENCODED_BYTES");
    let mut end = Vec::with_capacity(encoded.len() + FOOTER_BYTES);
    end.extend_from_slice(encoded.as_bytes());
    end.extend_from_slice(&length.to_be_bytes());
    end.extend_from_slice(MAGIC);
    end.into()
}

/// Reads the record at the end of a file; `None` for a version that this build does not read.
pub(super) fn read_record(file: &File, file_length: u64) -> Result<Option<Record>, Error> {
    let tail = read_at(
        file,
        file_length.saturating_sub(TAIL_BYTES),
        file_length.min(TAIL_BYTES),
    )?;
    record_at_end(&tail, file_length)
}

/// Reads the record of a file, and the body if the file is small.
pub(super) fn read_entry(file: File, file_length: u64) -> Result<Option<(Record, Body)>, Error> {
    if file_length > WHOLE_BYTES {
        return Ok(read_record(&file, file_length)?.map(|record| {
            let length = record.body.content_length;
            (record, Body::InFile { file, length })
        }));
    }
    let mut bytes = Bytes::from(read_at(&file, 0, file_length)?);
    let Some(record) = record_at_end(&bytes, file_length)? else {
        return Ok(None);
    };
    let length = usize::try_from(record.body.content_length).expect("it was read into memory");
    bytes.truncate(length);
    Ok(Some((record, Body::Whole(bytes))))
}

/// Reads the record in `tail`, the last bytes of a file of `file_length`, and proves that the file
/// is whole.
fn record_at_end(tail: &[u8], file_length: u64) -> Result<Option<Record>, Error> {
    let cut_short = || Error::Corrupt("the file was cut short".to_owned());
    let rest = tail.strip_suffix(MAGIC).ok_or_else(cut_short)?;
    let (rest, length) = rest.split_last_chunk::<4>().ok_or_else(cut_short)?;
    let start = usize::try_from(u32::from_be_bytes(*length))
        .ok()
        .and_then(|length| rest.len().checked_sub(length))
        .ok_or_else(cut_short)?;
    let encoded = std::str::from_utf8(&rest[start..])
        .map_err(|_| Error::Corrupt("the record is not text".to_owned()))?;
    let Some(record) = decode_stored(encoded)? else {
        return Ok(None);
    };
    if Some(file_length)
        != record
            .body
            .content_length
            .checked_add((encoded.len() + FOOTER_BYTES) as u64)
    {
        return Err(Error::Corrupt(
            "the file does not have the length that its record says".to_owned(),
        ));
    }
    Ok(Some(record))
}

pub(super) fn read_at(file: &File, offset: u64, length: u64) -> Result<Vec<u8>, Error> {
    let length = usize::try_from(length).map_err(|error| Error::TooLarge(error.to_string()))?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset).map_err(by_meaning)?;
    Ok(bytes)
}
