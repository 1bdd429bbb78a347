//! `holdfast statistics`.

use serde_json::Value;

use super::Global;

pub(super) fn run(global: &Global) -> anyhow::Result<()> {
    let client = global.client()?;
    let mut statistics = client.get("/statistics/devices").send()?;
    let service = client.get("/statistics/service").send()?;
    if let (Value::Object(all), Value::Object(service)) = (&mut statistics, service) {
        all.extend(service);
    }
    global.output().object(&statistics)
}
