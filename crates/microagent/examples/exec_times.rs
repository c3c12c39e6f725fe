//! Runs a command in a running workspace, again and again, and prints how long each took, in
//! milliseconds: `exec_times STATE_DIR WORKSPACE COUNT COMMAND [ARG]...`
#![allow(clippy::print_stdout)]

use std::time::Instant;

use microagent::{Config, ExecOptions, Microagent, RunIo, SupervisorProgram};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut next = || arguments.next().ok_or("too few arguments");
    let (state, name, count) = (next()?, next()?, next()?.parse::<u32>()?);
    // Nothing is started here: the workspace runs already.
    let config = Config::new(&state, &state, SupervisorProgram::At("none".into()));
    let microagent = Microagent::new(config);
    let workspace = microagent.workspaces().open(&name)?;
    let options = ExecOptions::new(arguments);
    for _ in 0..count {
        let begun = Instant::now();
        let result = workspace.exec(&options, RunIo::captured())?;
        let took = begun.elapsed();
        if let Some(error) = result.error {
            return Err(error.to_string().into());
        }
        println!("{:.4}", took.as_secs_f64() * 1000.0);
    }
    Ok(())
}
