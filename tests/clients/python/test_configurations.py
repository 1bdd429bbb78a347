"""The unmodified Python service SDK: configurations of devices and modules, edge deployments, content for one device."""

import json

import pytest
from azure.iot.device import IoTHubDeviceClient
from azure.iot.hub import IoTHubConfigurationManager, IoTHubRegistryManager
from azure.iot.hub.models import (
    Configuration,
    ConfigurationContent,
    ConfigurationMetrics,
    ConfigurationQueriesTestInput,
    Module,
    Twin,
    TwinProperties,
)
from msrest.exceptions import HttpOperationError

from hub import wait_until

AGENT = {
    "schemaVersion": "1.1",
    "runtime": {"type": "docker", "settings": {"minDockerVersion": "v1.25"}},
    "systemModules": {},
    "modules": {},
}
HUB = {"schemaVersion": "1.1", "routes": {"up": "FROM /messages/* INTO $upstream"}}


@pytest.fixture(scope="module")
def registry(hub):
    return IoTHubRegistryManager.from_connection_string(hub.owner)


@pytest.fixture(scope="module")
def manager(hub):
    return IoTHubConfigurationManager.from_connection_string(hub.owner)


@pytest.fixture
def make(manager, device_id):
    """Creates configurations and deletes them afterwards."""
    made = []

    def create(name, content, condition, priority=1, **members):
        configuration = Configuration(
            id=f"{device_id}-{name}",
            schema_version="2.0",
            content=ConfigurationContent(**content),
            target_condition=condition,
            priority=priority,
            **members,
        )
        made.append(configuration.id)
        return manager.create_configuration(configuration)

    yield create
    for name in made:
        try:
            manager.delete_configuration(name)
        except HttpOperationError as error:
            assert error.response.status_code == 404


def tag(registry, device_id, **tags):
    registry.update_twin(device_id, Twin(tags=tags), "*")


def desired(registry, device_id):
    properties = registry.get_twin(device_id).properties.desired
    return {key: value for key, value in properties.items() if not key.startswith("$")}


def statuses(registry, device_id):
    shown = registry.get_twin(device_id).additional_properties.get("configurations") or {}
    return {name: entry["status"] for name, entry in shown.items()}


def refused(error, status, name):
    assert error.value.response.status_code == status, error.value.response.text
    assert error.value.response.headers["iothub-errorcode"] == name
    return error.value.response.json()["Message"]


def test_a_configuration_has_a_life_cycle(manager, make, device_id):
    content = {"device_content": {"properties.desired.cycle": {"a": 1}}}
    created = make("cycle", content, f"deviceId = '{device_id}'", labels={"owner": "ops"})
    assert (created.id, created.priority, created.labels) == (f"{device_id}-cycle", 1, {"owner": "ops"})
    assert created.content.device_content == content["device_content"]
    assert created.system_metrics.queries["targetedCount"] == f"select deviceId from devices where deviceId = '{device_id}'"
    assert created.system_metrics.queries["appliedCount"] == (
        f"select deviceId from devices where configurations.[[{created.id}]].status = 'Applied'"
    )
    with pytest.raises(HttpOperationError) as again:
        manager.create_configuration(created)
    refused(again, 409, "ConfigurationAlreadyExists")

    stale = created.etag
    created.priority = 7
    updated = manager.update_configuration(created, stale)
    assert updated.priority == 7 and updated.etag != stale
    with pytest.raises(HttpOperationError) as conflict:
        manager.update_configuration(created, stale)
    refused(conflict, 412, "PreconditionFailed")
    updated.content.device_content = {"properties.desired.cycle": {"a": 2}}
    with pytest.raises(HttpOperationError) as immutable:
        manager.update_configuration(updated, updated.etag)
    refused(immutable, 400, "CannotModifyImmutableConfigurationContent")

    assert created.id in [one.id for one in manager.get_configurations(max_count=100)]
    assert len(manager.get_configurations(max_count=1)) == 1
    assert manager.get_configuration(created.id).priority == 7
    manager.delete_configuration(created.id, updated.etag)
    with pytest.raises(HttpOperationError) as gone:
        manager.get_configuration(created.id)
    refused(gone, 404, "ConfigurationNotFound")


