"""The unmodified Event Hubs SDK (azure-eventhub) against the event endpoint."""

import datetime
import json
import threading
import time
import uuid

import paho.mqtt.client as mqtt
import pytest
from azure.eventhub import EventData, EventHubConsumerClient, EventHubProducerClient
from azure.eventhub.exceptions import AuthenticationError, ConnectError, EventHubError

import hub as hubs

EVENTS = 10_000


def connection_string(hub):
    return f"Endpoint=sb://{hub.host}/;SharedAccessKeyName={hub.policy};SharedAccessKey={hub.policy_key};EntityPath=events"


@pytest.fixture
def consumer(hub):
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
    with EventHubProducerClient.from_connection_string(connection_string(hub), connection_verify=hub.ca) as client:
        yield client


class Reading:
    """Reads one partition in a thread, in batches."""

    def __init__(self, client, partition, position, **options):
        self.events, self.errors = [], []
        take = lambda _, batch: self.events.extend(batch)
        self.thread = threading.Thread(
            target=lambda: client.receive_batch(
                take, partition_id=partition, starting_position=position, max_wait_time=0.2, max_batch_size=300,
                on_error=lambda _, error: self.errors.append(error), **options,
            ),
            daemon=True,
        )
        self.thread.start()

    def wait(self, count, seconds=30):
        hubs.wait_until(lambda: len(self.events) >= count or self.errors, f"{count} events", seconds)
        assert not self.errors, self.errors
        return self.events


def send(producer, bodies, **where):
    batch = producer.create_batch(**where)
    for body in bodies:
        batch.add(EventData(body))
    producer.send_batch(batch)


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
    assert everything.wait(before + 11)[-1].body_as_str() == f"{run}-9"


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
        publish(hub, device, EVENTS // 2)
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


def publish(hub, device, count):
    parts = hubs.parse_connection_string(hub.device_connection_string(device))
    client = mqtt.Client(device, clean_session=False)
    token = hubs.sas_token(f"{hub.host}/devices/{device}", parts["SharedAccessKey"])
    client.username_pw_set(f"{hub.host}/{device}/?api-version=2021-04-12", token)
    client.tls_set(hub.ca)
    client.max_inflight_messages_set(500)
    client.connect(hub.host, 8883)
    client.loop_start()
    for n in range(count):
        last = client.publish(f"devices/{device}/messages/events/", str(n), qos=1)
    last.wait_for_publish(60)
    client.disconnect()
    client.loop_stop()


def test_strangers_get_nothing(hub, consumer):
    wrong = connection_string(hub).replace(hub.policy_key, "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")
    client = EventHubConsumerClient.from_connection_string(wrong, "$Default", connection_verify=hub.ca, retry_total=0)
    with client, pytest.raises(AuthenticationError):
        client.get_eventhub_properties()
    missing = Reading(consumer("no-such-group", retry_total=0), "0", "-1")
    hubs.wait_until(lambda: missing.errors, "the consumer group to be refused")
    assert isinstance(missing.errors[0], (ConnectError, EventHubError))
