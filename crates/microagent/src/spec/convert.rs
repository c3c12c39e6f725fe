//! From what a spec says to the options it stands for.

use std::{fs::File, io::Read as _, path::Path};

use super::{Spec, SpecWorkload};
use crate::{
    error::{Error, IoContext as _, Result},
    options::RunOptions,
    workspaces::CreateOptions,
};

/// The longest setup script, in bytes: Linux takes no longer word in a command, and it is one.
const MAX_SCRIPT: u64 = 120 * 1024;

impl Spec {
    /// The options that make the workspace it describes. Setup files are read now.
    ///
    /// What goes over the spec is set on the result; see [`CreateOptions::with_run_options`] and
    /// [`RunOptions::overridden_by`].
    ///
    /// # Errors
    /// [`Error::Io`] for a setup file that cannot be read, [`Error::Invalid`] for one that is no
    /// script.
    pub fn options(&self) -> Result<CreateOptions> {
        let image = self.image.as_ref().map(ToString::to_string);
        let mut run = RunOptions::new(image.unwrap_or_default());
        run = match &self.workload {
            SpecWorkload::Unsaid => run,
            SpecWorkload::Service(line) => run.shell(line),
            SpecWorkload::Words {
                entrypoint,
                command,
            } => {
                let run = match entrypoint {
                    Some(words) => run.entrypoint(words),
                    None => run,
                };
                run.command(command.iter().flatten())
            }
        };
        macro_rules! set {
            ($($method:ident: $value:expr),* $(,)?) => {
                $(if let Some(value) = $value { run = run.$method(value); })*
            };
        }
        let sizes = &self.resources;
        set! {
            name: self.name.clone(), profile: self.profile, shell_program: self.shell.clone(),
            hostname: self.hostname.clone(), user: self.user.clone(), workdir: self.workdir.clone(),
            memory: sizes.memory, vcpus: sizes.vcpus, disk: sizes.disk, headroom: sizes.headroom,
            network: self.network,
        }
        for line in &self.setup {
            run = run.setup(line);
        }
        for path in &self.setup_files {
            run = run.setup(script(path)?);
        }
        for file in &self.files {
            run = run.file(file.clone());
        }
        for var in &self.env {
            run = run.env(var.name(), var.value());
        }
        for volume in &self.volumes {
            run = run.volume(volume.clone());
        }
        for port in &self.publish {
            run = run.publish(*port);
        }
        for route in &self.mediation {
            run = run.mediation(route.clone());
        }
        for artifact in &self.outputs {
            run = run.output(artifact.clone());
        }
        let mut options = CreateOptions::new(run).restart(self.restart.unwrap_or_default());
        if let Some(health) = &self.health {
            options = options.health(health.clone());
        }
        Ok(options)
    }
}

