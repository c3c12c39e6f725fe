//! Taking away what nobody needs: names first, then content that no name stands for.
//!
//! All of it happens while nobody adds content, and a disk goes only while its lock is held. Who makes a
//! workspace holds the store until it holds the disk, and the disk until the workspace is recorded: so
//! what is asked of [`Needs`] once the locks are taken is the whole truth.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use microagent_host::lock::{Lock, Sharing};
use serde::Serialize;

use super::files::{self, Activity};
use super::pieces::{self, PIECE};
use super::usage::bytes_below;
use super::{Entry, ImageRecord, ImageStore, disks, index, partial};
use crate::digest::Digest;
use crate::error::{ImageError, IoContext, Result};
use crate::platform::Platform;
use crate::reference::Reference;

/// How long a removal waits for those who add content before it leaves the rest to a later one.
const PATIENCE: Duration = Duration::from_millis(500);

/// Those who need images, apart from their names: workspaces that were made of them.
pub trait Needs {
    /// The images that are needed now, by the digests of their manifests.
    ///
    /// # Errors
    /// When that cannot be told: then nothing is removed.
    fn images(&self) -> Result<BTreeSet<Digest>>;
}

impl Needs for BTreeSet<Digest> {
    fn images(&self) -> Result<BTreeSet<Digest>> {
        Ok(self.clone())
    }
}

/// What [`ImageStore::remove`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// The records that are gone.
    pub records: Vec<ImageRecord>,
    /// What was reclaimed.
    pub reclaimed: Reclaimed,
}

/// What became free.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Reclaimed {
    /// How many blobs, disks and parts of layers went.
    pub files: u64,
    /// How many bytes of storage they held.
    pub bytes: u64,
    /// Unreferenced disks that stay because they are in use.
    pub in_use: Vec<PathBuf>,
    /// Whether nothing was reclaimed because another process is adding content; a later removal does it.
    pub deferred: bool,
}

/// What [`ImageStore::prune`] takes away.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct PruneOptions {
    /// Also images that nobody needs, not only content that no image has.
    pub all: bool,
    /// Only what was last used, or came, before then.
    pub until: Option<SystemTime>,
    /// Only tell.
    pub dry_run: bool,
    /// How long to wait for pulls and imports that are under way.
    pub patience: Duration,
}

impl Default for PruneOptions {
    fn default() -> Self {
        Self {
            all: false,
            until: None,
            dry_run: false,
            patience: Duration::from_secs(10),
        }
    }
}

impl PruneOptions {
    /// Only what belongs to no image.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Also images that nobody needs.
    #[must_use]
    pub fn all(mut self, all: bool) -> Self {
        self.all = all;
        self
    }

    /// Only what was last used before `time`.
    #[must_use]
    pub fn until(mut self, time: Option<SystemTime>) -> Self {
        self.until = time;
        self
    }

    /// Only tells what would go.
    #[must_use]
    pub fn dry_run(mut self, dry_run: bool) -> Self {
        self.dry_run = dry_run;
        self
    }
}

/// What [`ImageStore::prune`] took away, or would have.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Pruned {
    /// Whether it only told.
    pub dry_run: bool,
    /// The images that are gone.
    pub images: Vec<PrunedImage>,
    /// What became free.
    #[serde(flatten)]
    pub reclaimed: Reclaimed,
}

/// An image that was pruned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PrunedImage {
    /// Its name.
    pub reference: Reference,
    /// What it was built for.
    pub platform: Platform,
    /// Its digest.
    pub digest: Digest,
    /// Why it went.
    pub why: PruneReason,
}

/// Why an image was pruned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PruneReason {
    /// Nobody needs it.
    Unused,
    /// Its manifest is gone or damaged: it is no use to anybody.
    Damaged,
}

impl ImageStore {
    /// Drops images from the index, then reclaims every blob and disk nothing refers to any more: but
    /// never a disk that is in use (somebody holds its [`BaseDiskGuard`](super::BaseDiskGuard)) or of an
    /// image that is needed.
    ///
    /// `name` is a reference (all its platforms go), a digest (all names of that image go) or a unique
    /// prefix of a digest.
    ///
    /// # Errors
    /// [`ImageError::Unknown`], [`ImageError::Ambiguous`], or when files cannot be changed.
    pub fn remove(&self, name: &str, needs: &dyn Needs) -> Result<Removed> {
        // What cannot be reclaimed in the end is better said before anything is gone.
        needs.images()?;
        let mut removed = Removed::default();
        let transaction = self.begin()?;
        self.change_index(&transaction, |entries| {
            let doomed = self.find_in(name, entries)?;
            for entry in &doomed {
                // A damaged image must be removable: then there is no record to show.
                if let Ok(record) = self.record(entry) {
                    removed.records.push(record);
                }
            }
            entries.retain(|entry| !doomed.contains(entry));
            Ok(())
        })?;
        drop(transaction);
        removed.reclaimed = self.reclaim(needs)?;
        Ok(removed)
    }

