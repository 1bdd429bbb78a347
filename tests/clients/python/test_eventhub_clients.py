"""azure-eventhub in its other ways: WebSockets, the development emulator's connection string, consumer groups, checkpoints,
owner levels, what a reader learns of its partition, and what a producer can say of its events."""

import datetime
import json
import os
import subprocess
import uuid

import pytest
import uamqp
from azure.eventhub import EventData, EventHubConsumerClient, EventHubProducerClient, TransportType
from azure.eventhub.exceptions import EventHubError

import hub as hubs
from eventhub import Checkpoints, Processor, Reading, connection_string, send


def last_number(client, partition):
    return client.get_partition_properties(partition)["last_enqueued_sequence_number"]


def test_websockets(hub, consumer):
    run = uuid.uuid4().hex
    options = {"transport_type": TransportType.AmqpOverWebsocket}
    client = consumer(**options)
    assert client.get_eventhub_properties()["partition_ids"] == ["0", "1", "2", "3"]
    begin = last_number(client, "0")
    with EventHubProducerClient.from_connection_string(connection_string(hub), connection_verify=hub.ca, **options) as producer:
        send(producer, [f"{run}-{n}" for n in range(1000)], partition_id="0")
        producer.send_batch([EventData(b"x" * 900_000)], partition_id="0")
    events = Reading(consumer(**options), "0", begin).wait(1001)
    assert [event.body_as_str() for event in events[:1000]] == [f"{run}-{n}" for n in range(1000)]
    assert b"".join(events[1000].body) == b"x" * 900_000


def test_the_emulators_connection_string(own_wired):
    own = own_wired("", "--amqp-plain", "127.0.0.1:0")
    port = hubs.read_env(own.data_dir / "connection.env")["HOLDFAST_AMQP_PLAIN"].rpartition(":")[2]
    text = (
        f"Endpoint=sb://localhost:{port};SharedAccessKeyName={own.policy};SharedAccessKey={own.policy_key};"
        "UseDevelopmentEmulator=true;EntityPath=events"
    )
    with EventHubProducerClient.from_connection_string(text) as producer:
        send(producer, ["plain"], partition_id="2")
    with EventHubConsumerClient.from_connection_string(text, "$Default") as client:
        assert Reading(client, "2", "-1").wait(1)[0].body_as_str() == "plain"
    wrong = text.replace(own.policy_key, "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")
    with EventHubConsumerClient.from_connection_string(wrong, "$Default", retry_total=0) as client:
        with pytest.raises(EventHubError):
            client.get_eventhub_properties()


@pytest.fixture
def group(hub):
    """A consumer group made with the command line."""
    name = f"group-{uuid.uuid4().hex[:8]}"

    def command(*words):
        environment = {**os.environ, "HOLDFAST_CONNECTION_STRING": hub.owner}
        return subprocess.run(
            [hubs.find_binary(), "--no-profile", "--ca", hub.ca, "consumer-group", *words],
            env=environment, check=True, capture_output=True, text=True,
        ).stdout

    command("create", name)
    assert name in command("list")
    yield name
    command("delete", name)
    assert name not in command("list")


def test_groups_read_independently(consumer, producer, group):
    run = uuid.uuid4().hex
    begin = last_number(consumer(), "1")
    readings = [Reading(consumer(name), "1", begin) for name in ("$Default", group, group.upper())]
    send(producer, [f"{run}-{n}" for n in range(5)], partition_id="1")
    for reading in readings:
        assert [event.body_as_str() for event in reading.wait(5)] == [f"{run}-{n}" for n in range(5)]
    unknown = Reading(consumer(f"{group}-no", retry_total=0), "1", "-1")
    hubs.wait_until(lambda: unknown.errors, "the unknown group to be refused")
    assert "not-found" in str(unknown.errors[0])


def test_a_processor_goes_on_at_its_checkpoint(consumer, producer, group):
    run = uuid.uuid4().hex
    store = Checkpoints()
    begin = {n: last_number(consumer(), n) for n in "0123"}
    for n in "0123":
        send(producer, [f"{run}-{n}-{k}" for k in range(10)], partition_id=n)
    mine = lambda processor: [event.body_as_str() for _, event in processor.events() if event.body_as_str().startswith(run)]
    options = {"checkpoint_store": store, "load_balancing_interval": 0.5, "load_balancing_strategy": "greedy"}
    first = Processor(consumer(group, **options), begin)
    hubs.wait_until(lambda: len(mine(first)) == 40, "all events")
    first.close()
    assert {of[1] for of in store.checkpoints} == set("0123")
    for n in "0123":
        send(producer, [f"{run}-{n}-later"], partition_id=n)
    second = Processor(consumer(group, **options))
    hubs.wait_until(lambda: len(mine(second)) >= 4, "what came later")
    second.close()
    assert sorted(mine(second)) == [f"{run}-{n}-later" for n in "0123"]


def test_two_processors_share_the_partitions(consumer, producer, group):
    run = uuid.uuid4().hex
    store = Checkpoints()
    begin = {n: last_number(consumer(), n) for n in "0123"}
    options = {
        "checkpoint_store": store, "load_balancing_interval": 0.5, "partition_ownership_expiration_interval": 10,
        "load_balancing_strategy": "greedy",
    }
    one = Processor(consumer(group, **options), begin)
    hubs.wait_until(lambda: len(store.owners(group)) == 4, "the first to own everything")
    # It attaches with the same owner level and takes two partitions from the first.
    two = Processor(consumer(group, **options), begin)

    def shared():
        owners = list(store.owners(group).values())
        return len(set(owners)) == 2 and all(owners.count(owner) == 2 for owner in set(owners))

    hubs.wait_until(shared, "two partitions for each", 40)
    for n in "0123":
        send(producer, [f"{run}-{n}-{k}" for k in range(25)], partition_id=n)
    mine = lambda processor: {event.body_as_str() for _, event in processor.events() if event.body_as_str().startswith(run)}
    hubs.wait_until(lambda: len(mine(one) | mine(two)) == 100, "all events", 40)
    one.close()
    two.close()


