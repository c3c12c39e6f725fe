//! A bounds-checked reader of the few parts of 64-bit little-endian ELF files that kernels and modules are judged by.
//!
//! Every input may be hostile: an offset outside the file is an absence, never a panic.

/// `e_machine` of x86-64.
pub(crate) const EM_X86_64: u16 = 62;
/// `PT_LOAD`, a segment the loader copies to memory.
const PT_LOAD: u32 = 1;
/// `PT_NOTE`, a segment of notes.
const PT_NOTE: u32 = 4;
/// `SHT_NOBITS`, a section with no bytes in the file.
const SHT_NOBITS: u32 = 8;

/// A view of an ELF file.
#[derive(Debug)]
pub(crate) struct Elf<'a> {
    bytes: &'a [u8],
}

impl<'a> Elf<'a> {
    /// The file, if its header says 64-bit, little-endian ELF.
    pub(crate) fn parse(bytes: &'a [u8]) -> Option<Self> {
        (bytes.get(..6)? == b"\x7fELF\x02\x01" && bytes.len() >= 64).then_some(Self { bytes })
    }

    /// `e_machine`.
    pub(crate) fn machine(&self) -> Option<u16> {
        u16_at(self.bytes, 18)
    }

    /// File offset just past the last byte any header, segment or section uses.
    pub(crate) fn extent(&self) -> Option<usize> {
        let table = |offset: usize, entry: usize, count: usize| {
            usize_at(self.bytes, offset)?.checked_add(
                usize::from(u16_at(self.bytes, entry)?) * usize::from(u16_at(self.bytes, count)?),
            )
        };
        let mut end = 64
            .max(table(0x20, 0x36, 0x38)?)
            .max(table(0x28, 0x3a, 0x3c)?);
        for segment in self.segments() {
            end = end.max(segment.offset.checked_add(segment.size)?);
        }
        for section in self.sections().filter(|section| section.kind != SHT_NOBITS) {
            end = end.max(section.offset.checked_add(section.size)?);
        }
        (end <= self.bytes.len()).then_some(end)
    }

    /// Whether there is anything to load.
    pub(crate) fn has_load_segment(&self) -> bool {
        self.segments()
            .any(|segment| segment.kind == PT_LOAD && segment.size > 0)
    }

    /// The descriptor of the first note of this owner and type.
    pub(crate) fn note(&self, owner: &[u8], kind: u32) -> Option<&'a [u8]> {
        self.segments()
            .filter(|segment| segment.kind == PT_NOTE)
            .filter_map(|segment| {
                let align = if segment.align == 8 { 8 } else { 4 };
                find_note(
                    range(self.bytes, segment.offset, segment.size)?,
                    align,
                    owner,
                    kind,
                )
            })
            .next()
    }

    /// The bytes of the first section of this name.
    pub(crate) fn section(&self, name: &[u8]) -> Option<&'a [u8]> {
        let names_index = usize::from(u16_at(self.bytes, 0x3e)?);
        let names = self.sections().nth(names_index)?;
        let names = range(self.bytes, names.offset, names.size)?;
        let section = self.sections().find(|section| {
            names
                .get(section.name..)
                .and_then(|rest| rest.strip_prefix(name))
                .is_some_and(|rest| rest.first() == Some(&0))
        })?;
        (section.kind != SHT_NOBITS).then_some(())?;
        range(self.bytes, section.offset, section.size)
    }

    fn segments(&self) -> impl Iterator<Item = Segment> + use<'a> {
        let bytes = self.bytes;
        entries(bytes, 0x20, 0x36, 0x38).map_while(move |at| {
            Some(Segment {
                kind: u32_at(bytes, at)?,
                offset: usize_at(bytes, at.checked_add(8)?)?,
                size: usize_at(bytes, at.checked_add(32)?)?,
                align: usize_at(bytes, at.checked_add(48)?)?,
            })
        })
    }

    fn sections(&self) -> impl Iterator<Item = Section> + use<'a> {
        let bytes = self.bytes;
        entries(bytes, 0x28, 0x3a, 0x3c).map_while(move |at| {
            Some(Section {
                name: u32_at(bytes, at)? as usize,
                kind: u32_at(bytes, at.checked_add(4)?)?,
                offset: usize_at(bytes, at.checked_add(24)?)?,
                size: usize_at(bytes, at.checked_add(32)?)?,
            })
        })
    }
}

struct Segment {
    kind: u32,
    offset: usize,
    size: usize,
    align: usize,
}

struct Section {
    name: usize,
    kind: u32,
    offset: usize,
    size: usize,
}

/// Offsets of a header table's entries; the ELF header has the table's offset, entry size and count at these places.
fn entries(
    bytes: &[u8],
    offset: usize,
    entry: usize,
    count: usize,
) -> impl Iterator<Item = usize> + use<> {
    let start = usize_at(bytes, offset).unwrap_or(usize::MAX);
    let size = usize::from(u16_at(bytes, entry).unwrap_or(0));
    let count = usize::from(u16_at(bytes, count).unwrap_or(0));
    (0..count).map_while(move |index| start.checked_add(index * size))
}

fn find_note<'a>(mut notes: &'a [u8], align: usize, owner: &[u8], kind: u32) -> Option<&'a [u8]> {
    while notes.len() >= 12 {
        let owner_size = u32_at(notes, 0)? as usize;
        let size = u32_at(notes, 4)? as usize;
        let at = 12_usize
            .checked_add(owner_size)?
            .checked_next_multiple_of(align)?;
        let found = range(notes, 12, owner_size)?.strip_suffix(b"\0") == Some(owner)
            && u32_at(notes, 8)? == kind;
        let descriptor = range(notes, at, size)?;
        if found {
            return Some(descriptor);
        }
        notes = notes.get(at.checked_add(size)?.checked_next_multiple_of(align)?..)?;
    }
    None
}

/// `size` bytes from `offset`, if they are there.
pub(crate) fn range(bytes: &[u8], offset: usize, size: usize) -> Option<&[u8]> {
    bytes.get(offset..offset.checked_add(size)?)
}

/// Little-endian 16-bit number.
pub(crate) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(
        range(bytes, offset, 2)?.try_into().ok()?,
    ))
}

/// Little-endian 32-bit number.
pub(crate) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(
        range(bytes, offset, 4)?.try_into().ok()?,
    ))
}

fn usize_at(bytes: &[u8], offset: usize) -> Option<usize> {
    u64::from_le_bytes(range(bytes, offset, 8)?.try_into().ok()?)
        .try_into()
        .ok()
}
