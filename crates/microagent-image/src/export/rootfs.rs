//! The merged root of an image as a tar stream.

use microagent_disk::JoinedFile;
use microagent_ext4::{ROOT, Volume};

use super::output::Output;
use super::{ExportTo, Told};
use crate::digest::Digest;
use crate::error::{ImageError, IoContext, Result};
use crate::pack::{self, PackError, Shape};
use crate::store::{ImageRecord, ImageStore};

impl ImageStore {
    pub(super) fn export_rootfs(
        &self,
        record: &ImageRecord,
        to: ExportTo<'_>,
        told: &mut Told<'_>,
    ) -> Result<(u64, Option<Digest>)> {
        // The disk that machines boot from is the merged tree, with everything layers can say.
        let disk = self.base_disk(record, told.events)?;
        let unreadable = |source| ImageError::Volume {
            path: disk.path.clone(),
            source,
        };
        let joined = JoinedFile::open(&disk.path).context("open the base disk", &disk.path)?;
        let volume = Volume::open_joined(joined).map_err(unreadable)?;
        let root = volume.inode(ROOT).map_err(unreadable)?;
        let mut output = Output::create(to)?;
        let packed = pack::pack(&volume, &root, Shape::Root, &mut output, &mut |bytes| {
            told.tell(bytes);
        });
        match packed {
            Ok(_) => output.finish(),
            Err(PackError::Disk(source)) => Err(unreadable(source)),
            Err(PackError::Output(source)) => Err(output.failed(source)),
            Err(refused @ PackError::Refused { .. }) => Err(ImageError::CannotExport {
                what: record.reference.to_string(),
                reason: refused.to_string(),
            }),
        }
    }
}