    /// Removes every blob and disk that no record refers to, with the exceptions of
    /// [`remove`](Self::remove).
    ///
    /// # Errors
    /// When files cannot be read or removed.
    pub fn reclaim(&self, needs: &dyn Needs) -> Result<Reclaimed> {
        let Some(alone) = Activity::alone(&self.root, PATIENCE)? else {
            return Ok(Reclaimed {
                deferred: true,
                ..Reclaimed::default()
            });
        };
        let disks = self.lock_disks()?;
        let entries = self.entries()?;
        let plan = self.sparing(entries, &[], &disks, &needs.images()?, None)?;
        self.carry_out(&plan, &alone)?;
        Ok(plan.reclaimed)
    }

    /// Takes away what nobody needs: content that no image has, images whose manifest is damaged, and
    /// with [`all`](PruneOptions::all) images that nobody needs or uses at this moment.
    ///
    /// # Errors
    /// [`ImageError::StoreBusy`] while others add content, and when files cannot be read or removed.
    pub fn prune(&self, options: &PruneOptions, needs: &dyn Needs) -> Result<Pruned> {
        let Some(alone) = Activity::alone(&self.root, options.patience)? else {
            return Err(ImageError::StoreBusy {
                path: self.root.clone(),
            });
        };
        let disks = self.lock_disks()?;
        let needed = needs.images()?;
        let mut kept = Vec::new();
        let mut doomed = Vec::new();
        for entry in self.entries()? {
            match self.reason_to_go(&entry, options, &disks, &needed)? {
                Some(why) => doomed.push((entry, why)),
                None => kept.push(entry),
            }
        }
        let images = doomed.iter().map(|(entry, why)| PrunedImage {
            reference: entry.reference.clone(),
            platform: entry.platform.clone(),
            digest: entry.manifest,
            why: *why,
        });
        let mut pruned = Pruned {
            dry_run: options.dry_run,
            images: images.collect(),
            reclaimed: Reclaimed::default(),
        };
        let gone: Vec<Digest> = doomed.iter().map(|(entry, _)| entry.manifest).collect();
        let plan = self.sparing(kept, &gone, &disks, &needed, options.until)?;
        if !options.dry_run {
            self.carry_out(&plan, &alone)?;
        }
        pruned.reclaimed = plan.reclaimed;
        Ok(pruned)
    }

    fn reason_to_go(
        &self,
        entry: &Entry,
        options: &PruneOptions,
        disks: &DiskLocks,
        needed: &BTreeSet<Digest>,
    ) -> Result<Option<PruneReason>> {
        let record = match self.record(entry) {
            Ok(record) => record,
            Err(ImageError::Damaged { .. } | ImageError::BadManifest { .. }) => {
                return Ok(Some(PruneReason::Damaged));
            }
            Err(error) => return Err(error),
        };
        let used = record.last_used.unwrap_or(record.pulled_at);
        let in_use = disks.is_in_use(&self.disk_path(entry.manifest));
        let stays = !options.all
            || in_use
            || needed.contains(&entry.manifest)
            || options.until.is_some_and(|until| used >= until);
        Ok((!stays).then_some(PruneReason::Unused))
    }

