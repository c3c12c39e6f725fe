//! `microagent whoami`.

use clap::Args;
use microagent::{CredentialKind, Error, Identity, Microagent, RegistryScope};

use crate::{
    cli::{EXIT_FAILURE, Globals},
    output::Screen,
    surroundings,
};

#[derive(Debug, Args)]
pub(crate) struct WhoamiArgs {
    /// The registry, HOST[:PORT], or a part of it, HOST[:PORT]/NAMESPACE[/NAME]
    registry: RegistryScope,
    /// Ask the registry whether it accepts the credentials; exits with 1 if it does not
    #[arg(long)]
    check: bool,
    /// Speak plain HTTP to this registry (HOST[:PORT]); repeatable
    #[arg(long, value_name = "HOST")]
    insecure_registry: Vec<String>,
}

pub(crate) fn run(args: &WhoamiArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &args.insecure_registry)?);
    let identity = microagent.registries().whoami(&args.registry, args.check)?;
    screen.result(&identity, text);
    Ok(match identity.accepted {
        Some(false) => EXIT_FAILURE,
        _ => 0,
    })
}

fn text(identity: &Identity) -> String {
    let who = match (&identity.username, identity.kind) {
        (Some(username), _) => username.clone(),
        (None, CredentialKind::IdentityToken) => "(an identity token)".to_owned(),
        (None, _) => "(a token)".to_owned(),
    };
    let source = match &identity.helper {
        Some(helper) => format!(
            "docker-credential-{helper}, named in {}",
            identity.file.display()
        ),
        None => identity.file.display().to_string(),
    };
    let accepted = match identity.accepted {
        Some(true) => "; the registry accepts it",
        Some(false) => "; the registry does not accept it",
        None => "",
    };
    format!("{who}  (from {source}{accepted})\n")
}
