//! PAX extension records: what they override in the header that follows them.

use base64::Engine;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

/// libarchive writes no padding; others do.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Attributes of one entry; whoever has more than a few of them means harm.
const MAX_XATTRS: usize = 4096;

/// What `g` and `x` headers said, last record wins.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overrides {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<u64>,
    pub(crate) gid: Option<u64>,
    pub(crate) mtime: Option<(i64, u32)>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse: PaxSparse,
}

/// The three PAX encodings of a sparse map (GNU tar manual, "PAX sparse formats").
#[derive(Debug, Clone, Default)]
pub(crate) struct PaxSparse {
    pub(crate) major: Option<u64>,
    pub(crate) minor: Option<u64>,
    pub(crate) name: Option<Vec<u8>>,
    pub(crate) real_size: Option<u64>,
    /// 0.0 (repeated records) and 0.1 (one list) both end here.
    pub(crate) map: Vec<(u64, u64)>,
    pub(crate) has_map: bool,
    pending_offset: Option<u64>,
}

impl PaxSparse {
    /// Format 1.0 keeps its map in front of the data.
    pub(crate) fn map_in_data(&self) -> bool {
        self.major == Some(1)
    }
}

impl Overrides {
    /// Applies all records of one extension header.
    pub(crate) fn apply_all(
        &mut self,
        mut bytes: &[u8],
        max_segments: usize,
    ) -> Result<(), String> {
        while !bytes.is_empty() {
            // Some writers pad the records with NULs.
            if bytes.iter().all(|b| *b == 0) {
                break;
            }
            let space = bytes
                .iter()
                .take(12)
                .position(|b| *b == b' ')
                .ok_or("a PAX record has no length")?;
            let length = usize::try_from(
                decimal(&bytes[..space]).ok_or("a PAX record's length is not a number")?,
            )
            .map_err(|_| "a PAX record's length is too large")?;
            if length <= space + 1 || length > bytes.len() || bytes[length - 1] != b'\n' {
                return Err("a PAX record's length does not match its content".to_owned());
            }
            let record = &bytes[space + 1..length - 1];
            let equals = record
                .iter()
                .position(|b| *b == b'=')
                .ok_or("a PAX record has no `=`")?;
            self.apply(&record[..equals], &record[equals + 1..], max_segments)?;
            bytes = &bytes[length..];
        }
        Ok(())
    }

    fn apply(&mut self, key: &[u8], value: &[u8], max_segments: usize) -> Result<(), String> {
        let number = || {
            decimal(value).ok_or_else(|| {
                format!(
                    "PAX record {} is not a number",
                    String::from_utf8_lossy(key)
                )
            })
        };
        // An empty value takes an earlier (global) record back.
        let present = !value.is_empty();
        match key {
            b"path" => self.path = present.then(|| value.to_vec()),
            b"linkpath" => self.link = present.then(|| value.to_vec()),
            b"size" => self.size = if present { Some(number()?) } else { None },
            b"uid" => self.uid = if present { Some(number()?) } else { None },
            b"gid" => self.gid = if present { Some(number()?) } else { None },
            b"mtime" => {
                self.mtime = if present {
                    Some(timestamp(value).ok_or("PAX record mtime is not a time")?)
                } else {
                    None
                };
            }
            b"GNU.sparse.major" => self.sparse.major = Some(number()?),
            b"GNU.sparse.minor" => self.sparse.minor = Some(number()?),
            b"GNU.sparse.name" => self.sparse.name = present.then(|| value.to_vec()),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => self.sparse.real_size = Some(number()?),
            b"GNU.sparse.offset" => self.sparse.pending_offset = Some(number()?),
            b"GNU.sparse.numbytes" => {
                let offset = self
                    .sparse
                    .pending_offset
                    .take()
                    .ok_or("PAX record GNU.sparse.numbytes without an offset")?;
                self.push_segment(offset, number()?, max_segments)?;
            }
            b"GNU.sparse.map" => {
                self.sparse.map.clear();
                self.sparse.has_map = true;
                let mut numbers = value.split(|b| *b == b',').filter(|n| !n.is_empty());
                while let Some(offset) = numbers.next() {
                    let pair = decimal(offset).zip(numbers.next().and_then(decimal));
                    let (offset, length) = pair.ok_or("PAX record GNU.sparse.map is malformed")?;
                    self.push_segment(offset, length, max_segments)?;
                }
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.set_xattr(name.to_vec(), value.to_vec())?;
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let name = percent_decode(name);
                    let value = BASE64.decode(value).map_err(|_| {
                        format!("PAX record {} is not base64", String::from_utf8_lossy(key))
                    })?;
                    self.set_xattr(name, value)?;
                }
                // Other keys (comment, atime, ctime, vendor keys) carry nothing a disk keeps.
            }
        }
        Ok(())
    }

    fn push_segment(
        &mut self,
        offset: u64,
        length: u64,
        max_segments: usize,
    ) -> Result<(), String> {
        if self.sparse.map.len() >= max_segments {
            return Err(format!(
                "its sparse map has more than {max_segments} segments"
            ));
        }
        self.sparse.has_map = true;
        self.sparse.map.push((offset, length));
        Ok(())
    }

    fn set_xattr(&mut self, name: Vec<u8>, value: Vec<u8>) -> Result<(), String> {
        if let Some(known) = self.xattrs.iter_mut().find(|(known, _)| *known == name) {
            known.1 = value;
            return Ok(());
        }
        if self.xattrs.len() == MAX_XATTRS {
            return Err(format!(
                "an entry has more than {MAX_XATTRS} extended attributes"
            ));
        }
        self.xattrs.push((name, value));
        Ok(())
    }

    /// The bytes of what has no fixed size. A sparse map's segments are counted on their own.
    pub(crate) fn weight(&self) -> u64 {
        let texts = [&self.path, &self.link, &self.sparse.name];
        let texts = texts.into_iter().flatten().map(Vec::len).sum::<usize>();
        let xattrs = self.xattrs.iter();
        let xattrs = xattrs
            .map(|(name, value)| name.len() + value.len())
            .sum::<usize>();
        (texts + xattrs) as u64
    }
}

