//! `microagent result`.

use clap::Args;
use clap_complete::engine::ArgValueCompleter;
use microagent::{CapturedOutput, Error, Microagent, OutputEncoding, WorkloadResult};

use crate::{
    cli::Globals,
    completion,
    output::{self, Screen},
    surroundings,
    template::Template,
};

/// How a workspace's workload ended at its last start: exit code, times and the kept part of its
/// output.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  microagent result build
  microagent result build --format '{{exit_code}}'")]
pub(crate) struct ResultArgs {
    /// The workspace
    #[arg(value_name = "NAME", add = ArgValueCompleter::new(completion::workspaces))]
    name: String,
    /// Print this text with each {{field}} filled in, named as in JSON: '{{exit_code}}'
    #[arg(long, value_name = "TEMPLATE")]
    format: Option<Template>,
}

pub(crate) fn run(args: &ResultArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let result = microagent.workspaces().open(&args.name)?.require_result()?;
    match &args.format {
        Some(template) => output::to_stdout(&output::clean(&template.fill(&result)?)),
        None => screen.result(&result, text),
    }
    Ok(0)
}

fn text(result: &WorkloadResult) -> String {
    let code = result
        .exit_code
        .map_or_else(|| "unseen".to_owned(), |code| code.to_string());
    let mut text = format!(
        "exit code  {code}\nstarted    {}\nended      {}\n",
        result.started_at, result.exited_at
    );
    for (name, stream) in [("stdout", &result.stdout), ("stderr", &result.stderr)] {
        if stream.total_bytes > 0 {
            text.push_str(&format!("{name:10} {}\n{}", extent(stream), stream.data));
            if !text.ends_with('\n') {
                text.push('\n');
            }
        }
    }
    text
}

fn extent(stream: &CapturedOutput) -> String {
    let kept = if stream.truncated {
        ", the first of them kept"
    } else {
        ""
    };
    let how = match stream.encoding {
        OutputEncoding::Utf8 => "",
        OutputEncoding::Base64 => ", no text: in base64",
    };
    format!("{} bytes{kept}{how}", stream.total_bytes)
}
