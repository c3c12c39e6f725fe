//! Runs one command in a microVM. With `microagent` installed and an image imported or a registry
//! in reach: `cargo run -p microagent --example first_program -- debian:12 uname -a`

use microagent::{Config, Microagent, RunIo, RunOptions, SupervisorProgram};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let image = arguments.next().unwrap_or_else(|| "debian:12".to_owned());
    let home = std::env::var("HOME")?;
    let supervisor = SupervisorProgram::find(None, std::env::var_os("PATH").as_deref())?;
    let config = Config::new(
        format!("{home}/.microagent"),
        format!("{home}/.microagent/run"),
        supervisor,
    );
    let options = RunOptions::new(image).command(arguments);
    let result =
        Microagent::new(config).run(&options, RunIo::new(std::io::stdout(), std::io::stderr()))?;
    eprintln!(
        "exit code {}, {} ms",
        result.exit_code,
        result.phases.last().map_or(0, |phase| phase.ms)
    );
    std::process::exit(result.exit_code.into());
}
