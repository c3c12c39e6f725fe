//! Certificates for a registry that speaks TLS, and for those who ask it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::tool::run_tool;

/// Certificates signed by an authority nobody knows.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// The authority's certificate (PEM file).
    pub authority: PathBuf,
    /// The certificate of a server at 127.0.0.1, 0.0.0.0 or registry.example.com (PEM file).
    pub certificate: PathBuf,
    /// The server's key (PEM file).
    pub key: PathBuf,
    /// A client's certificate (PEM file).
    pub client: PathBuf,
    /// The client's key (PEM file).
    pub client_key: PathBuf,
}

const NEW_KEY: [&str; 5] = [
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:P-256",
    "-nodes",
];

impl Certificates {
    /// Makes them in `directory`, good for two days from now.
    ///
    /// # Errors
    /// When `openssl` is missing or fails.
    pub fn make(directory: &Path) -> Result<Self> {
        openssl(
            directory,
            &[
                "req",
                "-x509",
                "-days",
                "2",
                "-subj",
                "/CN=authority",
                "-keyout",
                "ca.key",
                "-out",
                "ca.pem",
            ],
            &NEW_KEY,
        )?;
        sign(
            directory,
            "leaf",
            "subjectAltName=IP:127.0.0.1,IP:0.0.0.0,DNS:registry.example.com\n",
        )?;
        sign(directory, "client", "extendedKeyUsage=clientAuth\n")?;
        let file = |name: &str| directory.join(name);
        Ok(Self {
            authority: file("ca.pem"),
            certificate: file("leaf.pem"),
            key: file("leaf.key"),
            client: file("client.pem"),
            client_key: file("client.key"),
        })
    }
}

/// Makes `name.pem` and `name.key`, signed by the authority.
fn sign(directory: &Path, name: &str, extensions: &str) -> Result<()> {
    let [key, request, certificate, text] =
        ["key", "csr", "pem", "ext"].map(|end| format!("{name}.{end}"));
    fs::write(
        directory.join(&text),
        format!("{extensions}basicConstraints=CA:FALSE\n"),
    )?;
    let subject = format!("/CN={name}");
    openssl(
        directory,
        &["req", "-subj", &subject, "-keyout", &key, "-out", &request],
        &NEW_KEY,
    )?;
    openssl(
        directory,
        &[
            "x509",
            "-req",
            "-days",
            "2",
            "-in",
            &request,
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-extfile",
            &text,
            "-out",
            &certificate,
        ],
        &[],
    )
}

fn openssl(directory: &Path, arguments: &[&str], more: &[&str]) -> Result<()> {
    let mut command = Command::new("openssl");
    command.current_dir(directory).args(arguments).args(more);
    run_tool("openssl", &mut command)?;
    Ok(())
}
