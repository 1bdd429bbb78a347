"""Modules on the unmodified SDKs, in containers, from edge environment; and the methods of `$edgeAgent`."""

import base64
import gzip
import json

import pytest

from device import module, wait_until
from site_net import event_body

FEW = {"MessageCount": "5", "MessageDelay": "0.3"}
CHAIN = {
    "in": 'FROM /messages/modules/sensor/outputs/temperatureOutput INTO BrokeredEndpoint("/modules/filter/inputs/readings")',
    "up": "FROM /messages/modules/filter/outputs/alerts INTO $upstream",
}


@pytest.fixture(params=["python", "node-mqtt", "node-amqp"])
def filter_module(request, python_image, node_image):
    if request.param == "python":
        return module(python_image)
    transport = {"node-mqtt": "Mqtt", "node-amqp": "Amqp"}[request.param]
    return module(node_image, env={"TRANSPORT": transport})


def test_inputs_outputs_methods_and_twins(device, hub, sensor, filter_module):
    with hub.events(device.id) as events:
        device.deploy({"sensor": module(sensor, env=FEW), "filter": filter_module}, CHAIN)
        device.wait_event("filter", "ready", 120)
        # Each reading once, in order.
        try:
            wait_until(lambda: len(alerts(events)) >= 5, "five alerts", 60)
        except AssertionError as error:
            said = device.module_events("filter")
            raise AssertionError(f"{error}: {alerts(events)}\n{said}\n{device.log_tail()}") from None
        found = [number for number, _ in alerts(events)]
        # The Python SDK calls handlers side by side: there the order says nothing.
        assert (sorted(found) if "python" in filter_module["settings"]["image"] else found) == [1, 2, 3, 4, 5]
        assert all("machine" in body["alert"] for _, body in alerts(events))
    status, payload = hub.method(device.id, "filter", "echo", {"a": [1, "ü", None]})
    assert (status, payload) == (200, {"a": [1, "ü", None]})
    hub.ok("PATCH", f"/twins/{device.id}/modules/filter", {"properties": {"desired": {"limit": 25}}})
    wait_until(lambda: hub.reported(device.id, "filter").get("limit") == 25, "the reported limit", 30)


def alerts(events):
    found = []
    for event in list(events.received):
        properties = event.get("properties") or event.get("applicationProperties") or {}
        if properties.get("source") == "readings":
            found.append((int(properties["sequenceNumber"]), event_body(event)))
    return found


def test_modules_call_each_other(device, hub, python_image, node_image):
    device.deploy({"py": module(python_image), "js": module(node_image)})
    device.wait_event("py", "ready", 120)
    device.wait_event("js", "ready", 120)
    for caller, callee in (("py", "js"), ("js", "py")):
        call = {"device": device.id, "module": callee, "method": "echo", "payload": {"from": caller}}
        status, payload = hub.method(device.id, caller, "call", call)
        assert status == 200, payload
        assert payload["status"] == 200 and payload["payload"] == {"from": caller}


def test_methods_of_the_agent(device, hub, sensor):
    device.wait_status(200, device.deploy({"sensor": module(sensor, env=FEW)}))
    device.wait_module("sensor")
    assert hub.method(device.id, "$edgeAgent", "ping")[0] == 200
    wait_until(lambda: "simulated sensor" in device.machine.docker("logs", "sensor"), "the sensor's log", 20)
    status, logs = hub.method(device.id, "$edgeAgent", "GetModuleLogs", {
        "schemaVersion": "1.0", "items": [{"id": "sensor", "filter": {"tail": 100}}], "encoding": "none", "contentType": "text"})
    assert status == 200 and "simulated sensor" in logs[0]["payload"]
    status, logs = hub.method(device.id, "$edgeAgent", "GetModuleLogs", {
        "schemaVersion": "1.0", "items": {"id": "sens.*"}, "encoding": "gzip", "contentType": "json"})
    assert status == 200
    records = gzip.decompress(base64.b64decode(logs[0]["payloadBytes"])).decode()
    assert "simulated sensor" in records and '"stream"' in records
    started = device.machine.inspect("sensor")["State"]["StartedAt"]
    status, _ = hub.method(device.id, "$edgeAgent", "RestartModule", {"schemaVersion": "1.0", "id": "sensor"})
    assert status == 200
    wait_until(lambda: device.machine.inspect("sensor")["State"]["StartedAt"] > started, "the restart", 30)
    status, answer = hub.method(device.id, "$edgeAgent", "NoSuchMethod", {})
    assert status == 400 and "GetModuleLogs" in json.dumps(answer)
    status, _ = hub.method(device.id, "$edgeAgent", "RestartModule", {"schemaVersion": "1.0", "id": "nobody"})
    assert status == 500


def test_the_edge_ca_is_renewed_without_restarting_modules(make_device, hub, sensor):
    """The first CA is made by a daemon whose clock is behind, so that its renewal is due soon after the second start."""
    day, soon = 86400, 45
    # 80 % of 90 days and of the day by which a certificate begins earlier than it was made.
    due = 0.8 * 91 * day - day
    device = make_device()
    ca = device.home / "identity" / "edge-ca.pem"
    device.machine.cut()
    device.start(clock=f"-{int(due) - soon}s", wait=False)
    wait_until(ca.exists, "an edge CA", 30)
    wait_until(device.answers, "the daemon", 30)
    first = ca.read_text()
    device.stop()
    device.machine.mend()
    device.start()
    routes = {"up": "FROM /messages/* INTO $upstream"}
    with hub.events(device.id) as events:
        device.deploy({"sensor": module(sensor, env={"MessageCount": "-1", "MessageDelay": "0.5"})}, routes)
        device.wait_module("sensor")
        events.wait(lambda event: "machine" in json.dumps(event), "telemetry before the renewal")
        assert ca.read_text() == first, "the renewal came too early for this test"
        started = device.machine.inspect("sensor")["State"]["StartedAt"]
        wait_until(lambda: ca.read_text() != first, "a new edge CA", soon + 60)
        seen = len(events.received)
        wait_until(lambda: len(events.received) >= seen + 5, "messages after the renewal", 60)
        assert device.machine.inspect("sensor")["State"]["StartedAt"] == started
