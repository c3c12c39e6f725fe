//! `microagent login`.

use std::io::{self, IsTerminal, Read};

use clap::Args;
use microagent::{Error, Login, LoginOptions, Microagent, RegistryScope, Secret};

use crate::{
    cli::{EXIT_USAGE, Globals},
    output::Screen,
    surroundings,
    terminal::{self, Typed},
};

/// The longest password that is read.
const MAX_PASSWORD: u64 = 64 << 10;
/// What a shell says of a command that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  microagent login registry.example.com -u me      # asks for the password
  pass show reg | microagent login registry.example.com -u me --password-stdin")]
pub(crate) struct LoginArgs {
    /// The registry, HOST[:PORT], or a part of it, HOST[:PORT]/NAMESPACE
    registry: RegistryScope,
    /// The user name; asked for on a terminal
    #[arg(long, short)]
    username: Option<String>,
    /// Read the password or access token from standard input
    #[arg(long)]
    password_stdin: bool,
    /// Keep it with the credential helper docker-credential-NAME instead of in a file
    #[arg(long, value_name = "NAME")]
    helper: Option<String>,
    /// Speak plain HTTP to this registry (HOST[:PORT]); repeatable
    #[arg(long, value_name = "HOST")]
    insecure_registry: Vec<String>,
    /// Refused: what stands on the command line, every process on this host can read.
    #[arg(long, short, hide = true, num_args = 0..=1)]
    password: Option<Option<String>>,
}

pub(crate) fn run(args: &LoginArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let refuse = |option, reason: &str| {
        let reason = reason.to_owned();
        screen.error(&Error::Invalid { option, reason }.report());
        Ok(EXIT_USAGE)
    };
    if args.password.is_some() {
        return refuse(
            "--password",
            "every process on this host can read it on a command line; use --password-stdin",
        );
    }
    let on_terminal = io::stdin().is_terminal();
    if !args.password_stdin && !on_terminal {
        return refuse(
            "standard input",
            "it is no terminal to ask for a password; add --password-stdin",
        );
    }
    let username = match &args.username {
        Some(username) => username.clone(),
        None if args.password_stdin => {
            return refuse("--username", "it is needed with --password-stdin");
        }
        None => match terminal::ask(&format!("User name for {}: ", args.registry))? {
            Typed::Text(text) => text.trim().to_owned(),
            Typed::Interrupted => return Ok(INTERRUPTED),
        },
    };
    let password = if args.password_stdin {
        from_stdin()?
    } else {
        match terminal::ask_secretly(&format!("Password of {username} (not shown): "))? {
            Typed::Text(secret) => secret,
            Typed::Interrupted => return Ok(INTERRUPTED),
        }
    };
    let microagent = Microagent::new(surroundings::config(globals, &args.insecure_registry)?);
    let mut options = LoginOptions::default();
    options.helper.clone_from(&args.helper);
    let login = microagent
        .registries()
        .login(&args.registry, &username, &password, &options)?;
    screen.result(&login, text);
    Ok(0)
}

/// Everything on standard input, without the line break that `echo` adds.
fn from_stdin() -> Result<Secret, Error> {
    let mut text = String::new();
    io::stdin()
        .lock()
        .take(MAX_PASSWORD)
        .read_to_string(&mut text)
        .map_err(|source| Error::Io {
            doing: "read the password from",
            path: "standard input".into(),
            source,
        })?;
    let whole = Secret::new(text);
    let line = whole.expose();
    let line = line.strip_suffix('\n').unwrap_or(line);
    Ok(Secret::from(line.strip_suffix('\r').unwrap_or(line)))
}

fn text(login: &Login) -> String {
    let mut text = format!("Logged in to {} as {}.\n", login.registry, login.username);
    if !login.verified {
        text.push_str("The registry asks nobody for a login, so the password was not checked.\n");
    }
    text.push_str(&match &login.helper {
        Some(helper) => format!("Kept by docker-credential-{helper}.\n"),
        None => format!(
            "Kept in {}, which only you can read; it is not encrypted (--helper NAME uses a keychain).\n",
            login.file.display()
        ),
    });
    text
}
