"""The unmodified Python service SDK: registry, twins, methods, bulk, statistics (its REST calls)."""

import pytest
from azure.core.exceptions import ResourceNotFoundError
from azure.iot.device import IoTHubDeviceClient, MethodResponse
from azure.iot.hub import IoTHubRegistryManager
from azure.iot.hub.models import CloudToDeviceMethod, ExportImportDevice, AuthenticationMechanism, Twin, TwinProperties
from msrest.exceptions import HttpOperationError


@pytest.fixture(scope="module")
def registry(hub):
    return IoTHubRegistryManager.from_connection_string(hub.owner)


def status_of(error):
    return error.value.response.status_code


def test_device_life_cycle(registry, device_id):
    created = registry.create_device_with_sas(device_id, None, None, "enabled")
    assert created.device_id == device_id
    assert created.status == "enabled"
    assert len(created.authentication.symmetric_key.primary_key) == 44
    assert created.connection_state == "Disconnected"
    with pytest.raises(HttpOperationError) as again:
        registry.create_device_with_sas(device_id, None, None, "enabled")
    assert status_of(again) == 409
    assert again.value.response.headers["iothub-errorcode"] == "DeviceAlreadyExists"

    primary = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
    secondary = "ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA="
    updated = registry.update_device_with_sas(device_id, created.etag, primary, secondary, "disabled")
    assert updated.status == "disabled"
    assert updated.authentication.symmetric_key.primary_key == primary
    assert updated.generation_id == created.generation_id
    assert updated.etag != created.etag
    with pytest.raises(HttpOperationError) as stale:
        registry.update_device_with_sas(device_id, created.etag, primary, secondary, "enabled")
    assert status_of(stale) == 412
    with pytest.raises(HttpOperationError) as stale:
        registry.delete_device(device_id, created.etag)
    assert status_of(stale) == 412

    registry.delete_device(device_id)
    with pytest.raises(HttpOperationError) as gone:
        registry.get_device(device_id)
    assert status_of(gone) == 404
    with pytest.raises(HttpOperationError) as gone:
        registry.delete_device(device_id)
    assert status_of(gone) == 404


def test_other_kinds_of_authentication(registry, device_id):
    x509 = registry.create_device_with_x509(device_id, "A" * 40, "b" * 64, "enabled")
    assert x509.authentication.type == "selfSigned"
    ca = registry.create_device_with_certificate_authority(f"{device_id}-ca", "enabled")
    assert ca.authentication.type == "certificateAuthority"
    for name in (device_id, f"{device_id}-ca"):
        registry.delete_device(name)


def test_edge_device_gets_its_system_modules(registry, device_id):
    edge = registry.create_device_with_sas(device_id, None, None, "enabled", iot_edge=True)
    assert edge.capabilities.iot_edge is True
    assert edge.device_scope.startswith(f"ms-azure-iot-edge://{device_id}-")
    assert {module.module_id for module in registry.get_modules(device_id)} == {"$edgeAgent", "$edgeHub"}
    leaf = registry.create_device_with_sas(f"{device_id}-leaf", None, None, "enabled", device_scope=edge.device_scope)
    assert leaf.parent_scopes == [edge.device_scope]
    registry.delete_device(device_id)
    with pytest.raises(HttpOperationError):
        registry.get_module(device_id, "$edgeAgent")


def test_module_life_cycle(registry, device):
    module = registry.create_module_with_sas(device, "m1", "somebody", None, None)
    assert (module.device_id, module.module_id, module.managed_by) == (device, "m1", "somebody")
    with pytest.raises(HttpOperationError) as again:
        registry.create_module_with_sas(device, "m1", "", None, None)
    assert status_of(again) == 409
    assert [entry.module_id for entry in registry.get_modules(device)] == ["m1"]
    twin = registry.update_module_twin(device, "m1", Twin(properties=TwinProperties(desired={"a": 1})), "*")
    assert twin.properties.desired["a"] == 1
    registry.delete_module(device, "m1")
    with pytest.raises(HttpOperationError) as gone:
        registry.get_module(device, "m1")
    assert status_of(gone) == 404


