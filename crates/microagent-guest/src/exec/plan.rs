//! From a request to everything a process is made of, before there is one.

use std::{
    ffi::CString,
    fs::{self, DirBuilder},
    io::ErrorKind,
    os::unix::fs::DirBuilderExt,
};

use microagent_protocol::{ExecRequest, StartFailure};

use super::user::{Accounts, Identity};
use crate::error::Error;

/// The six directories programs are usually in.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const DEFAULT_TERMINAL: &str = "xterm";

/// A process to be.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The program as it was asked for.
    pub(crate) program: String,
    /// Where it may be, in the order to try.
    pub(crate) candidates: Vec<CString>,
    /// Arguments, the program's name first.
    pub(crate) argv: Vec<CString>,
    /// Environment.
    pub(crate) env: Vec<CString>,
    /// Working directory.
    pub(crate) cwd: CString,
    /// Who it runs as.
    pub(crate) identity: Identity,
}

impl Plan {
    /// Resolves `request` with the image's `accounts`; makes the working
    /// directory if it is missing, as container engines do.
    pub(crate) fn new(
        request: &ExecRequest,
        hostname: &str,
        accounts: &Accounts,
    ) -> Result<Self, Error> {
        let invalid = |message: String| Error::start(StartFailure::Invalid, message);
        let Some(program) = request.argv.first() else {
            return Err(invalid("the command is empty; name a program".to_owned()));
        };
        let c_string = |text: &str| {
            CString::new(text).map_err(|_| invalid(format!("{text:?} has a NUL byte")))
        };
        let argv = request
            .argv
            .iter()
            .map(|text| c_string(text))
            .collect::<Result<_, _>>()?;
        let identity = accounts.resolve(request.user.as_deref())?;
        let cwd = request
            .cwd
            .as_deref()
            .filter(|cwd| !cwd.is_empty())
            .unwrap_or("/");
        make_cwd(cwd)?;
        let env = environment(request, &identity.home, hostname);
        let path = env
            .iter()
            .find_map(|(name, value)| (name == "PATH").then_some(value.as_str()))
            .unwrap_or(DEFAULT_PATH);
        Ok(Self {
            program: program.clone(),
            candidates: candidates(program, path)
                .iter()
                .map(|text| c_string(text))
                .collect::<Result<_, _>>()?,
            argv,
            cwd: c_string(cwd)?,
            identity,
            env: env
                .iter()
                .map(|(name, value)| c_string(&format!("{name}={value}")))
                .collect::<Result<_, _>>()?,
        })
    }
}

/// The request's environment and what every process expects besides.
fn environment(request: &ExecRequest, home: &str, hostname: &str) -> Vec<(String, String)> {
    let mut env: Vec<_> = request
        .env
        .iter()
        .map(|var| (var.name().to_owned(), var.value().to_owned()))
        .collect();
    let terminal = request.tty.map(|_| ("TERM", DEFAULT_TERMINAL));
    let defaults = [
        ("PATH", DEFAULT_PATH),
        ("HOSTNAME", hostname),
        ("HOME", home),
    ];
    for (name, value) in defaults.into_iter().chain(terminal) {
        if !env.iter().any(|(present, _)| present == name) {
            env.push((name.to_owned(), value.to_owned()));
        }
    }
    env
}

/// Where `program` may be: as it is if it has a slash, else in each directory of `path`.
fn candidates(program: &str, path: &str) -> Vec<String> {
    if program.is_empty() {
        return Vec::new();
    }
    if program.contains('/') {
        return vec![program.to_owned()];
    }
    path.split(':')
        .map(|folder| match folder {
            // An empty entry means the working directory.
            "" => format!("./{program}"),
            folder => format!("{}/{program}", folder.trim_end_matches('/')),
        })
        .collect()
}

