//! Checks what holds for any path, and panics where it does not.

use super::super::BASE64;
use super::{ImagePath, ImageSource, Processing, Target, lost_slash, split_plain};
use crate::policy::Kind;
use crate::policy::testing::{NOW, get, imgproxy, lookup, policy};

/// Checks a request's path, without query.
pub fn imgproxy_path(path: &[u8]) {
    let Ok(target) = Target::read(path, "") else {
        return;
    };
    assert!(!target.signature.is_empty() && !target.path.is_empty());
    // imgproxy adds one slash where several are missing, so such a path is not repaired yet.
    if split_plain(&target.path).1.and_then(lost_slash).is_none() {
        let again = [b"/x///", target.path.as_ref()].concat();
        assert_eq!(
            Target::read(&again, "").map(|again| again.path),
            Ok(target.path.clone())
        );
    }
    let Ok(image) = ImagePath::read(&target.path, &imgproxy(), NOW) else {
        return;
    };
    assert!(image.expires.is_none_or(|end| end >= NOW));
    if let Some(written) = written(&image) {
        assert_eq!(ImagePath::read(&written, &imgproxy(), NOW), Ok(image));
    }
    // An imgproxy without keys accepts any signature that has no colon.
    if !path.contains(&b'?') && !target.signature.contains(&b':') {
        assert_of_key(path);
    }
}

/// Asserts that neither the query nor the signature changes the key for an imgproxy without keys.
fn assert_of_key(path: &[u8]) {
    let policy = policy(Kind::Imgproxy(imgproxy()));
    let key = |path: &[u8]| lookup(&policy, &get(path, &[])).key;
    let asked = key(path);
    assert_eq!(key(&[path, b"?x"].concat()), asked);
    let signature_from = 1 + usize::from(path.starts_with(b"//"));
    assert_eq!(key(&[b"/y", &path[signature_from..]].concat()), asked);
}

/// Writes a path for the image that needs no repair, if there is one.
fn written(image: &ImagePath<'_>) -> Option<Vec<u8>> {
    let Processing::Options(options) = image.processing else {
        return None;
    };
    let mut path = options.to_vec();
    if !path.is_empty() {
        path.push(b'/');
    }
    let mark: &[u8] = match &image.source {
        ImageSource::Url(url) if url.is_empty() => return None,
        ImageSource::Url(url) if image.extension.contains(&b'@') => {
            let encoded = BASE64.encode(url);
            let (first, others) = encoded.split_at(1);
            // With the slash, it is read neither as an option, whatever the extension, nor as `enc`
            // or `plain`.
            path.extend_from_slice(format!("{first}/{others}").as_bytes());
            b"."
        }
        ImageSource::Url(url) => {
            path.extend_from_slice(b"plain/");
            for byte in url.iter() {
                path.extend_from_slice(format!("%{byte:02X}").as_bytes());
            }
            b"@"
        }
        ImageSource::Encrypted(encrypted) => {
            path.extend_from_slice(b"enc/");
            path.extend_from_slice(encrypted);
            b"."
        }
    };
    if !image.extension.is_empty() {
        path.extend_from_slice(mark);
        path.extend_from_slice(&image.extension);
    }
    Some(path)
}
