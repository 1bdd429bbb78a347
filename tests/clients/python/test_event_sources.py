"""Events of the hub itself, as the unmodified SDKs cause and read them: azure-iot-device and azure-iot-hub make things
happen, azure-eventhub reads the built-in endpoint, a webhook takes the same events."""

import json
import re
import threading
import uuid
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from azure.eventhub import EventHubConsumerClient
from azure.iot.device import IoTHubDeviceClient, IoTHubModuleClient, Message
from azure.iot.hub import DigitalTwinClient, IoTHubJobManager, IoTHubRegistryManager
from azure.iot.hub.models import JobRequest, Twin, TwinProperties

from eventhub import Reading, connection_string
from hub import wait_until
from test_routing import Webhook, ask, put

KEY = "bm90IGEgc2VjcmV0IGF0IGFsbCEhIQ=="
TIME = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{7}Z$")
SCHEMAS = {
    "twinChangeEvents": "twinChangeNotification",
    "deviceLifecycleEvents": "deviceLifecycleNotification",
    "deviceConnectionStateEvents": "deviceConnectionStateNotification",
    "digitalTwinChangeEvents": "digitalTwinChangeNotification",
    "deviceJobLifecycleEvents": "deviceJobLifecycleNotification",
}


def text(value):
    return value.decode() if isinstance(value, bytes) else value


class Seen:
    """One event of azure-eventhub, with text where the client has bytes."""

    def __init__(self, event):
        self.system = {text(k): text(v) for k, v in event.system_properties.items()}
        self.properties = {text(k): text(v) for k, v in event.properties.items()}
        self.body = event.body_as_json()
        self.content_type = event.content_type
        self.correlation_id = event.correlation_id
        message = event.raw_amqp_message.properties
        self.user_id, self.content_encoding = text(message.user_id), text(message.content_encoding)
        self.source, self.operation = self.system["iothub-message-source"], self.properties.get("opType")


class Sources:
    """Routes of every source to the built-in endpoint and to a webhook, and what came there."""

    def __init__(self, hub, webhook):
        self.hub, self.webhook = hub, webhook
        self.clients, self.readings = [], []
        probe = self.consumer()
        ends = {n: probe.get_partition_properties(n)["last_enqueued_sequence_number"] for n in "0123"}
        self.readings = [Reading(self.consumer(), number, end) for number, end in ends.items()]

    def consumer(self):
        client = EventHubConsumerClient.from_connection_string(
            connection_string(self.hub), consumer_group="$Default", connection_verify=self.hub.ca
        )
        self.clients.append(client)
        return client

    def route(self, *sources, endpoints=("events", "hook")):
        for source in sources:
            for endpoint in endpoints:
                body = {"source": source, "condition": "true", "endpointNames": [endpoint]}
                put(self.hub, f"routes/{source}-{endpoint}", body)

    def of(self, who, source):
        """The events about a device, or of a job, that the built-in endpoint has."""
        events = [Seen(event) for reading in self.readings for event in list(reading.events)]
        return [e for e in events if e.source == source and who in (e.properties.get("deviceId"), e.properties.get("jobId"))]

    def wait(self, who, source, count):
        """Waits for so many events at both endpoints; no more may come. Those of the built-in endpoint."""
        wait_until(lambda: len(self.of(who, source)) >= count, f"{count} {source} of {who}", 30)
        events = self.of(who, source)
        assert len(events) == count, [(e.operation, e.body) for e in events]
        hooked = lambda: [
            e for e in self.webhook.received
            if e["Properties"].get("iothub-message-schema") == SCHEMAS[source]
            and who in (e["Properties"].get("deviceId"), e["Properties"].get("jobId"))
        ]
        wait_until(lambda: len(hooked()) >= count, f"{count} {source} of {who} at the webhook", 30)
        for event, other in zip(events, hooked(), strict=True):
            assert other["Body"] == event.body
            assert other["Properties"] == event.properties
            assert "connectionAuthMethod" not in other["SystemProperties"]
            assert "connectionDeviceGenerationId" not in other["SystemProperties"]
        return events

    def close(self):
        for client in self.clients:
            client.close()


@pytest.fixture
def sources(hub):
    before = ask(hub, "GET", "definition").json()
    ask(hub, "PUT", "definition", json={})
    webhook = Webhook()
    put(hub, "endpoints/hook", {"type": "http", "settings": {"url": webhook.url, "format": "json"}})
    made = Sources(hub, webhook)
    yield made
    made.close()
    ask(hub, "PUT", "definition", json={})
    ask(hub, "PUT", "definition", json=before)
    webhook.close()


