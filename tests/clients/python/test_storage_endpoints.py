"""The endpoint `storage`: files read with the libraries of others, object stores of others, outages and kill -9."""

import base64
import contextlib
import datetime
import io
import json
import re
import signal
from pathlib import Path

import fastavro
import pyarrow.parquet
import pytest
from azure.core.exceptions import ResourceExistsError
from azure.storage.blob import BlobServiceClient

import hub as hubs
from hub import wait_until
from peers import S3, Azurite, Routed, assert_at_least_once

TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{7}Z"
EXTENSIONS = {"Avro": "avro", "AvroDeflate": "avro", "Parquet": "parquet", "JSON": "json"}


def read_avro(data):
    reader = fastavro.reader(io.BytesIO(data))
    assert reader.writer_schema["name"] == "Microsoft.Azure.Devices.Message"
    return list(reader)


def read_parquet(data):
    rows = pyarrow.parquet.read_table(io.BytesIO(data)).to_pylist()
    for row in rows:
        assert row["EnqueuedTimeUtc"].tzinfo is not None, "a time with a zone"
        row["Properties"], row["SystemProperties"] = dict(row["Properties"]), dict(row["SystemProperties"])
    return rows


def read_json(data):
    return [json.loads(line) for line in data.decode().splitlines()]


READERS = {"Avro": read_avro, "AvroDeflate": read_avro, "Parquet": read_parquet, "JSON": read_json}


def body(row):
    return row["Body"] if isinstance(row["Body"], dict) else json.loads(row["Body"])


class Folder:
    """The provider `local`: a folder in the hub's."""

    settings = {"provider": "local", "path": "files"}

    def __init__(self, hub):
        self.root = hub.data_dir / "endpoints/files"

    def files(self):
        found = (path for path in self.root.rglob("*") if path.is_file() and ".partial" not in path.parts)
        return {str(path.relative_to(self.root)): path.read_bytes() for path in found}


class Container:
    """The provider `azureBlob`."""

    def __init__(self, connection_string, ca=None, name="telemetry"):
        options = {"connection_verify": ca} if ca else {}
        service = BlobServiceClient.from_connection_string(
            connection_string, retry_total=8, retry_backoff_factor=0.2, **options
        )
        self.client = service.get_container_client(name)
        with contextlib.suppress(ResourceExistsError):
            self.client.create_container()
        self.settings = {"provider": "azureBlob", "containerName": name, "connectionString": connection_string}
        if ca:
            self.settings["caCertificate"] = Path(ca).read_text()

    def files(self):
        return {blob.name: self.client.download_blob(blob.name).readall() for blob in self.client.list_blobs()}


class Bucket:
    """The provider `s3`."""

    def __init__(self, s3, name="telemetry"):
        key_id, secret = s3.user(name)
        self.client, self.name = s3.client("s3", key_id, secret), name
        self.settings = {
            "provider": "s3", "containerName": name, "endpoint": s3.endpoint, "accessKeyId": key_id,
            "secretAccessKey": secret,
        }

    def files(self):
        listed = self.client.list_objects_v2(Bucket=self.name).get("Contents", [])
        return {entry["Key"]: self.client.get_object(Bucket=self.name, Key=entry["Key"])["Body"].read() for entry in listed}


@pytest.fixture
def peer(tmp_path):
    """Starts a peer that ends with the test: a function of its class."""
    started = []

    def start(kind):
        started.append(kind(tmp_path / kind.__name__))
        return started[-1].start()

    yield start
    for running in started:
        running.end()


def order(name):
    """Files of one minute by their number."""
    stem, _, number = name.rpartition(".")[0].partition("_")
    return stem, int(number or 0)


def rows(store, encoding):
    """Every row of every file, in the order of the files' names."""
    read = READERS[encoding]
    return [row for name, data in sorted(store.files().items(), key=lambda item: order(item[0])) for row in read(data)]


def numbers(store, encoding="JSON"):
    return [body(row)["n"] for row in rows(store, encoding)]


def storing(hub, store, encoding="JSON", **settings):
    return Routed(hub, "storage", {**store.settings, "encoding": encoding, "batchFrequencyInSeconds": 1, **settings})