def test_bad_configurations_are_refused(manager, make):
    good = {"device_content": {"properties.desired.a": 1}}
    for content, condition, name, words in [
        (good, "tags.a = ", "InvalidConfigurationTargetCondition", "line 1, column"),
        (good, "FROM devices.modules WHERE tags.a = 1", "InvalidConfigurationTargetCondition", "devices.modules"),
        ({"device_content": {"tags.a": 1}}, "*", "InvalidConfigurationContent", "not a path"),
        ({"module_content": {"properties.desired.a": 1}}, "*", "InvalidConfigurationTargetCondition", "FROM devices.modules"),
        ({"modules_content": {"$edgeAgent": {"properties.desired": {}}}}, "*", "InvalidConfigurationContent", "$edgeHub"),
        ({}, "*", "InvalidConfigurationContent", "needs content"),
        ({**good, "module_content": {"properties.desired.a": 1}}, "*", "InvalidConfigurationContent", "more than one"),
    ]:
        with pytest.raises(HttpOperationError) as error:
            make("bad", content, condition)
        assert words in refused(error, 400, name)
    with pytest.raises(HttpOperationError) as error:
        make("bad", good, "*", metrics=ConfigurationMetrics(queries={"m": "SELECT"}))
    refused(error, 400, "InvalidConfigurationCustomMetricsQuery")
    with pytest.raises(HttpOperationError) as error:
        make("bad", {"device_content": {"properties.desired.a": "x" * 1_100_000}}, "*")
    refused(error, 400, "InvalidConfigurationContent")
    with pytest.raises(HttpOperationError) as error:
        make("BAD", good, "*")
    refused(error, 400, "ArgumentInvalid")
    with pytest.raises(HttpOperationError) as error:
        make("bad", good, "*", priority=-1)
    refused(error, 400, "ArgumentInvalid")


def test_twins_follow_priority_condition_and_deletion(hub, registry, manager, make, device):
    """A connected device is told of each step."""
    client = IoTHubDeviceClient.create_from_connection_string(
        hub.device_connection_string(device), server_verification_cert=hub.ca_pem
    )
    patches = []
    client.on_twin_desired_properties_patch_received = patches.append
    client.connect()
    registry.update_twin(device, Twin(tags={"unit": device}, properties=TwinProperties(desired={"own": 1})), "*")
    low = make("low", {"device_content": {"properties.desired.a.b": {"x": 1, "y": 1}}}, f"tags.unit = '{device}'", 1)
    wait_until(lambda: desired(registry, device) == {"own": 1, "a": {"b": {"x": 1, "y": 1}}}, "the first configuration")
    high = make("high", {"device_content": {"properties.desired.a.b": {"x": 2}}}, f"tags.unit = '{device}' AND tags.hot = true", 5)
    tag(registry, device, hot=True)
    wait_until(lambda: desired(registry, device) == {"own": 1, "a": {"b": {"x": 2}}}, "the higher one to win")
    assert statuses(registry, device) == {low.id: "Targeted", high.id: "Applied"}

    def counts(name):
        results = manager.get_configuration(name).system_metrics.results
        return results["targetedCount"], results["appliedCount"]

    wait_until(lambda: (counts(low.id), counts(high.id)) == ((1, 0), (1, 1)), "the system metrics")
    query = hub.request("POST", "/devices/query", json={"query": high.system_metrics.queries["appliedCount"]}).json()
    assert query == [{"deviceId": device}]

    tag(registry, device, hot=False)
    wait_until(lambda: desired(registry, device) == {"own": 1, "a": {"b": {"x": 1, "y": 1}}}, "the next best to be restored")
    assert statuses(registry, device) == {low.id: "Applied"}
    manager.delete_configuration(low.id)
    wait_until(lambda: desired(registry, device) == {"own": 1}, "the written properties to be removed")
    assert statuses(registry, device) == {}
    wait_until(lambda: any(patch.get("a") is None and "a" in patch for patch in patches), "the device to hear of the end")
    assert patches[1]["a"] == {"b": {"x": 1, "y": 1}}
    client.shutdown()


def test_a_new_device_is_configured_at_once(hub, registry, make, device_id):
    make("new", {"device_content": {"properties.desired.new": True}}, f"STARTSWITH(deviceId, '{device_id}-x')")
    hub.create_device(f"{device_id}-x1")
    wait_until(lambda: desired(registry, f"{device_id}-x1") == {"new": True}, "the new device to be configured", 5)


