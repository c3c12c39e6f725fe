//! The options that connect a workspace, as `run` and `create` share them.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use microagent::{Error, InvalidVolume, MediationRoute, PublishedPort, Volume, Wiring};

use crate::surroundings;

/// What connects a workspace besides its root disks.
#[derive(Debug, Args)]
pub(crate) struct WiringArgs {
    #[command(flatten)]
    volumes: Volumes,
    /// Let a TCP port of the host lead to one of the guest's loopback; host port 0 picks a free
    /// one, without HOST it is 127.0.0.1; repeatable
    #[arg(
        long,
        short,
        value_name = "[HOST:]HPORT:GPORT",
        help_heading = "Connections"
    )]
    publish: Vec<PublishedPort>,
    /// Let guest programs reach a server of the host: at the guest's loopback, TCP port PORT, at
    /// /run/microagent/mediation/PORT.sock, and at vsock port PORT of CID 2; repeatable
    #[arg(
        long,
        value_name = "PORT=HOST:PORT|unix:/PATH",
        help_heading = "Connections"
    )]
    mediation: Vec<MediationRoute>,
    /// Boot even if a mediation's server does not answer
    #[arg(long, requires = "mediation", help_heading = "Connections")]
    mediation_optional: bool,
}

impl WiringArgs {
    /// Whether a port of the host is to be picked.
    pub(crate) fn wants_free_ports(&self) -> bool {
        self.publish.iter().any(|port| port.host_port == 0)
    }

    /// The library's wiring. Relative paths are from here.
    pub(crate) fn into_wiring(self) -> Result<Wiring, Error> {
        let mut wiring = Wiring::default();
        for volume in self.volumes.0 {
            let path = surroundings::absolute(volume.path())?;
            wiring = wiring.volume(volume.with_path(path));
        }
        for port in self.publish {
            wiring = wiring.publish(port);
        }
        for mut route in self.mediation {
            route.required = !self.mediation_optional;
            wiring = wiring.mediation(route);
        }
        Ok(wiring)
    }
}

/// The volumes of three options, in the order they were given.
#[derive(Debug)]
struct Volumes(Vec<Volume>);

type Parse = fn(&str) -> Result<Volume, InvalidVolume>;

/// Each option, its letter, its value, its help and its reader.
const OPTIONS: [(&str, Option<char>, &str, &str, Parse); 3] = [
    (
        "volume",
        Some('v'),
        "SRC:DST[:ro|rw]",
        "Mount a disk at DST, ro unless told: SRC is a tar (.tar, .tar.gz, .tgz, .tar.zst), made \
         into a disk of the workspace, or an ext4 image (.ext4, .img); repeatable, in order",
        |text| text.parse(),
    ),
    (
        "disk",
        None,
        "NAME=IMAGE:DST[:ro|rw]",
        "Mount an ext4 image, whatever its suffix, by a name of its own",
        Volume::parse_disk,
    ),
    (
        "bundle",
        None,
        "NAME=TAR:DST[:ro|rw]",
        "Mount a disk made of a tar, whatever its suffix, by a name of its own",
        Volume::parse_bundle,
    ),
];

impl Args for Volumes {
    fn augment_args(command: Command) -> Command {
        OPTIONS
            .into_iter()
            .fold(command, |command, (name, short, value, help, parse)| {
                command.arg(
                    Arg::new(name)
                        .long(name)
                        .short(short)
                        .value_name(value)
                        .help(help)
                        .help_heading("Connections")
                        .action(ArgAction::Append)
                        .value_parser(parse),
                )
            })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Volumes {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut volumes: Vec<(usize, Volume)> = OPTIONS
            .iter()
            .flat_map(|(name, ..)| {
                let places = matches.indices_of(name).into_iter().flatten();
                let volumes = matches.get_many(name).into_iter().flatten().cloned();
                places.zip(volumes)
            })
            .collect();
        volumes.sort_by_key(|(place, _)| *place);
        Ok(Self(
            volumes.into_iter().map(|(_, volume)| volume).collect(),
        ))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        wiring: WiringArgs,
    }

    fn wiring(words: &[&str]) -> Result<Wiring, clap::Error> {
        let line: Line = clap::Parser::try_parse_from(["x"].iter().chain(words))?;
        Ok(line.wiring.into_wiring().unwrap())
    }

    #[test]
    fn volumes_keep_their_order_whatever_option_they_came_by() {
        let wiring = wiring(&[
            "--bundle",
            "b=b.tar:/one",
            "-v",
            "/v.ext4:/two:rw",
            "--disk",
            "d=/d:/three",
            "--volume=w.tgz:/four",
        ])
        .unwrap();
        let expected = Wiring::default()
            .volume(Volume::parse_bundle("b=b.tar:/one").unwrap())
            .volume("/v.ext4:/two:rw".parse().unwrap())
            .volume(Volume::parse_disk("d=/d:/three").unwrap())
            .volume("w.tgz:/four".parse().unwrap());
        assert_ne!(wiring, expected, "relative paths are made absolute");
        let shown = format!("{wiring:?}");
        let places: Vec<_> = ["/one", "/two", "/three", "/four"]
            .map(|mountpoint| shown.find(mountpoint).unwrap())
            .into();
        assert!(places.is_sorted(), "{shown}");
    }

    #[test]
    fn routes_are_required_unless_told_otherwise() {
        for (words, required) in [
            (&["--mediation", "2048=a:1"][..], true),
            (&["--mediation-optional", "--mediation", "2048=a:1"], false),
        ] {
            let mut route: MediationRoute = "2048=a:1".parse().unwrap();
            route.required = required;
            assert_eq!(wiring(words).unwrap(), Wiring::default().mediation(route));
        }
        assert!(wiring(&["--mediation-optional"]).is_err());
    }

    #[test]
    fn mistakes_are_answered_with_what_would_be_right() {
        for (words, hint) in [
            (["-v", "/tmp:/data"], "microagent cp"),
            (["-v", "cache:/data"], "no named volumes"),
            (["-p", "80"], "HOSTPORT:GUESTPORT"),
            (["-p", "80:80/udp"], "only TCP"),
            (["--mediation", "80=a:1"], "1025"),
            (["--disk", "x:/data"], "'='"),
        ] {
            let error = wiring(&words).unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
        }
    }
}