@pytest.mark.parametrize("encoding", list(EXTENSIONS))
def test_files_say_the_same_to_readers_of_others(own_wired, encoding):
    hub = own_wired()
    store = Folder(hub)
    routed = storing(hub, store, encoding)
    device, module = routed.sender("d1"), routed.sender("d2", "m")
    device.send(b'{"n":0,"t":"\xc3\xa4"}', "%24.mid=m-1&%24.ct=application%2Fjson&%24.ce=utf-8&level=high&empty=&k%20ey=v%26")
    device.send(b"\x00\xff binary", "")
    device.send(b"", "%24.ct=application%2Fjson&%24.ce=utf-8")
    module.send(b'{"n":1}')
    wait_until(lambda: len(rows(store, encoding)) == 4, "four rows")
    found = rows(store, encoding)
    by_device = {}
    for row in found:
        assert set(row) == {"EnqueuedTimeUtc", "Properties", "SystemProperties", "Body"}
        by_device.setdefault(row["SystemProperties"]["connectionDeviceId"], []).append(row)
    full, binary, empty = by_device["d1"]
    [of_module] = by_device["d2"]

    at = full["EnqueuedTimeUtc"]
    if encoding == "Parquet":
        assert abs(datetime.datetime.now(datetime.timezone.utc) - at) < datetime.timedelta(minutes=2)
        at = at.strftime("%Y-%m-%dT%H:%M:%S.%f") + "0Z"
    assert re.fullmatch(TIME, at)
    assert full["SystemProperties"]["enqueuedTime"] == at
    # A property without a value: JSON and Avro have an empty one.
    assert full["Properties"] == {"level": "high", "empty": "", "k ey": "v&"}
    assert binary["Properties"] == {}
    auth = '{"scope":"device","type":"sas","issuer":"iothub","acceptingIpFilterRule":null}'
    system = full["SystemProperties"]
    assert (system["messageId"], system["contentType"], system["contentEncoding"]) == ("m-1", "application/json", "utf-8")
    assert system["connectionAuthMethod"] == auth and system["connectionDeviceGenerationId"].isdigit()
    assert of_module["SystemProperties"]["connectionModuleId"] == "m"
    if encoding == "JSON":
        assert full["Body"] == {"n": 0, "t": "ä"} and of_module["Body"] == {"n": 1}
        assert base64.b64decode(binary["Body"]) == b"\x00\xff binary"
        assert base64.b64decode(empty["Body"]) == b""
    else:
        assert full["Body"] == '{"n":0,"t":"ä"}'.encode() and of_module["Body"] == b'{"n":1}'
        assert (binary["Body"], empty["Body"]) == (b"\x00\xff binary", b"")
    for name in store.files():
        pattern = rf"localhost/\d\d/\d{{4}}/\d\d/\d\d/\d\d/\d\d(_\d\d)?\.{EXTENSIONS[encoding]}"
        assert re.fullmatch(pattern, name), name


@pytest.mark.parametrize("encoding", ["Avro", "Parquet"])
def test_large_files_are_whole(own_wired, encoding):
    """More than a block or row group holds."""
    hub = own_wired()
    store = Folder(hub)
    sender = storing(hub, store, encoding, batchFrequencyInSeconds=3).sender("d1")
    filler = "x" * 60_000
    for number in range(400):
        sender.send(json.dumps({"n": number, "filler": filler}).encode())
    wait_until(lambda: len(rows(store, encoding)) >= 400, "every row", 60)
    assert numbers(store, encoding) == list(range(400))
    assert any(len(data) > 100_000 for data in store.files().values())


@pytest.mark.parametrize("encoding", ["Avro", "Parquet"])
def test_azure_blob_storage(own_wired, peer, encoding):
    hub, store = own_wired(), Container(peer(Azurite).connection_string())
    sender = storing(hub, store, encoding, fileNameFormat="{YYYY}-{MM}-{DD}/{HH}{mm}/{iothub}-{partition}").sender("d1")
    sender.numbers(0, 50)
    wait_until(lambda: len(numbers(store, encoding)) == 50, "every event")
    sender.numbers(50, 100)
    wait_until(lambda: len(numbers(store, encoding)) == 100, "every event of a second file")
    assert numbers(store, encoding) == list(range(100))
    assert len(store.files()) >= 2


def own_store(hub):
    """The blob store of a running hub."""
    return Container(hubs.read_env(hub.data_dir / "connection.env")["HOLDFAST_BLOB_CS"], hub.ca)


