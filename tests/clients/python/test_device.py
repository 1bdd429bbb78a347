"""The unmodified Python device SDK over MQTT and MQTT over WebSocket, with symmetric keys."""

import json
import threading

import pytest
from azure.iot.device import IoTHubDeviceClient, IoTHubModuleClient, Message, MethodResponse
from azure.iot.device.exceptions import CredentialError

from hub import wait_until


def collect(client, attribute):
    """Sets an SDK handler that collects into a list."""
    received = []
    setattr(client, attribute, received.append)
    return received


def test_telemetry_arrives_with_all_its_properties(hub, client):
    message = Message(json.dumps({"temperature": 21.5}), content_encoding="utf-8", content_type="application/json")
    message.message_id = "m-1"
    message.correlation_id = "c/1 ü"
    message.user_id = "somebody"
    message.custom_properties["level"] = "critical & = / + %"
    message.custom_properties["größe"] = "ß"
    message.custom_properties["empty"] = ""
    with hub.events(client.device_id) as events:
        client.send_message(message)
        client.send_message("plain text")
        first, second = events.wait(2)
    assert first["body"] == {"temperature": 21.5}
    assert first["deviceId"] == client.device_id
    system = first["systemProperties"]
    assert system["messageId"] == "m-1"
    assert system["correlationId"] == "c/1 ü"
    assert system["contentType"] == "application/json"
    assert system["contentEncoding"] == "utf-8"
    assert first["properties"] == {"level": "critical & = / + %", "größe": "ß", "empty": ""}
    assert second["body"] == "plain text"
    assert (second["partition"], second["sequenceNumber"]) > (first["partition"], first["sequenceNumber"])


