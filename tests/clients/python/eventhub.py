"""What the suites of azure-eventhub share: clients, readers in threads, checkpoints."""

import threading
import time
import uuid

import paho.mqtt.client as mqtt
from azure.eventhub import CheckpointStore, EventData

import hub as hubs


def connection_string(hub):
    return f"Endpoint=sb://{hub.host}/;SharedAccessKeyName={hub.policy};SharedAccessKey={hub.policy_key};EntityPath=events"


class Reading:
    """Reads one partition in a thread, in batches."""

    def __init__(self, client, partition, position, **options):
        self.events, self.errors, self.contexts = [], [], []
        # Whether the client has been handed anything, be it an empty batch: then its link is attached.
        self.called = False

        def take(context, batch):
            self.called = True
            self.events.extend(batch)
            if batch:
                self.contexts.append(context.last_enqueued_event_properties)

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


class Checkpoints(CheckpointStore):
    """Ownerships and checkpoints in memory; clients in one process share it."""

    def __init__(self):
        self.lock = threading.Lock()
        self.ownerships, self.checkpoints = {}, {}

    def list_ownership(self, fully_qualified_namespace, eventhub_name, consumer_group, **_):
        with self.lock:
            return [dict(entry) for (group, _), entry in self.ownerships.items() if group == consumer_group]

    def claim_ownership(self, ownership_list, **_):
        claimed = []
        with self.lock:
            for wanted in ownership_list:
                key = (wanted["consumer_group"], wanted["partition_id"])
                if key in self.ownerships and self.ownerships[key]["etag"] != wanted.get("etag"):
                    continue  # Somebody else was faster.
                entry = {**wanted, "etag": str(uuid.uuid4()), "last_modified_time": time.time()}
                self.ownerships[key] = entry
                claimed.append(dict(entry))
        return claimed

    def update_checkpoint(self, checkpoint, **_):
        with self.lock:
            self.checkpoints[checkpoint["consumer_group"], checkpoint["partition_id"]] = dict(checkpoint)

    def list_checkpoints(self, fully_qualified_namespace, eventhub_name, consumer_group, **_):
        with self.lock:
            return [dict(entry) for (group, _), entry in self.checkpoints.items() if group == consumer_group]

    def owners(self, group):
        with self.lock:
            return {partition: entry["owner_id"] for (of, partition), entry in self.ownerships.items() if of == group}


class Processor:
    """Reads all partitions in a thread, with checkpoints."""

    def __init__(self, client, start="-1", checkpoint_every=1):
        self.client, self.batches, self.errors = client, [], []
        self.every = checkpoint_every
        self.thread = threading.Thread(
            target=lambda: client.receive_batch(
                self._take, starting_position=start, max_wait_time=0.2, max_batch_size=300,
                on_error=lambda _, error: self.errors.append(error),
            ),
            daemon=True,
        )
        self.thread.start()

    def _take(self, context, batch):
        if batch:
            self.batches.append((context.partition_id, batch))
            if len(self.batches) % self.every == 0:
                context.update_checkpoint(batch[-1])

    def events(self):
        return [(partition, event) for partition, batch in list(self.batches) for event in batch]

    def close(self):
        self.client.close()
        self.thread.join(30)


class Publisher:
    """A device that publishes numbers over MQTT, as fast as it may; `acknowledged` counts what the hub took."""

    def __init__(self, hub, device):
        self.acknowledged = 0
        parts = hubs.parse_connection_string(hub.device_connection_string(device))
        self.client = mqtt.Client(device, clean_session=False)
        token = hubs.sas_token(f"{hub.host}/devices/{device}", parts["SharedAccessKey"])
        self.client.username_pw_set(f"{hub.host}/{device}/?api-version=2021-04-12", token)
        self.client.tls_set(hub.ca)
        self.client.max_inflight_messages_set(500)
        self.client.reconnect_delay_set(1, 1)
        self.client.on_publish = self._count
        self.topic = f"devices/{device}/messages/events/"
        self.client.connect(hub.host, 8883)
        self.client.loop_start()
        self.closing = threading.Event()
        self.thread = threading.Thread(target=self._keep_up, daemon=True)
        self.thread.start()

    def _keep_up(self):
        # paho's own thread ends when a reconnection fails in the TLS handshake, which it does while a hub comes up.
        while not self.closing.wait(0.2):
            if not self.client._thread.is_alive():
                self.client.loop_stop()
                self.client.loop_start()

    def _count(self, *_):
        self.acknowledged += 1

    def publish(self, numbers):
        for n in numbers:
            last = self.client.publish(self.topic, str(n), qos=1)
        return last

    def close(self):
        self.closing.set()
        self.thread.join(10)
        self.client.disconnect()
        self.client.loop_stop()
