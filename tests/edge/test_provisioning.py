"""Who a device is: a provisioning service or a configuration that tells, keys and certificates, and what is refused."""

import base64
import gzip
import http.client
import io
import json
import os
import re
import signal
import socket
import ssl
import sys
import time
import zipfile
from datetime import datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from azure.storage.blob import BlobServiceClient, ContainerSasPermissions, generate_container_sas
from cryptography.hazmat.primitives import hashes

sys.path.insert(0, str(Path(__file__).parent.parent / "clients" / "python"))

from aziot import dps  # noqa: E402
from device import SECRET, module, wait_until  # noqa: E402
from dps import Certificate  # noqa: E402
from hub import parse_connection_string, read_env  # noqa: E402
from site_net import SiteHub, run  # noqa: E402

def dps_key(hub, registration_id, key):
    return dps(hub, f'method = "symmetric_key"\nregistration_id = "{registration_id}"\nsymmetric_key = {{ value = "{key}" }}')


def x509_lines(files):
    certificate, key = files
    return f'method = "x509"\nidentity_cert = "file://{certificate}"\nidentity_pk = "file://{key}"'


def manual(hub, device_id, lines):
    return f"""\
[provisioning]
source = "manual"
iothub_hostname = "{hub.address}"
device_id = "{device_id}"

[provisioning.authentication]
{lines}
"""


def group(hub, group_id, *arguments):
    hub.cli("dps", "group", "create", group_id, "--edge", "true", *arguments)


def device_key(hub, name):
    """The key of a device in a new group."""
    group(hub, f"g-{name}")
    return hub.cli("dps", "compute-device-key", "--group", f"g-{name}", "--registration-id", name).strip()


def thumbprint_device(hub, device_id, certificate):
    thumbprint = certificate.certificate.fingerprint(hashes.SHA256()).hex()
    hub.ok("PUT", f"/devices/{device_id}", {
        "deviceId": device_id, "capabilities": {"iotEdge": True},
        "authentication": {"type": "selfSigned", "x509Thumbprint": {"primaryThumbprint": thumbprint}}})


def management(device, method, path):
    """A request to the management socket; its status."""
    connection = http.client.HTTPConnection("localhost", timeout=20)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(device.folder / "mgmt.sock"))
    try:
        connection.request(method, path)
        return connection.getresponse().status
    finally:
        connection.close()


def other_key():
    return base64.b64encode(os.urandom(32)).decode()


def test_a_key_of_an_enrollment_group(aziot, hub, name):
    device = aziot(name, dps_key(hub, name, device_key(hub, name))).works()
    found = device.check()
    assert found["device-accepted"]["result"] == "ok", found["device-accepted"]
    assert name in found["device-accepted"]["details"][0]
    # Asked to reprovision it ends with a code by which its supervisor starts it again, and the hub is the same.
    assert management(device, "POST", "/device/reprovision?api-version=2019-10-22") == 204
    assert device.ended() == 153, device.log_tail()
    device.start()
    device.wait_status(200, device.deploy({}))
    assert device.stop() == 0


def test_what_the_service_said_is_enough_for_a_start_without_it(aziot, hub, name):
    device = aziot(name, dps_key(hub, name, device_key(hub, name))).works()
    device.stop()
    device.machine.cut_from_hub()
    try:
        device.start()
    finally:
        device.machine.mend_to_hub()
    device.wait_status(200, device.deploy({}))


@pytest.mark.parametrize("protocol", ["amqp", "mqtt"])
def test_a_certificate_of_an_enrollment_group(aziot, hub, name, tmp_path, protocol):
    authority = Certificate(f"authority of {name}", is_ca=True)
    (tmp_path / "ca.pem").write_text(authority.pem)
    group(hub, f"g-{name}", "--certificate", str(tmp_path / "ca.pem"))
    files = Certificate(name, authority).files(tmp_path)
    device = aziot(name, dps(hub, x509_lines(files)), protocol=protocol).works()
    authentication = hub.ok("GET", f"/devices/{name}")["authentication"]
    assert authentication["type"] in ("selfSigned", "certificateAuthority"), authentication
    assert device.check()["device-accepted"]["result"] == "ok"


@pytest.mark.parametrize("protocol", ["amqp", "mqtt"])
def test_a_certificate_whose_thumbprint_the_hub_has(aziot, hub, name, tmp_path, protocol):
    certificate = Certificate(name)
    thumbprint_device(hub, name, certificate)
    device = aziot(name, manual(hub, name, x509_lines(certificate.files(tmp_path))), protocol=protocol).works()
    assert device.check()["device-accepted"]["result"] == "ok"


