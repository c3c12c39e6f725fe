//! What connects a workspace: its network, published ports, mediation routes and disks.

use std::{net::IpAddr, path::Path, rc::Rc};

use microagent_protocol::{
    NetworkMode,
    wiring::{MAX_PUBLISHED, MediationRoute, MediationTarget, PublishedPort},
};

use super::{
    super::{
        kind::{Kind, choice, flag, list, number, parsed},
        table::Table,
    },
    values::{guest_path, host_path, item_name},
};
use crate::wiring::Volume;

const NO_ADDRESSES: &str = "the guest's address, gateway and resolver are those of the user network \
     and cannot be set; leave it out";

pub(super) fn network() -> Kind<(Option<NetworkMode>, Vec<PublishedPort>)> {
    const USER: &str =
        "write user, which lets the guest reach out, and publish ports with forwards";
    let mut table = Table::new("a table");
    let mode = table.optional(
        "mode",
        "`user` (outbound connections) or `isolated` (loopback only); `user` unless said.",
        choice(
            &[
                ("user", NetworkMode::User),
                ("isolated", NetworkMode::Isolated),
            ],
            &[
                ("nat", USER),
                ("bridge", USER),
                ("bridged", USER),
                ("named", USER),
                ("host", USER),
                ("none", "write isolated"),
            ],
        ),
    );
    let forwards = table.optional(
        "forwards",
        "TCP ports of the host that lead into the guest, in either mode.",
        list(forward(), MAX_PUBLISHED),
    );
    table.absent(&[
        ("interface", "a workspace is on no bridge; leave it out"),
        ("name", "workspaces share no network; leave it out"),
        ("ip", NO_ADDRESSES),
        ("subnet", NO_ADDRESSES),
        ("gateway", NO_ADDRESSES),
        ("dns", NO_ADDRESSES),
        ("routes", NO_ADDRESSES),
        ("ipv6", NO_ADDRESSES),
        ("ipv6Subnet", NO_ADDRESSES),
        ("ipv6Gateway", NO_ADDRESSES),
        ("ports", "write forwards"),
        ("publish", "write forwards"),
        ("portForwards", "write forwards"),
    ]);
    table.build(move |_, _| Some((mode.take(), forwards.take().unwrap_or_default())))
}

pub(super) fn forward() -> Kind<PublishedPort> {
    let mut table = Table::new("a table");
    let _protocol = table.default(
        "protocol",
        "tcp",
        "`tcp`, the one protocol there is.",
        choice(&[("tcp", ())], &[("udp", "only TCP can be published")]),
    );
    let host = table.default(
        "host",
        "127.0.0.1",
        "The host's address to listen at.",
        parsed("an IP address", |text| match text {
            "localhost" => Ok(IpAddr::from([127, 0, 0, 1])),
            text => text.parse().map_err(|_| {
                format!("{text:?} is not an IP address, such as 127.0.0.1 or \"::1\"")
            }),
        }),
    );
    let host_port = table.required(
        "hostPort",
        "The host's port; 0 picks a free one.",
        number(0, u16::MAX),
    );
    let guest_port = table.required("guestPort", "The port in the guest.", number(1, u16::MAX));
    table.build(move |_, _| {
        Some(PublishedPort {
            host: host.take()?,
            host_port: host_port.take()?,
            guest_port: guest_port.take()?,
        })
    })
}

/// A route, or none where it is switched off.
pub(super) fn mediation() -> Kind<Option<MediationRoute>> {
    let mut table = Table::new("a table");
    let enabled = table.default("enabled", "true", "Whether it is there at all.", flag());
    let port = table.optional(
        "port",
        "The port in the guest; required unless `enabled` is false.",
        number(MediationRoute::MIN_PORT, u16::MAX),
    );
    let target = table.optional(
        "target",
        "The server on the host, `HOST:PORT` or `unix:/path`; required unless `enabled` is false.",
        parsed("a mediation target", str::parse::<MediationTarget>),
    );
    let required = table.default(
        "required",
        "true",
        "Whether the machine may only start while the target can be reached.",
        flag(),
    );
    let fail_closed = table.optional(
        "failClosed",
        "Whether nothing else takes the target's place when it is away. Nothing ever does here, so \
         it may be left out; `required` does not go with `false`.",
        flag(),
    );
    let connections = table.default(
        "maxConnections",
        "128",
        "The most connections at a time; further ones are refused.",
        number(1_u32, 4096),
    );
    table.unless_off("enabled", &["port", "target"]);
    table.build(move |node, reader| {
        let required = required.take()?;
        if required && fail_closed.take() == Some(false) {
            let at = node.get("failClosed").map_or(node.at, |node| node.at);
            reader.object(
                at,
                "failClosed: false contradicts required: true; write required: false for a route \
                 that may be away",
            );
        }
        let (port, target, max_connections) = (port.take(), target.take(), connections.take());
        if !enabled.take()? {
            return Some(None);
        }
        Some(Some(MediationRoute {
            port: port?,
            target: target?,
            required,
            max_connections: max_connections?,
        }))
    })
}

/// Whether the guest may write.
pub(super) fn access() -> Kind<bool> {
    choice(&[("ro", false), ("rw", true)], &[])
}

const ACCESS: &str = "`ro` (the machine refuses writes) or `rw`.";
const MOUNTPOINT: &str = "Where it is mounted in the guest; made if it is missing.";

pub(super) fn disk(base: &Rc<Path>) -> Kind<Volume> {
    let mut table = Table::new("a table");
    let name = table.required("name", "Its name, one of a kind.", item_name());
    let path = table.required(
        "path",
        "The ext4 image; relative to the spec.",
        host_path(base),
    );
    let mountpoint = table.required("mountpoint", MOUNTPOINT, guest_path());
    let mode = table.default("mode", "ro", ACCESS, access());
    table.absent(&[
        (
            "sourcePath",
            "the image is attached where it is; write path",
        ),
        ("bundle", "write an archive under bundles"),
    ]);
    table.build(move |_, _| {
        let (name, path, mountpoint) = (name.take(), path.take(), mountpoint.take());
        Some(Volume::disk(name?, path?, mountpoint?).writable(mode.take()?))
    })
}

pub(super) fn bundle(base: &Rc<Path>) -> Kind<Volume> {
    let mut table = Table::new("a table");
    let name = table.required("name", "Its name, one of a kind.", item_name());
    let path = table.required(
        "path",
        "The archive: a tar, plain or compressed with gzip or zstd; relative to the spec.",
        host_path(base),
    );
    let mountpoint = table.required("mountpoint", MOUNTPOINT, guest_path());
    let mode = table.default("mode", "ro", ACCESS, access());
    table.build(move |_, _| {
        let (name, path, mountpoint) = (name.take(), path.take(), mountpoint.take());
        Some(Volume::bundle(name?, path?, mountpoint?).writable(mode.take()?))
    })
}
