//! `microagent logout`.

use clap::Args;
use microagent::{Error, Logout, Microagent, RegistryScope};

use crate::{cli::Globals, output::Screen, surroundings};

#[derive(Debug, Args)]
pub(crate) struct LogoutArgs {
    /// The registry, HOST[:PORT], or a part of it, HOST[:PORT]/NAMESPACE
    registry: RegistryScope,
}

pub(crate) fn run(args: &LogoutArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let logout = microagent.registries().logout(&args.registry)?;
    screen.result(&logout, text);
    Ok(0)
}

fn text(logout: &Logout) -> String {
    let mut text = match logout.removed {
        true => format!("Logged out of {}.\n", logout.registry),
        false => format!("There was no login for {}.\n", logout.registry),
    };
    if let Some(file) = &logout.remains_in {
        text.push_str(&format!(
            "{} still has credentials for it; they are another program's.\n",
            file.display()
        ));
    }
    text
}
