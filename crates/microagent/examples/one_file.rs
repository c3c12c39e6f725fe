//! A program that is its own supervisor: it needs no other file of microagent's.
//! `cargo run -p microagent --example one_file -- debian:12 uname -a`

use microagent::{Config, Microagent, RunIo, RunOptions, SupervisorProgram};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Returns, unless this process was started to be a supervisor.
    microagent_supervisor::entry();

    let mut arguments = std::env::args().skip(1);
    let image = arguments.next().unwrap_or_else(|| "debian:12".to_owned());
    let home = std::env::var("HOME")?;
    let config = Config::new(
        format!("{home}/.microagent"),
        format!("{home}/.microagent/run"),
        SupervisorProgram::ThisProgram,
    );
    let options = RunOptions::new(image).command(arguments);
    let result =
        Microagent::new(config).run(&options, RunIo::new(std::io::stdout(), std::io::stderr()))?;
    std::process::exit(result.exit_code.into());
}
