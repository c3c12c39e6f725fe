//! A token service in front of a real registry: users, namespaces, identity tokens, tokens that expire.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::json;

use super::scripted::{Answer, Request, Scripted};
use super::tool::run_tool;

/// What a registry and its token service call each other.
const SERVICE: &str = "the test registry";
const ISSUER: &str = "the test authority";
/// For how long after its end Debian's registry still takes a token, in seconds.
const LEEWAY: u64 = 60;

/// A service that gives tokens (JWT, RS256) which Debian's `docker-registry` accepts. Whoever logs in may
/// read everything, and write everything but what is below `public/`, which everybody may read.
#[derive(Clone, Debug)]
pub struct Tokens {
    server: Scripted,
    authority: PathBuf,
    asked: Arc<Mutex<Vec<Asked>>>,
}

/// What the service was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// `GET` or `POST`.
    pub method: String,
    /// Who asked: a user, `(identity)` or nobody.
    pub who: Option<String>,
    /// For what.
    pub scope: String,
}

/// Whom the service knows, and how long its tokens are good.
#[derive(Clone, Debug)]
pub struct TokenSetup {
    /// The one user, and the password.
    pub login: (String, String),
    /// An identity token of that user.
    pub identity: String,
    /// For how many seconds a registry takes a token.
    pub good_for: u64,
}

impl Default for TokenSetup {
    fn default() -> Self {
        Self {
            login: ("alice".into(), "s3cret".into()),
            identity: "an identity token".into(),
            good_for: 300,
        }
    }
}

impl Tokens {
    /// Starts one, with its key and certificate in `directory`.
    ///
    /// # Errors
    /// When `openssl` is missing or fails.
    pub fn start(directory: &Path, setup: TokenSetup) -> Result<Self> {
        let mut command = Command::new("openssl");
        command.current_dir(directory).args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=the test authority",
            "-keyout",
            "token.key",
            "-out",
            "token.pem",
        ]);
        run_tool("openssl", &mut command)?;
        let authority = directory.join("token.pem");
        let certificate: String = fs::read_to_string(&authority)?
            .lines()
            .filter(|line| !line.starts_with("-----"))
            .collect();
        let signer = Signer {
            key: directory.join("token.key"),
            certificate,
        };
        let asked = Arc::<Mutex<Vec<Asked>>>::default();
        let log = Arc::clone(&asked);
        let server = Scripted::start(move |request| {
            let (who, answer) = answer(request, &setup, &signer);
            let entry = Asked {
                method: request.method.clone(),
                who,
                scope: parameters(request, "scope").join(" "),
            };
            log.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(entry);
            answer
        });
        Ok(Self {
            server,
            authority,
            asked,
        })
    }

    /// Where tokens are had.
    #[must_use]
    pub fn realm(&self) -> String {
        format!("http://{}/token", self.server.name())
    }

    /// Everything it was asked for so far.
    #[must_use]
    pub fn asked(&self) -> Vec<Asked> {
        let asked = self.asked.lock();
        asked.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The `auth` section of a registry that takes its tokens.
    pub(super) fn section(&self) -> serde_json::Value {
        json!({"token": {
            "realm": self.realm(),
            "service": SERVICE,
            "issuer": ISSUER,
            "rootcertbundle": self.authority,
        }})
    }
}

fn answer(request: &Request, setup: &TokenSetup, signer: &Signer) -> (Option<String>, Answer) {
    let refused = || Answer::new("401 Unauthorized");
    let who = match (request.method.as_str(), request.header("authorization")) {
        ("POST", _) => match parameter(request, "refresh_token") {
            Some(token) if token == setup.identity => Some("(identity)".to_owned()),
            _ => return (None, refused()),
        },
        (_, None) => None,
        (_, Some(header)) => {
            let (user, password) = &setup.login;
            let expect = format!("Basic {}", STANDARD.encode(format!("{user}:{password}")));
            if header != expect {
                return (None, refused());
            }
            Some(user.clone())
        }
    };
    // A query names each scope by itself, a form all of them in one.
    let scopes = parameters(request, "scope").join(" ");
    let access: Vec<serde_json::Value> = scopes
        .split(' ')
        .filter_map(|scope| grant(scope, who.is_some()))
        .collect();
    match signer.token(&access, setup.good_for) {
        Ok(token) => {
            let body = json!({"token": token, "expires_in": setup.good_for}).to_string();
            (
                who,
                Answer::new("200 OK")
                    .header("Content-Type", "application/json")
                    .body(body),
            )
        }
        Err(error) => (
            who,
            Answer::new("500 Internal Server Error").body(format!("{error:#}")),
        ),
    }
}

/// What somebody may do of what a scope asks for.
fn grant(scope: &str, known: bool) -> Option<serde_json::Value> {
    let parts: Vec<&str> = scope.split(':').collect();
    let ["repository", name, actions] = parts[..] else {
        return None;
    };
    let is_public = name.starts_with("public/");
    let allowed: Vec<&str> = actions
        .split(',')
        .filter(|action| match *action {
            "pull" => known || is_public,
            "push" => known && !is_public,
            _ => false,
        })
        .collect();
    (!allowed.is_empty()).then(|| json!({"type": "repository", "name": name, "actions": allowed}))
}

/// A parameter of the query or of the form in the body.
fn parameter(request: &Request, name: &str) -> Option<String> {
    parameters(request, name).into_iter().next()
}

/// The same, of which there may be several.
fn parameters(request: &Request, name: &str) -> Vec<String> {
    let query = request
        .target
        .split_once('?')
        .map_or("", |(_, query)| query);
    query
        .split('&')
        .chain(request.body.split('&'))
        .filter_map(|pair| pair.split_once('='))
        .filter(|(key, _)| *key == name)
        .map(|(_, value)| percent_decoded(value))
        .collect()
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match (first, code.and_then(|hex| u8::from_str_radix(hex, 16).ok())) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The service's key, and the certificate that vouches for it.
struct Signer {
    key: PathBuf,
    certificate: String,
}

impl Signer {
    fn token(&self, access: &[serde_json::Value], good_for: u64) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let header = json!({"typ": "JWT", "alg": "RS256", "x5c": [self.certificate]});
        let claims = json!({
            "iss": ISSUER,
            "sub": "somebody",
            "aud": SERVICE,
            "iat": now,
            "nbf": now.saturating_sub(2 * LEEWAY),
            "exp": (now + good_for).saturating_sub(LEEWAY),
            "jti": format!("{now}"),
            "access": access,
        });
        let encode = |value: &serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let signature = self.sign(signed.as_bytes())?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }

    fn sign(&self, bytes: &[u8]) -> Result<Vec<u8>> {
        use std::io::Write as _;
        let mut child = Command::new("openssl")
            .args(["dgst", "-sha256", "-sign"])
            .arg(&self.key)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot run openssl")?;
        child
            .stdin
            .take()
            .context("no standard input")?
            .write_all(bytes)?;
        Ok(child.wait_with_output()?.stdout)
    }
}
