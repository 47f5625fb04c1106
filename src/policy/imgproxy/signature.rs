//! Verifies the signatures of imgproxy's URLs.

use std::hint::black_box;

use hmac::Mac as _;

use super::{BASE64, KeyPair, Signing};

/// Bytes of an untruncated signature.
const FULL_SIZE: usize = 32;

impl Signing {
    /// Whether the policy's imgproxy would accept `signature` for `path`: the repaired path without
    /// the slash in front of it.
    ///
    /// Without pairs, imgproxy refuses only a colon, to catch options that stand in place of the
    /// signature.
    pub(super) fn accepts(&self, signature: &[u8], path: &[u8]) -> bool {
        match self {
            Self::Pairs {
                pairs,
                size,
                trusted,
            } => is_trusted(trusted, signature) || is_signed(pairs, *size, signature, path),
            Self::Unsigned | Self::Unknown => !signature.contains(&b':'),
        }
    }
}

fn is_signed(pairs: &[KeyPair], size: usize, signature: &[u8], path: &[u8]) -> bool {
    let size = size.min(FULL_SIZE);
    if BASE64.decode_len(signature.len()) != Ok(size) {
        return false;
    }
    let mut given = [0; FULL_SIZE];
    let given = &mut given[..size];
    if BASE64.decode_mut(signature, given).is_err() {
        return false;
    }
    pairs.iter().any(|pair| {
        let begun = pair.begun.clone();
        begun
            .chain_update(path)
            .verify_truncated_left(given)
            .is_ok()
    })
}

/// Compares all bytes with every trusted signature, so that the time taken tells nothing but
/// lengths.
fn is_trusted(trusted: &[String], signature: &[u8]) -> bool {
    trusted.iter().fold(false, |found, trusted| {
        let trusted = trusted.as_bytes();
        let difference = trusted
            .iter()
            .zip(signature)
            .fold(0, |difference, (a, b)| black_box(difference | (a ^ b)));
        found | (trusted.len() == signature.len() && difference == 0)
    })
}

#[cfg(test)]
mod tests {
    use data_encoding::BASE64URL_NOPAD;

    use super::*;

    const PATH: &[u8] = b"rs:fill:120:80/plain/local:///coffee.png@webp";

    fn pair(key: u8, salt: u8) -> KeyPair {
        KeyPair::new(&[key; 32], &[salt; 32])
    }

    fn signing(size: usize, trusted: &[&str]) -> Signing {
        Signing::Pairs {
            pairs: vec![pair(1, 2), pair(3, 4)],
            size,
            trusted: trusted.iter().map(|&signature| signature.into()).collect(),
        }
    }

    fn sign(pair: &KeyPair, size: usize, path: &[u8]) -> String {
        let begun = pair.begun.clone();
        let mac = begun.chain_update(path).finalize().into_bytes();
        BASE64URL_NOPAD.encode(&mac[..size])
    }

    #[test]
    fn any_pair_may_have_signed_but_not_key_and_salt_of_different_pairs() {
        let signing = signing(32, &[]);
        for (key, salt, accepted) in [(1, 2, true), (3, 4, true), (1, 4, false), (5, 6, false)] {
            let signature = sign(&pair(key, salt), 32, PATH);
            assert_eq!(
                signing.accepts(signature.as_bytes(), PATH),
                accepted,
                "{key} {salt}"
            );
        }
    }

    #[test]
    fn a_signature_has_exactly_the_configured_size() {
        for configured in 1..=32 {
            let signing = signing(configured, &[]);
            for size in 0..=32 {
                let signature = sign(&pair(1, 2), size, PATH);
                assert_eq!(
                    signing.accepts(signature.as_bytes(), PATH),
                    size == configured,
                    "{size} of {configured} bytes"
                );
            }
        }
    }

    #[test]
    fn a_signature_of_another_path_is_refused() {
        let signature = sign(&pair(1, 2), 32, PATH);
        assert!(!signing(32, &[]).accepts(signature.as_bytes(), b"plain/local:///coffee.png"));
    }

    #[test]
    fn padding_the_other_alphabet_and_bytes_outside_any_are_refused() {
        // Size 8 leaves two bits unused, so its last character may be padded; 0xfb and 0xff are
        // `-` and `_` in the URL-safe alphabet and `+` and `/` in the other.
        let signing = signing(8, &[]);
        let path = (0u32..)
            .map(|n| n.to_string())
            .find(|path| sign(&pair(1, 2), 8, path.as_bytes()).contains('-'))
            .expect("one in a few");
        let signature = sign(&pair(1, 2), 8, path.as_bytes());
        assert!(signing.accepts(signature.as_bytes(), path.as_bytes()));
        for refused in [
            format!("{signature}="),
            signature.replace('-', "+"),
            signature.replace('-', "%2D"),
            signature.replace('-', "\u{e9}"),
            format!("{}\n", &signature[..10]),
            String::new(),
        ] {
            assert!(
                !signing.accepts(refused.as_bytes(), path.as_bytes()),
                "{refused}"
            );
        }
    }

    #[test]
    fn trusted_signatures_are_taken_verbatim_and_for_any_path() {
        let signing = signing(32, &["trusted-one", "tr:usted"]);
        for (signature, accepted) in [
            ("trusted-one", true),
            ("tr:usted", true),
            ("trusted-on", false),
            ("trusted-one2", false),
            ("Trusted-one", false),
            ("trusted%2Done", false),
            ("", false),
        ] {
            assert_eq!(
                signing.accepts(signature.as_bytes(), PATH),
                accepted,
                "{signature}"
            );
        }
    }

    #[test]
    fn without_pairs_anything_but_a_colon_is_accepted() {
        for signing in [Signing::Unsigned, Signing::Unknown] {
            assert!(signing.accepts(b"insecure", PATH));
            assert!(!signing.accepts(b"rs:fill:120:80", PATH));
        }
    }

    #[test]
    fn pairs_without_any_pair_accept_nothing() {
        let signing = Signing::Pairs {
            pairs: Vec::new(),
            size: 32,
            trusted: Vec::new(),
        };
        assert!(!signing.accepts(b"insecure", PATH));
    }

    #[test]
    fn a_changed_character_is_refused_unless_it_decodes_to_the_same_bytes() {
        for size in [1, 8, 32] {
            let signing = signing(size, &[]);
            let signature = sign(&pair(1, 2), size, PATH).into_bytes();
            let mut accepted = 0;
            for at in 0..signature.len() {
                for with in 0..=u8::MAX {
                    let mut changed = signature.clone();
                    changed[at] = with;
                    let is_same = BASE64.decode(&changed).ok() == BASE64.decode(&signature).ok();
                    assert_eq!(signing.accepts(&changed, PATH), is_same, "{changed:?}");
                    accepted += usize::from(is_same && changed != signature);
                }
            }
            // Bits that belong to no byte: four for one byte, two for 8 and for 32.
            assert_eq!(accepted, if size == 1 { 15 } else { 3 }, "{size}");
        }
    }
}
