//! `microagent contract`.

use microagent::{Capabilities, Contract, Error};

use crate::output::{Screen, table};

pub(crate) fn run(screen: &Screen) -> Result<u8, Error> {
    screen.result(&microagent::contract(), text);
    Ok(0)
}

fn text(contract: &Contract) -> String {
    let states: Vec<_> = contract
        .states
        .iter()
        .map(|state| {
            let next: Vec<_> = state.next.iter().map(ToString::to_string).collect();
            let live = if state.live { "yes" } else { "no" };
            vec![state.name.to_string(), live.to_owned(), next.join(", ")]
        })
        .collect();
    let controls: Vec<_> = contract
        .controls
        .iter()
        .map(|control| {
            let from: Vec<_> = control.from.iter().map(ToString::to_string).collect();
            vec![
                control.name.to_owned(),
                from.join(", "),
                control.to.to_string(),
            ]
        })
        .collect();
    let backends: Vec<_> = contract
        .capabilities
        .iter()
        .map(|backend| vec![backend.name.to_string(), abilities(&backend.can)])
        .collect();
    format!(
        "{}, supervisor protocol {}\n\n{}\n{}\n{}\n--json says all of it.\n",
        contract.version,
        contract.supervisor_protocol,
        table(&["STATE", "LIVE", "NEXT"], &states),
        table(&["COMMAND", "FROM", "TO"], &controls),
        table(&["BACKEND", "ITS MACHINES HAVE"], &backends),
    )
}

/// What machines can do, in words.
pub(super) fn abilities(can: &Capabilities) -> String {
    let all = [
        (can.pause, "pause"),
        (can.user_network, "user network"),
        (can.sever, "quarantine"),
        (can.console, "console"),
        (can.disk_serials, "disk serials"),
    ];
    let there: Vec<_> = all
        .into_iter()
        .filter_map(|(there, what)| there.then_some(what))
        .collect();
    there.join(", ")
}