def test_a_key_in_a_file(aziot, hub, name, tmp_path):
    text = hub.create_edge_device(name).rpartition("SharedAccessKey=")[2]
    path = tmp_path / "device.key"
    # As keyd takes it: the bytes themselves.
    path.write_bytes(base64.b64decode(text))
    path.chmod(0o600)
    lines = f'method = "sas"\ndevice_id_pk = {{ uri = "file://{path}" }}'
    device = aziot(name, manual(hub, name, lines)).works()
    assert device.check()["device-accepted"]["result"] == "ok"


def test_a_wrong_key_is_refused_by_the_service(aziot, hub, name):
    group(hub, f"g-{name}")
    device = aziot(name, dps_key(hub, name, other_key())).start(wait=False)
    assert device.ended() == 4, device.log_tail()
    device.wait_log(["the provisioning service refuses", name, "401"])
    found = device.check()["device-accepted"]
    assert found["result"] == "error", found
    assert "provisioning service refuses" in found["details"][0] and "registration id" in found["remedy"], found
    assert hub.request("GET", f"/devices/{name}")[0] == 404


def test_a_foreign_certificate_is_refused_by_the_service(aziot, hub, name, tmp_path):
    authority, foreign = (Certificate(f"authority {n} of {name}", is_ca=True) for n in (1, 2))
    (tmp_path / "ca.pem").write_text(authority.pem)
    group(hub, f"g-{name}", "--certificate", str(tmp_path / "ca.pem"))
    device = aziot(name, dps(hub, x509_lines(Certificate(name, foreign).files(tmp_path)))).start(wait=False)
    assert device.ended() == 4, device.log_tail()
    device.wait_log(["the provisioning service refuses", name])
    found = device.check()["device-accepted"]
    assert found["result"] == "error" and "provisioning service refuses" in found["details"][0], found
    assert hub.request("GET", f"/devices/{name}")[0] == 404


@pytest.mark.parametrize("kind", ["key", "certificate"])
def test_a_wrong_credential_is_refused_by_the_hub_until_it_is_right(aziot, hub, name, tmp_path, kind):
    certificate = Certificate(name)
    if kind == "key":
        text = hub.create_edge_device(name).rpartition("SharedAccessKey=")[2]
        right, wrong = (manual(hub, name, f'method = "sas"\ndevice_id_pk = {{ value = "{key}" }}')
                        for key in (text, other_key()))
    else:
        thumbprint_device(hub, name, certificate)
        folders = [tmp_path / "right", tmp_path / "wrong"]
        for folder in folders:
            folder.mkdir()
        right = manual(hub, name, x509_lines(certificate.files(folders[0])))
        wrong = manual(hub, name, x509_lines(Certificate(name).files(folders[1])))
    device = aziot(name, wrong).start()
    device.wait_log(["the hub refuses this device", name, "holdfast-edge check"])
    found = device.check()["device-accepted"]
    assert found["result"] == "error", found
    assert "the hub refuses" in found["details"][0] and name in found["details"][0], found
    assert found["remedy"]
    device.stop()
    assert not SECRET.search(device.log_text())
    device.configure(right)
    device.works()


# Uploads to the hub's own blob store


class Blobs:
    """A container of the hub's blob store, with an address that lets a device write into it."""

    def __init__(self, hub, name, sign="rcwa"):
        text = read_env(hub.data_dir / "connection.env")["HOLDFAST_BLOB_CS"]
        parts = parse_connection_string(text.rstrip(";"))
        self.service = BlobServiceClient.from_connection_string(text, connection_verify=hub.ca)
        self.container = self.service.create_container(name)
        self.ca = hub.ca
        signature = generate_container_sas(
            parts["AccountName"], name, account_key=parts["AccountKey"],
            permission=ContainerSasPermissions.from_string(sign), expiry=datetime.now(timezone.utc) + timedelta(hours=1),
        )
        self.signature = signature.rpartition("sig=")[2]
        self.url = f"{self.container.url}?{signature}"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.service.close()

    def read(self):
        """Content of all blobs by name, as it is stored: the SDK would unpack it."""
        return {blob.name: self._raw(blob.name) for blob in self.container.list_blobs()}

    def _raw(self, name):
        address, _, signature = self.url.partition("?")
        context = ssl.create_default_context(cafile=self.ca)
        with urlopen(f"{address}/{quote(name)}?{signature}", context=context, timeout=20) as answer:
            return answer.read()