@pytest.fixture
def registry(hub):
    return IoTHubRegistryManager.from_connection_string(hub.owner)


def check_envelope(event, hub, device_id, module_id=None):
    """What all events of the hub have (languages.md 3.1)."""
    name = hub.host.split(".")[0]
    assert event.content_encoding == "utf-8"
    assert event.user_id == name
    assert re.fullmatch("[0-9a-f]{4,32}", event.correlation_id)
    assert event.properties["hubName"] == name
    assert event.properties["iothub-message-schema"] == SCHEMAS[event.source]
    assert event.system["iothub-enqueuedtime"]
    assert "iothub-connection-auth-method" not in event.system
    assert "iothub-connection-auth-generation-id" not in event.system
    assert event.properties.get("deviceId") == device_id
    assert event.system.get("iothub-connection-device-id") == device_id
    assert event.properties.get("moduleId") == module_id
    assert event.system.get("iothub-connection-module-id") == module_id
    if event.source == "digitalTwinChangeEvents":
        assert event.content_type == "application/json-patch+json"
        assert event.properties["operationTimestamp"].endswith("+00:00")
    else:
        assert event.content_type == "application/json"
        assert TIME.match(event.properties["operationTimestamp"])


def device_client(hub, device_id, **options):
    return IoTHubDeviceClient.create_from_connection_string(
        hub.device_connection_string(device_id), server_verification_cert=hub.ca_pem, **options
    )


def test_twin_changes(hub, sources, registry, device):
    sources.route("TwinChangeEvents")
    registry.update_twin(device, Twin(tags={"tag1": "new"}, properties=TwinProperties(desired={"p": 1, "q": 1})), "*")
    client = device_client(hub, device)
    client.connect()
    client.patch_twin_reported_properties({"t": 5})
    client.shutdown()
    registry.update_twin(device, Twin(tags={"tag1": None}, properties=TwinProperties(desired={"p": 2})), "*")
    registry.replace_twin(device, Twin(tags={"all": "new"}, properties=TwinProperties(desired={"r": 1})), "*")
    events = sources.wait(device, "twinChangeEvents", 4)
    for event in events:
        check_envelope(event, hub, device)
    assert [event.operation for event in events] == ["updateTwin"] * 3 + ["replaceTwin"]
    first, reported, second, replaced = (event.body for event in events)
    assert first["version"] == 2 and first["tags"] == {"tag1": "new"}
    desired = first["properties"]["desired"]
    stamp = desired["$metadata"]["p"]
    assert set(stamp) == {"$lastUpdated", "$lastUpdatedVersion"} and TIME.match(stamp["$lastUpdated"])
    assert desired == {"p": 1, "q": 1, "$version": 2, "$metadata": {**stamp, "p": stamp, "q": stamp}}
    assert set(first) == {"version", "tags", "properties"} and set(first["properties"]) == {"desired"}
    assert set(reported["properties"]) == {"reported"} and "tags" not in reported
    section = reported["properties"]["reported"]
    assert (section["t"], section["$version"]) == (5, 2)
    assert set(section["$metadata"]["t"]) == {"$lastUpdated"}
    # Only what changed, and null for what is gone.
    assert second["tags"] == {"tag1": None}
    assert {k for k in second["properties"]["desired"] if not k.startswith("$")} == {"p"}
    assert replaced["deviceId"] == device and replaced["tags"] == {"all": "new"} and replaced["etag"]
    assert replaced["properties"]["desired"]["r"] == 1 and replaced["properties"]["reported"]["t"] == 5
    twin = registry.get_twin(device)
    assert replaced["version"] == twin.version
    assert second["properties"]["desired"]["$version"] == first["properties"]["desired"]["$version"] + 1


