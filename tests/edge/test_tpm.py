"""A device whose key is in a TPM: a provisioning service knows the TPM, and puts the key for the hub into it."""

import base64
import contextlib
import hashlib
import json
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "clients" / "python"))

from aziot import AziotDevice, dps  # noqa: E402
from device import wait_until  # noqa: E402
from software_tpm import ENDORSEMENT, OWNER, DeviceNode, SoftwareTpm  # noqa: E402
from test_provisioning import management  # noqa: E402


@pytest.fixture
def make_tpm(folder):
    """Makes TPMs that have never been used."""
    made = []

    def make(machine=None):
        tpm = SoftwareTpm(folder / f"t{time.monotonic_ns() % 10**9}", machine)
        made.append(tpm)
        return tpm

    yield make
    for tpm in made:
        tpm.stop()


@pytest.fixture
def tpm(make_tpm):
    return make_tpm()


def by_tpm(hub, registration_id, tpm, more=""):
    """The configuration of a device with this TPM."""
    attestation = dps(hub, f'method = "tpm"\nregistration_id = "{registration_id}"')
    return f'{attestation}\n[tpm]\ntcti = "{tpm.address}"\n{more}'


def told(device, *arguments):
    """What `holdfast-edge tpm` tells."""
    return json.loads(device.cli("tpm", "--output", "json", *arguments).stdout)


def enroll(device):
    """Makes the enrollment from what `holdfast-edge tpm` prints."""
    seen = told(device)
    device.hub.cli("dps", "enrollment", "create", seen["registrationId"], "--edge", "true",
                   "--endorsement-key", seen["endorsementKey"])
    return seen


def enrolled(aziot, hub, name, tpm, **options):
    """A device with an enrollment; not started."""
    device = aziot(name, by_tpm(hub, name, tpm), **options)
    enroll(device)
    return device


def hub_key(hub, device_id):
    return hub.ok("GET", f"/devices/{device_id}")["authentication"]["symmetricKey"]["primaryKey"]


def test_a_tpm_is_enrolled_by_what_the_command_prints(aziot, hub, name, tpm):
    device = aziot(name, by_tpm(hub, name, tpm))
    seen = enroll(device)
    assert seen["registrationId"] == name and seen["tpm"]["address"] == tpm.address, seen
    assert seen["tpm"]["manufacturer"] == "IBM", seen
    text = device.cli("tpm").stdout
    assert f"registration id: {name}\n" in text and f"endorsement key: {seen['endorsementKey']}\n" in text
    # Known to the service, and nothing is registered by looking.
    found = device.check()
    assert found["tpm-usable"]["result"] == "ok" and "IBM" in found["tpm-usable"]["details"][0], found["tpm-usable"]
    assert found["device-accepted"]["result"] == "ok", found["device-accepted"]
    assert "has not registered yet" in found["device-accepted"]["details"][0], found["device-accepted"]
    assert hub.request("GET", f"/devices/{name}")[0] == 404

    device.works()
    found = device.check()["device-accepted"]
    assert found["result"] == "ok" and name in found["details"][0] and hub.address in found["details"][0], found
    # The key is nowhere but in the TPM.
    key = hub_key(hub, name)
    forms = [key.encode(), base64.b64decode(key)]
    kept = [path for path in device.home.rglob("*") if path.is_file()] + [device.config, device.log]
    assert any(path.name == "provisioning.json" for path in kept)
    for path in kept:
        content = b""
        with contextlib.suppress(FileNotFoundError):  # a queue that was emptied meanwhile
            content = path.read_bytes()
        assert not any(form in content for form in forms), path
    # Asked to reprovision, it proves itself by its TPM again.
    assert management(device, "POST", "/device/reprovision?api-version=2019-10-22") == 204
    assert device.ended() == 153, device.log_tail()
    device.start()
    device.wait_status(200, device.deploy({}))
    assert device.stop() == 0


