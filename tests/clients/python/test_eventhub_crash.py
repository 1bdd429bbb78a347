"""Ten thousand events while the hub is killed: the reader goes on at its checkpoint, and nothing acknowledged is missing."""

import uuid

import pytest

import hub as hubs
from eventhub import Checkpoints, Processor, Publisher

EVENTS = 10_000


def test_everything_acknowledged_arrives_in_order_over_kill_9(hub, consumer):
    if hub.process is None:
        pytest.fail("this test needs a hub of its own: unset HOLDFAST_TEST_CONNECTION_STRING")
    client = consumer()
    begin = {n: client.get_partition_properties(n)["last_enqueued_sequence_number"] for n in "0123"}
    client.close()
    devices = [f"crash-{uuid.uuid4().hex[:8]}" for _ in range(4)]
    for device in devices:
        hub.create_device(device)
    options = {"checkpoint_store": Checkpoints(), "load_balancing_interval": 1, "load_balancing_strategy": "greedy"}
    processor = Processor(consumer(**options), begin, checkpoint_every=7)
    publishers = [Publisher(hub, device) for device in devices]
    last = [publisher.publish(range(EVENTS // len(devices))) for publisher in publishers]
    acknowledged = lambda: sum(publisher.acknowledged for publisher in publishers)
    hubs.wait_until(lambda: acknowledged() > EVENTS // 4, "a quarter of the events to be acknowledged", 60)
    before = acknowledged()
    assert before < EVENTS, "the hub was to be killed in the middle"
    hub.kill()
    hub.process = hubs.start(hub.data_dir).process
    for message in last:
        message.wait_for_publish(90)
    for publisher in publishers:
        publisher.close()

    def arrived():
        """Numbers of each device in the order of first arrival, and sequence numbers of each partition."""
        numbers, sequence = {device: {} for device in devices}, {n: {} for n in "0123"}
        for partition, event in processor.events():
            sequence[partition][event.sequence_number] = event.offset
            device = event.system_properties[b"iothub-connection-device-id"].decode()
            if device in numbers:
                numbers[device].setdefault(int(event.body_as_str()), event.sequence_number)
        return numbers, sequence

    hubs.wait_until(lambda: sum(map(len, arrived()[0].values())) == EVENTS, "all events", 90)
    processor.close()
    numbers, sequence = arrived()
    for device in devices:
        # What a device sends again for want of an acknowledgement comes twice; the first of each stands in order.
        assert list(numbers[device]) == list(range(EVENTS // len(devices)))
        assert list(numbers[device].values()) == sorted(numbers[device].values())
    for partition, seen in sequence.items():
        seen = sorted(seen)
        assert not seen or seen == list(range(begin[partition] + 1, seen[-1] + 1)), "a stored event was passed over"