def test_lifecycle_of_devices_and_modules(hub, sources, registry, device_id):
    sources.route("DeviceLifecycleEvents")
    key = KEY
    registry.create_device_with_sas(device_id, key, key, "enabled")
    registry.create_module_with_sas(device_id, "m", "", key, key)
    registry.delete_device(device_id)
    created, module, gone, gone_module = sources.wait(device_id, "deviceLifecycleEvents", 4)
    operations = [event.operation for event in (created, module, gone, gone_module)]
    assert operations == ["createDeviceIdentity"] * 2 + ["deleteDeviceIdentity"] * 2
    check_envelope(created, hub, device_id)
    check_envelope(module, hub, device_id, "m")
    check_envelope(gone, hub, device_id)
    check_envelope(gone_module, hub, device_id, "m")
    section = {"$metadata": {"$lastUpdated": created.body["properties"]["desired"]["$metadata"]["$lastUpdated"]}, "$version": 1}
    assert created.body["properties"] == {"desired": section, "reported": section}
    assert created.body["deviceId"] == device_id and "moduleId" not in created.body and created.body["version"] == 1
    assert (created.body["status"], created.body["connectionState"]) == ("enabled", "Disconnected")
    assert created.body["authenticationType"] == "sas" and created.body["cloudToDeviceMessageCount"] == 0
    assert module.body["moduleId"] == "m" and module.body["etag"]
    assert key not in json.dumps([created.body, module.body])


@pytest.mark.parametrize("kind", ["device", "module"])
def test_connection_states(hub, sources, registry, device, websockets, kind):
    if kind == "module":
        registry.create_module_with_sas(device, "m", "", KEY, KEY)
    sources.route("DeviceConnectionStateEvents")
    for _ in range(2):
        if kind == "module":
            client = IoTHubModuleClient.create_from_connection_string(
                hub.device_connection_string(device, "m"), server_verification_cert=hub.ca_pem, websockets=websockets
            )
        else:
            client = device_client(hub, device, websockets=websockets)
        client.connect()
        client.shutdown()
    events = sources.wait(device, "deviceConnectionStateEvents", 4)
    assert [event.operation for event in events] == ["deviceConnected", "deviceDisconnected"] * 2
    for event in events:
        check_envelope(event, hub, device, "m" if kind == "module" else None)
        assert set(event.body) == {"sequenceNumber"}
    numbers = [event.body["sequenceNumber"] for event in events]
    assert numbers == sorted(set(numbers)), "comparable as texts"
    assert all(re.fullmatch("[0-9A-F]{64}", number) for number in numbers)


def test_digital_twin_changes(hub, sources, registry, device):
    registry.update_twin(device, Twin(properties=TwinProperties(desired={"thermostat1": {"__t": "c", "other": 1}})), "*")
    sources.route("DigitalTwinChangeEvents")
    manager = DigitalTwinClient.from_connection_string(hub.owner)
    manager.update_digital_twin(device, [{"op": "add", "path": "/thermostat1/targetTemperature", "value": 21.8}])
    # The SDK takes a product info that is a DTMI as the model id.
    client = device_client(hub, device, product_info="dtmi:com:example:TemperatureController;1")
    client.connect()
    answer = {"value": 21.8, "ac": 200, "av": 3, "ad": "ok"}
    client.patch_twin_reported_properties({"thermostat1": {"__t": "c", "targetTemperature": answer}})
    client.patch_twin_reported_properties({"serial": "s1"})
    client.patch_twin_reported_properties({"serial": "s2"})
    client.shutdown()
    events = sources.wait(device, "digitalTwinChangeEvents", 5)
    for event in events:
        check_envelope(event, hub, device)
        assert event.operation == "updateTwin"
    asked, model, answered, first, second = (event.body for event in events)
    path = "/thermostat1/$metadata/targetTemperature"
    assert asked == [{"op": "add", "path": path, "value": {"desiredValue": 21.8, "desiredVersion": 3}}]
    assert model == [{"op": "replace", "path": "/$metadata/$model", "value": "dtmi:com:example:TemperatureController;1"}]
    values = {operation["path"]: operation["value"] for operation in answered}
    assert all(operation["op"] == "add" for operation in answered)
    assert TIME.match(values.pop(f"{path}/lastUpdateTime"))
    assert values == {
        f"{path}/ackCode": 200, f"{path}/ackDescription": "ok", f"{path}/ackVersion": 3,
        "/thermostat1/targetTemperature": 21.8,
    }
    assert [(operation["op"], operation["path"]) for operation in first] == [("add", "/$metadata/serial"), ("add", "/serial")]
    assert [(operation["op"], operation["path"]) for operation in second] == [
        ("replace", "/$metadata/serial/lastUpdateTime"), ("replace", "/serial"),
    ]