def test_a_start_without_the_service_uses_the_key_in_the_tpm(aziot, hub, name, tpm):
    device = enrolled(aziot, hub, name, tpm).works()
    device.stop()
    device.machine.cut_from_hub()
    try:
        device.start()
    finally:
        device.machine.mend_to_hub()
    device.wait_status(200, device.deploy({}))


def test_a_start_asks_nobody_when_it_is_told_to(aziot, hub, name, tpm):
    device = enrolled(aziot, hub, name, tpm, mode="OnErrorOnly").works()
    device.stop()
    # With its enrollment gone no registration could succeed.
    hub.cli("dps", "enrollment", "delete", name)
    # The TPM has been without power, too.
    tpm.stop()
    tpm.start()
    device.start()
    device.wait_status(200, device.deploy({}))
    assert "register" not in device.log_text(), device.log_tail()


def test_a_cleared_tpm_registers_again(aziot, hub, name, tpm):
    device = enrolled(aziot, hub, name, tpm).works()
    before = told(device)
    device.stop()
    tpm.clear()
    after = told(device)
    assert after["endorsementKey"] == before["endorsementKey"]
    assert after["storageRootKey"] != before["storageRootKey"]
    found = device.check()["device-accepted"]
    assert found["result"] == "error" and "cleared" in found["details"][0], found
    assert "registers the device again" in found["remedy"], found
    device.start()
    device.wait_log(["the device registers again"])
    device.wait_status(200, device.deploy({}))
    assert device.check()["device-accepted"]["result"] == "ok"


def test_a_tpm_that_is_cleared_under_the_daemon_registers_again(aziot, hub, name, tpm):
    device = enrolled(aziot, hub, name, tpm, mode="OnErrorOnly").works()
    kept = device.home / "identity" / "provisioning.json"
    before = json.loads(kept.read_text())["tpmKey"]
    tpm.clear()
    # Whoever asks for identities makes the device sign a token.
    identities = "/identities?api-version=2018-06-28"
    assert management(device, "GET", identities) == 200
    device.wait_log(["the device registers again"])
    wait_until(lambda: json.loads(kept.read_text())["tpmKey"] != before, "another key", 30)
    assert device.check()["device-accepted"]["result"] == "ok"
    # The daemon signs with it, too.
    assert management(device, "GET", identities) == 200
    device.wait_status(200, device.deploy({}))
    assert device.log_text().count("registers again") == 1, device.log_tail()


def test_another_tpm_is_refused(aziot, hub, name, tpm):
    device = enrolled(aziot, hub, name, tpm).works()
    device.stop()
    tpm.replace()
    device.start(wait=False)
    assert device.ended() == 4, device.log_tail()
    device.wait_log(["the device registers again", "the provisioning service refuses", name, "holdfast-edge tpm"])
    # With its endorsement key in the enrollment it is let in.
    hub.cli("dps", "enrollment", "delete", name)
    enroll(device)
    device.works()


@pytest.mark.parametrize("kind", ["another key", "disabled", "unknown"])
def test_what_the_service_refuses_is_told(aziot, hub, name, make_tpm, kind):
    tpm = make_tpm()
    device = aziot(name, by_tpm(hub, name, tpm))
    if kind == "another key":
        other = told(device, "--tcti", make_tpm().address)
        hub.cli("dps", "enrollment", "create", name, "--edge", "true", "--endorsement-key", other["endorsementKey"])
    elif kind == "disabled":
        enroll(device)
        hub.cli("dps", "enrollment", "update", name, "--enabled", "false")
    device.start(wait=False)
    assert device.ended() == 4, device.log_tail()
    device.wait_log(["the provisioning service refuses the registration id", name, "endorsement key"])
    found = device.check()
    assert found["tpm-usable"]["result"] == "ok", found["tpm-usable"]
    refused = found["device-accepted"]
    if kind == "disabled":
        # The service knows the TPM; that it may not register is told when it registers, which a check does not.
        assert "has not registered yet" in refused["details"][0], refused
    else:
        assert refused["result"] == "error" and "provisioning service refuses" in refused["details"][0], refused
        assert "endorsement key" in refused["remedy"], refused
    assert hub.request("GET", f"/devices/{name}")[0] == 404


