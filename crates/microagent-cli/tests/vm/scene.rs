//! Where documents and examples take place: a host with the files, images and registries they name.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::json;
use tempfile::TempDir;
use testkit::{
    Sandbox,
    registry::{Certificates, Layout, Names, Packing, Registry, Setup, SigningKey, TinyImage},
    transcript::{PASSWORD, Step},
};

const ARCHITECTURE: &str = if cfg!(target_arch = "aarch64") {
    "arm64"
} else {
    "amd64"
};

/// The registry that documents name.
const REGISTRY: &str = "registry.example.com";

/// Programs that examples run in a guest, and that a Debian does not have or that need the internet: each
/// does what an example shows of it. The images that examples name are a Debian with these.
const STAND_INS: [(&str, &str); 9] = [
    (
        "usr/local/bin/python3",
        // It knows whole numbers.
        "if [ \"$1\" = -c ]; then code=$2; else read -r code; fi\n\
         code=${code#print(}; echo $((${code%)}))",
    ),
    ("usr/local/bin/python", "exec python3 \"$@\""),
    (
        "usr/local/bin/make",
        "[ \"$1\" != test ] || exec echo \"all tests passed${CI:+, CI=$CI}\"\n\
         [ \"$1\" = -C ] && cd \"$2\" || exit 2\n\
         mkdir -p /out/site && echo built >/out/report.txt && echo '<h1>built</h1>' >/out/site/index.html",
    ),
    (
        "usr/local/bin/cargo",
        "[ \"$1\" = test ] && [ -f Cargo.toml ] && echo 'test result: ok'",
    ),
    (
        "usr/local/bin/apt-get",
        "echo \"apt-get $*\" >>/var/log/apt-get.log; echo 'Reading package lists...'",
    ),
    ("usr/local/bin/git", "echo \"git $1\""),
    (
        "usr/local/bin/psql",
        "[ \"$*\" = \"-h localhost -c select 1\" ] && echo '(1 row)'",
    ),
    (
        "usr/local/bin/server",
        "echo \"ready${POSTGRES_PASSWORD:+ with a password}\" >/run/server; exec sleep infinity",
    ),
    (
        "work/check",
        "mkdir -p /out && echo 'nothing to complain of' >/out/report.txt",
    ),
];

/// A host of its own for one document.
pub(crate) struct Scene {
    pub(crate) sandbox: Sandbox,
    directory: TempDir,
    variables: Vec<(String, String)>,
    registry: Option<Registry>,
}