def test_the_blob_store_of_a_hub(own_wired):
    """Another hub's, whose blobs outlive its kill -9."""
    target, hub = own_wired(), own_wired('[routing]\nbackoff_max = "1s"\n')
    store = own_store(target)
    routed = storing(hub, store, "Avro")
    sender = routed.sender("d1")
    sender.numbers(0, 50)
    wait_until(lambda: len(numbers(store, "Avro")) == 50, "the first part")
    target.stop(signal.SIGKILL)
    sender.numbers(50, 100)
    routed.await_health("unhealthy")
    target.start()
    # It has another port now.
    store = own_store(target)
    storing_again(routed, store)
    wait_until(lambda: len(set(numbers(store, "Avro"))) == 100, "everything", 60)
    assert_at_least_once(numbers(store, "Avro"), 100)


def test_azure_blob_storage_that_refuses_the_key(own_wired, peer):
    azurite = peer(Azurite)
    hub, store = own_wired(), Container(azurite.connection_string())
    wrong = base64.b64encode(b"wrong").decode()
    routed = storing(hub, store, connectionString=azurite.connection_string(wrong))
    routed.sender("d1").send(b'{"n":0}')
    entry = routed.await_health("unhealthy")
    assert "403" in entry["lastKnownError"], entry
    assert wrong not in json.dumps(entry) and wrong not in hub.log_text()
    routed.hub.json(
        "PUT", "/holdfast/v1/routing/endpoints/out",
        {"type": "storage", "settings": {**store.settings, "encoding": "JSON", "batchFrequencyInSeconds": 1}},
    )
    wait_until(lambda: numbers(store) == [0], "what waited", 90)


def test_s3(own_wired, peer):
    s3 = peer(S3)
    hub, store = own_wired(), Bucket(s3)
    routed = storing(hub, store, "Avro")
    sender = routed.sender("d1")
    sender.numbers(0, 50)
    wait_until(lambda: len(numbers(store, "Avro")) == 50, "every event")
    # A hub that knows nothing of the files of this minute must not replace them.
    hub.stop(signal.SIGKILL)
    hub.start()
    sender.client = None
    sender.numbers(50, 100)
    wait_until(lambda: len(set(numbers(store, "Avro"))) == 100, "every event of a second file")
    assert_at_least_once(numbers(store, "Avro"), 100)
    wrong = storing_again(routed, store, secretAccessKey="wrong")
    sender.numbers(100, 101)
    entry = wrong.await_health("unhealthy")
    assert "403" in entry["lastKnownError"], entry


def storing_again(routed, store, **settings):
    settings = {**store.settings, "encoding": "Avro", "batchFrequencyInSeconds": 1, **settings}
    routed.hub.json("PUT", "/holdfast/v1/routing/endpoints/out", {"type": "storage", "settings": settings})
    return routed


@pytest.mark.parametrize("how", ["kill", "terminate", "pause"])
def test_an_outage_of_the_store_loses_nothing(own_wired, peer, how):
    azurite = peer(Azurite)
    hub, store = own_wired('[routing]\nbackoff_max = "1s"\ndelivery_timeout = "5s"\n'), Container(azurite.connection_string())
    routed = storing(hub, store)
    sender = routed.sender("d1")
    sender.numbers(0, 20)
    wait_until(lambda: len(numbers(store)) == 20, "the first part")
    if how == "pause":
        azurite.pause()
    else:
        # Azurite notes in its own time what it has acknowledged; what it forgets is not what is tested here.
        last = sorted(store.files())[-1]
        wait_until(lambda: azurite.persisted(last), "Azurite to have noted the last file", 60)
        azurite.end(signal.SIGKILL if how == "kill" else signal.SIGTERM)
    sender.numbers(20, 60)
    routed.await_health("unhealthy")
    sender.numbers(60, 100)
    if how == "pause":
        azurite.go_on()
    else:
        azurite.start()
    wait_until(lambda: len(set(numbers(store))) == 100, "everything", 90)
    assert_at_least_once(numbers(store), 100)
    assert routed.await_health("healthy")["deadLetters"] == 0


def test_kill_9_of_the_hub_loses_nothing(own_wired, peer):
    hub, store = own_wired(), Container(peer(Azurite).connection_string())
    routed = storing(hub, store)
    sender = routed.sender("d1")
    done = 0
    for _ in range(4):
        sender.numbers(done, done + 50)
        done += 50
        # In the middle of whatever it does: some events are stored, some are not.
        hub.stop(signal.SIGKILL)
        hub.start()
        sender.client = None
    wait_until(lambda: len(set(numbers(store))) == done, "everything", 60)
    assert_at_least_once(numbers(store), done)