fn script(path: &Path) -> Result<String> {
    let invalid =
        |reason: String| Error::invalid("setupFiles", format!("{} {reason}", path.display()));
    let file = File::open(path).context("open", path)?;
    let mut bytes = Vec::new();
    file.take(MAX_SCRIPT + 1)
        .read_to_end(&mut bytes)
        .context("read", path)?;
    if bytes.len() as u64 > MAX_SCRIPT {
        return Err(invalid(format!(
            "is larger than {} KiB; copy it in with files and run it with setup",
            MAX_SCRIPT / 1024
        )));
    }
    let text = String::from_utf8(bytes).map_err(|_| invalid("is no UTF-8 text".to_owned()))?;
    if text.contains('\0') {
        return Err(invalid("has a NUL byte in it".to_owned()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Mebibytes, RestartPolicy};

    fn options(text: &str) -> CreateOptions {
        Spec::parse(text, "a.yaml", "/base")
            .unwrap()
            .options()
            .unwrap()
    }

    #[test]
    fn a_spec_stands_for_options() {
        let options = options(
            "name: a\nimage: debian:12\nprofile: tiny\nrestart: always\nentrypoint: [x, y]\n\
             command: [z]\nshell: /bin/bash\nsetup: [one]\nenv: {A: 1}\nuser: root\nworkdir: /srv\n\
             resources: {memoryMiB: 1024, headroomMiB: 2048}\nhealth: {exec: ok}\n\
             disks: [{name: d, path: d, mountpoint: /d}]\nbundles: [{name: b, path: b, mountpoint: /b}]\n\
             network: {mode: isolated, forwards: [{hostPort: 1, guestPort: 2}]}\n\
             outputs: [{name: report, path: /srv/report.txt}, {name: all, path: /srv}]\n",
        );
        let run = &options.run;
        assert_eq!(run.image, "debian:12");
        assert_eq!(run.entrypoint.as_ref().unwrap(), &["x", "y"]);
        assert_eq!(
            (&run.command[..], &run.setup[..]),
            (&["z".into()][..], &["one".into()][..])
        );
        assert_eq!(run.shell_program.as_deref(), Some("/bin/bash"));
        assert_eq!(run.resources().memory_mib, Mebibytes(1024));
        assert_eq!(run.resources().size_mib, Mebibytes(2048));
        assert_eq!(run.wiring.publish[0].to_string(), "127.0.0.1:1:2/tcp");
        let names: Vec<_> = run
            .wiring
            .volumes
            .iter()
            .map(|volume| volume.name().as_str())
            .collect();
        assert_eq!(names, ["d", "b"]);
        let outputs: Vec<_> = run
            .outputs
            .iter()
            .map(|output| output.path.as_str())
            .collect();
        assert_eq!(outputs, ["/srv/report.txt", "/srv"]);
        assert_eq!(options.restart, RestartPolicy::Always);
        assert!(options.health.is_some());
    }

    #[test]
    fn headroom_only_raises_what_the_profile_says() {
        let size = |text: &str| options(text).run.resources().size_mib.0;
        assert_eq!(size("{}"), 1024);
        assert_eq!(size("resources: {headroomMiB: 512}"), 1024);
        assert_eq!(size("resources: {headroomMiB: 4096}"), 4096);
        assert_eq!(size("resources: {headroomMiB: 4096, sizeMiB: 600}"), 600);
    }

    #[test]
    fn what_is_said_last_is_run() {
        let service = || options("service: serve").run;
        let words = || options("entrypoint: e\ncommand: [c]").run;
        let run = service().overridden_by(None, None, vec!["x".into()]);
        assert_eq!((run.shell, run.command), (None, vec!["x".to_owned()]));
        let run = words().overridden_by(None, None, vec!["x".into()]);
        assert_eq!(
            (run.entrypoint.unwrap(), run.command),
            (vec!["e".to_owned()], vec!["x".to_owned()])
        );
        let run = words().overridden_by(Some("line".into()), None, Vec::new());
        assert_eq!(
            (run.shell.as_deref(), run.entrypoint, run.command.len()),
            (Some("line"), None, 0)
        );
        let run = words().overridden_by(None, Some(Vec::new()), Vec::new());
        assert_eq!((run.entrypoint, run.command.len()), (Some(Vec::new()), 0));
        let run = service().overridden_by(None, None, Vec::new());
        assert_eq!(run.shell.as_deref(), Some("serve"));
    }

    #[test]
    fn setup_files_come_after_setup_and_are_scripts() {
        let directory = tempfile::tempdir().unwrap();
        let write =
            |name: &str, bytes: &[u8]| std::fs::write(directory.path().join(name), bytes).unwrap();
        write("good.sh", b"echo two\n");
        write("large.sh", &vec![b'#'; MAX_SCRIPT as usize + 1]);
        write("binary.sh", b"\x7fELF\xff");
        let options = |name: &str| {
            let text = format!("setup: [echo one]\nsetupFiles: [{name}]\n");
            Spec::parse(&text, "a.yaml", directory.path())
                .unwrap()
                .options()
        };
        assert_eq!(
            options("good.sh").unwrap().run.setup,
            ["echo one", "echo two\n"]
        );
        for (name, words) in [
            ("large.sh", "larger"),
            ("binary.sh", "UTF-8"),
            ("none.sh", "none.sh"),
        ] {
            let error = options(name).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
