//! `holdfast dps group access`: which devices of a group are let in.

use clap::Args;
use holdfast_program::failure::Failure;
use serde_json::{Value, json};

use super::super::Global;
use super::client;
use crate::cli::client::segment;

#[derive(Args, Debug)]
#[command(
    after_help = "An entry is a registration id, in which * stands for any characters. A device is let in that is allowed (or the list\nis empty) and not denied. What is given replaces the list of that kind. Devices that are on a hub already stay there;\n`holdfast device update ID --status disabled` shuts one out.\n\nExamples:\n  holdfast dps group access line-4                             show the lists\n  holdfast dps group access line-4 --deny press-13             everybody but one\n  holdfast dps group access line-4 --allow 'press-*' --allow spare\n  holdfast dps group access line-4 --clear"
)]
pub(in crate::cli) struct Access {
    /// Group id
    id: String,
    /// Who may register, may be given several times
    #[arg(long, value_name = "PATTERN")]
    allow: Vec<String>,
    /// Who may not, may be given several times
    #[arg(long, value_name = "PATTERN")]
    deny: Vec<String>,
    /// Begin with empty lists
    #[arg(long)]
    clear: bool,
}

impl Access {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let client = client(global)?;
        let path = format!("/holdfast/v1/enrollmentGroups/{}/access", segment(&self.id));
        let present = client.get(path.clone()).send()?;
        if self.allow.is_empty() && self.deny.is_empty() && !self.clear {
            return global.output().object(&present);
        }
        let list = |given: Vec<String>, name: &str| match (given.is_empty(), self.clear) {
            (false, _) => json!(given),
            (true, true) => json!([]),
            (true, false) => present[name].clone(),
        };
        let tag = present.get("etag").and_then(Value::as_str);
        let tag = tag.ok_or_else(|| Failure::usage("the service told no entity tag"))?;
        let body = json!({ "allow": list(self.allow, "allow"), "deny": list(self.deny, "deny") });
        let call = client.put(path).if_match(Some(tag)).json(body);
        global.output().object(&call.send()?)
    }
}