impl Scene {
    /// One with a kernel and a Debian, and nothing else.
    pub(crate) fn bare() -> Self {
        Self {
            sandbox: Sandbox::own(env!("CARGO_BIN_EXE_microagent")),
            directory: tempfile::tempdir().unwrap(),
            variables: Vec::new(),
            registry: None,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn shell(&self, script: &str) {
        let step = Step {
            line: 0,
            command: script.to_owned(),
            expected: None,
        };
        self.step(&step)
            .unwrap_or_else(|why| panic!("{script}\n{why}"));
    }

    /// Runs one step here; gives its exit code.
    pub(crate) fn step(&self, step: &Step) -> Result<i32, String> {
        step.run(&self.sandbox, self.directory.path(), &self.variables)
    }

    pub(crate) fn with_variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// What was done there before the document begins.
    pub(crate) fn with_commands(self, script: &str) -> Self {
        self.shell(script);
        self
    }

    /// A home directory that may be written to.
    pub(crate) fn with_home(self) -> Self {
        let home = self.path("home");
        fs::create_dir(&home).unwrap();
        self.with_variable("HOME", home.to_str().unwrap())
    }

    /// A program of that name on the `PATH`.
    pub(crate) fn with_program(self, name: &str, script: &str) -> Self {
        let path = self.path("bin").join(name);
        testkit::executable(&path, format!("#!/bin/sh\n{script}\n").as_bytes());
        if self.variables.iter().any(|(name, _)| name == "PATH") {
            return self;
        }
        let beside = Path::new(env!("CARGO_BIN_EXE_microagent"))
            .parent()
            .unwrap();
        let own = std::env::var("PATH").unwrap();
        let found = format!(
            "{}:{}:{own}",
            path.parent().unwrap().display(),
            beside.display()
        );
        self.with_variable("PATH", &found)
    }

    /// The root file system of a small image, packed.
    pub(crate) fn with_rootfs(self, name: &str) -> Self {
        self.shell(&format!(
            "gzip -1 <'{}' >{name}",
            testkit::busybox_tar().display()
        ));
        self
    }

    /// The Debian with [`STAND_INS`], which runs `program` if nothing else is said, under its own name and
    /// under `names`.
    pub(crate) fn with_images(self, program: &str, names: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        for (name, script) in STAND_INS {
            let path = root.path().join(name);
            testkit::executable(&path, format!("#!/bin/sh\n{script}\n").as_bytes());
        }
        for name in ["src/Makefile", "root/report", "home/me/.ssh/config"] {
            write(&root.path().join(name), b"# nothing to complain of\n");
        }
        let tags: Vec<_> = names
            .iter()
            .map(|name| format!(" && microagent images tag debian:12 {name}"))
            .collect();
        self.shell(&format!(
            "microagent create stand-ins debian:12 && microagent cp '{}/.' stand-ins:/ &&
             microagent commit stand-ins debian:12 --change 'CMD [\"{program}\"]' &&
             microagent delete --force stand-ins{}",
            root.path().display(),
            tags.concat(),
        ));
        self
    }

    /// The registry of that name, over TLS by an authority of its own, with a signed `app:1` in it and, as a
    /// mirror of Docker's, the Debian under each of `mirrored`; with the one login of `user` if there is one.
    pub(crate) fn with_registry(mut self, user: Option<&str>, mirrored: &[&str]) -> Self {
        let certificates = Certificates::make(self.sandbox.state()).unwrap();
        let registry = Registry::start_with(Setup {
            login: user.map(|user| (user.to_owned(), PASSWORD.to_owned())),
            tls: Some((certificates.certificate, certificates.key)),
            ..Setup::default()
        })
        .unwrap();
        let names = Names::start(&[("registry.example.com:443", registry.port())]).unwrap();
        self = self.with_variable("HTTPS_PROXY", &names.proxy());
        let settings = format!(
            "[registry.\"{REGISTRY}\"]\nca = [\"ca.pem\"]\n\n[registry.\"docker.io\"]\nmirrors = [\"{REGISTRY}\"]\n"
        );
        write(
            &self.sandbox.state().join("registries.toml"),
            settings.as_bytes(),
        );
        self.sign(&registry);
        for name in mirrored {
            self.shell(&format!(
                "microagent images push debian:12 {REGISTRY}/{name}"
            ));
        }
        self.registry = Some(registry);
        self
    }

    /// Puts `app:1` into the registry, and the key it is signed with, and another, into the directory.
    fn sign(&self, registry: &Registry) {
        let place = tempfile::tempdir().unwrap();
        let mut layout = Layout::create(&place.path().join("layout")).unwrap();
        let image = TinyImage::new(ARCHITECTURE)
            .layer(fs::read(testkit::busybox_tar()).unwrap(), Packing::Gzip)
            .config(json!({ "Cmd": ["/bin/echo", "signed"] }));
        let (digest, _) = layout.add("app:1", &[image]).unwrap();
        let key = SigningKey::p256(place.path(), "cosign").unwrap();
        let signature = key.sign_image(&mut layout, "app", &digest).unwrap();
        for name in ["app:1", &signature] {
            registry.push(layout.path(), name).unwrap();
        }
        let stranger = SigningKey::p256(place.path(), "stranger").unwrap();
        fs::copy(key.public, self.path("cosign.pub")).unwrap();
        fs::copy(stranger.public, self.path("other.pub")).unwrap();
    }

    /// Takes away what the document leaves; nothing else may be there then.
    pub(crate) fn end(self) {
        let list = self.sandbox.microagent(["list"]).json().run().success();
        let list = list.parsed();
        let names = list["workspaces"].as_array().into_iter().flatten();
        let names: Vec<_> = names.filter_map(|it| it["name"].as_str()).collect();
        if !names.is_empty() {
            self.sandbox
                .microagent(["delete", "--force"])
                .words(&names)
                .run()
                .success();
        }
        self.sandbox.leftovers().none(&[]);
    }
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}
