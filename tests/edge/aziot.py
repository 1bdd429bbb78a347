"""A device that is configured by a `config.toml` of the original runtime."""

import json
from pathlib import Path

from device import EdgeDevice, edge_binary, wait_until


class AziotDevice(EdgeDevice):
    """A device with a `config.toml` of the original, whose hub is told or assigned as that file says."""

    def __init__(self, machine, device_id, folder, provisioning, *, protocol="amqp", mode=None):
        self.machine, self.id, self.folder = machine, device_id, Path(folder)
        self.hub = machine.site.hub
        self.process = self.hosts = self.reporting_run = self.former_run = None
        self.home = self.folder / "home"
        self.config = self.folder / "config.toml"
        self.log = machine.folder / f"{device_id}.log"
        self.binary = edge_binary()
        self.protocol, self.mode = protocol, mode
        self.folder.mkdir(parents=True, exist_ok=True)
        self.configure(provisioning)

    def configure(self, provisioning):
        """Writes the file; `provisioning` is everything from `[provisioning]` on."""
        ports = self.hub.ports
        mode = f'auto_reprovisioning_mode = "{self.mode}"\n' if self.mode else ""
        self.config.write_text(f"""\
hostname = "{self.id}"
{mode}
{provisioning}

[connect]
workload_uri = "unix://{self.folder}/workload.sock"
management_uri = "unix://{self.folder}/mgmt.sock"

[listen]
workload_uri = "unix://{self.folder}/workload.sock"
management_uri = "unix://{self.folder}/mgmt.sock"

[moby_runtime]
uri = "{self.machine.engine_socket}"
network = "azure-iot-edge"

[holdfast]
home = "{self.home}"

[holdfast.upstream]
protocol = "{self.protocol}"
ca = "{self.hub.ca}"
amqp_port = {ports["amqp"]}
mqtt_port = {ports["mqtt"]}
https_port = {ports["https"]}

[holdfast.observe]
filter = "info,holdfast_agent=debug"
""")
        self.config.chmod(0o600)

    def works(self):
        """Becomes connected, takes an empty deployment and reports it; and so again with what it has kept."""
        self.start()
        wait_until(lambda: self.hub.request("GET", f"/devices/{self.id}")[0] == 200, f"{self.id} to exist", 30)
        version = self.deploy({})
        self.wait_status(200, version)
        for own in ("%24edgeAgent", "%24edgeHub"):
            path = f"/devices/{self.id}/modules/{own}"
            wait_until(lambda: self.hub.ok("GET", path)["connectionState"] == "Connected", f"{own} to be connected", 30)
        return self

    def check(self):
        """What `check` finds, by name."""
        done = self.cli("check", "--output", "json", "--dont-run", "host-local-time", check=False)
        return json.loads(done.stdout)["checks"]

    def ended(self, seconds=30):
        """Waits until the daemon has ended by itself; its exit code."""
        return self.process.wait(timeout=seconds)

    def wait_log(self, words, seconds=30):
        def said():
            return all(word in self.log_text() for word in words)

        try:
            wait_until(said, f"the log to say {words}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log_tail()}") from None


def dps(hub, attestation):
    return f"""\
[provisioning]
source = "dps"
global_endpoint = "https://{hub.dps_host}:{hub.ports["https"]}"
id_scope = "{hub.id_scope}"

[provisioning.attestation]
{attestation}
"""