def upload(hub, device, method, payload, wanted="Completed"):
    """Calls a method that uploads and waits for its task; the task's last state."""
    status, task = hub.method(device.id, "$edgeAgent", method, {"schemaVersion": "1.0", **payload})
    assert status == 200, task
    assert task["status"] in ("NotStarted", "Running", wanted), task

    def state():
        ask = {"schemaVersion": "1.0", "correlationId": task["correlationId"]}
        return hub.method(device.id, "$edgeAgent", "GetTaskStatus", ask)[1]

    def over():
        last = state()
        return last if last["status"] in ("Completed", "Failed", "Cancelled") else None

    last = wait_until(over, f"{method} to end", 90)
    assert last["status"] == wanted, f"{last}\n{device.log_tail()}"
    assert last["correlationId"] == task["correlationId"]
    return last


STAMP = r"\d{4}-\d\d-\d\d--\d\d-\d\d-\d\d"


@pytest.fixture
def chatty(make_device, sensor):
    """A device with a module that has printed something."""
    device = make_device().start()
    device.deploy({"sensor": module(sensor, env={"MessageCount": "3", "MessageDelay": "0.1"})})
    device.wait_container("sensor")
    wait_until(lambda: device.machine.docker("logs", "sensor").strip(), "lines of the sensor", 30)
    return device


@pytest.mark.parametrize(("encoding", "content", "suffix"), [
    ("none", "text", ".log"), ("gzip", "text", ".log.gz"), ("none", "json", ".json"), ("gzip", "json", ".json.gz")])
def test_logs_are_uploaded(chatty, hub, name, encoding, content, suffix):
    with Blobs(hub, name) as blobs:
        upload(hub, chatty, "UploadModuleLogs", {
            "sasUrl": blobs.url, "encoding": encoding, "contentType": content,
            "items": [{"id": "^sensor$", "filter": {"tail": 200}}]})
        (blob, data), = blobs.read().items()
    assert re.fullmatch(rf"{re.escape(hub.address)}/{chatty.id}/sensor-{STAMP}{re.escape(suffix)}", blob), blob
    text = (gzip.decompress(data) if encoding == "gzip" else data).decode()
    printed = chatty.machine.docker("logs", "sensor").splitlines()
    assert printed
    if content == "text":
        lines = text.splitlines()
    else:
        records = json.loads(text)
        assert {(record["iothub"], record["device"], record["id"]) for record in records} == {
            (hub.address, chatty.id, "sensor")}, records[:2]
        lines = [record["text"] for record in records]
    # What was printed since is not there yet.
    assert lines and lines == printed[: len(lines)]
    assert blobs.signature not in chatty.log_text()


def test_a_support_bundle_is_uploaded(chatty, hub, name):
    with Blobs(hub, name) as blobs:
        upload(hub, chatty, "UploadSupportBundle", {"sasUrl": blobs.url})
        (blob, data), = blobs.read().items()
    assert re.fullmatch(rf"{re.escape(hub.address)}/{chatty.id}/support-bundle-{STAMP}\.zip", blob), blob
    with zipfile.ZipFile(io.BytesIO(data)) as bundle:
        assert bundle.testzip() is None
        names = set(bundle.namelist())
        assert {"logs/sensor_log.txt", "inspect/sensor.json", "network/azure-iot-edge.json", "check.json"} <= names, names
        first = chatty.machine.docker("logs", "sensor").splitlines()[0]
        assert first in bundle.read("logs/sensor_log.txt").decode()
        assert json.loads(bundle.read("inspect/sensor.json"))["Name"] == "/sensor"
        assert "device-accepted" in json.loads(bundle.read("check.json"))["checks"]
        for entry in names:
            assert not SECRET.search(bundle.read(entry).decode(errors="replace")), entry


def test_an_upload_that_the_store_refuses_fails_and_says_why(chatty, hub, name):
    with Blobs(hub, name, sign="r") as blobs:
        task = upload(hub, chatty, "UploadModuleLogs", {
            "sasUrl": blobs.url, "encoding": "none", "contentType": "text", "items": [{"id": "sensor", "filter": {}}]},
            wanted="Failed")
        assert "403" in task["message"], task
        assert blobs.signature not in task["message"] + chatty.log_text()
        assert blobs.read() == {}


def test_a_single_enrollment(aziot, hub, name):
    """A device that is enrolled by itself, with a key and with a name that is not its registration id."""
    hub.cli("dps", "enrollment", "create", f"r-{name}", "--device-id", name, "--edge", "true", "--primary-key", (key := other_key()))
    device = aziot(name, dps_key(hub, f"r-{name}", key)).works()
    found = device.check()["device-accepted"]
    assert found["result"] == "ok" and name in found["details"][0], found
    # Disabled there, it goes on with what it was told, and is refused when it begins anew.
    hub.cli("dps", "enrollment", "update", f"r-{name}", "--enabled", "false")
    device.stop()
    device.start()
    device.wait_log(["the provisioning service gave no answer"])
    device.wait_status(200, device.deploy({}))


