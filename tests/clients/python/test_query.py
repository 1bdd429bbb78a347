"""Queries with the unmodified Python service SDK, and as the command line extension of the cloud sends them."""

import time

import pytest
import requests
from azure.iot.device import IoTHubDeviceClient
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import QuerySpecification, Twin, TwinProperties
from azure.iot.hub.sastoken import SasToken
from msrest.exceptions import HttpOperationError


@pytest.fixture(scope="module")
def registry(hub):
    return IoTHubRegistryManager.from_connection_string(hub.owner)


@pytest.fixture
def fleet(registry, device_id):
    """Seven tagged devices; gives the value of the tag `run`, which only they have, and their ids."""
    ids = []
    for n in range(7):
        name = f"{device_id}-{n}"
        registry.create_device_with_sas(name, None, None, "enabled" if n else "disabled")
        desired = TwinProperties(desired={"rate": n})
        tags = {"run": device_id, "location": {"region": "US" if n % 2 else "DE"}, "group": "g"}
        registry.update_twin(name, Twin(tags=tags, properties=desired), "*")
        ids.append(name)
    yield device_id, ids
    for name in ids:
        registry.delete_device(name)


def everything(registry, query, page=100):
    """All items of all pages, with the item type of the answers."""
    items, token = [], None
    while True:
        result = registry.query_iot_hub(QuerySpecification(query=query), token, page)
        items.extend(result.items)
        assert len(result.items) <= page
        token = result.continuation_token
        if not token:
            return items, result.type


def test_twins(registry, fleet):
    run, ids = fleet
    items, kind = everything(registry, f"SELECT * FROM devices WHERE tags.run = '{run}'")
    assert kind == "Twin"
    assert sorted(twin.device_id for twin in items) == ids
    twin = next(twin for twin in items if twin.device_id == ids[3])
    assert twin.tags["location"] == {"region": "US"}
    assert twin.properties.desired["rate"] == 3
    assert (twin.status, twin.connection_state, twin.version) == ("enabled", "Disconnected", 2)
    assert twin.etag == registry.get_twin(ids[3]).etag


@pytest.mark.parametrize(
    "condition, expected",
    [
        ("tags.location.region = 'US' AND properties.desired.rate >= 3", [3, 5]),
        ("properties.desired.rate IN [1, 2, 'x']", [1, 2]),
        ("NOT is_defined(properties.reported.rate) AND status = 'disabled'", [0]),
        ("tags.[[group]] = 'g' AND properties.desired.rate > 5", [6]),
        ("STARTSWITH(id, '{run}-') AND properties.desired.rate < 1", [0]),
        ("properties.desired.$version = properties.desired.rate", [2]),
    ],
)
def test_conditions(registry, fleet, condition, expected):
    run, ids = fleet
    query = f"SELECT * FROM devices WHERE tags.run = '{run}' AND {condition.format(run=run)}"
    items, _ = everything(registry, query)
    assert sorted(twin.device_id for twin in items) == [ids[n] for n in expected]


def test_pages_while_devices_are_added(registry, fleet):
    run, ids = fleet
    query = QuerySpecification(query=f"SELECT * FROM devices WHERE tags.run = '{run}'")
    seen, token, added = [], None, []
    while True:
        result = registry.query_iot_hub(query, token, 2)
        seen.extend(twin.device_id for twin in result.items)
        token = result.continuation_token
        if not token:
            break
        if len(added) < 4:
            for name in (f"a-{run}-{len(added)}", f"z-{run}-{len(added)}"):
                registry.create_device_with_sas(name, None, None, "enabled")
                registry.update_twin(name, Twin(tags={"run": run}), "*")
                added.append(name)
    assert len(seen) == len(set(seen)), "a device came twice"
    assert set(ids) <= set(seen) <= set(ids) | set(added)
    for name in added:
        registry.delete_device(name)


