//! What a registry, an archive or a user can say about an image; the first byte selects which of the readers hears it.
#![no_main]

use std::{fmt::Display, str::FromStr};

use libfuzzer_sys::fuzz_target;
use microagent_image::{
    Digest, ImageConfig, Platform, Reference,
    manifest::{self, Document, MAX_LAYERS, MAX_MANIFESTS},
};

fuzz_target!(|data: &[u8]| {
    let Some((selector, data)) = data.split_first() else {
        return;
    };
    match selector {
        b'm' => {
            if let Ok(document) = manifest::parse(data) {
                match &document {
                    Document::Manifest(image) => assert!(image.layers.len() <= MAX_LAYERS),
                    Document::Index(index) => assert!(index.manifests.len() <= MAX_MANIFESTS),
                }
                // A registry that names the type the document has changes nothing.
                let again = manifest::parse_as(data, Some(document.media_type())).unwrap();
                assert_eq!(again, document);
            }
        }
        b'c' => {
            if let Ok(config) = ImageConfig::parse(data) {
                assert_eq!(ImageConfig::parse(&config.to_json()).unwrap(), config);
            }
        }
        b'r' => {
            if let Some(reference) = said_again::<Reference>(data) {
                let canonical: Reference = reference.canonical().parse().unwrap();
                assert_eq!(canonical, reference);
            }
        }
        b'p' => drop(said_again::<Platform>(data)),
        _ => drop(said_again::<Digest>(data)),
    }
});

/// What was understood, shown and read again, is the same.
fn said_again<T: FromStr + Display + PartialEq>(data: &[u8]) -> Option<T> {
    let value: T = std::str::from_utf8(data).ok()?.parse().ok()?;
    let shown = value.to_string();
    let Ok(again) = shown.parse::<T>() else {
        panic!("{shown:?} cannot be read again");
    };
    assert!(again == value, "{shown:?} means something else");
    Some(value)
}