    /// What goes when only the images of `kept` stay. `gone` are images that go now, whatever `until`
    /// says of the age of their files.
    fn sparing(
        &self,
        kept: Vec<Entry>,
        gone: &[Digest],
        disks: &DiskLocks,
        needed: &BTreeSet<Digest>,
        until: Option<SystemTime>,
    ) -> Result<Plan> {
        let mut live = BTreeSet::new();
        for entry in &kept {
            // Where a manifest is damaged its layers cannot be told from others: keep everything.
            live.extend(self.files_of(entry.manifest)?);
        }
        for image in needed {
            // Also without a name: a workspace can be committed, which takes all of it. One that is damaged is of
            // no use for that, and its disk stays by its name.
            live.extend(self.files_of(*image).unwrap_or_default());
        }
        // What was made from an older disk of an image still needs that one.
        let is_needed = |path: &Path| image_of(path).is_some_and(|image| needed.contains(&image));
        let mut of_gone = BTreeSet::new();
        for image in gone {
            // Those of a damaged image are not known, and as old as they are.
            of_gone.extend(self.files_of(*image).unwrap_or_default());
        }
        let is_old = |path: &Path| {
            let Some(until) = until else { return true };
            let came = fs::symlink_metadata(path).and_then(|metadata| metadata.modified());
            of_gone.contains(path) || came.is_ok_and(|came| came < until)
        };
        let mut plan = Plan {
            names: (!gone.is_empty()).then_some(kept),
            ..Plan::default()
        };
        for path in files::entries(&self.blobs())? {
            if image_of(&path).is_some() && !live.contains(&path) && is_old(&path) {
                plan.take(path)?;
            }
        }
        let stored = files::entries(&self.disks())?;
        // Disks first: those that stay keep their pieces.
        let mut staying: BTreeSet<PathBuf> = live;
        for path in stored.iter().filter(|path| is_disk(path)) {
            let is_kept = staying.contains(path) || is_needed(path) || !is_old(path);
            if !is_kept && !disks.is_in_use(path) {
                plan.notes.extend(self.files_beside(path));
                plan.take(path.clone())?;
                continue;
            }
            if !is_kept {
                plan.reclaimed.in_use.push(path.clone());
            }
            staying.extend(self.listed_pieces(path)?);
            staying.extend(self.files_beside(path));
            staying.insert(path.clone());
        }
        for path in &stored {
            if has_extension(path, PIECE) && !staying.contains(path) && is_old(path) {
                plan.notes.extend(pieces::beside(path));
                plan.take(path.clone())?;
            }
        }
        // What belongs to a disk or piece that never came (a crash between the renames), or goes.
        let heads: BTreeSet<PathBuf> = stored
            .iter()
            .filter(|path| is_disk(path) || has_extension(path, PIECE))
            .map(|path| path.with_extension(""))
            .collect();
        plan.notes.extend(stored.iter().filter_map(|path| {
            let is_head = is_disk(path) || has_extension(path, PIECE);
            (!is_head && !is_rest(path) && !heads.contains(&path.with_extension("")))
                .then(|| path.clone())
        }));
        plan.notes.retain(|path| path.exists());
        plan.notes.sort();
        plan.notes.dedup();
        for path in &plan.notes {
            plan.reclaimed.bytes += bytes_below(path)?.allocated_bytes;
        }
        for path in partial::abandoned(&self.root, &|_| true)? {
            if is_old(&path) {
                plan.take(path)?;
            }
        }
        plan.rests = files::rests(&self.root)?;
        for path in &plan.rests {
            plan.reclaimed.bytes += bytes_below(path)?.allocated_bytes;
        }
        Ok(plan)
    }

    /// A kill at any instant leaves a whole index, and of the rest what a later removal takes.
    fn carry_out(&self, plan: &Plan, _alone: &Activity) -> Result<()> {
        if let Some(kept) = &plan.names {
            index::write(&self.root.join("index.json"), kept)?;
        }
        for path in plan.files.iter().chain(&plan.notes) {
            files::remove_file(path)?;
        }
        files::sync_dir(&self.blobs())?;
        files::sync_dir(&self.disks())?;
        for path in &plan.rests {
            files::remove_rest(path)?;
        }
        // Whoever waits for one of these holds the activity lock, so nobody does.
        for path in files::entries(&self.root.join("locks"))? {
            files::remove_file(&path)?;
        }
        Ok(())
    }

    /// What goes with a disk.
    fn files_beside(&self, path: &Path) -> Vec<PathBuf> {
        if microagent_disk::is_list(path) {
            return disks::own_files(path).collect();
        }
        // One file, of an older format.
        ["json", "sums"]
            .map(|what| path.with_extension(what))
            .into()
    }

    fn lock_disks(&self) -> Result<DiskLocks> {
        let mut locks = BTreeMap::new();
        for path in files::entries(&self.disks())? {
            if is_disk(&path) {
                let file = File::open(&path).context("open the base disk", &path)?;
                let lock = Lock::now(file, Sharing::Exclusive).context("lock", &path)?;
                locks.insert(path, lock);
            }
        }
        Ok(DiskLocks(locks))
    }
}

/// A disk of any format: what workspaces name, and machines hold.
fn is_disk(path: &Path) -> bool {
    microagent_disk::is_list(path) || has_extension(path, "ext4")
}

fn has_extension(path: &Path, extension: &str) -> bool {
    path.extension().is_some_and(|it| it == extension)
}

/// What a crash left, which is removed as such.
fn is_rest(path: &Path) -> bool {
    let name = path.file_name();
    name.is_some_and(|name| name.as_encoded_bytes().starts_with(b".tmp"))
}

/// The image that a blob or a disk is named after.
fn image_of(path: &Path) -> Option<Digest> {
    let name = path.file_name()?.to_str()?;
    Digest::from_hex(name.split('.').next()?)
}

/// Every disk, locked; or `None` where somebody uses it.
struct DiskLocks(BTreeMap<PathBuf, Option<Lock>>);

impl DiskLocks {
    fn is_in_use(&self, path: &Path) -> bool {
        self.0.get(path).is_some_and(Option::is_none)
    }
}

/// What is to go.
#[derive(Default)]
struct Plan {
    /// The index as it is to be, if it changes.
    names: Option<Vec<Entry>>,
    files: Vec<PathBuf>,
    /// Small files that go with others, and are not counted.
    notes: Vec<PathBuf>,
    /// What crashes left.
    rests: Vec<PathBuf>,
    reclaimed: Reclaimed,
}

impl Plan {
    fn take(&mut self, path: PathBuf) -> Result<()> {
        self.reclaimed.files += 1;
        self.reclaimed.bytes += bytes_below(&path)?.allocated_bytes;
        self.files.push(path);
        Ok(())
    }
}
