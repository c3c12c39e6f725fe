//! What makes no sense in a spec though each value alone is right.

use std::collections::BTreeSet;

use microagent_protocol::wiring::MAX_DISKS;

use super::{
    kind::Reader,
    types::Spec,
    yaml::{Node, Position, Value},
};
use crate::{
    supervise::{HealthProbe, RestartPolicy},
    wiring::Volume,
};

/// Notes what contradicts itself in `spec`, which was read from `node`.
pub(super) fn check(spec: &Spec, node: &Node, reader: &mut Reader) {
    health(spec, node, reader);
    let volumes = attached(spec, node);
    if let Some((_, at)) = volumes.get(MAX_DISKS) {
        let message = format!("disks and bundles are more than {MAX_DISKS} together");
        reader.object(*at, message);
    }
    let names = volumes
        .iter()
        .map(|(volume, at)| (volume.name().as_str(), *at));
    once(reader, "disks and bundles share the name", names.collect());
    let mountpoints = volumes
        .iter()
        .map(|(volume, at)| (volume.mountpoint().as_str(), *at));
    once(
        reader,
        "disks and bundles share the mountpoint",
        mountpoints.collect(),
    );
    let outputs = spec.outputs.iter().enumerate();
    once(
        reader,
        "outputs share the name",
        outputs
            .map(|(index, output)| (output.name.as_str(), position(node, "outputs", index)))
            .collect(),
    );
    let files = spec.files.iter().enumerate();
    once(
        reader,
        "files share the dst",
        files
            .map(|(index, file)| (file.dst.as_str(), position(node, "files", index)))
            .collect(),
    );
    ports(spec, node, reader);
}

fn health(spec: &Spec, node: &Node, reader: &mut Reader) {
    let Some(health) = &spec.health else { return };
    let at = node.get("health").map_or(node.at, |node| node.at);
    if matches!(spec.restart, None | Some(RestartPolicy::Never)) {
        reader.object(
            at,
            "health is looked at by supervise alone; write restart: on-failure or always",
        );
    }
    if let HealthProbe::HttpGet { port, .. } = &health.probe
        && !spec
            .publish
            .iter()
            .any(|published| published.guest_port == port.get())
    {
        let message =
            format!("health.port: {port} is no guestPort of network.forwards; publish it there");
        reader.object(at, message);
    }
}

fn ports(spec: &Spec, node: &Node, reader: &mut Reader) {
    let forwards = spec.publish.iter().enumerate();
    let addresses: Vec<(String, Position)> = forwards
        .filter(|(_, published)| published.host_port != 0)
        .map(|(index, published)| {
            let at = node
                .get("network")
                .map_or(node.at, |network| position(network, "forwards", index));
            (published.host_address().to_string(), at)
        })
        .collect();
    let addresses = addresses.iter().map(|(text, at)| (text.as_str(), *at));
    once(
        reader,
        "network.forwards share the host address",
        addresses.collect(),
    );
    let routes: Vec<(String, Position)> = spec
        .mediation
        .iter()
        .map(|route| (route.port.to_string(), position(node, "mediation", 0)))
        .collect();
    let routes = routes.iter().map(|(text, at)| (text.as_str(), *at));
    once(reader, "mediation routes share the port", routes.collect());
}

/// Each volume and where it is written: disks, then bundles.
fn attached<'a>(spec: &'a Spec, node: &'a Node) -> Vec<(&'a Volume, Position)> {
    let written = ["disks", "bundles"]
        .into_iter()
        .flat_map(|key| items(node, key));
    spec.volumes.iter().zip(written).collect()
}

/// Where each item of the list under `key` stands.
fn items<'a>(node: &'a Node, key: &str) -> impl Iterator<Item = Position> + use<'a> {
    let items = match node.get(key).map(|list| &list.value) {
        Some(Value::List(items)) => &items[..],
        _ => &[],
    };
    items.iter().map(|item| item.at)
}

/// Notes each text that is there a second time.
fn once(reader: &mut Reader, what: &str, texts: Vec<(&str, Position)>) {
    let mut seen = BTreeSet::new();
    for (text, at) in texts {
        if !seen.insert(text) {
            reader.object(at, format!("two {what} {text}"));
        }
    }
}

/// Where item `index` of the list under `key` stands, or the nearest place that is known.
fn position(node: &Node, key: &str, index: usize) -> Position {
    let Some(list) = node.get(key) else {
        return node.at;
    };
    match &list.value {
        Value::List(items) => items.get(index).map_or(list.at, |item| item.at),
        _ => list.at,
    }
}
