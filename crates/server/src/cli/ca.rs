//! `holdfast ca`: authorities whose certificates devices may present.

use std::path::PathBuf;

use clap::Subcommand;
use holdfast_program::failure::Failure;
use serde_json::{Value, json};

use super::Global;
use super::client::segment;
use super::output::line;

const ROOT: &str = "/holdfast/v1/certificates";

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Upload a CA certificate
    #[command(
        after_help = "Without --verified the authority counts only after a proof that you hold its key: see `holdfast ca verify`.\n\nExample:\n  holdfast ca add plant-ca --certificate plant-ca.pem --verified"
    )]
    Add {
        /// Name of the authority on the hub
        name: String,
        /// The certificate, PEM or DER
        #[arg(long, short, value_name = "FILE")]
        certificate: PathBuf,
        /// Vouch for it: no proof of its key is needed
        #[arg(long)]
        verified: bool,
    },
    /// Prove that you hold the key of an authority
    #[command(
        after_help = "First without --certificate: prints a code. Sign a certificate whose common name is the code with the CA's key:\n  openssl req -new -newkey rsa:2048 -nodes -keyout proof.key -subj \"/CN=CODE\" -out proof.csr\n  openssl x509 -req -in proof.csr -CA plant-ca.pem -CAkey plant-ca.key -CAcreateserial -days 1 -out proof.pem\nThen:\n  holdfast ca verify plant-ca --certificate proof.pem"
    )]
    Verify {
        /// Name of the authority on the hub
        name: String,
        /// The certificate that proves it, PEM or DER
        #[arg(long, short, value_name = "FILE")]
        certificate: Option<PathBuf>,
    },
    /// List authorities
    List,
    /// Show an authority
    Show {
        /// Name of the authority on the hub
        name: String,
    },
    /// Delete an authority; its devices can no longer connect
    Delete {
        /// Name of the authority on the hub
        name: String,
    },
}

impl Command {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = global.client()?;
        let output = global.output();
        let path = |name: &str| format!("{ROOT}/{}", segment(name));
        match self {
            Command::Add {
                name,
                certificate,
                verified,
            } => {
                let body = json!({ "certificate": certificate_text(&certificate)?, "isVerified": verified });
                output.object(&client.put(path(&name)).json(body).send()?)
            }
            Command::Verify {
                name,
                certificate: None,
            } => {
                let answer = client
                    .post(format!("{}/generateVerificationCode", path(&name)))
                    .send()?;
                let code = answer
                    .pointer("/properties/verificationCode")
                    .or_else(|| answer.get("verificationCode"))
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                output.outcome(
                    &format!(
                        "verification code: {code}\nsign a certificate whose common name is this code with the CA's key, then:\n  holdfast ca verify {name} --certificate FILE"
                    ),
                    &answer,
                )
            }
            Command::Verify {
                name,
                certificate: Some(certificate),
            } => {
                let body = json!({ "certificate": certificate_text(&certificate)? });
                output.object(&client.post(format!("{}/verify", path(&name))).json(body).send()?)
            }
            Command::List => {
                let list = client.get(ROOT).send()?;
                let list = list
                    .get("value")
                    .unwrap_or(&list)
                    .as_array()
                    .cloned()
                    .unwrap_or_default();
                if list.is_empty() && output == super::output::Format::Table {
                    return line("no authorities; `holdfast ca add` uploads one");
                }
                output.list(
                    &list,
                    &[
                        ("name", "/name"),
                        ("subject", "/properties/subject"),
                        ("verified", "/properties/isVerified"),
                        ("expiry", "/properties/expiry"),
                        ("thumbprint", "/properties/thumbprint"),
                    ],
                )
            }
            Command::Show { name } => output.object(&client.get(path(&name)).send()?),
            Command::Delete { name } => {
                client.delete(path(&name)).send()?;
                output.outcome(
                    &format!("authority {name} deleted"),
                    &json!({ "name": name, "deleted": true }),
                )
            }
        }
    }
}

/// PEM as it stands, DER as base64.
pub(super) fn certificate_text(path: &std::path::Path) -> anyhow::Result<String> {
    use base64::Engine as _;
    let bytes = std::fs::read(path).map_err(|error| {
        Failure::usage(format!("cannot read the certificate {}: {error}", path.display()))
    })?;
    if bytes.starts_with(&[0x30]) {
        return Ok(base64::engine::general_purpose::STANDARD.encode(bytes));
    }
    String::from_utf8(bytes)
        .map_err(|_| Failure::usage(format!("{} is neither PEM nor DER", path.display())).into())
}
