"""The endpoint `amqp` with another hub as its target: an Event Hubs-compatible endpoint, read with azure-eventhub."""

import datetime
import json
import signal

import pytest
from azure.eventhub import EventHubConsumerClient

import hub as hubs
from eventhub import Reading, connection_string
from hub import wait_until
from peers import Routed, assert_at_least_once


@pytest.fixture
def target(hub):
    """Settings by which another hub sends to the one on the fixed ports, and a function that begins to read there what
    came since the test began: it is called when that hub is there to stay."""
    since, clients = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(seconds=1), []

    def read():
        client = EventHubConsumerClient.from_connection_string(connection_string(hub), "$Default", connection_verify=hub.ca)
        clients.append(client)
        return [Reading(client, partition, since) for partition in client.get_partition_ids()]

    yield {"connectionString": connection_string(hub), "caCertificate": hub.ca_pem}, read
    for client in clients:
        client.close()


def events(readings):
    return [event for reading in readings for event in reading.events]


def of(readings, device_id):
    """Numbers of a device, which all have one partition."""
    found = [event for event in events(readings) if event.properties.get(b"origin") == device_id.encode()]
    return [json.loads(event.body_as_str())["n"] for event in found]


def test_events_arrive_with_their_envelope(own_wired, target, device_id):
    settings, read = target
    source = own_wired()
    routed = Routed(source, "amqp", settings)
    sender = routed.sender(device_id)
    sender.send(b'{"n":0}', f"%24.mid=m-1&%24.cid=c-1&%24.ct=application%2Fjson&%24.ce=utf-8&origin={device_id}")
    readings = read()
    wait_until(lambda: of(readings, device_id) == [0], "the event", 30)
    [event] = [event for event in events(readings) if event.properties.get(b"origin") == device_id.encode()]
    assert (event.message_id, event.correlation_id) == ("m-1", "c-1")
    assert event.content_type == "application/json"
    assert event.partition_key == device_id.encode(), "the key that keeps a device in its partition"
    assert routed.await_health("healthy")["lag"] == 0


@pytest.mark.parametrize("who", ["source", "target"])
def test_kill_9_loses_nothing(own_wired, hub, target, device_id, who):
    settings, read = target
    source = own_wired('[routing]\nbackoff_max = "1s"\n')
    routed = Routed(source, "amqp", settings)
    sender = routed.sender(device_id)
    marked = f"origin={device_id}"

    def send(first, end):
        for number in range(first, end):
            sender.send(b'{"n":%d}' % number, marked)

    send(0, 50)
    if who == "source":
        # In the middle of whatever it does.
        source.stop(signal.SIGKILL)
        source.start()
        sender.client = None
    else:
        hub.kill()
        send(50, 100)
        routed.await_health("unhealthy")
        hub.process = hubs.start(hub.data_dir).process
    send(50 if who == "source" else 100, 150)
    readings = read()
    wait_until(lambda: len(set(of(readings, device_id))) == 150, "everything", 60)
    assert_at_least_once(of(readings, device_id), 150)


def test_a_policy_that_may_not_send_is_told(own_wired, target):
    settings, _ = target
    text = settings["connectionString"]
    key = text.split("SharedAccessKey=")[1].split(";")[0]
    wrong = text.replace(key, "d3Jvbmc=")
    routed = Routed(own_wired(), "amqp", {**settings, "connectionString": wrong})
    routed.sender("d1").send(b'{"n":0}')
    entry = routed.await_health("unhealthy")
    assert "401" in entry["lastKnownError"] and "d3Jvbmc=" not in json.dumps(entry), entry