/// Plain decimal digits, without overflow.
pub(crate) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0u64, |value, byte| {
        let digit = byte.is_ascii_digit().then(|| u64::from(byte - b'0'))?;
        value.checked_mul(10)?.checked_add(digit)
    })
}

/// `[-]seconds[.fraction]`; nanoseconds count forwards, also before 1970.
fn timestamp(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = text
        .strip_prefix(b"-")
        .map_or((false, text), |rest| (true, rest));
    let mut parts = text.splitn(2, |b| *b == b'.');
    let seconds = i64::try_from(decimal(parts.next()?)?).ok()?;
    let mut nanos = 0u32;
    if let Some(fraction) = parts.next() {
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        for place in 0..9 {
            nanos = nanos * 10 + fraction.get(place).map_or(0, |b| u32::from(b - b'0'));
        }
    }
    Some(match (negative, nanos) {
        (false, _) => (seconds, nanos),
        (true, 0) => (-seconds, 0),
        (true, _) => (-seconds - 1, 1_000_000_000 - nanos),
    })
}

/// libarchive writes `%XX` for bytes that cannot stand in a record's key.
fn percent_decode(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    let mut rest = name;
    while let Some((first, tail)) = rest.split_first() {
        let hex = |b: u8| (b as char).to_digit(16);
        if let (b'%', [high, low, after @ ..]) = (*first, tail)
            && let Some((high, low)) = hex(*high).zip(hex(*low))
        {
            out.push(u8::try_from(high * 16 + low).unwrap_or(b'%'));
            rest = after;
        } else {
            out.push(*first);
            rest = tail;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_and_after_1970() {
        assert_eq!(timestamp(b"12.5"), Some((12, 500_000_000)));
        assert_eq!(timestamp(b"-1.25"), Some((-2, 750_000_000)));
        assert_eq!(timestamp(b"-7"), Some((-7, 0)));
        assert_eq!(timestamp(b"1.0000000019"), Some((1, 1)));
        assert_eq!(timestamp(b"1.x"), None);
        assert_eq!(timestamp(b"99999999999999999999"), None);
    }

    #[test]
    fn records_are_bounded_by_their_length() {
        let mut overrides = Overrides::default();
        overrides
            .apply_all(b"15 path=a\nb\n\x00\x00", 4)
            .unwrap_err();
        overrides.apply_all(b"12 path=a\nb\n", 4).unwrap();
        assert_eq!(overrides.path.as_deref(), Some(&b"a\nb"[..]));
        overrides.apply_all(b"8 path=\n", 4).unwrap();
        assert_eq!(overrides.path, None);
        for bad in [
            &b"4 ab"[..],
            b"99 path=a\n",
            b"x path=a\n",
            b"3 \n",
            b"0 path=a\n",
            b"6 ab \n",
        ] {
            assert!(Overrides::default().apply_all(bad, 4).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn libarchive_attributes_are_decoded() {
        let mut overrides = Overrides::default();
        overrides
            .apply(b"LIBARCHIVE.xattr.user.a%3Db", b"AAEC", 4)
            .unwrap();
        assert_eq!(
            overrides.xattrs,
            vec![(b"user.a=b".to_vec(), vec![0, 1, 2])]
        );
        assert!(
            overrides
                .apply(b"LIBARCHIVE.xattr.user.a", b"*", 4)
                .is_err()
        );
    }
}
