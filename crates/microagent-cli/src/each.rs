//! One thing done to each of several workspaces.

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use microagent::{ControlReport, Error};
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    cli::{EXIT_FAILURE, Form},
    completion,
    output::{self, Screen},
};

/// The workspaces that a command is about.
#[derive(Debug, Args)]
pub(crate) struct Names {
    /// The workspaces
    #[arg(required = true, value_name = "NAME", add = ArgValueCompleter::new(completion::workspaces))]
    pub(crate) names: Vec<String>,
}

/// Does `act` to each workspace and prints a line for each; one that fails does not keep the
/// others. With JSON the one result is the document, and several are its `workspaces`.
pub(crate) fn each<T: Serialize>(
    names: &[String],
    screen: &Screen,
    mut act: impl FnMut(&str) -> Result<T, Error>,
    line: impl Fn(&T) -> String,
) -> u8 {
    let (mut done, mut code) = (Vec::new(), 0);
    for name in names {
        match act(name) {
            Ok(result) if screen.form == Form::Text => {
                output::to_stdout(&output::clean_but_colours(&line(&result)));
            }
            Ok(result) => done.push(result),
            Err(error) => {
                screen.error(&error.report());
                code = EXIT_FAILURE;
            }
        }
    }
    if screen.form == Form::Json {
        match &done[..] {
            [] if names.len() == 1 => {}
            [only] if names.len() == 1 => screen.result(only, |_| String::new()),
            all => screen.result(&json!({ "workspaces": all }), |_: &Value| String::new()),
        }
    }
    code
}

/// The line of a workspace that was steered.
pub(crate) fn control_line(report: &ControlReport) -> String {
    let already = if report.changed { "" } else { " already" };
    format!("{} {}{already}\n", report.workspace, report.state)
}
