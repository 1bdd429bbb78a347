"""Import and export jobs of the unmodified service SDK, with blobs on a small server in this process."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from azure.iot.hub import IoTHubJobManager, IoTHubRegistryManager
from azure.iot.hub.models import JobProperties
from msrest.exceptions import HttpOperationError

from hub import wait_until

SECRET = "c2VjcmV0LXNpZ25hdHVyZQ"


class Blobs(BaseHTTPRequestHandler):
    """Blobs by path; a request without the right signature is refused as Azure does."""

    protocol_version = "HTTP/1.1"
    kept = {}

    def log_message(self, *_):
        pass

    def answer(self, status, body=b"", **fields):
        self.send_response(status)
        for name, value in fields.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def blob(self):
        path, _, query = self.path.partition("?")
        return path if f"sig={SECRET}" in query else None

    def do_GET(self):
        path = self.blob()
        if not path:
            return self.answer(403, x_ms_error_code="AuthenticationFailed")
        if path not in self.kept:
            return self.answer(404, x_ms_error_code="BlobNotFound")
        self.answer(200, self.kept[path], ETag='"1"')

    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        path = self.blob()
        if not path:
            return self.answer(403, x_ms_error_code="AuthenticationFailed")
        assert self.headers["x-ms-blob-type"] == "BlockBlob"
        self.kept[path] = body
        self.answer(201)


@pytest.fixture(scope="module")
def blobs():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Blobs)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@pytest.fixture
def jobs(hub):
    return IoTHubJobManager.from_connection_string(hub.owner)


def run(jobs, **properties):
    job = jobs.create_import_export_job(JobProperties(**properties))
    assert job.job_id

    def ended():
        found = jobs.get_import_export_job(job.job_id)
        return found if found.status != "running" else None

    return wait_until(ended, "the job to end")


def test_export_and_import(hub, jobs, blobs, device_id):
    registry = IoTHubRegistryManager.from_connection_string(hub.owner)
    hub.create_device(device_id)
    hub.request("PATCH", f"/twins/{device_id}", json={"tags": {"plant": "north"}})
    container = f"{blobs}/box?sv=2021&sig={SECRET}"
    job = run(jobs, type="export", output_blob_container_uri=container, exclude_keys_in_export=False)
    assert (job.type, job.status, job.progress) == ("export", "completed", 100), job
    assert SECRET not in job.output_blob_container_uri
    lines = {}
    for text in Blobs.kept["/box/devices.txt"].decode().splitlines():
        line = json.loads(text)
        lines[line["id"], line.get("moduleId")] = line
    line = lines[device_id, None]
    assert line["tags"] == {"plant": "north"}
    key = registry.get_device(device_id).authentication.symmetric_key.primary_key
    assert line["authentication"]["symmetricKey"]["primaryKey"] == key

    registry.delete_device(device_id)
    text = json.dumps({**line, "importMode": "create"}) + '\n{"id":"bad id"}\n'
    Blobs.kept["/box/again.txt"] = text.encode()
    job = run(
        jobs,
        type="import",
        input_blob_container_uri=container,
        input_blob_name="again.txt",
        output_blob_container_uri=container,
    )
    assert job.status == "completed", job
    assert job.failure_reason.startswith("1 lines failed")
    errors = [json.loads(line) for line in Blobs.kept["/box/importErrors.log"].decode().splitlines()]
    assert [(error["line"], error["id"]) for error in errors] == [(2, "bad id")]
    assert registry.get_device(device_id).authentication.symmetric_key.primary_key == key
    assert registry.get_twin(device_id).tags == {"plant": "north"}
    assert job.job_id in [known.job_id for known in jobs.get_import_export_jobs()]
    jobs.cancel_import_export_job(job.job_id)
    assert jobs.get_import_export_job(job.job_id).status == "completed"


def test_without_keys(hub, jobs, blobs, device):
    container = f"{blobs}/keyless?sig={SECRET}"
    job = run(jobs, type="export", output_blob_container_uri=container, exclude_keys_in_export=True)
    assert job.status == "completed", job
    key = hub.request("GET", f"/devices/{device}").json()["authentication"]["symmetricKey"]["primaryKey"]
    text = Blobs.kept["/keyless/devices.txt"].decode()
    assert device in text and key not in text


def test_jobs_that_cannot_work(jobs, blobs):
    good = f"{blobs}/box?sig={SECRET}"
    for container, why in [
        (f"{blobs}/box", "no shared access signature"),
        (f"{blobs}/?sig={SECRET}", "no container"),
        (f"ftp://localhost/box?sig={SECRET}", "must begin with"),
        (f"{blobs}/box?se=2020-01-01T00%3A00%3A00Z&sig={SECRET}", "expired"),
        ("file:///etc", "transfer.folder"),
    ]:
        with pytest.raises(HttpOperationError) as refused:
            jobs.create_import_export_job(JobProperties(type="export", output_blob_container_uri=container))
        assert refused.value.response.status_code == 400
        assert refused.value.response.headers["iothub-errorcode"] == "BlobContainerValidationError"
        assert why in refused.value.response.text and SECRET not in refused.value.response.text
    for container, why in [
        (f"{blobs}/box?sig=d3Jvbmc", "HTTP 403 AuthenticationFailed"),
        (f"{blobs}/nowhere?sig={SECRET}", "HTTP 404 BlobNotFound"),
        (f"http://127.0.0.1:1/box?sig={SECRET}", "cannot be reached"),
    ]:
        job = run(jobs, type="import", input_blob_container_uri=container, output_blob_container_uri=good)
        assert job.status == "failed"
        assert why in job.failure_reason and SECRET not in job.failure_reason
    with pytest.raises(HttpOperationError) as missing:
        jobs.get_import_export_job("none")
    assert missing.value.response.status_code == 404
