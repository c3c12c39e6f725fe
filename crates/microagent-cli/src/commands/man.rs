//! `microagent man`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap::{Args, Command, CommandFactory as _};
use clap_mangen::Man;
use microagent::Error;

use crate::{
    cli::Cli,
    output::{self, Screen},
};

/// Writes the manual pages, one for each command, into a directory; without one, prints the main
/// page.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  microagent man ~/.local/share/man/man1 && man microagent-run")]
pub(crate) struct ManArgs {
    /// Where the pages go; made if it is missing
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
}

pub(crate) fn run(args: &ManArgs, screen: &Screen) -> Result<u8, Error> {
    let pages = pages();
    let Some(directory) = &args.directory else {
        if let Some((_, page)) = pages.first() {
            output::to_stdout(page);
        }
        return Ok(0);
    };
    write(directory, &pages)?;
    screen.announce(&format!(
        "{} pages are in {}.",
        pages.len(),
        directory.display()
    ));
    Ok(0)
}

fn write(directory: &Path, pages: &[(String, String)]) -> Result<(), Error> {
    let failed = |doing, path: &Path| {
        let path = path.to_owned();
        move |source: io::Error| Error::Io {
            doing,
            path,
            source,
        }
    };
    fs::create_dir_all(directory).map_err(failed("create", directory))?;
    for (name, page) in pages {
        let path = directory.join(name);
        fs::write(&path, page).map_err(failed("write", &path))?;
    }
    Ok(())
}

/// Each page's file name and text, the program's own first.
fn pages() -> Vec<(String, String)> {
    let mut program = Cli::command().disable_help_subcommand(true);
    program.build();
    let mut pages = Vec::new();
    add(&mut pages, &program, "microagent");
    pages
}

fn add(pages: &mut Vec<(String, String)>, command: &Command, name: &str) {
    let mut page = Vec::new();
    let man = Man::new(command.clone())
        .title(name.to_uppercase())
        .manual("microagent");
    if let Err(error) = man.render(&mut page) {
        // A buffer takes everything; should that change, the page is missing and the test says so.
        tracing::warn!("the manual page of {name}: {error}");
        return;
    }
    pages.push((
        format!("{name}.1"),
        String::from_utf8_lossy(&page).into_owned(),
    ));
    for child in command
        .get_subcommands()
        .filter(|child| !child.is_hide_set())
    {
        add(pages, child, &format!("{name}-{}", child.get_name()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_its_page() {
        let pages = pages();
        let program = &pages[0].1;
        for command in Cli::command().get_subcommands() {
            let name = command.get_name();
            let file = format!("microagent-{name}.1");
            let page = pages.iter().find(|(page, _)| *page == file);
            assert_eq!(page.is_some(), !command.is_hide_set(), "{name}");
            if let Some((_, page)) = page {
                assert!(page.contains("NAME") && page.contains(name), "{page}");
                let listed = format!("microagent\\-{}(1)", name.replace('-', "\\-"));
                assert!(program.contains(&listed), "{name} is not in {program}");
            }
        }
        let run = pages.iter().find(|(name, _)| name == "microagent-run.1");
        let run = &run.unwrap().1;
        assert!(
            run.contains("memory") && !run.contains("privileged"),
            "{run}"
        );
        assert!(
            pages
                .iter()
                .any(|(name, _)| name == "microagent-kernel-install.1")
        );
    }

    #[test]
    fn pages_go_where_they_are_told_to() {
        let base = tempfile::tempdir().unwrap();
        let directory = base.path().join("man/man1");
        write(&directory, &pages()).unwrap();
        assert!(directory.join("microagent.1").is_file());
        let error = write(&directory.join("microagent.1"), &pages()).unwrap_err();
        assert!(error.to_string().contains("microagent.1"), "{error}");
    }
}
