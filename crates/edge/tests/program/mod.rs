//! The program as a process, in an environment that says nothing to it.

use std::process::{Command, Output};

pub(crate) const CONNECTION_STRING: &str =
    "HostName=hub.example;DeviceId=edge-1;SharedAccessKey=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";

pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_holdfast-edge"));
    for variable in [
        "HOLDFAST_EDGE_CONFIG",
        "IOTEDGE_HOST",
        "HOLDFAST_EDGE_HOME",
        "HOLDFAST_EDGE_LOG",
        "COLUMNS",
        "https_proxy",
        "HTTPS_PROXY",
    ] {
        command.env_remove(variable);
    }
    command
}

pub(crate) fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().expect("the program starts")
}

pub(crate) fn code(output: &Output) -> i32 {
    output.status.code().expect("not ended by a signal")
}
