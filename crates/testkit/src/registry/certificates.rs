//! Certificates for a registry that speaks TLS.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::tool::run_tool;

/// Certificates for 127.0.0.1, signed by an authority nobody knows.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// The authority's certificate (PEM file).
    pub authority: PathBuf,
    /// The server's certificate (PEM file).
    pub certificate: PathBuf,
    /// The server's key (PEM file).
    pub key: PathBuf,
}

impl Certificates {
    /// Makes them in `directory`.
    ///
    /// # Errors
    /// When `openssl` is missing or fails.
    pub fn make(directory: &Path) -> Result<Self> {
        let file = |name: &str| directory.join(name);
        let openssl = |arguments: &[&str]| {
            let mut command = Command::new("openssl");
            command.current_dir(directory).args(arguments);
            run_tool("openssl", &mut command)
        };
        fs::write(
            file("leaf.ext"),
            "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n",
        )?;
        let key = [
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
        ];
        openssl(
            &[
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
                &key[..],
            ]
            .concat(),
        )?;
        openssl(
            &[
                &[
                    "req", "-subj", "/CN=leaf", "-keyout", "leaf.key", "-out", "leaf.csr",
                ],
                &key[..],
            ]
            .concat(),
        )?;
        openssl(&[
            "x509",
            "-req",
            "-days",
            "2",
            "-in",
            "leaf.csr",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-extfile",
            "leaf.ext",
            "-out",
            "leaf.pem",
        ])?;
        Ok(Self {
            authority: file("ca.pem"),
            certificate: file("leaf.pem"),
            key: file("leaf.key"),
        })
    }
}