def test_figures(registry, fleet, hub):
    run, _ = fleet
    answer = post(hub, f"SELECT tags.location.region AS region, COUNT() AS n, SUM(properties.desired.rate) AS s "
                       f"FROM devices WHERE tags.run = '{run}' GROUP BY tags.location.region")
    assert answer.headers["x-ms-item-type"] == "Raw"
    rows = sorted(answer.json(), key=lambda row: row["region"])
    assert rows == [{"region": "DE", "n": 4, "s": 12}, {"region": "US", "n": 3, "s": 9}]
    answer = post(hub, f"SELECT COUNT() AS total FROM devices WHERE tags.run = '{run}'")
    assert answer.json() == [{"total": 7}]


def test_connected_devices_and_reported_properties(registry, hub, device):
    client = IoTHubDeviceClient.create_from_connection_string(
        hub.device_connection_string(device), server_verification_cert=hub.ca_pem
    )
    client.connect()
    client.patch_twin_reported_properties({"telemetryConfig": {"status": "success"}})
    query = (
        f"SELECT * FROM devices WHERE deviceId = '{device}' AND connectionState = 'Connected' "
        "AND properties.reported.telemetryConfig.status = 'success'"
    )
    # The state of connections is stored about once a second.
    deadline = time.monotonic() + 20
    while True:
        items, _ = everything(registry, query)
        if items or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert [twin.device_id for twin in items] == [device]
    client.shutdown()


def test_edge_children(registry, hub, device_id):
    edge = registry.create_device_with_sas(device_id, None, None, "enabled", iot_edge=True)
    leaf = f"{device_id}-leaf"
    registry.create_device_with_sas(leaf, None, None, "enabled", device_scope=edge.device_scope)
    found = post(hub, f"select deviceId from devices where array_contains(parentScopes, '{edge.device_scope}')").json()
    assert found == [{"deviceId": leaf}]
    found = post(hub, f"SELECT deviceId, deviceScope FROM devices WHERE capabilities.iotEdge = true AND deviceId = '{device_id}'")
    assert found.json() == [{"deviceId": device_id, "deviceScope": edge.device_scope}]
    items, kind = everything(registry, f"SELECT * FROM devices.modules WHERE devices.deviceId='{device_id}'")
    assert kind == "Twin"
    assert sorted(twin.module_id for twin in items) == ["$edgeAgent", "$edgeHub"]
    registry.delete_device(leaf)
    registry.delete_device(device_id)


def test_mistakes(registry):
    for query in ("SELECT * FROM devices WHERE STARTS_WITH(deviceId, 'x')", "SELECT * FROM devices WHERE tags.group = 1"):
        with pytest.raises(HttpOperationError) as wrong:
            registry.query_iot_hub(QuerySpecification(query=query))
        assert wrong.value.response.status_code == 400
        assert wrong.value.response.headers["iothub-errorcode"] == "ArgumentInvalid"
        assert "line 1, column" in wrong.value.response.json()["Message"]


def post(hub, query, **headers):
    """A request as the command line extension makes it."""
    parts = dict(part.split("=", 1) for part in hub.owner.split(";"))
    host = parts["HostName"]
    token = str(SasToken(host, parts["SharedAccessKey"], parts["SharedAccessKeyName"]))
    answer = requests.post(
        f"https://{host}/devices/query?api-version=2021-04-12",
        json={"query": query},
        headers={"Authorization": token, "Cache-Control": "no-cache, must-revalidate", **headers},
        verify=hub.ca,
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    return answer


@pytest.mark.parametrize("top", [1, 3, 5, -1])
def test_the_command_line_extension_pages_by_header(hub, fleet, top):
    """It reduces x-ms-max-item-count to what is still missing, and goes on while there is a token."""
    run, ids = fleet
    query = f"select * from devices where tags.run = '{run}'"
    found, token = [], None
    while True:
        headers = {}
        if top != -1:
            headers["x-ms-max-item-count"] = str(top - len(found))
        if token:
            headers["x-ms-continuation"] = token
        answer = post(hub, query, **headers)
        found.extend(answer.json())
        token = answer.headers.get("x-ms-continuation")
        if not token or (top != -1 and len(found) >= top):
            break
    assert len(found) == (len(ids) if top == -1 else top)