def test_jobs(hub, sources, registry, device):
    sources.route("DeviceJobLifecycleEvents")
    jobs = IoTHubJobManager.from_connection_string(hub.owner)
    job_id = f"job~{uuid.uuid4().hex[:8]}"
    request = JobRequest(
        job_id=job_id, type="scheduleUpdateTwin", query_condition=f"deviceId = '{device}'",
        update_twin=Twin(etag="*", tags={"rolled": "out"}), start_time=datetime.now(timezone.utc), max_execution_time_in_seconds=60,
    )
    jobs.create_scheduled_job(job_id, request)
    created, started, ended = sources.wait(job_id, "deviceJobLifecycleEvents", 3)
    assert [event.operation for event in (created, started, ended)] == ["createJob", "updateJob", "updateJob"]
    for event in (created, started, ended):
        check_envelope(event, hub, None)
        assert event.body["jobId"] == job_id
    assert [event.body["status"] for event in (started, ended)] == ["running", "completed"]
    assert ended.body["deviceJobStatistics"]["succeededCount"] == 1


def test_nothing_is_made_without_a_route(hub, sources, registry, device):
    sources.route("TwinChangeEvents", endpoints=["hook"])
    registry.update_twin(device, Twin(tags={"n": 1}), "*")
    wait_until(lambda: sources.webhook.received, "the event at the webhook")
    put(hub, "routes/TwinChangeEvents-hook", {"source": "TwinChangeEvents", "condition": "true", "endpointNames": ["hook"], "isEnabled": False})
    registry.update_twin(device, Twin(tags={"n": 2}), "*")
    sources.route("TwinChangeEvents", endpoints=["events"])
    registry.update_twin(device, Twin(tags={"n": 3}), "*")
    wait_until(lambda: sources.of(device, "twinChangeEvents"), "the event at the built-in endpoint")
    (event,) = sources.of(device, "twinChangeEvents")
    assert event.body["tags"] == {"n": 3}
    assert [e["Body"]["tags"] for e in sources.webhook.received] == [{"n": 1}]


def test_enrichments_on_the_built_in_endpoint(hub, sources, registry, device):
    registry.update_twin(device, Twin(tags={"site": "north"}), "*")
    for key, value in {"stage": "test", "hub": "$iothubname", "site": "$twin.tags.site", "no": "$twin.tags.no"}.items():
        put(hub, f"enrichments/{key}", {"value": value, "endpointNames": ["events"]})
    sources.route("DeviceMessages", "TwinChangeEvents")
    client = device_client(hub, device)
    client.connect()
    client.send_message("hello")
    client.patch_twin_reported_properties({"t": 1})
    client.shutdown()
    expected = {"stage": "test", "hub": "localhost", "site": "north", "no": "$twin.tags.no"}

    def read():
        events = [Seen(event) for reading in sources.readings for event in list(reading.events) if event.body_as_str() != "hello"]
        messages = [event for reading in sources.readings for event in list(reading.events) if event.body_as_str() == "hello"]
        twins = [event for event in events if event.properties.get("deviceId") == device]
        return (messages, twins) if messages and twins else None

    messages, twins = wait_until(read, "the message and the twin change")
    assert {text(k): text(v) for k, v in messages[0].properties.items()} == expected
    assert expected.items() <= twins[0].properties.items()
    wait_until(lambda: len(sources.webhook.received) == 2, "both at the webhook")
    assert not any("stage" in event["Properties"] for event in sources.webhook.received)