def test_a_missing_tpm_is_told(aziot, hub, name, tpm):
    device = enrolled(aziot, hub, name, tpm).works()
    device.stop()
    tpm.stop()
    device.start(wait=False)
    assert device.ended() == 6, device.log_tail()
    device.wait_log([f"the TPM at {tpm.address} cannot be opened", "tpm.tcti"])
    found = device.check()
    for check in ("tpm-usable", "device-accepted"):
        assert found[check]["result"] == "error", found[check]
        assert tpm.address in found[check]["details"][0] and "tpm.tcti" in found[check]["remedy"], found[check]
    tpm.start()
    device.start()
    device.wait_status(200, device.deploy({}))


def test_authorization_values_of_the_tpm(aziot, hub, name, tpm):
    tpm.set_auth(OWNER, b"owner-value")
    tpm.set_auth(ENDORSEMENT, b"endorsement-value")
    device = aziot(name, by_tpm(hub, name, tpm))
    refused = device.cli("tpm", check=False)
    assert refused.returncode == 4 and "authorization value is wrong" in refused.stderr, refused
    assert "hierarchy_authorization" in refused.stderr, refused
    values = '[tpm.hierarchy_authorization]\nowner = "owner-value"\nendorsement = "endorsement-value"\n'
    device.configure(by_tpm(hub, name, tpm, values))
    enroll(device)
    device.works()
    assert "-value" not in device.log_text()


def test_a_device_node(aziot, hub, name, tpm):
    with DeviceNode(tpm) as node:
        device = aziot(name, by_tpm(hub, name, node))
        assert enroll(device)["tpm"]["address"] == node.address
        device.works()
        assert node.commands > 20, node.commands
        device.stop()
    # A node that answers nothing is no TPM.
    other = aziot(f"{name}n", by_tpm(hub, f"{name}n", type("Null", (), {"address": "device:/dev/null"})))
    refused = other.cli("tpm", check=False)
    assert refused.returncode == 6 and "cannot be read" in refused.stderr and "tpm.tcti" in refused.stderr, refused


class OwnDevice(AziotDevice):
    """The same with a file of ours, which names no registration id, and a TPM on TCP."""

    def __init__(self, machine, device_id, folder, tpm):
        self.tpm = tpm
        super().__init__(machine, device_id, folder, "", protocol="mqtt")

    def configure(self, provisioning):
        hub, folder = self.hub, self.folder
        self.config = folder / "edge.toml"
        self.config.write_text(f"""\
[device]
hostname = "edge.test"
home = "{self.home}"

[provisioning]
endpoint = "https://{hub.dps_host}:{hub.ports["https"]}"
id_scope = "{hub.id_scope}"
tpm = true

[tpm]
tcti = "{self.tpm.address}"

[upstream]
protocol = "{self.protocol}"
ca = "{hub.ca}"
amqp_port = {hub.ports["amqp"]}
mqtt_port = {hub.ports["mqtt"]}
https_port = {hub.ports["https"]}

[engine]
socket = "{self.machine.engine_socket}"
network = "azure-iot-edge"

[api]
workload = "unix://{folder}/workload.sock"
management = "unix://{folder}/mgmt.sock"
""")
        self.config.chmod(0o600)


def test_a_file_of_ours_takes_its_registration_id_from_the_tpm(machine, folder, make_tpm):
    tpm = make_tpm(machine)
    device = OwnDevice(machine, "own", folder / f"p{time.monotonic_ns() % 10**9}", tpm)
    try:
        seen = enroll(device)
        digest = hashlib.sha256(base64.b64decode(seen["endorsementKey"])).digest()
        derived = base64.b32encode(digest).decode().lower().rstrip("=")
        assert seen["registrationId"] == derived
        device.id = derived
        device.works()
        assert device.check()["device-accepted"]["result"] == "ok"
    finally:
        device.close()
