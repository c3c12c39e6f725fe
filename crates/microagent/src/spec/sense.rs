//! What makes no sense in a spec though each value alone is right.

use std::collections::BTreeSet;

use microagent_protocol::wiring::{GuestPath, ItemName, MAX_DISKS};

use super::{
    kind::Reader,
    types::Spec,
    yaml::{Node, Position, Value},
};
use crate::supervise::{HealthProbe, RestartPolicy};

/// Notes what contradicts itself in `spec`, which was read from `node`.
pub(super) fn check(spec: &Spec, node: &Node, reader: &mut Reader) {
    health(spec, node, reader);
    let (disks, bundles) = (spec.disks.len(), spec.bundles.len());
    if disks + bundles > MAX_DISKS {
        let message = format!("{disks} disks and {bundles} bundles are more than {MAX_DISKS}");
        reader.object(position(node, "bundles", disks), message);
    }
    once(
        reader,
        "disks and bundles share the name",
        attached(spec, node)
            .map(|(name, _, at)| (name.as_str(), at))
            .collect(),
    );
    once(
        reader,
        "disks and bundles share the mountpoint",
        attached(spec, node)
            .map(|(_, mountpoint, at)| (mountpoint.as_str(), at))
            .collect(),
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

/// Disks, then bundles: name, mountpoint and where it is written.
fn attached<'a>(
    spec: &'a Spec,
    node: &'a Node,
) -> impl Iterator<Item = (&'a ItemName, &'a GuestPath, Position)> {
    let disks = spec.disks.iter().enumerate().map(|(index, disk)| {
        let at = position(node, "disks", index);
        (&disk.name, &disk.mountpoint, at)
    });
    let bundles = spec.bundles.iter().enumerate().map(|(index, bundle)| {
        let at = position(node, "bundles", index);
        (&bundle.name, &bundle.mountpoint, at)
    });
    disks.chain(bundles)
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
