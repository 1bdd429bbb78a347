"""File upload with the unmodified device SDK and azure-storage-blob, and what a misbehaving device meets."""

import base64
import hashlib
import io
import json
import os
import socket
import subprocess
import threading
import time
from datetime import datetime, timedelta, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from azure.core.exceptions import HttpResponseError
from azure.iot.device import IoTHubDeviceClient
from azure.storage.blob import (
    BlobClient,
    BlobServiceClient,
    ContainerSasPermissions,
    generate_blob_sas,
    generate_container_sas,
)

import hub as hubs
from hub import wait_until
from test_service_amqp import Receiver

MIB = 1 << 20


def blob_string(data_dir):
    return hubs.read_env(Path(data_dir) / "connection.env")["HOLDFAST_BLOB_CS"]


def account(text, ca):
    return BlobServiceClient.from_connection_string(text, connection_verify=ca, retry_total=0)


def blob_client(info, ca, **options):
    """As the documentation of the device SDK says it."""
    url = f"https://{info['hostName']}/{info['containerName']}/{info['blobName']}{info['sasToken']}"
    return BlobClient.from_blob_url(url, connection_verify=ca, retry_total=0, **options)


class Stream:
    """So many bytes that are nowhere whole; knows what came out."""

    def __init__(self, size):
        self.left, self.md5, self.block = size, hashlib.md5(), os.urandom(MIB)

    def read(self, size=-1):
        take = min(self.left, len(self.block) if size < 0 else size)
        piece = (self.block * (take // len(self.block) + 1))[:take]
        self.left -= take
        self.md5.update(piece)
        return piece


def rss_bytes(pid):
    return int(Path(f"/proc/{pid}/status").read_text().split("VmRSS:")[1].split()[0]) * 1024


class Watch:
    """The most memory a process has had meanwhile."""

    def __init__(self, pid):
        self.pid, self.most, self.over = pid, 0, threading.Event()

    def __enter__(self):
        self.before = rss_bytes(self.pid)
        threading.Thread(target=self._look, daemon=True).start()
        return self

    def _look(self):
        while not self.over.wait(0.05):
            self.most = max(self.most, rss_bytes(self.pid))

    def __exit__(self, *_):
        self.over.set()


@pytest.fixture
def uploader(hub, device):
    client = IoTHubDeviceClient.create_from_connection_string(
        hub.device_connection_string(device), server_verification_cert=hub.ca_pem
    )
    client.connect()
    client.device_id = device
    yield client
    client.shutdown()


@pytest.mark.parametrize("size", [0, 1, 100 * MIB])
def test_a_file_goes_through_the_sdks(hub, uploader, size):
    receiver = Receiver(hub, "filenotifications")
    info = uploader.get_storage_info_for_blob("logs/a b.bin")
    assert info["blobName"] == f"{uploader.device_id}/logs/a b.bin"
    stream = Stream(size)
    with Watch(hub.process.pid) as memory, blob_client(info, hub.ca) as client:
        client.upload_blob(stream, length=size, max_concurrency=2)
    assert memory.most - memory.before < 64 * MIB, (memory.before, memory.most)
    uploader.notify_blob_upload_status(info["correlationId"], True, 200, "done")

    def told():
        for message in receiver.take():
            assert message.properties.content_type == b"application/vnd.microsoft.iothub.filenotification.json"
            assert message.properties.user_id == hub.host.split(".")[0].encode()
            assert abs(message.annotations[b"iothub-enqueuedtime"] / 1000 - time.time()) < 120
            return json.loads(b"".join(message.get_data()))

    notification = wait_until(told, "the notification")
    receiver.close()
    assert notification["deviceId"] == uploader.device_id
    assert notification["blobName"] == info["blobName"]
    assert notification["blobSizeInBytes"] == size
    assert notification["blobUri"] == (
        f"https://{info['hostName']}/uploads/{uploader.device_id}/logs/a%20b.bin"
    )
    for field in ("lastUpdatedTime", "enqueuedTimeUtc"):
        assert datetime.fromisoformat(notification[field].replace("Z", "+00:00")[:19] + "+00:00")
    with account(blob_string(hub.data_dir), hub.ca) as service:
        blob = service.get_blob_client("uploads", info["blobName"])
        assert blob.get_blob_properties().size == size
        digest = hashlib.md5()
        for chunk in blob.download_blob().chunks():
            digest.update(chunk)
    assert digest.hexdigest() == stream.md5.hexdigest()


def test_content_is_checked_where_the_client_asks(hub, uploader):
    info = uploader.get_storage_info_for_blob("checked")
    data = os.urandom(9 * MIB)
    with blob_client(info, hub.ca, max_single_put_size=MIB, max_block_size=4 * MIB) as client:
        client.upload_blob(data, validate_content=True)
        assert client.download_blob(validate_content=True).readall() == data
        client.upload_blob(data[:1000], overwrite=True, validate_content=True)
        assert client.download_blob(validate_content=True).readall() == data[:1000]
    url = f"https://{info['hostName']}/{info['containerName']}/{info['blobName']}{info['sasToken']}"
    fields = {"x-ms-blob-type": "BlockBlob", "Content-MD5": base64.b64encode(hashlib.md5(b"other").digest()).decode()}
    answer = requests.put(url, data=b"this", headers=fields, verify=hub.ca, timeout=30)
    assert (answer.status_code, answer.headers["x-ms-error-code"]) == (400, "Md5Mismatch")
    # A body without length is refused, as Azure does; the SDKs always know it.
    answer = requests.put(url, data=iter([b"this"]), headers={"x-ms-blob-type": "BlockBlob"}, verify=hub.ca, timeout=30)
    assert (answer.status_code, answer.headers["x-ms-error-code"]) == (411, "MissingContentLengthHeader")
    uploader.notify_blob_upload_status(info["correlationId"], False, 500, "only a test")


def refused(call, code):
    with pytest.raises(HttpResponseError) as caught:
        call()
    assert caught.value.status_code == 403, caught.value
    assert caught.value.error_code == code, caught.value


def test_a_signature_is_good_for_its_upload_only(hub, uploader):
    info = uploader.get_storage_info_for_blob("one")
    with blob_client(info, hub.ca) as client:
        client.upload_blob(b"first")
    for other in (
        {**info, "blobName": f"{uploader.device_id}/two"},
        {**info, "containerName": "others"},
        {**info, "sasToken": info["sasToken"].replace("sp=rw", "sp=rwd")},
        {**info, "sasToken": info["sasToken"][:-6]},
    ):
        with blob_client(other, hub.ca) as client:
            refused(lambda: client.upload_blob(b"x", overwrite=True), "AuthenticationFailed")
    with blob_client(info, hub.ca) as client:
        refused(client.delete_blob, "AuthorizationPermissionMismatch")
    parts = hubs.parse_connection_string(blob_string(hub.data_dir).rstrip(";"))
    past = datetime.now(timezone.utc) - timedelta(minutes=1)
    expired = generate_blob_sas(
        "holdfast", "uploads", info["blobName"], account_key=parts["AccountKey"], permission="rw", expiry=past
    )
    with blob_client({**info, "sasToken": f"?{expired}"}, hub.ca) as client:
        refused(lambda: client.upload_blob(b"x", overwrite=True), "AuthenticationFailed")
    uploader.notify_blob_upload_status(info["correlationId"], False, 500, "only a test")
    with blob_client(info, hub.ca) as client:
        refused(lambda: client.upload_blob(b"again", overwrite=True), "AuthenticationFailed")
        refused(lambda: client.download_blob().readall(), "AuthenticationFailed")


def test_devices_exported_to_and_imported_from_the_embedded_store(hub, device):
    """Import and export jobs reach the hub's own store by a signature for a container."""
    text = blob_string(hub.data_dir)
    parts = hubs.parse_connection_string(text.rstrip(";"))
    with account(text, hub.ca) as service:
        container = service.create_container(f"fleet-{device}".lower())
        until = datetime.now(timezone.utc) + timedelta(hours=1)
        signature = generate_container_sas(
            "holdfast", container.container_name, account_key=parts["AccountKey"], expiry=until,
            permission=ContainerSasPermissions(read=True, write=True, create=True, list=True, delete=True),
        )
        uri = f"{container.url}?{signature}"

        def run(**properties):
            job = hub.request("POST", "/jobs/create", json=properties).json()

            def ended():
                found = hub.request("GET", f"/jobs/{job['jobId']}").json()
                return found if found["status"] not in ("enqueued", "running") else None

            return wait_until(ended, "the job to end", 60)

        job = run(type="export", outputBlobContainerUri=uri, excludeKeysInExport=False)
        assert job["status"] == "completed", job
        lines = container.download_blob("devices.txt").readall().decode().splitlines()
        line = next(json.loads(line) for line in lines if json.loads(line)["id"] == device)
        container.upload_blob("again.txt", json.dumps({**line, "importMode": "delete"}))
        job = run(type="import", inputBlobContainerUri=uri, outputBlobContainerUri=uri, inputBlobName="again.txt")
        assert job["status"] == "completed", job
    assert hub.request("GET", f"/devices/{device}").status_code == 404


# What follows speaks to hubs of its own.


class Uploads:
    """The calls of one device on a wired hub."""

    def __init__(self, hub, device_id):
        self.hub, self.device = hub, hub.create(device_id)
        self.env = hubs.read_env(hub.data_dir / "connection.env")

    def begin(self, name, expect=200):
        path = f"/devices/{self.device.id}/files"
        return self.hub.json("POST", path, {"blobName": name}, expect, token=self.device.token())

    def end(self, correlation_id, success=True, expect=204, in_path=False):
        path = f"/devices/{self.device.id}/files/notifications" + (f"/{correlation_id}" if in_path else "")
        body = {"isSuccess": success, "statusCode": 200 if success else 500, "statusDescription": ""}
        if not in_path:
            body["correlationId"] = correlation_id
        status, fields, text = self.hub.call("POST", path, body, token=self.device.token())
        assert status == expect, (status, text)
        return dict(fields).get("iothub-errorcode")

    def put(self, info, body, **options):
        url = f"https://{info['hostName']}/{info['containerName']}/{info['blobName']}{info['sasToken']}"
        fields = {"x-ms-blob-type": "BlockBlob", **options.pop("headers", {})}
        return requests.put(url, data=body, headers=fields, verify=self.hub.ca, timeout=60, **options)

    def get(self, info):
        url = f"https://{info['hostName']}/{info['containerName']}/{info['blobName']}{info['sasToken']}"
        return requests.get(url, verify=self.hub.ca, timeout=60)


@pytest.mark.parametrize("size", [0, 1, 9 * MIB + 7])
def test_structured_messages_and_crc64(wired, device_id, size):
    """What newer clients send when they shall check content: a CRC-64 of bytes, frames around streams."""
    uploads = Uploads(wired, device_id)
    data = os.urandom(size)
    for options in ({"max_single_put_size": 64 * MIB}, {"max_single_put_size": MIB, "max_block_size": 4 * MIB}):
        for source in (data, io.BytesIO(data)):
            info = uploads.begin("checked")
            with blob_client(info, wired.ca, **options) as client:
                client.upload_blob(source, length=size, overwrite=True, validate_content="crc64")
                assert client.download_blob(validate_content="crc64").readall() == data
                if size > 1:
                    half = client.download_blob(offset=1, length=size // 2, validate_content="crc64").readall()
                    assert half == data[1 : 1 + size // 2]
            assert uploads.get(info).content == data
            uploads.end(info["correlationId"])


def test_a_device_tells_nonsense(wired, device_id):
    uploads = Uploads(wired, device_id)
    other = Uploads(wired, f"{device_id}-b")
    info = uploads.begin("x")
    assert uploads.end("nonsense", expect=400) == "InvalidFileUploadCorrelationId"
    assert other.end(info["correlationId"], expect=400) == "InvalidFileUploadCorrelationId"
    assert uploads.end(info["correlationId"], expect=400) == "InvalidStorageEndpointOrBlob"
    path = f"/devices/{device_id}/files/notifications"
    for body in ({"correlationId": info["correlationId"]}, {"correlationId": info["correlationId"], "isSuccess": "yes"}):
        status, fields, _ = wired.call("POST", path, body, token=uploads.device.token())
        assert (status, dict(fields)["iothub-errorcode"]) == (400, "InvalidFileUploadCompletionStatus")
    assert uploads.put(info, b"x").status_code == 201
    uploads.end(info["correlationId"], in_path=True)
    assert uploads.end(info["correlationId"], expect=400) == "InvalidFileUploadCorrelationId"
    for name, code in (("", "ArgumentNull"), ("../other/x", "ArgumentInvalid"), ("a\nb", "ArgumentInvalid")):
        status, fields, _ = wired.call(
            "POST", f"/devices/{device_id}/files", {"blobName": name}, token=uploads.device.token()
        )
        assert (status, dict(fields)["iothub-errorcode"]) == (400, code), name
    status, *_ = wired.call("POST", f"/devices/{device_id}/files", {"blobName": "x"}, token=other.device.token())
    assert status == 401


def test_uploads_of_a_device_are_bounded(wired, device_id):
    uploads = Uploads(wired, device_id)
    infos = [uploads.begin(f"f{number}") for number in range(10)]
    status, fields, _ = wired.call(
        "POST", f"/devices/{device_id}/files", {"blobName": "more"}, token=uploads.device.token()
    )
    assert (status, dict(fields)["iothub-errorcode"]) == (403, "DeviceMaximumActiveFileUploadLimitExceeded")
    uploads.end(infos[0]["correlationId"], success=False)
    uploads.begin("more")


def test_kill_9_in_the_middle(own_wired, device_id):
    hub = own_wired()
    uploads = Uploads(hub, device_id)
    done, half = uploads.begin("done"), uploads.begin("half")
    assert uploads.put(done, b"d" * MIB).status_code == 201
    # Half of a body: what came is on the disk, and nobody knows it yet.
    host, port = half["hostName"].split(":")
    tls = hub.raw_tls(int(port))
    head = (
        f"PUT /{half['containerName']}/{half['blobName']}{half['sasToken']} HTTP/1.1\r\nHost: {host}\r\n"
        f"x-ms-blob-type: BlockBlob\r\nContent-Length: {8 * MIB}\r\n\r\n"
    )
    tls.sendall(head.encode() + b"h" * (4 * MIB))
    data = hub.data_dir / "blobs" / "data"
    wait_until(lambda: len(list(data.iterdir())) == 2, "both files")
    hub.process.kill()
    hub.process.wait()
    tls.close()
    hub.start()
    uploads.env = hubs.read_env(hub.data_dir / "connection.env")
    assert len(list(data.iterdir())) == 1, "the half file is gone"
    # The port is another one now; the signatures stand.
    port = uploads.env["HOLDFAST_BLOB_CS"].split("localhost:")[1].split("/")[0]
    for info in (done, half):
        info["hostName"] = f"localhost:{port}"
    assert uploads.get(done).content == b"d" * MIB
    assert uploads.get(half).status_code == 404
    assert uploads.put(half, b"whole").status_code == 201
    uploads.end(done["correlationId"])
    uploads.end(half["correlationId"])
    for info in (done, half):
        assert uploads.put(info, b"late").status_code == 403
    # Ended stays ended, and told stays told.
    hub.process.kill()
    hub.process.wait()
    hub.start()
    assert uploads.end(done["correlationId"], expect=400) == "InvalidFileUploadCorrelationId"
    port = hubs.read_env(hub.data_dir / "connection.env")["HOLDFAST_BLOB_CS"].split("localhost:")[1].split("/")[0]
    assert uploads.put({**done, "hostName": f"localhost:{port}"}, b"late").status_code == 403


def test_a_full_disk_refuses_uploads_and_nothing_else(own_wired, tmp_path, device_id):
    config = '[blob]\nfree_space_min = "100 MiB"\n[log]\nsegment_size = "1 MiB"\npartitions = 1\n'
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", place], check=False).returncode == 0
    if not mounted:
        # Without the right to mount, the disk is called full from the beginning.
        config = config.replace("100 MiB", "8000 TiB")
    try:
        hub = own_wired(config, data_dir=place / "data")
        uploads = Uploads(hub, device_id)
        info = uploads.begin("big")
        if mounted:
            assert uploads.put(info, b"f" * (60 * MIB)).status_code == 201
        answer = uploads.put(info, b"g" * (60 * MIB))
        assert (answer.status_code, answer.headers["x-ms-error-code"]) == (507, "InsufficientStorage")
        if mounted:
            assert uploads.get(info).content == b"f" * (60 * MIB), "the old blob stays"
        # The hub itself has its room.
        assert hub.get("/readyz", token=None)[0] == 200
        status, *_ = hub.call(
            "POST", f"/devices/{device_id}/messages/events", b"telemetry", token=uploads.device.token()
        )
        assert status == 204
        uploads.end(info["correlationId"], success=False)
        hub.stop()
    finally:
        if mounted:
            subprocess.run(["umount", "-l", place], check=True)


def test_slow_clients_lose_their_connection(own_wired, device_id):
    hub = own_wired('[https]\nhead_timeout = "1s"\nbody_timeout = "1s"\nhandshake_timeout = "1s"\n')
    uploads = Uploads(hub, device_id)
    info = uploads.begin("x")
    port = int(info["hostName"].split(":")[1])
    target = f"/{info['containerName']}/{info['blobName']}{info['sasToken']}"
    # Nothing but a connection, half a head, and a body that never comes.
    silent = socket.create_connection(("127.0.0.1", port), timeout=20)
    half_head = hub.raw_tls(port, timeout=20)
    half_head.sendall(f"PUT {target} HTTP/1.1\r\nHost: x\r\n".encode())
    no_body = hub.raw_tls(port, timeout=20)
    no_body.sendall(
        f"PUT {target} HTTP/1.1\r\nHost: x\r\nx-ms-blob-type: BlockBlob\r\nContent-Length: 1000000\r\n\r\nx".encode()
    )
    assert silent.recv(1) == b""
    assert half_head.recv(100)[:12] in (b"", b"HTTP/1.1 408")
    assert no_body.recv(100)[:12] == b"HTTP/1.1 408"
    for connection in (silent, half_head, no_body):
        connection.close()
    data = hub.data_dir / "blobs" / "data"
    wait_until(lambda: not list(data.iterdir()), "the half file to be removed")
    assert uploads.put(info, b"x").status_code == 201


def test_two_hundred_uploads_at_once_are_bounded_in_memory(own_wired, device_id):
    hub = own_wired()
    uploads = Uploads(hub, device_id)
    info = uploads.begin("x")
    port = int(info["hostName"].split(":")[1])
    target = f"/{info['containerName']}/{info['blobName']}{info['sasToken']}"
    before = hub.rss_bytes()
    connections = []
    for number in range(200):
        connection = hub.raw_tls(port, timeout=20)
        block = base64.b64encode(f"{number:06}".encode()).decode()
        connection.sendall(
            f"PUT {target}&comp=block&blockid={block} HTTP/1.1\r\nHost: x\r\nContent-Length: {MIB}\r\n\r\n".encode()
            + b"b" * (MIB - 1)
        )
        connections.append(connection)
    data = hub.data_dir / "blobs" / "data"
    wait_until(lambda: len(list(data.iterdir())) == 200, "all files", 60)
    assert hub.rss_bytes() - before < 200 * 256 * 1024, (before, hub.rss_bytes())
    for connection in connections:
        connection.sendall(b"b")
        assert connection.recv(100)[:12] == b"HTTP/1.1 201"
        connection.close()


class Hook(BaseHTTPRequestHandler):
    """Refuses the first call of each notification."""

    seen = []

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        known = body["blobName"] in [other["blobName"] for other in self.seen]
        self.seen.append(body)
        self.send_response(204 if known else 500)
        self.send_header("Content-Length", "0")
        self.end_headers()


def test_a_webhook_is_told_of_uploads(own_wired, device_id):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub = own_wired(f'[files]\nwebhook = "http://127.0.0.1:{server.server_port}/files"\n')
    uploads = Uploads(hub, device_id)
    for name in ("a", "b"):
        info = uploads.begin(name)
        assert uploads.put(info, name * 3).status_code == 201
        uploads.end(info["correlationId"])
    wait_until(lambda: len(Hook.seen) >= 4, "two calls each", 30)
    wait_until(lambda: hub.metric("holdfast_file_notifications_settled_total") == 2, "both to be settled")
    server.shutdown()
    assert sorted({body["blobName"] for body in Hook.seen}) == [f"{device_id}/a", f"{device_id}/b"]
    assert all(body["blobSizeInBytes"] == 3 for body in Hook.seen)


def test_uploads_can_be_switched_off(own_wired, device_id):
    hub = own_wired("[files]\nenabled = false\n[blob]\nenabled = false\n")
    uploads = Uploads(hub, device_id)
    assert "HOLDFAST_BLOB_CS" not in uploads.env
    status, fields, _ = hub.call(
        "POST", f"/devices/{device_id}/files", {"blobName": "x"}, token=uploads.device.token()
    )
    assert (status, dict(fields)["iothub-errorcode"]) == (400, "DefaultStorageEndpointNotConfigured")
