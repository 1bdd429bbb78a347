"""The unmodified Event Hubs SDK (azure-eventhub) against the event endpoint."""

import datetime
import json
import time
import uuid

import pytest
from azure.eventhub import EventData, EventHubConsumerClient
from azure.eventhub.exceptions import AuthenticationError, ConnectError, EventHubError

import hub as hubs
from eventhub import Publisher, Reading, connection_string, send

EVENTS = 10_000


def test_properties(consumer):
    client = consumer()
    properties = client.get_eventhub_properties()
    assert properties["eventhub_name"] == "events"
    assert properties["partition_ids"] == ["0", "1", "2", "3"]
    partition = client.get_partition_properties("0")
    assert partition["id"] == "0" and partition["beginning_sequence_number"] >= 0
    assert partition["is_empty"] == (partition["last_enqueued_sequence_number"] < 0)


def test_every_start_position(consumer, producer):
    run = uuid.uuid4().hex
    client = consumer()
    before = client.get_partition_properties("1")["last_enqueued_sequence_number"]
    latest = Reading(consumer(), "1", "@latest")
    started = datetime.datetime.now(datetime.timezone.utc)
    hubs.wait_until(lambda: latest.thread.is_alive(), "the reader")
    time.sleep(1.0)  # `@latest` counts from the attach, which the client does not tell.
    send(producer, [f"{run}-{n}" for n in range(10)], partition_id="1")
    bodies = [event.body_as_str() for event in latest.wait(10)]
    assert bodies == [f"{run}-{n}" for n in range(10)]
    third = latest.events[3]
    assert third.sequence_number == before + 4
    for position, inclusive, first in [
        (third.offset, False, 4),
        (third.offset, True, 3),
        (third.sequence_number, False, 4),
        (third.sequence_number, True, 3),
        (started, False, 0),
    ]:
        client = consumer()
        reading = Reading(client, "1", position, starting_position_inclusive=inclusive)
        assert reading.wait(10 - first)[0].body_as_str() == f"{run}-{first}", position
        client.close()  # No more than five readers without owner level.
    everything = Reading(consumer(), "1", "-1")
    # Not all numbers are of this endpoint: events that go to other ones have some of them.
    hubs.wait_until(lambda: everything.events and everything.events[-1].body_as_str() == f"{run}-9", "the last event")
    numbers = [event.sequence_number for event in everything.events]
    assert numbers == sorted(set(numbers)) and numbers[-1] == before + 10


def test_partition_key_and_single_events(consumer, producer):
    key = uuid.uuid4().hex
    readings = [Reading(consumer(), str(n), "@latest") for n in range(4)]
    time.sleep(1.0)
    event = EventData(json.dumps({"n": 1}))
    event.content_type = "application/json"
    event.message_id = "m-1"
    event.properties = {"level": "3"}
    producer.send_event(event, partition_key=key)
    send(producer, ["second"], partition_key=key)
    hubs.wait_until(lambda: sum(len(reading.events) for reading in readings) >= 2, "both events")
    (both,) = [reading.events for reading in readings if reading.events]
    assert [event.partition_key for event in both] == [key.encode()] * 2
    assert both[0].body_as_json() == {"n": 1}
    assert (both[0].content_type, both[0].message_id) == ("application/json", "m-1")
    assert both[0].properties == {b"level": b"3"}


def test_the_higher_owner_level_wins(consumer):
    first = Reading(consumer(), "2", "@latest", owner_level=1)
    time.sleep(1.0)
    second = Reading(consumer(), "2", "@latest", owner_level=2)
    hubs.wait_until(lambda: first.errors, "the first reader to lose its place")
    assert "stolen" in str(first.errors[0]).lower()
    assert not second.errors
    third = Reading(consumer(), "2", "@latest", owner_level=0)
    hubs.wait_until(lambda: third.errors, "the lower owner level to be refused")
    assert not second.errors


def test_a_checkpoint_is_where_the_next_reader_goes_on(consumer, producer):
    run = uuid.uuid4().hex
    begin = consumer().get_partition_properties("3")["last_enqueued_sequence_number"]
    send(producer, [f"{run}-{n}" for n in range(20)], partition_id="3")
    seen = Reading(consumer(), "3", begin).wait(20)
    checkpoint = seen[12].offset
    resumed = Reading(consumer(), "3", checkpoint).wait(7)
    assert [event.body_as_str() for event in resumed] == [f"{run}-{n}" for n in range(13, 20)]


def test_telemetry_of_two_devices_is_complete_and_in_order(hub, consumer):
    client = consumer()
    ends = {n: client.get_partition_properties(n)["last_enqueued_sequence_number"] for n in "0123"}
    devices = [f"eh-{uuid.uuid4().hex[:8]}" for _ in range(2)]
    for device in devices:
        hub.create_device(device)
        publisher = Publisher(hub, device)
        publisher.publish(range(EVENTS // 2)).wait_for_publish(60)
        publisher.close()
    readings = [Reading(consumer(), n, ends[n]) for n in "0123"]
    hubs.wait_until(lambda: sum(len(reading.events) for reading in readings) >= EVENTS, "all events", 60)
    for device in devices:
        numbers = [
            int(event.body_as_str())
            for reading in readings
            for event in reading.events
            if event.system_properties.get(b"iothub-connection-device-id") == device.encode()
        ]
        assert numbers == list(range(EVENTS // 2))
    event = next(event for reading in readings for event in reading.events if event.system_properties.get(b"iothub-message-source") == b"Telemetry")
    method = json.loads(event.system_properties[b"iothub-connection-auth-method"])
    assert method == {"scope": "device", "type": "sas", "issuer": "iothub", "acceptingIpFilterRule": None}


def test_strangers_get_nothing(hub, consumer):
    wrong = connection_string(hub).replace(hub.policy_key, "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")
    client = EventHubConsumerClient.from_connection_string(wrong, "$Default", connection_verify=hub.ca, retry_total=0)
    with client, pytest.raises(AuthenticationError):
        client.get_eventhub_properties()
    missing = Reading(consumer("no-such-group", retry_total=0), "0", "-1")
    hubs.wait_until(lambda: missing.errors, "the consumer group to be refused")
    assert isinstance(missing.errors[0], (ConnectError, EventHubError))