def test_a_renewed_certificate_is_taken_up_without_a_restart(aziot, hub, name, tmp_path):
    certificate = Certificate(name)
    thumbprint_device(hub, name, certificate)
    files = certificate.files(tmp_path)
    device = aziot(name, manual(hub, name, x509_lines(files))).works()
    # The hub knows the next one only: what is asked of it with the old one is refused from now on.
    folder = tmp_path / "next"
    folder.mkdir()
    renewed = Certificate(name)
    thumbprint = renewed.certificate.fingerprint(hashes.SHA256()).hex()
    hub.ok("PUT", f"/devices/{name}", {
        **hub.ok("GET", f"/devices/{name}"),
        "authentication": {"type": "selfSigned", "x509Thumbprint": {"primaryThumbprint": thumbprint}}}, headers={"If-Match": "*"})
    for old, new in zip(files, renewed.files(folder), strict=True):
        os.replace(new, old)
    device.process.send_signal(signal.SIGHUP)
    device.wait_log(["the device's certificate is another one now"])
    # A new module needs an identity, which is asked for as the device.
    sleeper = {"type": "docker", "status": "stopped", "restartPolicy": "never", "imagePullPolicy": "never",
               "settings": {"image": "nothing:1"}}
    device.deploy({"late": sleeper})
    wait_until(lambda: hub.request("GET", f"/devices/{name}/modules/late")[0] == 200, "the module's identity", 30)
    # Files that do not fit together change nothing.
    Path(files[0]).write_text("nonsense")
    device.process.send_signal(signal.SIGHUP)
    device.wait_log(["the device's certificate cannot be read; the one in use stays"])
    assert device.process.poll() is None


@pytest.fixture(scope="module")
def other_hub(site, folder):
    """A second hub on the same ports of another address, to which the first one's service may assign devices."""
    hub, address = site.hub, f"{site.net}.2"
    run("ip", "address", "add", f"{address}/24", "dev", site.bridge)
    (folder / "second").mkdir()
    made = SiteHub(folder / "second" / "data", address)
    made.ports = dict(hub.ports)
    made.start()
    parts = parse_connection_string(made.owner)
    login = (f"HostName={address}:{made.ports['https']};SharedAccessKeyName={parts['SharedAccessKeyName']};"
             f"SharedAccessKey={parts['SharedAccessKey']}")
    hub.cli("dps", "linked-hub", "set", address, "--connection-string", login, "--hub-ca", made.ca, "--apply", "false")
    both = folder / "both.pem"
    both.write_text(Path(hub.ca).read_text() + Path(made.ca).read_text())
    made.both = both
    yield made
    made.stop()


@pytest.mark.parametrize("mode", ["Dynamic", "AlwaysOnStartup", "OnErrorOnly"])
def test_the_service_moves_the_device_to_another_hub(aziot, hub, other_hub, name, mode):
    key = other_key()
    hub.cli("dps", "enrollment", "create", name, "--edge", "true", "--primary-key", key, "--reprovision", "migrate",
            "--allocation", "static", "--hub", hub.address)
    device = aziot(name, dps_key(hub, name, key), mode=mode)
    text = device.config.read_text().replace(str(hub.ca), str(other_hub.both))
    device.config.write_text(text)
    device.works()
    hub.cli("dps", "enrollment", "update", name, "--hub", other_hub.address)
    connected = lambda at: at.request("GET", f"/devices/{name}/modules/%24edgeAgent")[1].get("connectionState") == "Connected"  # noqa: E731
    if mode == "OnErrorOnly":
        # It asks nobody until somebody refuses it or asks it to.
        device.stop()
        device.start()
        wait_until(lambda: connected(hub), "the former hub to have it", 30)
        time.sleep(3)
        assert device.process.poll() is None and connected(hub)
        assert management(device, "POST", "/device/reprovision?api-version=2019-10-22") == 204
        assert device.ended() == 153, device.log_tail()
        device.start(wait=False)
    else:
        device.stop()
        device.start(wait=False)
        if mode == "Dynamic":
            # What it was told last is used at once, and corrected in the background.
            assert device.ended() == 153, device.log_tail()
            assert "the device belongs to another hub now" in device.log_text()
            device.start(wait=False)
    try:
        wait_until(lambda: other_hub.request("GET", f"/devices/{name}/modules/%24edgeAgent")[0] == 200 and connected(other_hub),
                   "the device at its new hub", 60)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{device.log_tail()}") from None
    assert "its modules are removed" in device.log_text()
    assert device.process.poll() is None
