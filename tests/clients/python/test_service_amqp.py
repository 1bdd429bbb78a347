"""Cloud-to-device messages of the unmodified service SDK, which sends them over AMQP (uamqp)."""

import json

import pytest
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