def test_telemetry_of_many_threads_all_arrives_once(hub, client):
    with hub.events(client.device_id) as events:
        threads = [
            threading.Thread(target=lambda t=t: [client.send_message(f"{t}/{n}") for n in range(25)]) for t in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        bodies = [event["body"] for event in events.wait(100)]
    assert sorted(bodies) == sorted(f"{t}/{n}" for t in range(4) for n in range(25))
    for t in range(4):
        own = [int(body.split("/")[1]) for body in bodies if body.startswith(f"{t}/")]
        assert own == sorted(own), "one sender's messages keep their order"


def test_large_messages(hub, client):
    with hub.events(client.device_id) as events:
        client.send_message("x" * 200_000)
        assert len(events.wait(1)[0]["body"]) == 200_000


def test_cloud_to_device(hub, client):
    received = collect(client, "on_message_received")
    hub.send_c2d(
        client.device_id,
        "héllo",
        messageId="c2d-1",
        correlationId="why not",
        contentType="text/plain",
        contentEncoding="utf-8",
        properties={"a": "1 = & / + %", "ü": "ß"},
    )
    hub.send_c2d(client.device_id, "second")
    wait_until(lambda: len(received) == 2, "two messages")
    first = received[0]
    assert first.data.decode() == "héllo"
    assert first.message_id == "c2d-1"
    assert first.correlation_id == "why not"
    assert first.content_type == "text/plain"
    assert first.custom_properties == {"a": "1 = & / + %", "ü": "ß"}
    assert received[1].data == b"second"
    wait_until(
        lambda: hub.request("GET", f"/devices/{client.device_id}").json()["cloudToDeviceMessageCount"] == 0,
        "the queue to be empty once the device has acknowledged",
    )


def test_cloud_to_device_waits_for_the_device(hub, device):
    for n in range(3):
        hub.send_c2d(device, f"waiting {n}")
    client = IoTHubDeviceClient.create_from_connection_string(
        hub.device_connection_string(device), server_verification_cert=hub.ca_pem
    )
    received = collect(client, "on_message_received")
    client.connect()
    wait_until(lambda: len(received) == 3, "three messages that had waited")
    assert [message.data.decode() for message in received] == ["waiting 0", "waiting 1", "waiting 2"]
    client.shutdown()


def test_direct_method(hub, client):
    def answer(request):
        client.send_method_response(
            MethodResponse.create_from_method_request(request, 207, {"name": request.name, "got": request.payload})
        )

    client.on_method_request_received = answer
    for payload in ({"delay": 3}, "text", None, [1, 2], {"ü": "ß"}):
        response = hub.request(
            "POST",
            f"/twins/{client.device_id}/methods",
            json={"methodName": "reboot", "payload": payload, "responseTimeoutInSeconds": 10},
        )
        assert response.status_code == 200, response.text
        assert response.json() == {"status": 207, "payload": {"name": "reboot", "got": payload}}


def test_direct_method_errors(hub, client, device):
    offline = hub.request("POST", f"/twins/{device}/methods", json={"methodName": "x"})
    assert offline.status_code == 404
    inner = json.loads(offline.json()["Message"])
    assert inner["errorCode"] == 404103
    client.on_method_request_received = lambda request: None
    late = hub.request(
        "POST", f"/twins/{device}/methods", json={"methodName": "x", "responseTimeoutInSeconds": 5}
    )
    assert late.status_code == 504
    assert json.loads(late.json()["Message"])["errorCode"] == 504101
    for timeout in (4, 301):
        bad = hub.request(
            "POST", f"/twins/{device}/methods", json={"methodName": "x", "responseTimeoutInSeconds": timeout}
        )
        assert bad.status_code == 400


def test_twin(hub, client):
    twin = client.get_twin()
    assert twin == {"desired": {"$version": 1}, "reported": {"$version": 1}}
    client.patch_twin_reported_properties({"fan": {"speed": 3}, "gone": 1})
    client.patch_twin_reported_properties({"gone": None, "list": [1, {"a": True}]})
    assert client.get_twin()["reported"] == {"fan": {"speed": 3}, "list": [1, {"a": True}], "$version": 3}

    patches = collect(client, "on_twin_desired_properties_patch_received")
    changed = hub.request(
        "PATCH", f"/twins/{client.device_id}", json={"properties": {"desired": {"limit": {"high": 80}, "old": None}}}
    )
    assert changed.status_code == 200
    wait_until(lambda: patches, "the desired patch")
    assert patches[0]["limit"] == {"high": 80}
    assert patches[0]["$version"] == 2
    service_view = hub.request("GET", f"/twins/{client.device_id}").json()
    assert service_view["properties"]["reported"]["fan"]["speed"] == 3
    assert service_view["properties"]["desired"]["$metadata"]["limit"]["high"]["$lastUpdatedVersion"] == 2


def test_bad_reported_properties_are_refused_and_harm_nothing(hub, client):
    client.patch_twin_reported_properties({"good": 1})
    deep = {"a": 1}
    for _ in range(12):
        deep = {"a": deep}
    for bad in ({"with.dot": 1}, {"$dollar": 1} | {"a b": 1}, deep, {"big": "x" * 5000}):
        with pytest.raises(Exception):
            client.patch_twin_reported_properties(bad)
    assert client.get_twin()["reported"] == {"good": 1, "$version": 2}


def test_module_identity(hub, device, websockets):
    created = hub.request(
        "PUT", f"/devices/{device}/modules/sensor", json={"deviceId": device, "moduleId": "sensor"}
    )
    assert created.status_code == 200
    module = IoTHubModuleClient.create_from_connection_string(
        hub.device_connection_string(device, "sensor"), websockets=websockets, server_verification_cert=hub.ca_pem
    )
    module.connect()
    with hub.events(device) as events:
        module.send_message_to_output("from the module", "out1")
        event = events.wait(1)[0]
    assert (event["deviceId"], event["moduleId"]) == (device, "sensor")
    module.on_method_request_received = lambda request: module.send_method_response(
        MethodResponse.create_from_method_request(request, 200, {})
    )
    answer = hub.request("POST", f"/twins/{device}/modules/sensor/methods", json={"methodName": "go"})
    assert answer.json()["status"] == 200
    module.patch_twin_reported_properties({"ok": True})
    assert module.get_twin()["reported"]["ok"] is True
    module.shutdown()


def test_wrong_key_is_a_credential_error(hub, device, websockets):
    right = hub.device_connection_string(device)
    head, _ = right.rsplit("SharedAccessKey=", 1)
    client = IoTHubDeviceClient.create_from_connection_string(
        f"{head}SharedAccessKey=MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
        websockets=websockets,
        server_verification_cert=hub.ca_pem,
    )
    with pytest.raises(CredentialError):
        client.connect()
    client.shutdown()


def test_secondary_key_works(hub, device):
    record = hub.request("GET", f"/devices/{device}").json()
    secondary = record["authentication"]["symmetricKey"]["secondaryKey"]
    client = IoTHubDeviceClient.create_from_connection_string(
        f"HostName={hub.host};DeviceId={device};SharedAccessKey={secondary}", server_verification_cert=hub.ca_pem
    )
    client.connect()
    assert client.connected
    client.shutdown()


def test_disabling_a_device_closes_its_connection(hub, client):
    record = hub.request("GET", f"/devices/{client.device_id}").json()
    record["status"] = "disabled"
    answer = hub.request("PUT", f"/devices/{client.device_id}", json=record, headers={"If-Match": '"*"'})
    assert answer.status_code == 200
    wait_until(lambda: not client.connected, "the connection to be closed")


def test_a_newer_connection_takes_over(hub, device, websockets):
    # Without retries: two clients of one identity that reconnect would take over from each other for ever.
    older, newer = (
        IoTHubDeviceClient.create_from_connection_string(
            hub.device_connection_string(device),
            websockets=websockets,
            server_verification_cert=hub.ca_pem,
            auto_connect=False,
            connection_retry=False,
        )
        for _ in range(2)
    )
    older.connect()
    newer.connect()
    wait_until(lambda: not older.connected, "the older connection to be closed")
    newer.send_message("the newer one goes on")
    for client in (older, newer):
        client.shutdown()