def test_metrics_of_your_own(registry, manager, make, device):
    tag(registry, device, metric=device)
    queries = {
        "rows": f"SELECT deviceId FROM devices WHERE tags.metric = '{device}'",
        "figure": f"SELECT COUNT() AS n FROM devices WHERE tags.metric = '{device}'",
        "none": f"SELECT deviceId FROM devices WHERE tags.metric = '{device}' AND properties.reported.done = true",
    }
    content = {"device_content": {"properties.desired.m": 1}}
    made = make("metric", content, f"tags.metric = '{device}'", metrics=ConfigurationMetrics(queries=queries))
    assert made.metrics.queries == queries
    assert made.metrics.results == {"rows": 1, "figure": 1, "none": 0}


def test_modules_are_configured(registry, make, device):
    registry.create_module_with_sas(device, "camera", "", None, None)
    registry.create_module_with_sas(device, "other", "", None, None)
    condition = f"FROM devices.modules WHERE deviceId = '{device}' AND moduleId = 'camera'"
    made = make("module", {"module_content": {"properties.desired.mode": "hd"}}, condition)

    def camera():
        return registry.get_module_twin(device, "camera")

    wait_until(lambda: camera().properties.desired.get("mode") == "hd", "the module to be configured")
    assert camera().additional_properties["configurations"] == {made.id: {"status": "Applied"}}
    assert "mode" not in registry.get_module_twin(device, "other").properties.desired


def deployment(agent=AGENT, **modules):
    content = {"$edgeAgent": {"properties.desired": agent}, "$edgeHub": {"properties.desired": HUB}}
    for name, value in modules.items():
        content[name] = {"properties.desired": value}
    return {"modules_content": content}


def test_deployments_with_layers(hub, registry, manager, make, device_id):
    """Base selection and layering (edge contract, section 2.7)."""
    registry.create_device_with_sas(device_id, None, None, "enabled", iot_edge=True)
    condition = f"deviceId = '{device_id}'"
    base_agent = {**AGENT, "modules": {"m": {"settings": {"image": "base"}}, "s": {"settings": {"image": "base"}}}}
    base = make("base", deployment(base_agent, s={"interval": 5}), condition, 10)
    layer = {
        "$edgeAgent": {"properties.desired.modules.m": {"settings": {"image": "layer"}}},
        "$edgeHub": {"properties.desired.routes.extra": "FROM /messages/modules/m INTO $upstream"},
        "s": {"properties.desired.extra": {"z": 1}},
    }
    upper = make("upper", {"modules_content": layer}, condition, 20)
    below = make("below", {"modules_content": layer}, condition, 5)

    def twin(module):
        return registry.get_module_twin(device_id, module)

    wait_until(
        lambda: (twin("$edgeAgent").properties.desired.get("modules") or {}).get("m") == {"settings": {"image": "layer"}},
        "base and layer to be merged",
    )
    agent = twin("$edgeAgent")
    assert agent.properties.desired["modules"]["s"] == {"settings": {"image": "base"}}
    assert agent.properties.desired["runtime"] == AGENT["runtime"]
    shown = {name: entry["status"] for name, entry in agent.additional_properties["configurations"].items()}
    assert shown == {base.id: "Applied", upper.id: "Applied", below.id: "Targeted"}
    assert set(twin("$edgeHub").properties.desired["routes"]) == {"up", "extra"}
    module = twin("s").properties.desired
    assert (module["interval"], module["extra"]) == (5, {"z": 1})

    def results():
        return manager.get_configuration(base.id).system_metrics.results

    wait_until(lambda: (results()["targetedCount"], results()["appliedCount"]) == (1, 1), "the counts")
    assert (results()["reportedSuccessfulCount"], results()["reportedFailedCount"]) == (0, 0)
    queries = manager.get_configuration(base.id).system_metrics.queries
    assert "properties.desired.$version = properties.reported.lastDesiredVersion" in queries["reportedSuccessfulCount"]

    version = agent.properties.desired["$version"]
    manager.delete_configuration(upper.id)
    wait_until(
        lambda: twin("$edgeAgent").properties.desired["modules"]["m"] == {"settings": {"image": "base"}}, "the layer to go"
    )
    assert twin("$edgeAgent").properties.desired["$version"] > version
    wait_until(lambda: "extra" not in twin("s").properties.desired, "the layer's part of a module to go")
    manager.delete_configuration(base.id)
    wait_until(lambda: not (twin("$edgeAgent").additional_properties.get("configurations") or {}).get(base.id), "no base")
    assert twin("$edgeAgent").properties.desired["modules"]["m"] == {"settings": {"image": "base"}}, "modules stay"


