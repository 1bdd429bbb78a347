"""Fixtures: one hub for the whole run, fresh devices for every test."""

import itertools
import os
import tempfile
import uuid
from pathlib import Path

import pytest

import hub as hubs
from wire import WireHub

RUN = uuid.uuid4().hex[:6]
COUNTER = itertools.count(1)


@pytest.fixture(scope="session")
def hub():
    """The hub under test. HOLDFAST_TEST_CONNECTION_STRING and HOLDFAST_TEST_CA aim the suite at another one."""
    given = os.environ.get("HOLDFAST_TEST_CONNECTION_STRING")
    if given:
        yield hubs.Hub(given, os.environ["HOLDFAST_TEST_CA"])
        return
    with hubs.exclusive_ports(), tempfile.TemporaryDirectory(prefix="holdfast-py-") as directory:
        running = hubs.start(Path(directory) / "data")
        os.environ["REQUESTS_CA_BUNDLE"] = running.ca
        os.environ["SSL_CERT_FILE"] = running.ca
        yield running
        hubs.stop(running)
        assert running.process.returncode == 0, "SIGTERM must end the hub cleanly"
        hubs.assert_clean_log(running)


@pytest.fixture(scope="session")
def wired():
    """A hub on free ports for tests that speak bytes, with short locks so that their ends can be waited for."""
    with tempfile.TemporaryDirectory(prefix="holdfast-wire-") as directory:
        running = WireHub(Path(directory) / "data", '[c2d]\nlock_timeout = "2s"\n').start()
        yield running
        assert running.stop() == 0, "SIGTERM must end the hub cleanly"
        hubs.assert_clean_log(running)


@pytest.fixture
def own_wired(tmp_path):
    """Starts hubs on free ports that a test may break; gives a function of configuration and flags."""
    started = []

    def make(config="", *flags, data_dir=None):
        running = WireHub(data_dir or tmp_path / f"data{len(started)}", config, *flags)
        started.append(running)
        return running.start()

    yield make
    for running in started:
        if running.process and running.process.poll() is None:
            running.process.kill()
            running.process.wait()


@pytest.fixture
def device_id():
    """An id that no other test uses."""
    return f"py-{RUN}-{next(COUNTER)}"


@pytest.fixture
def device(hub, device_id):
    """A registered device with symmetric keys; gives its id."""
    hub.create_device(device_id)
    return device_id


@pytest.fixture(params=["mqtt", "websocket"])
def websockets(request):
    """Whether the device SDK goes through a WebSocket."""
    return request.param == "websocket"


@pytest.fixture
def client(hub, device, websockets):
    """A connected, unmodified device client."""
    from azure.iot.device import IoTHubDeviceClient

    client = IoTHubDeviceClient.create_from_connection_string(
        hub.device_connection_string(device), websockets=websockets, server_verification_cert=hub.ca_pem
    )
    client.connect()
    client.device_id = device
    yield client
    client.shutdown()


@pytest.fixture
def consumer(hub):
    """Makes clients that read events: a function of consumer group and options of the SDK."""
    from azure.eventhub import EventHubConsumerClient

    from eventhub import connection_string

    made = []

    def make(group="$Default", **options):
        client = EventHubConsumerClient.from_connection_string(
            connection_string(hub), group, connection_verify=hub.ca, **options
        )
        made.append(client)
        return client

    yield make
    for client in made:
        client.close()


@pytest.fixture
def producer(hub):
    """A client that sends events."""
    from azure.eventhub import EventHubProducerClient

    from eventhub import connection_string

    with EventHubProducerClient.from_connection_string(connection_string(hub), connection_verify=hub.ca) as client:
        yield client
