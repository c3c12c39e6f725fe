//! `microagent network`.

use clap::Args;
use microagent::{Error, Microagent, NetworkReport};

use crate::{
    cli::Globals,
    each::{Names, each},
    output::{self, Screen},
    surroundings,
};

/// How workspaces are connected: as they were asked to be, and as they are while they are live.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  microagent network web")]
pub(crate) struct NetworkArgs {
    #[command(flatten)]
    names: Names,
}

pub(crate) fn run(args: &NetworkArgs, globals: &Globals, screen: &Screen) -> Result<u8, Error> {
    let microagent = Microagent::new(surroundings::config(globals, &[])?);
    let workspaces = microagent.workspaces();
    let network = |name: &str| workspaces.open(name)?.network();
    Ok(each(&args.names.names, screen, network, text))
}

fn text(report: &NetworkReport) -> String {
    let mut rows = vec![
        ("name", report.workspace.to_string()),
        ("state", report.state.to_string()),
        ("mode", report.network.mode.to_string()),
    ];
    let runtime = report.network.runtime.as_ref();
    if let Some(interface) = runtime.and_then(|runtime| runtime.interface.as_ref()) {
        rows.push((
            "address",
            format!("{}/{}", interface.address, interface.prefix),
        ));
        rows.push(("gateway", interface.gateway.to_string()));
        if let Some(ipv6) = interface.ipv6 {
            rows.push(("address", format!("{}/{}", ipv6.address, ipv6.prefix)));
            rows.push(("gateway", ipv6.gateway.to_string()));
        }
        rows.extend(interface.dns.iter().map(|dns| ("dns", dns.to_string())));
    }
    if let Some(provider) = runtime.and_then(|runtime| runtime.provider) {
        rows.push(("carried by", provider.to_string()));
    }
    let ports = runtime.map_or(&report.network.ports, |runtime| &runtime.ports);
    rows.extend(ports.iter().map(|port| ("port", port.to_string())));
    rows.extend(
        report
            .mediation
            .iter()
            .map(|route| ("mediation", format!("{} to {}", route.port, route.target))),
    );
    output::facts(&rows)
}