def test_content_for_one_device(hub, registry, manager, device_id):
    registry.create_device_with_sas(device_id, None, None, "enabled", iot_edge=True)
    agent = {**AGENT, "modules": {"sensor": {"type": "docker"}}}
    content = ConfigurationContent(**deployment(agent, sensor={"interval": 1}))
    manager.apply_configuration_on_edge_device(device_id, content)
    assert registry.get_module(device_id, "sensor").managed_by == "IotEdge"
    assert registry.get_module_twin(device_id, "sensor").properties.desired["interval"] == 1
    assert registry.get_module_twin(device_id, "$edgeAgent").properties.desired["modules"] == agent["modules"]
    again = ConfigurationContent(**deployment(sensor={"rate": 2}))
    manager.apply_configuration_on_edge_device(device_id, again)
    sensor = registry.get_module_twin(device_id, "sensor").properties.desired
    assert sensor["rate"] == 2 and "interval" not in sensor
    for bad, name in [
        ({"modulesContent": {}}, "InvalidConfigurationContent"),
        ({"modulesContent": {"m": {"properties.desired.x": 1}}}, "InvalidConfigurationContent"),
        ({"modulesContent": {"m": {"properties.desired": {"a.b": 1}}}}, "InvalidConfigurationContent"),
    ]:
        answer = hub.request("POST", f"/devices/{device_id}/applyConfigurationContent", json=bad)
        assert (answer.status_code, answer.headers["iothub-errorcode"]) == (400, name), answer.text
    with pytest.raises(HttpOperationError):
        registry.get_module(device_id, "m")
    hub.create_device(f"{device_id}-leaf")
    answer = hub.request(
        "POST", f"/devices/{device_id}-leaf/applyConfigurationContent", json={"modulesContent": {"m": {"properties.desired": {}}}}
    )
    assert (answer.status_code, answer.headers["iothub-errorcode"]) == (400, "InvalidOperation")
    answer = hub.request(
        "POST", f"/devices/{device_id}-none/applyConfigurationContent", json={"modulesContent": {"m": {"properties.desired": {}}}}
    )
    assert (answer.status_code, answer.headers["iothub-errorcode"]) == (404, "DeviceNotFound")


def test_queries_can_be_tried(manager):
    test = ConfigurationQueriesTestInput(
        target_condition="tags.a = 'x' AND", custom_metric_queries={"good": "SELECT deviceId FROM devices", "bad": "SELECT"}
    )
    result = manager.test_configuration_queries(test)
    assert "column" in result.target_condition_error
    assert list(result.custom_metric_query_errors) == ["bad"]
    fine = manager.test_configuration_queries(
        ConfigurationQueriesTestInput(target_condition="FROM devices.modules WHERE moduleId = 'm'", custom_metric_queries={})
    )
    assert fine.target_condition_error is None and fine.custom_metric_query_errors == {}


def test_a_configuration_survives_kill_9(own_wired, tmp_path):
    """Killed while twins are being changed: after the next start all are, and after a deletion none is."""
    count, data = 3_000, tmp_path / "killed"

    def ask(method, path, body=None, expected=200):
        status, _, text = running.call(method, path, body)
        assert status == expected, text
        return json.loads(text) if text else None

    def counted(where):
        return ask("POST", "/devices/query", {"query": f"SELECT COUNT() AS n FROM devices WHERE {where}"})[0]["n"]

    running = own_wired(data_dir=data)
    for start in range(0, count, 100):
        entries = [{"id": f"d{number:05}", "importMode": "create"} for number in range(start, start + 100)]
        assert ask("POST", "/devices", entries)["isSuccessful"]
    content = {"deviceContent": {"properties.desired.a": {"x": 1}}}
    ask("PUT", "/configurations/c", {"id": "c", "content": content, "targetCondition": "*", "priority": 1})
    running.process.kill()
    running.process.wait()
    running = own_wired(data_dir=data)
    applied = "configurations.[[c]].status = 'Applied' AND properties.desired.a.x = 1"
    wait_until(lambda: counted(applied) == count, "every twin to have the configuration", 30)
    assert counted("properties.desired.$version = 2") == count, "each was changed once"
    results = ask("GET", "/configurations/c")["systemMetrics"]["results"]
    assert results == {"targetedCount": count, "appliedCount": count}

    ask("DELETE", "/configurations/c", expected=204)
    running.process.kill()
    running.process.wait()
    running = own_wired(data_dir=data)
    wait_until(lambda: counted("NOT is_defined(properties.desired.a)") == count, "no twin to have it any more", 30)
    assert counted("is_defined(configurations.[[c]].status)") == 0
