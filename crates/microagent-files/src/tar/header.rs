//! The 512-byte tar header: ustar, GNU, star and V7 dialects, decoded field by field.

/// Bytes of a tar block.
pub(crate) const BLOCK: usize = 512;

/// Segments of a sparse map as written: offset and length, unchecked.
pub(crate) type RawMap = Vec<(i128, i128)>;

/// A header's dialect decides what its last bytes mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// A header with a valid checksum.
#[derive(Clone, Copy)]
pub(crate) struct Header<'a>(&'a [u8; BLOCK]);

impl<'a> Header<'a> {
    /// Checks the checksum, which historic tools computed over signed or unsigned bytes.
    pub(crate) fn parse(block: &'a [u8; BLOCK]) -> Result<Self, String> {
        let stored = number(&block[148..156]).map_err(|e| format!("checksum field {e}"))?;
        let (mut unsigned, mut signed) = (0i128, 0i128);
        for (index, byte) in block.iter().enumerate() {
            let byte = if (148..156).contains(&index) {
                b' '
            } else {
                *byte
            };
            unsigned += i128::from(byte);
            signed += i128::from(byte.cast_signed());
        }
        if stored == unsigned || stored == signed {
            Ok(Header(block))
        } else {
            Err("its checksum does not match".to_owned())
        }
    }

    pub(crate) fn dialect(&self) -> Dialect {
        match &self.0[257..265] {
            b"ustar\x0000" if &self.0[508..512] == b"tar\0" => Dialect::Star,
            b"ustar\x0000" => Dialect::Ustar,
            b"ustar  \0" => Dialect::Gnu,
            // Some writers leave the version empty; the magic alone still announces the prefix field.
            magic if magic.starts_with(b"ustar\0") => Dialect::Ustar,
            _ => Dialect::V7,
        }
    }

    pub(crate) fn kind(&self) -> u8 {
        self.0[156]
    }

    /// The name, with the prefix that ustar and star keep apart.
    pub(crate) fn name(&self) -> Vec<u8> {
        let name = text(&self.0[..100]);
        let prefix = match self.dialect() {
            Dialect::Ustar => text(&self.0[345..500]),
            Dialect::Star => text(&self.0[345..476]),
            Dialect::V7 | Dialect::Gnu => &[],
        };
        if prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }

    pub(crate) fn link(&self) -> Vec<u8> {
        text(&self.0[157..257]).to_vec()
    }

    pub(crate) fn mode(&self) -> Result<i128, String> {
        number(&self.0[100..108]).map_err(|e| format!("mode field {e}"))
    }

    pub(crate) fn uid(&self) -> Result<i128, String> {
        number(&self.0[108..116]).map_err(|e| format!("uid field {e}"))
    }

    pub(crate) fn gid(&self) -> Result<i128, String> {
        number(&self.0[116..124]).map_err(|e| format!("gid field {e}"))
    }

    pub(crate) fn size(&self) -> Result<i128, String> {
        number(&self.0[124..136]).map_err(|e| format!("size field {e}"))
    }

    pub(crate) fn mtime(&self) -> Result<i128, String> {
        number(&self.0[136..148]).map_err(|e| format!("mtime field {e}"))
    }

    /// Device numbers; V7 has none.
    pub(crate) fn device(&self) -> Result<(i128, i128), String> {
        if self.dialect() == Dialect::V7 {
            return Ok((0, 0));
        }
        let major = number(&self.0[329..337]).map_err(|e| format!("device major field {e}"))?;
        let minor = number(&self.0[337..345]).map_err(|e| format!("device minor field {e}"))?;
        Ok((major, minor))
    }

    /// Old GNU sparse header: the first four segments, whether more follow, and the real size.
    pub(crate) fn gnu_sparse(&self) -> Result<(RawMap, bool, i128), String> {
        let segments = sparse_entries(&self.0[386..482])?;
        let real = number(&self.0[483..495]).map_err(|e| format!("real size field {e}"))?;
        Ok((segments, self.0[482] != 0, real))
    }
}

/// The segments of an old GNU sparse extension block and whether another block follows.
pub(crate) fn gnu_sparse_extension(block: &[u8; BLOCK]) -> Result<(RawMap, bool), String> {
    Ok((sparse_entries(&block[..504])?, block[504] != 0))
}

fn sparse_entries(bytes: &[u8]) -> Result<RawMap, String> {
    let mut segments = Vec::new();
    for entry in bytes.chunks_exact(24) {
        if entry[0] == 0 || entry[12] == 0 {
            break;
        }
        let offset = number(&entry[..12]).map_err(|e| format!("sparse offset {e}"))?;
        let length = number(&entry[12..]).map_err(|e| format!("sparse length {e}"))?;
        segments.push((offset, length));
    }
    Ok(segments)
}

/// Bytes up to the first NUL.
fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    &field[..end]
}

/// Octal text, or GNU's base-256 two's complement where the first bit is set.
fn number(field: &[u8]) -> Result<i128, String> {
    let Some(first) = field.first() else {
        return Ok(0);
    };
    if first & 0x80 != 0 {
        // Bit 6 is the sign. Twelve bytes hold 95 bits, so i128 cannot overflow.
        let negative = first & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (index, byte) in field.iter().enumerate() {
            let byte = if index == 0 {
                if negative { byte | 0x80 } else { byte & 0x7f }
            } else {
                *byte
            };
            value = (value << 8) | i128::from(byte);
        }
        return Ok(value);
    }
    let mut value = 0i128;
    let mut digits = field
        .iter()
        .copied()
        .skip_while(|b| *b == b' ' || *b == 0)
        .peekable();
    while let Some(byte) = digits.next_if(|b| *b != b' ' && *b != 0) {
        if !(b'0'..=b'7').contains(&byte) {
            return Err("is not an octal number".to_owned());
        }
        value = value * 8 + i128::from(byte - b'0');
    }
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_in_every_dialect() {
        assert_eq!(number(b"0000644\0"), Ok(0o644));
        assert_eq!(number(b"   644 \0"), Ok(0o644));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Ok(0));
        assert_eq!(number(b"77777777"), Ok(0o77777777));
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 1, 0x11, 0x70]), Ok(70000));
        assert_eq!(number(&[0xff; 12]), Ok(-1));
        assert!(number(b"00006x4\0").is_err());
    }
}