def test_ids_with_unusual_characters(registry, device_id):
    for name in (f"{device_id}:a+b%c#d?e=f;g", f"{device_id}(x)*!'$@,"):
        registry.create_device_with_sas(name, None, None, "enabled")
        assert registry.get_device(name).device_id == name
        registry.delete_device(name)


def test_list_and_statistics(registry, device):
    assert any(entry.device_id == device for entry in registry.get_devices(1000))
    assert len(registry.get_devices(1)) == 1
    statistics = registry.get_device_registry_statistics()
    assert statistics.total_device_count == statistics.enabled_device_count + statistics.disabled_device_count
    assert registry.get_service_statistics().connected_device_count >= 0


def test_bulk(registry, device_id):
    names = [f"{device_id}-{n}" for n in range(20)]
    create = [
        ExportImportDevice(
            id=name, status="enabled", import_mode="create", authentication=AuthenticationMechanism(type="sas")
        )
        for name in names
    ]
    assert registry.bulk_create_or_update_devices(create).is_successful
    again = registry.bulk_create_or_update_devices(create[:1])
    assert not again.is_successful
    assert again.errors[0].device_id == names[0]
    delete = [ExportImportDevice(id=name, import_mode="delete") for name in names]
    assert registry.bulk_create_or_update_devices(delete).is_successful
    with pytest.raises(HttpOperationError):
        registry.get_device(names[0])


def test_twin(registry, device):
    twin = registry.get_twin(device)
    assert twin.device_id == device
    patch = Twin(tags={"site": {"floor": 3}}, properties=TwinProperties(desired={"interval": 5}))
    updated = registry.update_twin(device, patch, twin.etag)
    assert updated.tags == {"site": {"floor": 3}}
    assert updated.properties.desired["interval"] == 5
    assert updated.properties.desired["$version"] == 2
    with pytest.raises(HttpOperationError) as stale:
        registry.update_twin(device, patch, twin.etag)
    assert status_of(stale) == 412
    replaced = registry.replace_twin(device, Twin(properties=TwinProperties(desired={"only": True})), "*")
    assert "interval" not in replaced.properties.desired
    assert replaced.tags == {"site": {"floor": 3}}
    with pytest.raises(HttpOperationError) as bad:
        registry.update_twin(device, Twin(properties=TwinProperties(desired={"a.b": 1})), "*")
    assert status_of(bad) == 400


def test_system_module_twins_are_protected(registry, device_id):
    registry.create_device_with_sas(device_id, None, None, "enabled", iot_edge=True)
    with pytest.raises(HttpOperationError) as refused:
        registry.update_module_twin(device_id, "$edgeAgent", Twin(properties=TwinProperties(desired={"a": 1})), "*")
    assert status_of(refused) == 401
    assert refused.value.response.headers["iothub-errorcode"] == "SystemModuleModifyUnauthorizedAccess"


def test_method(hub, registry, device):
    client = IoTHubDeviceClient.create_from_connection_string(
        hub.device_connection_string(device), server_verification_cert=hub.ca_pem
    )
    client.on_method_request_received = lambda request: client.send_method_response(
        MethodResponse.create_from_method_request(request, 200, {"echo": request.payload})
    )
    call = CloudToDeviceMethod(method_name="echo", payload={"a": 1}, response_timeout_in_seconds=10)
    answer = registry.invoke_device_method(device, call)
    assert (answer.status, answer.payload) == (200, {"echo": {"a": 1}})
    client.shutdown()
    call = CloudToDeviceMethod(method_name="echo", response_timeout_in_seconds=5, connect_timeout_in_seconds=0)
    with pytest.raises((HttpOperationError, ResourceNotFoundError)) as offline:
        registry.invoke_device_method(device, call)
    assert status_of(offline) == 404


def test_wrong_policy_key_is_refused(hub):
    stranger = hub.owner.rsplit("SharedAccessKey=", 1)[0] + "SharedAccessKey=MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODk="
    with pytest.raises(HttpOperationError) as refused:
        IoTHubRegistryManager.from_connection_string(stranger).get_devices(1)
    assert status_of(refused) == 401
