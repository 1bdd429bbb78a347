//! `holdfast dps certificate`: authorities whose certificates enrollments name by `--ca-name`.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};

use super::super::Global;
use super::super::ca::certificate_text;
use super::super::output::{Format, line};
use super::{client, deleted, entry_path};

const ROOT: &str = "/holdfast/v1/provisioning/certificates";

#[derive(Subcommand, Debug)]
pub(in crate::cli) enum Command {
    /// Upload a CA certificate
    #[command(
        after_help = "The authorities are those of the hub of this process (`holdfast ca`). Without --verified one counts only after a\nproof that you hold its key: see `holdfast dps certificate verify`.\n\nExample:\n  holdfast dps certificate upload plant-ca --certificate plant-ca.pem\n  holdfast dps group create line-4 --ca-name plant-ca"
    )]
    Upload {
        /// Name of the authority
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
        after_help = "First without --certificate: prints a code. Sign a certificate whose common name is the code with the CA's key:\n  openssl req -new -newkey rsa:2048 -nodes -keyout proof.key -subj \"/CN=CODE\" -out proof.csr\n  openssl x509 -req -in proof.csr -CA plant-ca.pem -CAkey plant-ca.key -CAcreateserial -days 1 -out proof.pem\nThen:\n  holdfast dps certificate verify plant-ca --certificate proof.pem"
    )]
    Verify {
        /// Name of the authority
        name: String,
        /// The certificate that proves it, PEM or DER
        #[arg(long, short, value_name = "FILE")]
        certificate: Option<PathBuf>,
    },
    /// List authorities
    List,
    /// Show an authority
    Show {
        /// Name of the authority
        name: String,
    },
    /// Delete an authority; its devices can neither register nor connect any more
    Delete {
        /// Name of the authority
        name: String,
    },
}

impl Command {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = client(global)?;
        let output = global.output();
        match self {
            Command::Upload {
                name,
                certificate,
                verified,
            } => {
                let body = json!({ "certificate": certificate_text(&certificate)?, "isVerified": verified });
                output.object(&client.put(entry_path(ROOT, &name)).json(body).send()?)
            }
            Command::Verify {
                name,
                certificate: None,
            } => {
                let path = format!("{}/generateVerificationCode", entry_path(ROOT, &name));
                let answer = client.post(path).send()?;
                let code = answer
                    .pointer("/properties/verificationCode")
                    .and_then(Value::as_str);
                output.outcome(
                    &format!(
                        "verification code: {}\nsign a certificate whose common name is this code with the CA's key, then:\n  holdfast dps certificate verify {name} --certificate FILE",
                        code.unwrap_or_default()
                    ),
                    &answer,
                )
            }
            Command::Verify {
                name,
                certificate: Some(certificate),
            } => {
                let body = json!({ "certificate": certificate_text(&certificate)? });
                let path = format!("{}/verify", entry_path(ROOT, &name));
                output.object(&client.post(path).json(body).send()?)
            }
            Command::List => {
                let list = client.get(ROOT).send()?.as_array().cloned().unwrap_or_default();
                if list.is_empty() && output == Format::Table {
                    return line("no authorities; `holdfast dps certificate upload` uploads one");
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
            Command::Show { name } => output.object(&client.get(entry_path(ROOT, &name)).send()?),
            Command::Delete { name } => {
                client.delete(entry_path(ROOT, &name)).send()?;
                deleted(output, "authority", &name)
            }
        }
    }
}
