"""Plug and play: the unmodified device SDK announces a model, the unmodified service SDK talks to its digital twin."""

import json

import pytest
from azure.iot.device import IoTHubDeviceClient, Message, MethodResponse
from azure.iot.hub import DigitalTwinClient, IoTHubRegistryManager
from azure.iot.hub.models import QuerySpecification
from msrest.exceptions import HttpOperationError

from hub import wait_until

MODEL = "dtmi:com:example:TemperatureController;1"


@pytest.fixture
def service(hub):
    return DigitalTwinClient.from_connection_string(hub.owner)


@pytest.fixture
def pnp(hub, device, websockets):
    """A connected device that announces its model."""
    client = IoTHubDeviceClient.create_from_connection_string(
        hub.device_connection_string(device),
        websockets=websockets,
        server_verification_cert=hub.ca_pem,
        # The SDK takes a product info that is a DTMI as the model id.
        product_info=MODEL,
    )
    client.connect()
    client.device_id = device
    yield client
    client.shutdown()


def test_the_model_is_in_twin_telemetry_and_query(hub, pnp, service):
    registry = IoTHubRegistryManager.from_connection_string(hub.owner)
    # The SDK's class of twins has no member for it.
    assert hub.request("GET", f"/twins/{pnp.device_id}").json()["modelId"] == MODEL
    assert service.get_digital_twin(pnp.device_id)["$metadata"]["$model"] == MODEL
    message = Message(json.dumps({"temperature": 21.5}), content_encoding="utf-8", content_type="application/json")
    message.custom_properties["$.sub"] = "thermostat1"
    with hub.events(pnp.device_id) as events:
        pnp.send_message(message)
        [event] = events.wait(1)
    assert event["systemProperties"]["dt-dataschema"] == MODEL
    assert event["systemProperties"]["dt-subject"] == "thermostat1"
    text = f"SELECT * FROM devices WHERE modelId = '{MODEL}' AND deviceId = '{pnp.device_id}'"
    found = registry.query_iot_hub(QuerySpecification(query=text)).items
    assert [twin.device_id for twin in found] == [pnp.device_id]


def test_properties_make_a_round_trip(pnp, service):
    patches = []
    pnp.on_twin_desired_properties_patch_received = patches.append
    change = [
        {"op": "add", "path": "/thermostat1/targetTemperature", "value": 42},
        {"op": "add", "path": "/interval", "value": 5},
    ]
    wait_until(lambda: pnp.get_twin() is not None, "the twin")
    assert service.update_digital_twin(pnp.device_id, change) is None
    wait_until(lambda: patches, "the desired properties")
    assert patches[0]["interval"] == 5
    assert patches[0]["thermostat1"] == {"__t": "c", "targetTemperature": 42}
    version = patches[0]["$version"]
    answer = {"value": 42, "ac": 200, "av": version, "ad": "done"}
    pnp.patch_twin_reported_properties(
        {"serialNumber": "s1", "thermostat1": {"__t": "c", "targetTemperature": answer, "maxTemp": 50.5}}
    )
    twin = wait_until(
        lambda: (found := service.get_digital_twin(pnp.device_id)).get("serialNumber") and found, "the report"
    )
    assert twin["serialNumber"] == "s1"
    assert twin["thermostat1"]["targetTemperature"] == 42
    about = twin["thermostat1"]["$metadata"]["targetTemperature"]
    assert about["desiredValue"] == 42
    assert (about["desiredVersion"], about["ackVersion"]) == (version, version)
    assert (about["ackCode"], about["ackDescription"]) == (200, "done")
    assert about["lastUpdateTime"].endswith("Z")
    assert twin["$metadata"]["interval"] == {"desiredValue": 5, "desiredVersion": version}


def test_updates_are_conditional(hub, device, service):
    etag = hub.request("GET", f"/digitaltwins/{device}").headers["ETag"]
    service.update_digital_twin(device, [{"op": "add", "path": "/a", "value": 1}], etag)
    with pytest.raises(HttpOperationError) as stale:
        service.update_digital_twin(device, [{"op": "add", "path": "/a", "value": 2}], etag)
    assert stale.value.response.status_code == 412
    for wrong in ([{"op": "remove", "path": "/b"}], [{"op": "add", "path": "/$metadata", "value": {}}], [{"op": "test"}]):
        with pytest.raises(HttpOperationError) as refused:
            service.update_digital_twin(device, wrong)
        assert refused.value.response.status_code == 400


def test_commands(pnp, service):
    def answer(request):
        payload = {"name": request.name, "argument": request.payload}
        pnp.send_method_response(MethodResponse.create_from_method_request(request, 201, payload))

    pnp.on_method_request_received = answer
    argument = "2026-08-01T10:00:00Z"
    result = service.invoke_command(pnp.device_id, "reboot", argument, 10, 10)
    assert result == {"name": "reboot", "argument": argument}
    result = service.invoke_component_command(pnp.device_id, "thermostat1", "getMaxMinReport", argument, 10, 10)
    assert result == {"name": "thermostat1*getMaxMinReport", "argument": argument}


def test_command_answers_carry_the_status(hub, pnp):
    pnp.on_method_request_received = lambda request: pnp.send_method_response(
        MethodResponse.create_from_method_request(request, 418, None)
    )
    path = f"/digitaltwins/{pnp.device_id}/commands/brew"
    answer = hub.request("POST", path, json={"cups": 1}, params={"connectTimeoutInSeconds": 10})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-ms-command-statuscode"] == "418"
    assert answer.headers["x-ms-request-id"]
    assert answer.json() is None


def test_commands_to_nobody(device, service):
    with pytest.raises(HttpOperationError) as offline:
        service.invoke_command(device, "reboot", "{}")
    assert offline.value.response.status_code == 404
    assert offline.value.response.headers["iothub-errorcode"] == "DeviceNotOnline"


def test_a_twin_is_checked_against_its_model(hub, pnp):
    thermostat = "dtmi:com:example:Thermostat;1"
    documents = {
        thermostat: [
            {"@type": ["Property", "Temperature"], "name": "targetTemperature", "schema": "double", "writable": True,
             "unit": "degreeCelsius"},
        ],
        MODEL: [
            {"@type": "Property", "name": "serialNumber", "schema": "string"},
            {"@type": "Component", "name": "thermostat1", "schema": thermostat},
        ],
    }
    for dtmi, contents in documents.items():
        body = {"@context": "dtmi:dtdl:context;2", "@id": dtmi, "@type": "Interface", "contents": contents}
        answer = hub.request("PUT", f"/holdfast/v1/models/{dtmi}", json=body)
        assert answer.status_code == 200, answer.text
    check = f"/holdfast/v1/devices/{pnp.device_id}/modelCheck"
    assert hub.request("GET", check).json() == {"valid": True, "modelId": MODEL, "faults": []}
    pnp.patch_twin_reported_properties({"serialNumber": 5, "thermostat1": {"targetTemperature": 21}})
    faults = wait_until(lambda: hub.request("GET", check).json()["faults"], "faults")
    assert [fault["place"] for fault in faults] == ["reported.serialNumber", "reported.thermostat1"]