class Subscriber:
    """A web service that takes events in the schema of Event Grid or CloudEvents, with their handshakes."""

    def __init__(self, schema, origin):
        self.events, self.handshakes, self.kinds = [], 0, set()
        subscriber = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_OPTIONS(self):
                subscriber.handshakes += schema == "cloudevents" and self.headers["webhook-request-origin"] == origin
                self.answer({}, {"webhook-allowed-origin": origin})

            def do_POST(self):
                events = json.loads(self.rfile.read(int(self.headers["content-length"])))
                if self.headers["aeg-event-type"] == "SubscriptionValidation":
                    subscriber.handshakes += schema == "eventgrid"
                    return self.answer({"validationResponse": events[0]["data"]["validationCode"]})
                subscriber.kinds.add((self.headers["content-type"], self.headers["aeg-event-type"]))
                subscriber.events.extend(events)
                self.answer({})

            def answer(self, body, headers=()):
                body = json.dumps(body).encode()
                self.send_response(200)
                for name, value in dict(headers).items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/events"

    def close(self):
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.parametrize("schema", ["eventgrid", "cloudevents"])
def test_subscribers_get_the_schemas_of_event_grid(hub, sources, registry, device_id, schema):
    name = hub.host.split(".")[0]
    subscriber = Subscriber(schema, name)
    settings = {"url": subscriber.url, "format": schema, "handshake": True}
    put(hub, "endpoints/grid", {"type": "http", "settings": settings})
    kinds = ["DeviceLifecycleEvents", "DeviceConnectionStateEvents", "TwinChangeEvents", "DigitalTwinChangeEvents"]
    sources.route(*kinds, "DeviceMessages", endpoints=["grid"])
    hub.create_device(device_id)
    registry.update_twin(device_id, Twin(tags={"site": "north"}), "*")
    client = device_client(hub, device_id)
    client.connect()
    message = Message('{"t": 21.5}', content_type="application/json", content_encoding="utf-8")
    message.custom_properties["level"] = "high"
    client.send_message(message)
    client.shutdown()
    registry.create_module_with_sas(device_id, "m", "", KEY, KEY)
    wait_until(lambda: any("Disconnected" in str(e) for e in subscriber.events), "the end of the session")
    registry.delete_device(device_id)
    seen = lambda: [e for e in subscriber.events if e["subject"].startswith(f"devices/{device_id}")]
    wait_until(lambda: len(seen()) >= 8, "eight events of the device", 30)
    kind, source, time = ("eventType", "topic", "eventTime") if schema == "eventgrid" else ("type", "source", "time")
    events = seen()
    subscriber.close()
    assert subscriber.handshakes == 1
    expected = {"eventgrid": ("application/json", "Notification"), "cloudevents": ("application/cloudevents-batch+json", None)}
    ((content_type, header),) = subscriber.kinds
    assert (content_type.split(";")[0], header) == expected[schema]
    by_type = {}
    for event in events:
        by_type.setdefault(event[kind], []).append(event)
        assert event[source].endswith(f"/PROVIDERS/MICROSOFT.DEVICES/IOTHUBS/{name.upper()}")
        assert event[source].startswith("/SUBSCRIPTIONS/") and TIME.match(event[time])
    assert len({event["id"] for event in events}) == len(events)
    counts = {name: len(found) for name, found in by_type.items()}
    assert counts == {
        "Microsoft.Devices.DeviceCreated": 2, "Holdfast.Devices.TwinChanged": 1, "Microsoft.Devices.DeviceConnected": 1,
        "Microsoft.Devices.DeviceTelemetry": 1, "Microsoft.Devices.DeviceDisconnected": 1, "Microsoft.Devices.DeviceDeleted": 2,
    }
    telemetry = by_type["Microsoft.Devices.DeviceTelemetry"][0]
    created, module = by_type["Microsoft.Devices.DeviceCreated"]
    assert (created["subject"], module["subject"]) == (f"devices/{device_id}", f"devices/{device_id}/modules/m")
    assert set(created["data"]) == {"twin", "hubName", "deviceId"} and module["data"]["moduleId"] == "m"
    twin = created["data"]["twin"]
    assert (twin["deviceId"], twin["status"], twin["version"]) == (device_id, "enabled", 1)
    assert twin["properties"]["desired"]["$version"] == 1 and "tags" not in twin
    states = [by_type[f"Microsoft.Devices.Device{state}"][0]["data"] for state in ("Connected", "Disconnected")]
    numbers = [state["deviceConnectionStateEventInfo"]["sequenceNumber"] for state in states]
    assert len(numbers[0]) == 64 and numbers[0] < numbers[1]
    assert [(state["hubName"], state["deviceId"]) for state in states] == [(name, device_id)] * 2
    data = telemetry["data"]
    assert (data["properties"], data["body"]) == ({"level": "high"}, {"t": 21.5})
    assert data["systemProperties"]["iothub-message-source"] == "Telemetry"
    assert data["systemProperties"]["iothub-connection-device-id"] == device_id
    assert by_type["Holdfast.Devices.TwinChanged"][0]["data"]["body"]["tags"] == {"site": "north"}
    if schema == "eventgrid":
        assert {event["metadataVersion"] for event in events} == {"1"}
        assert (telemetry["dataVersion"], created["dataVersion"]) == ("", "1")
    else:
        assert {event["specversion"] for event in events} == {"1.0"}
