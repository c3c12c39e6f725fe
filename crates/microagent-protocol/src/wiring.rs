//! What connects a machine to its host besides its root disks: extra disks, published ports,
//! mediation routes and declared artifacts. The texts they are read from are the same on the
//! command line and in a spec.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use serde::{Deserialize, Serialize};

/// The most extra disks of a machine.
pub const MAX_DISKS: usize = 16;

/// The most published ports of a machine.
pub const MAX_PUBLISHED: usize = 64;

/// The most mediation routes of a machine.
pub const MAX_MEDIATION: usize = 16;

/// The most declared artifacts of a workspace.
pub const MAX_ARTIFACTS: usize = 64;

/// A text that does not say what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{input:?} is not {what}: {reason}; write {form}")]
pub struct InvalidWiring {
    input: String,
    what: &'static str,
    reason: String,
    form: &'static str,
}

impl InvalidWiring {
    fn new(input: &str, what: &'static str, form: &'static str, reason: impl Into<String>) -> Self {
        Self {
            input: input.chars().take(200).collect(),
            what,
            reason: reason.into(),
            form,
        }
    }
}

/// The name of an extra disk or an artifact: 1 to 63 of `a-z`, `A-Z`, `0-9`, `.`, `_` and `-`,
/// starting with a letter or digit. It is a safe file name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(extend("pattern" = "^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")))]
#[serde(try_from = "String", into = "String")]
pub struct ItemName(String);

impl ItemName {
    const FORM: &'static str =
        "1 to 63 of a-z, A-Z, 0-9, '.', '_' and '-', starting with a letter or digit";

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for ItemName {
    type Error = InvalidWiring;

    fn try_from(input: String) -> Result<Self, Self::Error> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        let starts = input
            .bytes()
            .next()
            .is_some_and(|b| b.is_ascii_alphanumeric());
        if starts && input.len() <= 63 && input.bytes().all(allowed) {
            return Ok(Self(input));
        }
        let reason = "its length, its first character or another one is not allowed";
        Err(InvalidWiring::new(&input, "a name", Self::FORM, reason))
    }
}

impl FromStr for ItemName {
    type Err = InvalidWiring;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        input.to_owned().try_into()
    }
}

impl From<ItemName> for String {
    fn from(name: ItemName) -> Self {
        name.0
    }
}

impl fmt::Display for ItemName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An absolute path in the guest: no NUL, no `.` or `..` components, at most 1,024 bytes, and not
/// the root itself.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[cfg_attr(test, schemars(extend("pattern" = "^/", "maxLength" = 1024)))]
#[serde(try_from = "String", into = "String")]
pub struct GuestPath(String);

impl GuestPath {
    const FORM: &'static str = "an absolute path without . and .. (/data)";

    /// The longest path, in bytes.
    pub const MAX_LEN: usize = 1024;

    /// The path as text; it has no slash at its end.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for GuestPath {
    type Error = InvalidWiring;

    fn try_from(input: String) -> Result<Self, Self::Error> {
        let reason = if !input.starts_with('/') {
            "it is not absolute"
        } else if input.len() > Self::MAX_LEN {
            "it is too long"
        } else if input.contains('\0') {
            "it has a NUL byte"
        } else if input.split('/').any(|part| part == "." || part == "..") {
            "it has a . or .. in it"
        } else {
            let parts: Vec<&str> = input.split('/').filter(|part| !part.is_empty()).collect();
            if !parts.is_empty() {
                return Ok(Self(format!("/{}", parts.join("/"))));
            }
            "it is the root"
        };
        Err(InvalidWiring::new(
            &input,
            "a guest path",
            Self::FORM,
            reason,
        ))
    }
}

impl FromStr for GuestPath {
    type Err = InvalidWiring;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        input.to_owned().try_into()
    }
}

impl From<GuestPath> for String {
    fn from(path: GuestPath) -> Self {
        path.0
    }
}

impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A disk beside base and scratch, mounted by the guest agent before anything runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ExtraDisk {
    /// Its name, one of a kind in a machine.
    pub name: ItemName,
    /// The ext4 image file.
    pub path: PathBuf,
    /// Where it is mounted; made if missing.
    pub mountpoint: GuestPath,
    /// Whether the VMM refuses writes.
    pub read_only: bool,
}

/// A TCP port of the host that leads to a TCP port of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PublishedPort {
    /// The host's address to listen at.
    pub host: IpAddr,
    /// The host's port; 0 picks a free one.
    pub host_port: u16,
    /// The port in the guest, on its loopback; never 0.
    pub guest_port: u16,
}

