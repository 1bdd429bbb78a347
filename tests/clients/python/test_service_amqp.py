"""Cloud-to-device messages of the unmodified service SDK, which sends them over AMQP (uamqp)."""

import json
import time

import pytest
import uamqp
from azure.iot.device import IoTHubDeviceClient
from azure.iot.hub import IoTHubRegistryManager

import hub as hubs


@pytest.fixture
def registry(hub):
    return IoTHubRegistryManager.from_connection_string(hub.owner)


def test_a_message_with_all_its_properties(hub, device, registry):
    registry.send_c2d_message(device, "hello", {"messageId": "m-1", "contentType": "text/plain", "level": "3"})
    client = IoTHubDeviceClient.create_from_connection_string(
        hub.device_connection_string(device), server_verification_cert=hub.ca_pem
    )
    received = []
    client.on_message_received = received.append
    client.connect()
    hubs.wait_until(lambda: received, "the message")
    client.shutdown()
    assert received[0].data == b"hello"
    assert received[0].message_id == "m-1"
    assert received[0].custom_properties["level"] == "3"


def test_unknown_devices_are_refused(registry):
    with pytest.raises(Exception):
        registry.send_c2d_message("nobody-of-this-name", "hello")


def test_feedback_of_a_completed_message(hub, device, registry):
    registry.send_c2d_message(device, "hello", {"messageId": f"fb-{device}", "iothub-ack": "full"})
    client = IoTHubDeviceClient.create_from_connection_string(
        hub.device_connection_string(device), server_verification_cert=hub.ca_pem
    )
    received = []
    client.on_message_received = received.append
    client.connect()
    hubs.wait_until(lambda: received, "the message")
    client.shutdown()

    def arrived():
        response = registry.protocol.cloud_to_device_messages.receive_feedback_notification(raw=True).response
        records = json.loads(response.content) if response.content else []
        return [record for record in records if record["originalMessageId"] == f"fb-{device}"]

    (record,) = hubs.wait_until(arrived, "the feedback", 40)
    assert (record["statusCode"], record["deviceId"]) == ("Success", device)


class Receiver:
    """A receiver of a service's node, as services that use uamqp themselves have it."""

    def __init__(self, hub, node, websocket=False, policy=None, key=None):
        uri = f"https://{hub.host}"
        token = hubs.sas_token(hub.host, key or hub.policy_key, policy or hub.policy)
        transport = uamqp.TransportType.AmqpOverWebsocket if websocket else uamqp.TransportType.Amqp
        auth = uamqp.authentication.SASTokenAuth(
            audience=uri, uri=uri, token=token, expires_at=int(time.time()) + 3600, verify=hub.ca, transport_type=transport
        )
        self.client = uamqp.ReceiveClient(
            f"amqps://{hub.host}/messages/serviceBound/{node}", auth=auth, prefetch=10, timeout=2000, auto_complete=False
        )

    def take(self):
        """What is there within two seconds, accepted."""
        messages = self.client.receive_message_batch(timeout=2000)
        for message in messages:
            assert len(message.delivery_tag) == 16
            message.accept()
        return messages

    def close(self):
        self.client.close()


@pytest.mark.parametrize("websocket", [False, True], ids=["amqp", "websocket"])
def test_feedback_over_amqp(hub, device, registry, websocket):
    wanted = {("full", "complete"): "Success", ("positive", "complete"): "Success", ("full", "reject"): "Rejected", ("negative", "reject"): "Rejected"}
    for ack in ("none", "positive", "negative", "full"):
        for outcome in ("complete", "reject"):
            properties = {"messageId": f"{device}/{ack}/{outcome}", "iothub-ack": ack, "outcome": outcome}
            registry.send_c2d_message(device, "hello", properties)
    # The device settles over HTTPS: the Python SDK for devices cannot reject.
    for _ in range(8):
        message = hub.request("GET", f"/devices/{device}/messages/deviceBound", headers={"Authorization": device_token(hub, device)})
        lock = message.headers["ETag"].strip('"')
        reject = "?reject" if message.headers["iothub-app-outcome"] == "reject" else ""
        path = f"/devices/{device}/messages/deviceBound/{lock}{reject}"
        assert hub.request("DELETE", path, headers={"Authorization": device_token(hub, device)}).status_code == 204
    receiver = Receiver(hub, "feedback", websocket)
    records, batches = {}, []

    def arrived():
        for message in receiver.take():
            batches.append(message)
            for record in json.loads(b"".join(message.get_data())):
                if record["deviceId"] == device:
                    records[record["originalMessageId"]] = record
        return len(records) >= len(wanted)

    hubs.wait_until(arrived, "the feedback", 40)
    receiver.close()
    assert {tuple(id.split("/")[1:]): record["statusCode"] for id, record in records.items()} == wanted
    for message in batches:
        assert message.properties.content_type == b"application/vnd.microsoft.iothub.feedback.json"
        assert message.properties.user_id == hub.host.split(".")[0].encode()
        assert abs(message.annotations[b"iothub-enqueuedtime"] / 1000 - time.time()) < 120
    record = next(iter(records.values()))
    assert record["deviceGenerationId"] and record["enqueuedTimeUtc"].endswith("Z")


def device_token(hub, device):
    key = hubs.parse_connection_string(hub.device_connection_string(device))["SharedAccessKey"]
    return hubs.sas_token(f"{hub.host}/devices/{device}", key)


def test_the_file_notification_receiver_opens_and_stays_empty(hub):
    receiver = Receiver(hub, "filenotifications")
    assert receiver.take() == []
    assert receiver.take() == []
    receiver.close()


def test_a_device_policy_receives_no_feedback(hub):
    made = hub.request("PUT", "/holdfast/v1/policies/devices-only", json={"rights": "DeviceConnect"}).json()
    receiver = Receiver(hub, "feedback", policy="devices-only", key=made["primaryKey"])
    with pytest.raises(uamqp.errors.AMQPError) as caught:
        receiver.take()
    assert "unauthorizedaccess" in str(caught.value).lower()
    receiver.close()
