//! Changing what a workspace is, where that takes no new one.
//!
//! What a workspace would be if it were made now is put beside what it is; [`compare`] tells each
//! difference and whether it can be. All of it is written at once, in one rename, or nothing is.

mod compare;
#[cfg(test)]
mod tests;

use std::time::Duration;

use microagent_image::{ImageConfig, ImageStore, Reference};
use microagent_protocol::{
    PublishedPort, State, WorkspaceName,
    exec::{ExecRequest, ExecRole},
    supervisor::Command,
};
use serde::Serialize;

use self::compare::Circumstances;
use super::{CreateOptions, Workspace, create, launch, manifest::Manifest};
use crate::{
    command,
    error::{Error, Result},
    run::Plan,
};

/// How long a machine's ports may take to be elsewhere.
const REBIND_LIMIT: Duration = Duration::from_secs(30);

/// When a change is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// At once.
    Now,
    /// From the next start on. A machine that runs goes on as it is.
    NextStart,
}

/// One thing that changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldChange {
    /// The key, as a spec has it, such as `resources.memoryMiB`.
    pub field: String,
    /// What it is; none if there is nothing. Values of variables are not shown.
    pub old: Option<String>,
    /// What it becomes.
    pub new: Option<String>,
    /// When that is in force.
    pub effect: Effect,
}

/// One thing that cannot change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{field} cannot change from {} to {}", shown(.old), shown(.new))]
pub struct RefusedChange {
    /// The key, as a spec has it.
    pub field: String,
    /// What it is.
    pub old: Option<String>,
    /// What was asked for.
    pub new: Option<String>,
    /// What to do instead.
    pub remedy: String,
}

fn shown(value: &Option<String>) -> &str {
    value.as_deref().unwrap_or("none")
}

/// What [`Workspace::apply`] would do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct ApplyPlan {
    /// The workspace.
    pub workspace: WorkspaceName,
    /// Its state.
    pub state: State,
    /// What would change.
    pub changes: Vec<FieldChange>,
    /// What cannot; if there is anything, nothing is changed at all.
    pub refused: Vec<RefusedChange>,
}

/// What [`Workspace::apply`] did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Applied {
    /// The workspace.
    pub workspace: WorkspaceName,
    /// Whether anything is different now.
    pub changed: bool,
    /// What is different, and when that is in force.
    pub changes: Vec<FieldChange>,
}