impl PublishedPort {
    const WHAT: &'static str = "a port to publish";
    const FORM: &'static str =
        "[HOST:]HOSTPORT:GUESTPORT[/tcp] (8080:80, 0:80 for a free port, [::1]:8080:80)";

    /// Where the host listens.
    #[must_use]
    pub fn host_address(&self) -> SocketAddr {
        SocketAddr::new(self.host, self.host_port)
    }
}

impl FromStr for PublishedPort {
    type Err = InvalidWiring;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        let invalid = |reason: &str| InvalidWiring::new(input, Self::WHAT, Self::FORM, reason);
        let (ports, protocol) = input.split_once('/').unwrap_or((input, "tcp"));
        if protocol != "tcp" {
            return Err(invalid("only TCP can be published"));
        }
        let (front, guest) = ports
            .rsplit_once(':')
            .ok_or_else(|| invalid("it has no ':' between the two ports"))?;
        let (host, host_port) = match front.rsplit_once(':') {
            None => (IpAddr::V4(Ipv4Addr::LOCALHOST), front),
            Some((host, port)) => {
                let bare = host
                    .strip_prefix('[')
                    .and_then(|host| host.strip_suffix(']'))
                    .unwrap_or(host);
                let host = match bare {
                    "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
                    bare => bare
                        .parse()
                        .map_err(|_| invalid("the host is not an IP address"))?,
                };
                (host, port)
            }
        };
        let port = |text: &str| -> Result<u16, InvalidWiring> {
            text.parse()
                .map_err(|_| invalid("a port is a number from 0 to 65535"))
        };
        let published = Self {
            host,
            host_port: port(host_port)?,
            guest_port: port(guest)?,
        };
        if published.guest_port == 0 {
            return Err(invalid("the guest's port cannot be 0"));
        }
        Ok(published)
    }
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}/tcp", self.host_address(), self.guest_port)
    }
}

/// Where a mediation route leads on the host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(try_from = "String", into = "String")]
pub enum MediationTarget {
    /// A TCP server, by name or address.
    Tcp {
        /// Its host.
        host: String,
        /// Its port.
        port: u16,
    },
    /// A server at a Unix socket, by its absolute path.
    Unix(PathBuf),
}

impl MediationTarget {
    const FORM: &'static str = "HOST:PORT or unix:/path";
}

impl FromStr for MediationTarget {
    type Err = InvalidWiring;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        let invalid =
            |reason: &str| InvalidWiring::new(input, "a mediation target", Self::FORM, reason);
        if let Some(path) = input.strip_prefix("unix:") {
            if !path.starts_with('/') || path.contains('\0') {
                return Err(invalid("the socket's path is not absolute"));
            }
            return Ok(Self::Unix(path.into()));
        }
        let (host, port) = input
            .rsplit_once(':')
            .ok_or_else(|| invalid("it has no port"))?;
        let host = host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(host);
        let named = !host.is_empty()
            && host
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b".:-_".contains(&byte));
        match port.parse() {
            Ok(port) if named && port != 0 => Ok(Self::Tcp {
                host: host.to_owned(),
                port,
            }),
            Ok(_) => Err(invalid(
                "the host is not a name or an address, or the port is 0",
            )),
            Err(_) => Err(invalid("the port is not a number from 1 to 65535")),
        }
    }
}

impl TryFrom<String> for MediationTarget {
    type Error = InvalidWiring;

    fn try_from(input: String) -> Result<Self, Self::Error> {
        input.parse()
    }
}

impl From<MediationTarget> for String {
    fn from(target: MediationTarget) -> Self {
        target.to_string()
    }
}

impl fmt::Display for MediationTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// A way from the guest to one server of the host. Guest programs reach it at vsock port `port`
/// of the host, at TCP port `port` of the guest's loopback, and at the guest's Unix socket
/// [`MediationRoute::socket`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MediationRoute {
    /// The port in the guest, 1025 to 65535.
    pub port: u16,
    /// Where it leads.
    pub target: MediationTarget,
    /// Whether the machine may only run while the target can be reached at its start.
    pub required: bool,
    /// The most connections at a time; further ones are refused.
    pub max_connections: u32,
}

impl MediationRoute {
    const WHAT: &'static str = "a mediation route";
    const FORM: &'static str = "PORT=HOST:PORT or PORT=unix:/path, PORT from 1025 to 65535 \
         (2048=127.0.0.1:9900)";

    /// The lowest port; those below are microagent's own.
    pub const MIN_PORT: u16 = 1025;

    /// [`Self::max_connections`] where nothing else is said.
    pub const DEFAULT_CONNECTIONS: u32 = 128;

