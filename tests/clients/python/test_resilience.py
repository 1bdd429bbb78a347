"""What devices live through: restarts and kill -9 of the hub, lost connections, expiring tokens."""


import pytest
from azure.iot.device import IoTHubDeviceClient, MethodResponse

import hub as hubs
from hub import wait_until


@pytest.fixture
def own_hub(hub):
    """The shared hub is stopped for a while: the ports are fixed, and this test needs one it can kill."""
    if hub.process is None:
        pytest.fail("this test needs a hub of its own: unset HOLDFAST_TEST_CONNECTION_STRING")
    return hub


def connect(hub, device):
    client = IoTHubDeviceClient.create_from_connection_string(
        hub.device_connection_string(device), server_verification_cert=hub.ca_pem, keep_alive=10
    )
    client.connect()
    return client


def restart(hub, kill):
    if kill:
        hub.kill()
    else:
        hubs.stop(hub)
    hub.process = hubs.start(hub.data_dir).process


@pytest.mark.parametrize("kill", [False, True], ids=["sigterm", "kill-9"])
def test_a_device_survives_a_restart_of_the_hub(own_hub, device, kill):
    client = connect(own_hub, device)
    client.on_method_request_received = lambda request: client.send_method_response(
        MethodResponse.create_from_method_request(request, 200, None)
    )
    patches, messages = [], []
    client.on_twin_desired_properties_patch_received = patches.append
    client.on_message_received = messages.append
    for n in range(20):
        client.send_message(f"before {n}")
    client.patch_twin_reported_properties({"stage": "before"})

    restart(own_hub, kill)
    own_hub.send_c2d(device, "sent while away")
    wait_until(lambda: client.connected, "the SDK to reconnect by itself", 40)
    # The SDK does not subscribe again: the stored session must have brought everything back.
    wait_until(lambda: messages, "the message sent while the device was away")
    answer = own_hub.request("POST", f"/twins/{device}/methods", json={"methodName": "go", "connectTimeoutInSeconds": 5})
    assert answer.status_code == 200, answer.text
    own_hub.request("PATCH", f"/twins/{device}", json={"properties": {"desired": {"x": 1}}})
    wait_until(lambda: any(patch.get("x") == 1 for patch in patches), "a desired patch after the restart")
    assert client.get_twin()["reported"]["stage"] == "before"
    for n in range(20):
        client.send_message(f"after {n}")
    with own_hub.events(device) as events:
        bodies = [event["body"] for event in events.wait(40)]
    assert bodies == [f"before {n}" for n in range(20)] + [f"after {n}" for n in range(20)]
    client.shutdown()


def test_the_token_is_renewed_without_loss(own_hub, device):
    client = IoTHubDeviceClient.create_from_connection_string(
        own_hub.device_connection_string(device), server_verification_cert=own_hub.ca_pem, sastoken_ttl=125
    )
    messages = []
    client.on_message_received = messages.append
    client.connect()
    # The SDK renews 120 s before the end: about five seconds from now it disconnects and connects again.
    epoch = own_hub.request("GET", f"/devices/{device}").json()["connectionStateUpdatedTime"]
    wait_until(
        lambda: own_hub.request("GET", f"/devices/{device}").json()["connectionStateUpdatedTime"] != epoch
        and client.connected,
        "the renewal",
        30,
    )
    own_hub.send_c2d(device, "after the renewal")
    wait_until(lambda: messages, "a message after the renewal, without a new subscription")
    client.shutdown()