impl Workspace<'_> {
    /// Says what [`apply`](Self::apply) would do, and touches nothing.
    ///
    /// # Errors
    /// As `apply`, but what cannot change is in the plan.
    pub fn plan_apply(&self, options: &CreateOptions) -> Result<ApplyPlan> {
        Ok(self.compare(options)?.0)
    }

    /// Makes it what [`create`](super::Workspaces::create) would make of `options` now, where that
    /// takes no new one. What `options` do not say becomes what it is by default; without an image
    /// they mean the one it has, and name, kernel and backend stay what they are.
    ///
    /// Published ports of a live machine that differ in their host's address alone move at once;
    /// what is connected stays connected.
    ///
    /// # Errors
    /// [`Error::Unchangeable`] with everything that cannot change: then nothing did.
    /// [`Error::State`] if it is quarantined, [`Error::Supervisor`] if an address cannot be bound
    /// (its ports listen where they did, and nothing changed), and whatever is wrong with `options`.
    pub fn apply(&mut self, options: &CreateOptions) -> Result<Applied> {
        let _held = self.hold()?;
        self.refresh()?;
        let (plan, wanted) = self.compare(options)?;
        if !plan.refused.is_empty() {
            return Err(Error::Unchangeable {
                name: self.name().to_string(),
                refused: plan.refused,
            });
        }
        let changed = !plan.changes.is_empty();
        // Before it is written: cut short in between, the same again makes it whole.
        let moved = wanted.publish != self.manifest.publish && self.is_live()?;
        if moved {
            self.rebind(&wanted.publish)?;
        }
        if changed {
            if let Err(error) = wanted.write(&self.directory) {
                if moved && let Err(error) = self.rebind(&self.manifest.publish) {
                    tracing::warn!("published ports of {} stay moved: {error}", self.name());
                }
                return Err(error);
            }
            self.manifest = wanted;
        }
        Ok(Applied {
            workspace: plan.workspace,
            changed,
            changes: plan.changes,
        })
    }

    /// Has the machine's ports listen at other addresses, all of them or none.
    fn rebind(&self, ports: &[PublishedPort]) -> Result<()> {
        let ports = ports.to_vec();
        let command = Command::Rebind { ports };
        self.connect()?.status(command, REBIND_LIMIT).map(drop)
    }

    /// Each difference, and what is to be written if all of them can be.
    fn compare(&self, options: &CreateOptions) -> Result<(ApplyPlan, Manifest)> {
        let state = self.state()?;
        if state == State::Quarantined {
            return Err(self.in_state(state, "changed"));
        }
        let store = ImageStore::open(self.config.images_dir())?;
        let image = store.inspect(&self.manifest.image.digest)?.image;
        let wanted = self.wanted(options, &image)?;
        let is_new = state == State::Prepared && self.manifest.setup.is_empty();
        let circumstances = Circumstances {
            name: self.name(),
            directory: &self.directory,
            live: self.is_live()?,
            set_up: !is_new && !launch::setup_is_due(&self.manifest, &self.directory),
        };
        let (changes, refused) = circumstances.compare(&self.manifest, &wanted);
        let plan = ApplyPlan {
            workspace: self.name().clone(),
            state,
            changes,
            refused,
        };
        Ok((plan, wanted))
    }

    /// What it would be if it were made of `options` now, from its image as that is here.
    fn wanted(&self, options: &CreateOptions, image: &ImageConfig) -> Result<Manifest> {
        let current = &self.manifest;
        let mut options = options.clone().named(current.name.as_str());
        if options.run.image.is_empty() {
            options.run.image.clone_from(&current.image.reference);
        }
        let plan = Plan::new(self.config, &options.run)?;
        create::check(&options)?;
        let session = command::surroundings(&options.run, image)?;
        let argv = options.workload(image)?.map(|workload| workload.argv);
        let argv = argv.or_else(|| own_command(current, &options, image));
        let mut info = current.image.clone();
        if !same_image(&plan.reference, current) {
            info.reference = plan.reference.canonical();
        }
        let mut wanted = Manifest {
            image: info,
            resources: plan.resources,
            network: options.run.network,
            hostname: plan.hostname,
            workload: argv.map(|argv| ExecRequest {
                role: ExecRole::Workload,
                argv,
                ..session.clone()
            }),
            session,
            setup: options.run.setup.clone(),
            files: options.run.files.clone(),
            shell: options.run.shell_program.clone(),
            disks: options.run.wiring.attached(&self.directory),
            publish: options.run.wiring.publish.clone(),
            mediation: options.run.wiring.mediation.clone(),
            artifacts: options.run.outputs.clone(),
            restart: options.restart,
            health: options.health.clone(),
            ..current.clone()
        };
        compare::keep_order(current, &mut wanted);
        Ok(wanted)
    }
}

/// Whether `reference` is what the workspace was made of. What its tag stands for now is not asked.
fn same_image(reference: &Reference, current: &Manifest) -> bool {
    let by_digest = reference
        .digest()
        .is_some_and(|digest| digest.to_string() == current.image.digest);
    by_digest || reference.canonical() == current.image.reference
}

/// The image's own command, where the workspace runs that and no other was asked for: a flag of
/// `create` said so, and no spec can.
fn own_command(
    current: &Manifest,
    options: &CreateOptions,
    image: &ImageConfig,
) -> Option<Vec<String>> {
    let own = command::workload(&options.run, image, false).ok()?.argv;
    let runs = current.workload.as_ref()?;
    (runs.argv == own).then_some(own)
}
