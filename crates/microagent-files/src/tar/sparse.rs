//! Sparse maps in their four forms: where a file's stored bytes go, checked before they are believed.

use std::io::BufRead;

use super::fault::{EntryFault, TarFault};
use super::header::{BLOCK, Dialect, Header, gnu_sparse_extension};
use super::pax::{Overrides, decimal};
use super::reader::TarReader;

impl<R: BufRead> TarReader<R> {
    pub(super) fn old_gnu_sparse(
        &mut self,
        header: &Header<'_>,
        start: u64,
        path: &[u8],
    ) -> Result<(), TarFault> {
        let bad = |reason: String| TarFault::Header {
            offset: start,
            reason,
        };
        let fail = |why| TarFault::entry(path, EntryFault::Sparse(why));
        if header.dialect() != Dialect::Gnu {
            return Err(fail("a GNU sparse file in an archive that is not GNU's"));
        }
        let (mut raw, mut more, real) = header.gnu_sparse().map_err(bad)?;
        while more {
            let mut block = [0u8; BLOCK];
            self.read_exact(&mut block, "a sparse map")?;
            let (segments, again) = gnu_sparse_extension(&block).map_err(bad)?;
            raw.extend(segments);
            if raw.len() as u64 > self.limits.max_sparse_segments {
                return Err(self.limit(
                    path,
                    "segments in a sparse map",
                    "max_sparse_segments",
                    self.limits.max_sparse_segments,
                ));
            }
            more = again;
        }
        let map = raw
            .into_iter()
            .map(|(offset, length)| {
                Some((u64::try_from(offset).ok()?, u64::try_from(length).ok()?))
            })
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| fail("a number is negative or too large"))?;
        let real =
            u64::try_from(real).map_err(|_| fail("the real size is negative or too large"))?;
        self.set_sparse(map, real, path)
    }

    pub(super) fn pax_sparse(
        &mut self,
        overrides: &Overrides,
        start: u64,
        path: &[u8],
    ) -> Result<(), TarFault> {
        let sparse = &overrides.sparse;
        let fail = |why| TarFault::entry(path, EntryFault::Sparse(why));
        if sparse.map_in_data() {
            if sparse.minor != Some(0) {
                return Err(fail("an unknown version"));
            }
            let real = sparse
                .real_size
                .ok_or_else(|| fail("the real size is missing"))?;
            let map = self.map_from_data(start, path)?;
            return self.set_sparse(map, real, path);
        }
        if sparse.major.is_some_and(|major| major != 0) {
            return Err(fail("an unknown version"));
        }
        if sparse.has_map {
            let real = sparse
                .real_size
                .ok_or_else(|| fail("the real size is missing"))?;
            return self.set_sparse(sparse.map.clone(), real, path);
        }
        Ok(())
    }

    /// Format 1.0: decimal lines in front of the data, padded to whole blocks.
    fn map_from_data(&mut self, start: u64, path: &[u8]) -> Result<Vec<(u64, u64)>, TarFault> {
        let bad = || TarFault::Header {
            offset: start,
            reason: "its sparse map is not a list of numbers".to_owned(),
        };
        let mut map: Vec<(u64, u64)> = Vec::new();
        let (mut expected, mut offset): (Option<u64>, Option<u64>) = (None, None);
        let mut line: Vec<u8> = Vec::new();
        loop {
            if self.stored < BLOCK as u64 {
                return Err(TarFault::entry(
                    path,
                    EntryFault::Sparse("the map is longer than the data"),
                ));
            }
            let mut block = [0u8; BLOCK];
            self.read_exact(&mut block, "a sparse map")?;
            self.stored -= BLOCK as u64;
            for byte in block {
                if expected == Some(map.len() as u64) {
                    return Ok(map);
                }
                if byte != b'\n' {
                    if line.len() >= 20 {
                        return Err(bad());
                    }
                    line.push(byte);
                    continue;
                }
                let number = decimal(&line).ok_or_else(bad)?;
                line.clear();
                match (expected, offset.take()) {
                    (None, _) => {
                        if number > self.limits.max_sparse_segments {
                            return Err(self.limit(
                                path,
                                "segments in a sparse map",
                                "max_sparse_segments",
                                self.limits.max_sparse_segments,
                            ));
                        }
                        expected = Some(number);
                    }
                    (Some(_), None) => offset = Some(number),
                    (Some(_), Some(offset)) => map.push((offset, number)),
                }
            }
            if expected == Some(map.len() as u64) {
                return Ok(map);
            }
        }
    }

    /// Accepts a map only where it is sorted, inside the real size, and exactly as long as the stored data.
    fn set_sparse(&mut self, map: Vec<(u64, u64)>, real: u64, path: &[u8]) -> Result<(), TarFault> {
        let fail = |why| TarFault::entry(path, EntryFault::Sparse(why));
        let (mut end, mut data) = (0u64, 0u64);
        for (offset, length) in &map {
            if *offset < end {
                return Err(fail("segments overlap or are not in order"));
            }
            end = offset
                .checked_add(*length)
                .ok_or_else(|| fail("a segment is too large"))?;
            data = data
                .checked_add(*length)
                .ok_or_else(|| fail("the segments are too large"))?;
        }
        if end > real {
            return Err(fail("a segment lies beyond the real size"));
        }
        if data != self.stored {
            return Err(fail("the segments do not add up to the stored size"));
        }
        self.segments = map;
        self.segments.retain(|(_, length)| *length > 0);
        self.logical_size = real;
        Ok(())
    }
}