fn make_cwd(cwd: &str) -> Result<(), Error> {
    let bad = |why: &str| {
        Error::start(
            StartFailure::BadWorkdir,
            format!("the working directory {cwd:?} {why}"),
        )
    };
    if !cwd.starts_with('/') || cwd.contains('\0') {
        return Err(bad("is not an absolute path"));
    }
    match fs::metadata(cwd) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(bad("is not a directory")),
        Err(error) if error.kind() == ErrorKind::NotFound => DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(cwd)
            .map_err(|error| bad(&format!("cannot be made: {error}"))),
        Err(error) => Err(bad(&format!("cannot be entered: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use microagent_protocol::{ExecRole, TtySize};

    use super::*;

    fn request(argv: &[&str], env: &[&str]) -> ExecRequest {
        ExecRequest {
            role: ExecRole::Command,
            argv: argv.iter().map(|text| (*text).to_owned()).collect(),
            env: env.iter().map(|text| text.parse().unwrap()).collect(),
            cwd: None,
            user: None,
            tty: None,
            stdin: false,
            stop_signal: None,
        }
    }

    fn reason(result: Result<Plan, Error>) -> StartFailure {
        match result {
            Err(Error::Start { reason, .. }) => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn programs_are_looked_up_in_the_requests_own_path() {
        assert_eq!(
            candidates("ls", "/bin:/usr/bin/::x"),
            ["/bin/ls", "/usr/bin/ls", "./ls", "x/ls"]
        );
        assert_eq!(candidates("ls", "/"), ["/ls"]);
        assert_eq!(candidates("./ls", "/bin"), ["./ls"]);
        assert!(candidates("", "/bin").is_empty());
        let folder = tempfile::tempdir().unwrap();
        let plan = Plan::new(
            &request(&["x"], &["PATH=/only"]),
            "box",
            &Accounts::below(folder.path()),
        )
        .unwrap();
        assert_eq!(plan.candidates, [c"/only/x".to_owned()]);
        let plan = Plan::new(
            &request(&["x"], &[]),
            "box",
            &Accounts::below(folder.path()),
        )
        .unwrap();
        assert_eq!(plan.candidates.len(), 6);
    }

    #[test]
    fn defaults_never_replace_what_was_given() {
        let mut request = request(&["x"], &["HOME=/given", "EMPTY="]);
        let given = environment(&request, "/root", "box");
        let has = |env: &[(String, String)], name: &str, value: &str| {
            env.contains(&(name.to_owned(), value.to_owned()))
        };
        assert!(
            has(&given, "HOME", "/given")
                && has(&given, "HOSTNAME", "box")
                && has(&given, "EMPTY", "")
        );
        assert!(!given.iter().any(|(name, _)| name == "TERM"));
        request.tty = Some(TtySize { rows: 1, cols: 1 });
        assert!(has(
            &environment(&request, "/root", "box"),
            "TERM",
            DEFAULT_TERMINAL
        ));
    }

    #[test]
    fn working_directories_are_made_and_bad_ones_named() {
        let folder = tempfile::tempdir().unwrap();
        let new = folder.path().join("a/b");
        let mut wanted = request(&["x"], &[]);
        wanted.cwd = Some(new.to_str().unwrap().to_owned());
        Plan::new(&wanted, "box", &Accounts::below(folder.path())).unwrap();
        assert!(new.is_dir());
        fs::write(folder.path().join("file"), "").unwrap();
        for bad in [
            folder.path().join("file"),
            folder.path().join("file/below"),
            "relative".into(),
        ] {
            wanted.cwd = Some(bad.to_str().unwrap().to_owned());
            assert_eq!(
                reason(Plan::new(&wanted, "box", &Accounts::below(folder.path()))),
                StartFailure::BadWorkdir
            );
        }
    }

    #[test]
    fn impossible_commands_are_refused() {
        let root = &Accounts::below(Path::new("/nonexistent"));
        assert_eq!(
            reason(Plan::new(&request(&[], &[]), "box", root)),
            StartFailure::Invalid
        );
        assert_eq!(
            reason(Plan::new(&request(&["a\0b"], &[]), "box", root)),
            StartFailure::Invalid
        );
    }
}
