//! Compares the first bytes of a body with the image format that its content type names. It decodes
//! no image.

/// How many first bytes of a body the longest magic number needs.
pub const MAGIC_BYTES: usize = 256;

/// Compares the first bytes of a body with its media type (without parameters, any case).
///
/// `head` is the first [`MAGIC_BYTES`] of the body, or all of a shorter one. An unknown type never
/// agrees, so that nothing unverified is stored under it.
pub(super) fn is_declared_image(media_type: &str, head: &[u8]) -> bool {
    match media_type.to_ascii_lowercase().as_str() {
        "image/jpeg" | "image/jpg" => head.starts_with(&[0xff, 0xd8, 0xff]),
        "image/png" | "image/apng" => head.starts_with(b"\x89PNG\r\n\x1a\n"),
        "image/gif" => head.starts_with(b"GIF87a") || head.starts_with(b"GIF89a"),
        "image/webp" => head.starts_with(b"RIFF") && head.get(8..12) == Some(b"WEBP"),
        "image/avif" => has_brand(head, &[b"avif", b"avis"]),
        "image/heic" | "image/heif" => has_brand(
            head,
            &[
                b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1",
            ],
        ),
        "image/jxl" => {
            head.starts_with(&[0xff, 0x0a]) || head.starts_with(b"\x00\x00\x00\x0cJXL \r\n\x87\n")
        }
        "image/bmp" | "image/x-ms-bmp" => head.starts_with(b"BM"),
        "image/tiff" => head.starts_with(b"II*\0") || head.starts_with(b"MM\0*"),
        "image/x-icon" | "image/vnd.microsoft.icon" => head.starts_with(b"\0\0\x01\0"),
        "image/svg+xml" => is_svg(head),
        _ => false,
    }
}

/// Whether an ISO base media file has one of `brands`, as its major brand or a compatible one. All
/// stand within the `ftyp` box.
fn has_brand(head: &[u8], brands: &[&[u8; 4]]) -> bool {
    let Some((size, rest)) = head.split_first_chunk::<4>() else {
        return false;
    };
    let box_end = usize::try_from(u32::from_be_bytes(*size))
        .unwrap_or(usize::MAX)
        .saturating_sub(4)
        .min(rest.len());
    let Some(brand_list) = rest[..box_end].strip_prefix(b"ftyp") else {
        return false;
    };
    brand_list
        .chunks_exact(4)
        .enumerate()
        // The second four bytes are the minor version.
        .any(|(place, brand)| place != 1 && brands.iter().any(|wanted| brand == *wanted))
}

/// Whether the first element of an XML document could be `svg`. The prologue may be long, so this
/// asks only for markup and trusts the upstream that declared the type.
fn is_svg(head: &[u8]) -> bool {
    let text = head
        .strip_prefix(b"\xef\xbb\xbf")
        .unwrap_or(head)
        .trim_ascii_start();
    [&b"<svg"[..], b"<?xml", b"<!--", b"<!DOCTYPE svg"]
        .iter()
        .any(|start| text.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_format_is_known_by_its_first_bytes() {
        let avif = b"\x00\x00\x00\x20ftypavif\x00\x00\x00\x00avifmif1miafMA1B\x00";
        let mif1_avif = b"\x00\x00\x00\x1cftypmif1\x00\x00\x00\x00avifmiaf\x00\x00\x00\x00";
        for (media_type, head) in [
            ("image/jpeg", &b"\xff\xd8\xff\xe0"[..]),
            ("image/png", b"\x89PNG\r\n\x1a\n...."),
            ("image/gif", b"GIF89a"),
            ("image/webp", b"RIFF\x01\x02\x03\x04WEBPVP8 "),
            ("IMAGE/WebP", b"RIFF\x01\x02\x03\x04WEBPVP8 "),
            ("image/avif", avif),
            ("image/avif", mif1_avif),
            ("image/jxl", b"\xff\x0a\x00"),
            ("image/bmp", b"BM1234"),
            ("image/tiff", b"II*\0"),
            ("image/x-icon", b"\0\0\x01\0\x01"),
            ("image/svg+xml", b"\n <svg xmlns='...'"),
        ] {
            assert!(is_declared_image(media_type, head), "{media_type}");
        }
    }

    #[test]
    fn a_body_of_another_format_is_not_the_declared_image() {
        for (media_type, head) in [
            ("image/png", &b"\xff\xd8\xff\xe0"[..]),
            ("image/webp", b"RIFF\x01\x02\x03\x04WAVE"),
            (
                "image/avif",
                b"\x00\x00\x00\x14ftypheic\x00\x00\x00\x00heic",
            ),
            ("image/svg+xml", b"<html>"),
            ("image/unknown", b"\x89PNG\r\n\x1a\n"),
            ("text/html", b"<html>"),
            ("image/png", b""),
            ("image/avif", b"\x00\x00"),
        ] {
            assert!(!is_declared_image(media_type, head), "{media_type}");
        }
    }

    #[test]
    fn a_brand_outside_the_ftyp_box_does_not_count() {
        assert!(!is_declared_image(
            "image/avif",
            b"\x00\x00\x00\x10ftypisom\x00\x00\x00\x00avif"
        ));
    }
}
