"""The endpoint `kafka` against Tansu, a broker that speaks Kafka's protocol, read with librdkafka."""

import json
import signal
import uuid

import pytest
from confluent_kafka import Consumer, TopicPartition

from hub import wait_until
from peers import Kafka, Routed, assert_at_least_once

PARTITIONS = 3


@pytest.fixture
def kafka(tmp_path):
    broker = Kafka(tmp_path / "kafka").start()
    broker.topic("telemetry", PARTITIONS)
    yield broker
    broker.end()


@pytest.fixture
def reader(kafka):
    """A function that gives all records that came, in the order of each partition."""
    consumer = Consumer({
        "bootstrap.servers": f"127.0.0.1:{kafka.port}", "group.id": uuid.uuid4().hex, "enable.auto.commit": False,
        "auto.offset.reset": "earliest", "check.crcs": True,
    })
    consumer.assign([TopicPartition("telemetry", partition, 0) for partition in range(PARTITIONS)])
    records = []

    def read():
        while (record := consumer.poll(0.2)) is not None:
            assert record.error() is None, record.error()
            records.append(record)
        return records

    yield read
    consumer.close()


def settings(kafka, **more):
    return {"bootstrapServers": [f"127.0.0.1:{kafka.port}"], "topic": "telemetry", "connectTimeoutSeconds": 3, **more}


def numbers(records):
    return [json.loads(record.value())["n"] for record in records]


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_events_become_records(own_wired, kafka, reader, compression):
    hub = own_wired()
    routed = Routed(hub, "kafka", settings(kafka, compression=compression))
    device, module = routed.sender("d1"), routed.sender("d2", "m")
    device.send(b'{"n":0}', "%24.mid=m-1&%24.ct=application%2Fjson&%24.ce=utf-8&level=high")
    device.send(b"\x00\xff", "")
    module.send(b'{"n":1}')
    wait_until(lambda: len(reader()) == 3, "three records")
    of_device = [record for record in reader() if record.key() == b"d1"]
    [of_module] = [record for record in reader() if record.key() == b"d2"]
    assert [record.value() for record in of_device] == [b'{"n":0}', b"\x00\xff"]
    headers = dict(of_device[0].headers())
    assert headers["level"] == b"high" and headers["iothub-messageId"] == b"m-1"
    assert headers["iothub-message-source"] == b"Telemetry" and headers["iothub-connectionDeviceId"] == b"d1"
    assert dict(of_module.headers())["iothub-connectionModuleId"] == b"m"
    kind, at = of_device[0].timestamp()
    assert kind == 1 and headers["iothub-enqueuedTime"].decode()[:10].count("-") == 2 and at > 1_700_000_000_000


def test_records_of_the_storage_format(own_wired, kafka, reader):
    hub = own_wired()
    Routed(hub, "kafka", settings(kafka, payload="record")).sender("d1").send(b'{"n":0}')
    wait_until(lambda: len(reader()) == 1, "a record")
    record = json.loads(reader()[0].value())
    assert record["Body"] == {"n": 0} and record["SystemProperties"]["connectionDeviceId"] == "d1"


def test_devices_spread_over_partitions_and_keep_their_order(own_wired, kafka, reader):
    hub = own_wired()
    routed = Routed(hub, "kafka", settings(kafka, batchEventsMax=7))
    senders = [routed.sender(f"d{number}") for number in range(8)]
    for number in range(40):
        for sender in senders:
            sender.send(b'{"n":%d}' % number)
    wait_until(lambda: len(reader()) == 320, "every record")
    by_device = {}
    for record in reader():
        by_device.setdefault(record.key(), []).append(record)
    assert all(numbers(records) == list(range(40)) for records in by_device.values())
    assert all(len({record.partition() for record in records}) == 1 for records in by_device.values())
    assert len({record.partition() for record in reader()}) == PARTITIONS


def test_a_topic_that_is_not_there_is_told(own_wired, kafka):
    hub = own_wired()
    routed = Routed(hub, "kafka", settings(kafka, topic="absent"))
    routed.sender("d1").send(b'{"n":0}')
    assert "topic absent: UNKNOWN_TOPIC_OR_PARTITION" in routed.await_health("unhealthy")["lastKnownError"]


def test_a_broker_that_hangs_gets_everything_in_order_later(own_wired, kafka, reader):
    hub = own_wired('[routing]\nbackoff_max = "1s"\ndelivery_timeout = "3s"\n')
    routed = Routed(hub, "kafka", settings(kafka))
    sender = routed.sender("d1")
    sender.numbers(0, 20)
    wait_until(lambda: len(reader()) == 20, "the first part")
    kafka.pause()
    sender.numbers(20, 100)
    routed.await_health("unhealthy")
    kafka.go_on()
    wait_until(lambda: len(set(numbers(reader()))) == 100, "everything", 60)
    assert_at_least_once(numbers(reader()), 100)
    assert routed.await_health("healthy")["deadLetters"] == 0


def test_kill_9_of_the_hub_loses_nothing(own_wired, kafka, reader):
    hub = own_wired()
    sender = Routed(hub, "kafka", settings(kafka)).sender("d1")
    done = 0
    for _ in range(4):
        sender.numbers(done, done + 50)
        done += 50
        hub.stop(signal.SIGKILL)
        hub.start()
        sender.client = None
    wait_until(lambda: len(set(numbers(reader()))) == done, "everything", 60)
    assert_at_least_once(numbers(reader()), done)


@pytest.mark.parametrize("mechanism", ["SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_login_that_is_refused_is_told(own_wired, tmp_path, mechanism):
    """That a login succeeds is tested with the exchange of RFC 7677, beside the code: this broker forgets its users."""
    broker = Kafka(tmp_path / "closed", "--authentication").start()
    try:
        hub = own_wired()
        login = {"saslMechanism": mechanism, "username": "hub", "password": "none-knows-it"}
        routed = Routed(hub, "kafka", settings(broker, **login))
        routed.sender("d1").send(b'{"n":0}')
        entry = routed.await_health("unhealthy")
        assert "login: the broker refused it: unknown-user" in entry["lastKnownError"], entry
        assert "none-knows-it" not in json.dumps(entry) + hub.log_text()
    finally:
        broker.end()