def test_owner_levels(consumer, group):
    """Table of the contract: higher and equal take over, lower and none are refused, one with a level ends those without."""
    attach = lambda level: Reading(consumer(group, retry_total=0), "3", "@latest", **({} if level is None else {"owner_level": level}))
    stolen = lambda reading: hubs.wait_until(lambda: reading.errors, "the reader to lose its place") and "stolen" in str(reading.errors[0])

    without = attach(None)
    hubs.wait_until(lambda: without.called, "the reader without a level")
    zero = attach(0)
    assert stolen(without)
    hubs.wait_until(lambda: zero.called, "level 0")
    again = attach(0)
    assert stolen(zero)
    hubs.wait_until(lambda: again.called, "level 0 again")
    higher = attach(5)
    assert stolen(again)
    hubs.wait_until(lambda: higher.called, "level 5")
    for refused in (attach(4), attach(None)):
        assert stolen(refused)
    assert not higher.errors


def test_what_a_reader_learns_of_its_partition(consumer, producer):
    begin = last_number(consumer(), "2")
    reading = Reading(consumer(), "2", begin, track_last_enqueued_event_properties=True)
    started = datetime.datetime.now(datetime.timezone.utc)
    send(producer, ["a", "b", "c"], partition_id="2")
    reading.wait(3)
    known = hubs.wait_until(
        lambda: reading.contexts and reading.contexts[-1] and reading.contexts[-1].get("sequence_number") == begin + 3
        and reading.contexts[-1], "the partition's last event",
    )
    assert known["offset"] == reading.events[-1].offset
    assert abs((known["enqueued_time"] - started).total_seconds()) < 60
    assert abs((known["retrieval_time"] - started).total_seconds()) < 60


def test_what_a_producer_says_of_its_events(consumer, producer):
    begin = {n: last_number(consumer(), n) for n in "0123"}
    event = EventData(json.dumps({"n": 1}))
    event.content_type, event.message_id, event.correlation_id = "application/json", "m-1", "c-1"
    event.properties = {"text": "ü", "number": 7, "fraction": 2.5, "truth": True}
    batch = producer.create_batch(partition_id="0")
    batch.add(event)
    batch.add(EventData([b"two ", b"parts"]))
    producer.send_batch(batch)
    first, second = Reading(consumer(), "0", begin["0"]).wait(2)
    assert (first.content_type, first.message_id, first.correlation_id) == ("application/json", "m-1", "c-1")
    assert {key.decode(): str(value.decode() if isinstance(value, bytes) else value).lower() for key, value in first.properties.items()} == {
        "text": "ü", "number": "7", "fraction": "2.5", "truth": "true",
    }
    assert b"".join(second.body) == b"two parts"
    assert second.sequence_number == first.sequence_number + 1
    # Without a place of their own, events are spread over the partitions.
    for _ in range(8):
        send(producer, ["anywhere"])
    ends = {n: last_number(consumer(), n) for n in "0123"}
    assert sum(ends[n] - begin[n] for n in "0123") == 10
    assert all(ends[n] > begin[n] for n in "0123")
    # What is too large for one message is said so before or by the hub, and stores nothing.
    with pytest.raises((EventHubError, ValueError)):
        producer.send_batch([EventData(b"x" * 1_100_000)], partition_id="0")
    assert last_number(consumer(), "0") == ends["0"]


def test_the_command_lines_way_to_the_events(hub):
    """az iot hub monitor-events: SASL PLAIN at the hub, a redirect, then CBS at the event hub (uamqp)."""
    policy_token = hubs.sas_token(hub.host, hub.policy_key, hub.policy)
    name = hub.host.split(".")[0]
    plain = uamqp.authentication.SASLPlain(hub.host, f"{hub.policy}@sas.root.{name}", policy_token, verify=hub.ca)
    client = uamqp.ReceiveClient(f"amqps://{hub.host}/messages/events/$management", auth=plain, prefetch=1, timeout=30_000)
    with pytest.raises(uamqp.errors.LinkRedirect) as caught:
        client.receive_message_batch(max_batch_size=1)
    client.close()
    redirect = caught.value
    assert redirect.hostname.decode() == hub.host
    entity = redirect.address.decode().removeprefix("amqps://").split("/")[1]
    assert entity == "events"
    uri = f"sb://{hub.host}/{entity}"
    cbs = uamqp.authentication.SASTokenAuth.from_shared_access_key(uri, hub.policy, hub.policy_key, verify=hub.ca)
    source = uamqp.address.Source(f"amqps://{hub.host}/{entity}/ConsumerGroups/$Default/Partitions/0")
    source.set_filter(b"amqp.annotation.x-opt-enqueuedtimeutc > 0")
    reader = uamqp.ReceiveClient(source, auth=cbs, prefetch=10, timeout=30_000)
    messages = reader.receive_message_batch(max_batch_size=1)
    assert messages[0].annotations[b"x-opt-sequence-number"] >= 0
    reader.close()