    /// The guest's Unix socket of a route at `port`.
    #[must_use]
    pub fn socket(port: u16) -> String {
        format!("/run/microagent/mediation/{port}.sock")
    }
}

impl FromStr for MediationRoute {
    type Err = InvalidWiring;

    /// Reads a required route with the default limit.
    fn from_str(input: &str) -> Result<Self, Self::Err> {
        let invalid = |reason: String| InvalidWiring::new(input, Self::WHAT, Self::FORM, reason);
        let (port, target) = input
            .split_once('=')
            .ok_or_else(|| invalid("it has no '='".to_owned()))?;
        let port = port
            .parse()
            .ok()
            .filter(|port| *port >= Self::MIN_PORT)
            .ok_or_else(|| invalid("the port is not a number from 1025 to 65535".to_owned()))?;
        Ok(Self {
            port,
            target: target
                .parse()
                .map_err(|error: InvalidWiring| invalid(error.reason))?,
            required: true,
            max_connections: Self::DEFAULT_CONNECTIONS,
        })
    }
}

impl fmt::Display for MediationRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.port, self.target)
    }
}

/// A file or directory of the guest that is to be taken out by its name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeclaredArtifact {
    /// Its name, one of a kind in a workspace.
    pub name: ItemName,
    /// Where it is in the guest.
    pub path: GuestPath,
}

impl FromStr for DeclaredArtifact {
    type Err = InvalidWiring;

    fn from_str(input: &str) -> Result<Self, Self::Err> {
        let invalid =
            |reason: String| InvalidWiring::new(input, "an artifact", "NAME=/guest/path", reason);
        let (name, path) = input
            .split_once('=')
            .ok_or_else(|| invalid("it has no '='".to_owned()))?;
        Ok(Self {
            name: name
                .parse()
                .map_err(|error: InvalidWiring| invalid(format!("name: {}", error.reason)))?,
            path: path
                .parse()
                .map_err(|error: InvalidWiring| invalid(format!("path: {}", error.reason)))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_bind_the_loopback_unless_told_otherwise() {
        for (text, shown) in [
            ("8080:80", "127.0.0.1:8080:80/tcp"),
            ("0:80/tcp", "127.0.0.1:0:80/tcp"),
            ("0.0.0.0:8080:80", "0.0.0.0:8080:80/tcp"),
            ("[::1]:8080:80", "[::1]:8080:80/tcp"),
            ("localhost:1:2", "127.0.0.1:1:2/tcp"),
        ] {
            assert_eq!(text.parse::<PublishedPort>().unwrap().to_string(), shown);
        }
        for bad in [
            "80", "a:80", "80:0", "1:2/udp", "70000:1", "host:1:2", "", ":", "1:2:3:4",
        ] {
            let error = bad.parse::<PublishedPort>().unwrap_err().to_string();
            assert!(error.contains("HOSTPORT:GUESTPORT"), "{error}");
        }
    }

    #[test]
    fn routes_are_required_unless_told_otherwise() {
        let route: MediationRoute = "2048=127.0.0.1:9900".parse().unwrap();
        assert!(route.required && route.port == 2048);
        assert_eq!(route.to_string(), "2048=127.0.0.1:9900");
        let route: MediationRoute = "2048=unix:/run/x.sock".parse().unwrap();
        assert_eq!(route.target, MediationTarget::Unix("/run/x.sock".into()));
        let route: MediationRoute = "2048=[::1]:9900".parse().unwrap();
        assert_eq!(route.to_string(), "2048=[::1]:9900");
        for bad in [
            "2048",
            "1024=a:1",
            "2048=a",
            "2048=unix:x",
            "2048=:1",
            "2048=a:0",
            "x=a:1",
        ] {
            assert!(bad.parse::<MediationRoute>().is_err(), "{bad}");
        }
    }

    #[test]
    fn guest_paths_are_absolute_and_plain() {
        assert_eq!("/a//b/".parse::<GuestPath>().unwrap().as_str(), "/a/b");
        for bad in ["", "a", "/", "//", "/a/../b", "/./a", "/a\0"] {
            assert!(bad.parse::<GuestPath>().is_err(), "{bad}");
        }
        assert!(serde_json::from_str::<GuestPath>("\"/a/../../etc\"").is_err());
    }

    #[test]
    fn artifacts_have_names_that_are_file_names() {
        let artifact: DeclaredArtifact = "report=/out/report.json".parse().unwrap();
        assert_eq!(artifact.name.as_str(), "report");
        for bad in ["report", "=/x", "../a=/x", "a/b=/x", ".a=/x", "a=x", "-=/x"] {
            assert!(bad.parse::<DeclaredArtifact>().is_err(), "{bad}");
        }
    }
}
