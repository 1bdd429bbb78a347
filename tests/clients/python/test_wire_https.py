"""HTTPS at the level of bytes and headers (rest.md section 20): every corner of the contract, and bad requests."""

import base64
import hashlib
import hmac
import json
import re
import signal
import socket
import subprocess
import threading
import time
from urllib.parse import quote, quote_plus

import pytest

import hub as hubs
from hub import sas_token, wait_until
from wire import API, Closed, unix

GUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
LEGACY = re.compile(r"ErrorCode:(\w+);.+")
TRACKING = re.compile(r"Tracking ID:[0-9a-f]{32}-G:\d+-TimeStamp:\d\d/\d\d/\d{4} \d\d:\d\d:\d\d")
ANY = {"If-Match": "*"}


@pytest.fixture
def device(wired, device_id):
    return wired.create(device_id)


def check_error(answer, status, name, nested=None):
    """The error body of rest.md section 4, and its headers."""
    got, headers, body = answer
    names = dict(headers)
    assert (got, names.get("iothub-errorcode")) == (status, name), (got, names, body)
    assert all(key == key.lower() for key, _ in headers), headers
    assert names["content-type"] == "application/json; charset=utf-8"
    assert GUID.fullmatch(names["x-ms-request-id"])
    assert "date" in names
    content = json.loads(body)
    assert set(content) == {"Message", "ExceptionMessage"}
    if nested:
        inner = json.loads(content["Message"])
        assert content["ExceptionMessage"] == ""
        assert inner["errorCode"] == nested
        assert set(inner) == {"errorCode", "trackingId", "message", "info", "timestampUtc"}
        return inner
    assert LEGACY.fullmatch(content["Message"]).group(1) == name
    assert TRACKING.fullmatch(content["ExceptionMessage"])
    return content


def signed(resource, key, policy=None, order="sr sig se skn", encode=quote_plus, expiry=None):
    expiry = expiry or unix(3600)
    sr = encode(resource)
    sig = base64.b64encode(hmac.new(base64.b64decode(key), f"{sr}\n{expiry}".encode(), hashlib.sha256).digest())
    fields = {"sr": sr, "sig": quote(sig, safe=""), "se": str(expiry), "skn": policy}
    return "SharedAccessSignature " + "&".join(f"{name}={fields[name]}" for name in order.split() if fields[name])


# Authentication


def test_tokens_in_every_encoding(wired, device):
    host, key = wired.host, device.key
    path = f"/devices/{device.id}/messages/deviceBound"
    lower = lambda text: re.sub(r"%[0-9A-F]{2}", lambda hit: hit.group().lower(), quote_plus(text))
    for resource, encode in [
        (f"{host}/devices/{device.id}", quote_plus),
        (f"{host}/devices/{device.id}", lower),
        (f"{host}/devices/{device.id}".lower(), quote_plus),
        (f"{host.upper()}/devices/{device.id}", quote_plus),
        (f"{host}/devices/{device.id}", lambda text: text),
    ]:
        for order in ("sr sig se skn", "sig se skn sr", "se sr sig"):
            token = signed(resource, key, order=order, encode=encode)
            assert wired.get(path, token=token)[0] == 204, token
    assert wired.get(path, token=device.token(key=device.secondary))[0] == 204
    for name in ("iothubowner", "device"):
        policy = wired.json("GET", f"/holdfast/v1/policies/{name}")
        for resource in (host, f"{host}/devices", f"{host}/devices/{device.id}"):
            assert wired.get(path, token=sas_token(resource, policy["primaryKey"], name))[0] == 204
            assert wired.get(path, token=sas_token(resource, policy["secondaryKey"], name))[0] == 204


def test_tokens_that_are_refused(wired, device):
    other = wired.create(device.id + "o")
    module = wired.create(device.id, "m")
    path = f"/devices/{device.id}/messages/deviceBound"
    host = wired.host
    check_error(wired.get(path, token=device.token(lifetime=-301)), 401, "IotHubUnauthorized")
    policies = {p["keyName"]: p["primaryKey"] for p in wired.json("GET", "/holdfast/v1/policies")}
    for token in [
        None, "", "Bearer x", "SharedAccessSignature", "SharedAccessSignature x", "Basic eDp5",
        "SharedAccessSignature sr=&sig=&se=", other.token(), module.token(), device.token(key=other.key),
        sas_token(f"{host}/devices/{device.id[:-1]}", device.key), sas_token(f"{host}/devices/{device.id}/x", device.key),
        sas_token(f"other/devices/{device.id}", device.key),
        signed(f"{host}/devices/{device.id}", device.key, expiry="9" * 30),
        signed(f"{host}/devices/{device.id}", device.key, expiry="-1"),
        signed(f"{host}/devices/{device.id}", device.key, expiry="1e12"),
        sas_token(host, policies["service"], "service"), sas_token(host, policies["registryRead"], "registryRead"),
        sas_token(host, policies["iothubowner"], "nobody"), sas_token(host, policies["service"], "iothubowner"),
        "SharedAccessSignature " + "x" * 20000, "SharedAccessSignature sr=%ff%fe&sig=%00&se=1",
    ]:
        status, headers, body = wired.get(path, token=token)
        assert status == 401, (token, body)
        assert dict(headers)["iothub-errorcode"] in ("IotHubUnauthorizedAccess", "IotHubUnauthorized")
    check_error(wired.get("/devices/x", token=None), 401, "IotHubUnauthorizedAccess")
    check_error(wired.get(f"/devices/{device.id}", token=device.token()), 401, "IotHubUnauthorizedAccess")
    for name in ("service", "device"):
        token = sas_token(host, policies[name], name)
        check_error(wired.get(f"/devices/{device.id}", token=token), 401, "IotHubUnauthorizedAccess")
    token = sas_token(host, policies["registryRead"], "registryRead")
    assert wired.get(f"/devices/{device.id}", token=token)[0] == 200
    check_error(wired.call("DELETE", f"/devices/{device.id}", token=token), 401, "IotHubUnauthorizedAccess")
    wired.json("PUT", f"/devices/{device.id}", {**device.record, "status": "disabled"}, headers=ANY)
    assert wired.get(path, token=device.token())[0] == 401


def test_nobody_learns_whether_a_device_exists(wired, device):
    """The same answer for a wrong key and for a device that does not exist."""
    def answer(name):
        token = sas_token(f"{wired.host}/devices/{name}", "AAAA")
        status, headers, body = wired.get(f"/devices/{name}/messages/deviceBound", token=token)
        return status, dict(headers)["iothub-errorcode"], json.loads(body)["Message"].replace(name, "")

    assert answer(device.id) == answer("nobody-" + device.id)


# Framing


def test_paths(wired, device):
    name = device.id
    for path in (f"/DEVICES/{name}", f"/devices/{name}/", f"/Devices/{name}?api-version=2016-11-14"):
        assert wired.json("GET", path)["deviceId"] == name
    assert wired.get(f"/devices/{name.upper()}")[0] == 404
    assert isinstance(wired.json("GET", "/devices/?top=3"), list)
    assert wired.get(f"/TWINS/{name}")[0] == 200
    assert wired.get(f"/devices/{name}/messages/devicebound", token=device.token())[0] == 204
    check_error(wired.get("/nowhere"), 404, "ResourceNotFound")
    check_error(wired.call("PATCH", f"/devices/{name}"), 405, "GenericMethodNotAllowed")
    connection = wired.https()
    connection.request("GET", f"/devices/{name}", headers={"Authorization": wired.owner()})
    response = connection.getresponse()
    check_error((response.status, response.getheaders(), response.read()), 400, "InvalidProtocolVersion")
    assert wired.get(f"/devices/{name}?api-version=2099-01-01-preview")[0] == 200


@pytest.mark.parametrize("tail", ["%", "+#?=;", "a.b_c*?!(),=@;$'", "-:"])
def test_ids_of_every_character(wired, device_id, tail):
    name = device_id + tail
    device = wired.create(name)
    assert wired.json("GET", f"/devices/{quote(name, safe='')}")["deviceId"] == name
    assert wired.json("GET", f"/twins/{quote(name, safe='')}")["deviceId"] == name
    path = f"/devices/{quote(name, safe='')}/messages/events"
    assert wired.call("POST", path, b"x", token=device.token())[0] == 204
    with device.connect() as client:
        client.publish(device.events, b"y")
    assert wired.call("DELETE", f"/devices/{quote(name, safe='')}")[0] == 204


@pytest.mark.parametrize("name", ["a b", "ü", "a/b", "x" * 129, "a\"b", "a\\b", "a<b", "a&b", "a\0b", "..", "[x]"])
def test_ids_that_are_none(wired, name):
    path = f"/devices/{quote(name, safe='')}"
    if name == "..":
        return  # characters of the set
    check_error(wired.call("PUT", path, {"deviceId": name}), 400, "ArgumentInvalid")


def test_method_override_and_bodies_where_none_belong(wired, device):
    path = f"/twins/{device.id}"
    headers = {"X-HTTP-Method-Override": "PATCH"}
    assert wired.json("POST", path, {"tags": {"a": 1}}, headers=headers)["tags"] == {"a": 1}
    assert wired.call("GET", f"/devices/{device.id}", b"{}")[0] == 200
    assert wired.call("DELETE", f"/devices/{device.id}/commands", b"null")[0] == 200


def test_etags_and_if_match(wired, device):
    path = f"/devices/{device.id}"
    status, headers, body = wired.get(path)
    tag = json.loads(body)["etag"]
    assert dict(headers)["etag"] == f'"{tag}"'
    for value in ("*", '"*"'):
        device.record = wired.json("PUT", path, device.record, headers={"If-Match": value})
    for form in ('"{}"', "{}", 'W/"{}"'):
        value = form.format(device.record["etag"])
        device.record = wired.json("PUT", path, device.record, headers={"If-Match": value})
    for value in (f'"{tag}"', tag, '"AAAAAAAAAAE="', "nonsense", '""', '"', "\\", "*x"):
        check_error(wired.call("PUT", path, device.record, {"If-Match": value}), 412, "PreconditionFailed")
        check_error(wired.call("DELETE", path, headers={"If-Match": value}), 412, "PreconditionFailed")
        twin = wired.call("PATCH", f"/twins/{device.id}", {"tags": {"x": 1}}, {"If-Match": value})
        if value != '"AAAAAAAAAAE="':
            check_error(twin, 412, "PreconditionFailed")
    status, headers, body = wired.call("DELETE", path, headers={"If-Match": f'"{device.record["etag"]}"'})
    assert (status, body) == (204, b"")
    assert "content-type" not in dict(headers) and GUID.fullmatch(dict(headers)["x-ms-request-id"])


# Registry


def test_device_life_cycle(wired, device_id):
    path = f"/devices/{device_id}"
    check_error(wired.call("PUT", path, {"deviceId": device_id}, ANY), 404, "DeviceNotFound")
    keys = {"type": "sas", "symmetricKey": {"primaryKey": "", "secondaryKey": ""}}
    created = wired.json("PUT", path, {"deviceId": device_id, "etag": "*", "authentication": keys, "unknown": 1})
    made = created["authentication"]["symmetricKey"]
    assert len(base64.b64decode(made["primaryKey"])) == 32 and made["primaryKey"] != made["secondaryKey"]
    assert created["parentScopes"] == [] and created["capabilities"] == {"iotEdge": False}
    assert created["authentication"]["x509Thumbprint"] == {"primaryThumbprint": None, "secondaryThumbprint": None}
    assert created["connectionStateUpdatedTime"].startswith("0001-01-01T00:00:00")
    check_error(wired.call("PUT", path, {"deviceId": device_id}), 409, "DeviceAlreadyExists")
    check_error(wired.get(f"{path}-none"), 404, "DeviceNotFound")
    check_error(wired.get(f"{path}/modules/m"), 404, "ModuleNotFound")
    assert wired.json("PUT", path, {**created, "status": "DISABLED", "statusReason": "why"}, headers=ANY)["status"] == "disabled"
    wired.call("DELETE", path)
    again = wired.json("PUT", path, {"deviceId": device_id})
    assert again["generationId"] != created["generationId"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"null", b"[]", b"{", b"1", b'"x"', b"\xff\xfe", b'{"deviceId":1}', b'{"deviceId":"another"}',
        b'{"deviceId":"ID","status":"sleeping"}', b'{"deviceId":"ID","authentication":{"type":"magic"}}',
        b'{"deviceId":"ID","authentication":{"type":"selfSigned"}}',
        b'{"deviceId":"ID","authentication":{"type":"selfSigned","x509Thumbprint":{"primaryThumbprint":"xyz"}}}',
        b'{"deviceId":"ID","authentication":{"symmetricKey":{"primaryKey":"MDEyMzQ1Njc4OWFiY2RlZg=="}}}',
        b'{"deviceId":"ID","authentication":{"symmetricKey":{"primaryKey":"!","secondaryKey":"!"}}}',
        b'{"deviceId":"ID","deviceScope":"ms-azure-iot-edge://nobody-1"}',
        b'{"deviceId":"ID","statusReason":"' + b"x" * 129 + b'"}',
        b'{"deviceId":' + b"[" * 100000 + b"]" * 100000 + b"}",
    ],
    ids=lambda body: f"{body[:60]}",
)
def test_bad_devices(wired, device_id, body):
    answer = wired.call("PUT", f"/devices/{device_id}", body.replace(b"ID", device_id.encode()))
    assert answer[0] == 400
    check_error(answer, 400, dict(answer[1])["iothub-errorcode"])
    assert wired.get(f"/devices/{device_id}")[0] == 404


def test_edge_devices_and_modules(wired, device_id):
    edge = wired.create(device_id, capabilities={"iotEdge": True}).record
    assert re.fullmatch(f"ms-azure-iot-edge://{device_id}-\\d+", edge["deviceScope"])
    modules = {module["moduleId"] for module in wired.json("GET", f"/devices/{device_id}/modules")}
    assert modules == {"$edgeAgent", "$edgeHub"}
    assert wired.get(f"/devices/{device_id}/modules/%24edgeHub")[0] == 200
    assert wired.get(f"/devices/{device_id}/modules/$edgeHub")[0] == 200
    for path in (f"/twins/{device_id}/modules/$edgeAgent",):
        for method in ("PATCH", "PUT"):
            check_error(wired.call(method, path, {"properties": {"desired": {}}}), 401, "SystemModuleModifyUnauthorizedAccess")
    check_error(wired.call("DELETE", f"/devices/{device_id}/modules/$edgeHub"), 401, "SystemModuleModifyUnauthorizedAccess")
    assert wired.call("DELETE", f"/devices/{device_id}")[0] == 204
    check_error(wired.get(f"/devices/{device_id}/modules/$edgeHub"), 404, "ModuleNotFound")
    assert wired.json("GET", "/devices?top=1000") is not None


def test_the_sequence_of_the_identity_service(wired, device):
    """aziot-identityd makes its modules with the device's own token."""
    path, token = f"/devices/{device.id}/modules/m1", device.token()
    query = "?api-version=2017-11-08-preview"
    made = wired.json("PUT", path + query, {"moduleId": "m1", "deviceId": device.id}, token=token)
    body = {"moduleId": "m1", "deviceId": device.id, "authentication": {"type": "sas", "symmetricKey": {
        "primaryKey": device.key, "secondaryKey": device.key}}, "generationId": made["generationId"]}
    assert wired.json("PUT", path + query, body, headers=ANY, token=token)["authentication"]["type"] == "sas"
    assert wired.json("GET", path + query, token=token)["generationId"] == made["generationId"]
    assert len(wired.json("GET", f"/devices/{device.id}/modules{query}", token=token)) == 1
    other = wired.create(device.id + "x")
    check_error(wired.get(path + query, token=other.token()), 401, "IotHubUnauthorized")
    assert wired.call("DELETE", path + query, headers=ANY, token=token)[0] == 204
    check_error(wired.call("DELETE", f"/devices/{device.id}", token=token), 401, "IotHubUnauthorizedAccess")


def test_modules_are_limited_and_conflicts_named(wired, device):
    for n in range(50):
        wired.create(device.id, f"m{n}")
    body = {"deviceId": device.id, "moduleId": "m50"}
    check_error(wired.call("PUT", f"/devices/{device.id}/modules/m50", body), 413, "TooManyModulesOnDevice")
    body["moduleId"] = "m1"
    check_error(wired.call("PUT", f"/devices/{device.id}/modules/m1", body), 409, "ModuleAlreadyExistsOnDevice")
    check_error(wired.call("PUT", "/devices/nobody/modules/m", {"deviceId": "nobody", "moduleId": "m"}), 404, "DeviceNotFound")


def test_bulk(wired, device, device_id):
    items = [{"id": f"{device_id}b{n}", "importMode": "create"} for n in range(3)] + [{"id": device.id, "importMode": "create"}]
    status, _, body = wired.call("POST", "/devices", items)
    result = json.loads(body)
    assert (status, result["isSuccessful"], len(result["errors"])) == (200, False, 1)
    assert result["errors"][0]["deviceId"] == device.id
    items = [{"id": f"{device_id}b{n}", "importMode": "Delete"} for n in range(3)]
    assert wired.json("POST", "/devices/", items)["isSuccessful"] is True
    many = [{"id": f"{device_id}c{n}", "importMode": "create"} for n in range(101)]
    assert wired.call("POST", "/devices", many)[0] == 400
    twice = [{"id": f"{device_id}d", "importMode": "create"}] * 2
    check_error(wired.call("POST", "/devices", twice), 400, "DeviceDefinedMultipleTimes")


def test_key_regeneration_and_statistics(wired, device):
    body = {"policyKey": "primaryKey", "devices": [{"id": device.id}]}
    result = wired.json("POST", "/devices/keys/regenerate", body)
    assert result["rotatedKeys"][0]["primaryKey"] != device.key
    assert result["rotatedKeys"][0]["secondaryKey"] == device.secondary
    before = wired.json("GET", "/statistics/devices")
    wired.create(device.id + "s", status="disabled")
    after = wired.json("GET", "/statistics/devices")
    assert after["totalDeviceCount"] - before["totalDeviceCount"] == 1
    assert after["disabledDeviceCount"] - before["disabledDeviceCount"] == 1
    connected = wired.json("GET", "/statistics/service")["connectedDeviceCount"]
    with wired.create(device.id + "t").connect():
        assert wired.json("GET", "/statistics/service")["connectedDeviceCount"] == connected + 1


# Twins


def test_twin_rules(wired, device):
    path = f"/twins/{device.id}"
    status, headers, body = wired.get(path)
    twin = json.loads(body)
    assert twin["etag"] == "AAAAAAAAAAE=" and dict(headers)["etag"] == '"AAAAAAAAAAE="'
    assert twin["properties"]["desired"]["$version"] == twin["properties"]["reported"]["$version"] == 1
    assert "$lastUpdated" in twin["properties"]["desired"]["$metadata"]
    assert "generationId" not in twin
    patch = {"tags": {"t": {"u": 1}}, "properties": {"desired": {"a": {"b": 1, "c": [1, {"d": 2}]}, "$version": 99, "$metadata": {}}}}
    twin = wired.json("PATCH", path, patch)
    desired = twin["properties"]["desired"]
    assert desired["$version"] == 2 and desired["a"] == {"b": 1, "c": [1, {"d": 2}]}
    metadata = desired["$metadata"]
    assert metadata["a"]["b"]["$lastUpdatedVersion"] == 2 and metadata["a"]["$lastUpdatedVersion"] == 2
    assert set(metadata["a"]["c"]) == {"$lastUpdated", "$lastUpdatedVersion"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{7}Z", metadata["a"]["b"]["$lastUpdated"])
    second = wired.json("PATCH", path, {"properties": {"desired": {"a": {"b": None, "n": {"x": None, "y": 1}}}, "reported": {"no": 1}}})
    assert second["properties"]["desired"]["a"] == {"c": [1, {"d": 2}], "n": {"y": 1}}
    assert "b" not in second["properties"]["desired"]["$metadata"]["a"]
    assert "no" not in second["properties"]["reported"]
    assert second["etag"] != twin["etag"] and second["version"] > twin["version"]
    check_error(wired.call("PATCH", path, {"tags": {}}, {"If-Match": f'"{twin["etag"]}"'}), 412, "PreconditionFailed")
    replaced = wired.json("PUT", path, {"properties": {"desired": {"only": True}}}, headers={"If-Match": f'"{second["etag"]}"'})
    assert {k for k in replaced["properties"]["desired"] if k[0] != "$"} == {"only"}
    assert replaced["tags"] == {"t": {"u": 1}}
    check_error(wired.get("/twins/nobody"), 404, "DeviceNotFound")
    check_error(wired.get(f"{path}/modules/none"), 404, "ModuleNotFound")


def nested(depth):
    value = 1
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    "fits, not_fits",
    [
        ({"k" * 1024: 1}, {"k" * 1025: 1}),
        ({"é" * 512: 1}, {"é" * 513: 1}),
        ({"k": "v" * 4096}, {"k": "v" * 4097}),
        ({"k": 4503599627370495}, {"k": 4503599627370496}),
        ({"k": -4503599627370496}, {"k": -4503599627370497}),
        (nested(11), nested(12)),
        ({"k": [1, "a", {"b": [True]}]}, {"k": [1, None]}),
        ({"k": [{"b": 1}]}, {"k": [{"b": None}]}),
        ({"a_b-c": 1}, {"a.b": 1}),
        ({"ab": 1}, {"a b": 1}),
        ({"ab": 1}, {"a\x01b": 1}),
        ({"ab": 1}, {"a$b": 1}),
    ],
    ids=range(12),
)
def test_limits_of_twins(wired, device, fits, not_fits):
    path = f"/twins/{device.id}"
    for section in ("tags", "desired"):
        wrap = (lambda value: {"tags": value}) if section == "tags" else (lambda value: {"properties": {"desired": value}})
        wired.json("PATCH", path, wrap(fits))
        check_error(wired.call("PATCH", path, wrap(not_fits)), 400, "ArgumentInvalid")
        check_error(wired.call("PUT", path, wrap(not_fits)), 400, "ArgumentInvalid")


def test_sizes_of_twin_sections(wired, device):
    def section(size):
        """Keys and values of so many characters."""
        out, n = {}, 0
        while size > 0:
            value = "v" * min(4000, max(size - 4, 0))
            out[f"k{n:03}"] = value
            size -= 4 + len(value)
            n += 1
        return out

    path = f"/twins/{device.id}"
    for name, limit in (("tags", 8192), ("desired", 32768)):
        wrap = (lambda value: {"tags": value}) if name == "tags" else (lambda value: {"properties": {"desired": value}})
        wired.json("PUT", path, wrap(section(limit)))
        check_error(wired.call("PUT", path, wrap(section(limit + 5))), 400, "ArgumentInvalid")
        check_error(wired.call("PATCH", path, wrap({"more": "x" * 20})), 400, "ArgumentInvalid")


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b"{", b'{"tags":[]}', b'{"tags":1}', b'{"properties":{"desired":[]}}',
                                  b'{"properties":{"desired":"x"}}', b"\xff", b'{"tags":{"a":1e999}}'])
def test_bad_twins(wired, device, body):
    answer = wired.call("PATCH", f"/twins/{device.id}", body)
    assert answer[0] == 400, answer
    check_error(answer, 400, dict(answer[1])["iothub-errorcode"])


# Methods


def test_method_errors(wired, device):
    path = f"/twins/{device.id}/methods"
    go = {"methodName": "go"}
    inner = check_error(wired.call("POST", path, go), 404, "DeviceNotOnline", nested=404103)
    assert inner["info"] == {"timeout": "00:00:00"}
    begin = time.monotonic()
    inner = check_error(wired.call("POST", path, {**go, "connectTimeoutInSeconds": 1}), 404, "DeviceNotOnline", nested=404103)
    assert inner["info"] == {"timeout": "00:00:01"} and 0.5 < time.monotonic() - begin < 3
    for value in (4, 301, 0, -1):
        inner = check_error(wired.call("POST", path, {**go, "responseTimeoutInSeconds": value}), 400, "ArgumentInvalid", nested=400004)
        assert inner["message"] == "responseTimeoutInSeconds must be within [5; 300]."
    for body in [
        {}, {"methodName": ""}, {"methodName": "a b"}, {"methodName": "a/b"}, {"methodName": "ü"}, {"methodName": "a$"},
        {"methodName": 1}, {"methodName": "x" * 101}, {**go, "connectTimeoutInSeconds": 301},
        {**go, "connectTimeoutInSeconds": -1}, {**go, "responseTimeoutInSeconds": "x"}, {**go, "payload": "x" * 131072},
    ]:
        answer = wired.call("POST", path, body)
        assert answer[0] in (400, 413), (body, answer)
        check_error(answer, answer[0], dict(answer[1])["iothub-errorcode"], nested=json.loads(json.loads(answer[2])["Message"])["errorCode"])
    for body in (b"", b"{", b"[]", b"\xff"):
        assert wired.call("POST", path, body)[0] == 400
    check_error(wired.call("POST", "/twins/nobody/methods", go), 404, "DeviceNotFound", nested=404001)
    check_error(wired.call("POST", f"/twins/{device.id}/modules/none/methods", go), 404, "ModuleNotFound", nested=404010)


# Device HTTPS


def test_single_messages(wired, device):
    path = f"/devices/{device.id}/messages/events"
    headers = {
        "iothub-app-Color": "red", "IoTHub-MessageId": "m1", "iothub-correlationid": "c1", "iothub-userid": "u",
        "iothub-to": path, "iothub-contenttype": "application/json", "iothub-contentencoding": "utf-8",
        "iothub-creationtimeutc": "2026-01-01T00:00:00Z", "iothub-messageschema": "s", "dt-subject": "comp",
        "iothub-operation": "d2c",
    }
    status, answer, body = wired.call("POST", path, b'{"x":1}', headers, token=device.token())
    assert (status, body) == (204, b"")
    assert GUID.fullmatch(dict(answer)["x-ms-request-id"]) and "content-type" not in dict(answer)
    assert wired.call("POST", path, b"", token=device.token())[0] == 204
    with wired.stream(device.id) as following:
        event = following()
    assert event["body"] == {"x": 1}
    assert {key.lower(): value for key, value in event["properties"].items()} == {"color": "red"}
    system = event["systemProperties"]
    expected = {"messageId": "m1", "correlationId": "c1", "userId": "u", "contentType": "application/json", "contentEncoding": "utf-8"}
    assert {key: system[key] for key in expected} == expected
    assert wired.call("POST", path, b"x" * 262000, token=device.token())[0] == 204
    check_error(wired.call("POST", path, b"x" * (256 * 1024 + 1), token=device.token()), 413, "MessageTooLarge")


def test_batches(wired, device):
    path = f"/devices/{device.id}/messages/events"
    headers = {"Content-Type": "application/vnd.microsoft.iothub.json"}

    def send(body):
        return wired.call("POST", path, body if isinstance(body, bytes) else json.dumps(body).encode(), headers, token=device.token())

    batch = [
        {"body": base64.b64encode(b"one").decode(), "properties": {"iothub-app-a": "b", "iothub-messageid": "1"}},
        {"body": "two", "base64Encoded": False},
        {"body": base64.b64encode(b"three").decode(), "base64Encoded": True},
    ]
    assert send(batch)[0] == 204
    for bad in [
        b"", b"{", b"{}", b"[1]", b'[{"body":1}]', b'[{"body":"!!!"}]', b'[{"properties":{}}]',
        [{"body": "eA=="}] * 501,
    ]:
        answer = send(bad)
        assert answer[0] == 400 or (answer[0] == 413 and len(bad) == 501), (bad[:3], answer)
    # All or nothing: one bad member, and none is kept.
    assert send([{"body": base64.b64encode(b"no").decode()}, {"body": "!"}])[0] == 400
    check_error(send(b"[" + b" " * (256 * 1024) + b"]"), 413, "MessageTooLarge")
    assert send([{"body": base64.b64encode(b"last").decode()}])[0] == 204
    with wired.stream(device.id) as following:
        assert [following()["body"] for _ in range(4)] == ["one", "two", "three", "last"]


def test_receiving_and_settling(wired, device):
    bound, token = f"/devices/{device.id}/messages/deviceBound", device.token()
    wired.send_c2d(device.id, "hello", messageId="m1", correlationId="c1", contentType="text/plain", contentEncoding="utf-8",
                   properties={"a": "b ü"}, ack="full")
    status, headers, body = wired.get(bound, token=token)
    names = {key.lower(): value for key, value in headers}
    spelled = [key for key, _ in headers]
    assert (status, body) == (200, b"hello")
    tag = names["etag"]
    assert tag.startswith('"') and tag.endswith('"')
    lock = tag.strip('"')
    assert names["iothub-messageid"] == "m1" and names["iothub-correlationid"] == "c1" and names["iothub-ack"] == "full"
    assert names["iothub-to"].lower() == f"/devices/{device.id}/messages/devicebound".lower()
    for name in ("iothub-sequencenumber", "iothub-enqueuedtime", "iothub-deliverycount", "iothub-expiry"):
        assert names[name] != ""
    assert "iothub-app-a" in names
    assert names["contenttype"] == "text/plain" and names["contentencoding"] == "utf-8", spelled
    assert wired.get(bound, token=token)[0] == 204, "locked"
    first = int(names["iothub-deliverycount"])
    status, answer, body = wired.call("POST", f"{bound}/{lock}/abandon", b"\0", {"If-Match": tag}, token=token)
    assert (status, body) == (204, b"")
    check_error(wired.call("DELETE", f"{bound}/{lock}", token=token), 412, "DeviceMessageLockLost")
    status, headers, _ = wired.get(bound, token=token)
    again = {key.lower(): value for key, value in headers}
    assert int(again["iothub-deliverycount"]) == first + 1
    lock = again["etag"].strip('"')
    other = wired.create(device.id + "o")
    assert wired.call("DELETE", f"{bound}/{lock}", token=other.token())[0] == 401
    check_error(wired.call("DELETE", f"/devices/{other.id}/messages/deviceBound/{lock}", token=other.token()), 412, "DeviceMessageLockLost")
    assert wired.call("DELETE", f"{bound}/{lock}", token=token)[0] == 204
    for bad in (lock, "nonsense", "0", quote("../x", safe=""), "x" * 1000, "00000000-0000-0000-0000-000000000000"):
        check_error(wired.call("DELETE", f"{bound}/{bad}", token=token), 412, "DeviceMessageLockLost")
    wired.send_c2d(device.id, "rejected")
    lock = dict(wired.get(bound, token=token)[1])["etag"].strip('"')
    assert wired.call("DELETE", f"{bound}/{lock}?reject&{API}", token=token)[0] == 204
    assert wired.get(bound, token=token)[0] == 204


def test_a_lock_ends(wired, device):
    bound, token = f"/devices/{device.id}/messages/deviceBound", device.token()
    wired.send_c2d(device.id, "again")
    first = {key.lower(): value for key, value in wired.get(bound, token=token)[1]}
    wait_until(lambda: wired.get(bound, token=token)[0] == 200, "the end of the lock (2 s)", 10)
    lock = first["etag"].strip('"')
    check_error(wired.call("DELETE", f"{bound}/{lock}", token=token), 412, "DeviceMessageLockLost")


def test_feedback_of_every_kind(own_wired):
    hub = own_wired("[c2d]\ndelivery_count = 2\nlock_timeout = \"2s\"\n")
    device = hub.create("d1")
    bound, token = "/devices/d1/messages/deviceBound", device.token()

    def receive():
        status, headers, _ = hub.get(bound, token=token)
        assert status == 200
        return f"{bound}/{dict(headers)['etag']}".replace('"', "")

    for name, ack in (("done", "full"), ("refused", "negative"), ("refused quietly", "positive"), ("abandoned", "full"),
                      ("done quietly", "negative"), ("no ack", "none")):
        hub.send_c2d("d1", "x", messageId=name, ack=ack)
    assert hub.call("DELETE", receive(), token=token)[0] == 204
    for _ in range(2):
        assert hub.call("DELETE", f"{receive()}?reject&{API}", token=token)[0] == 204
    for _ in range(2):
        assert hub.call("POST", f"{receive()}/abandon", token=token)[0] == 204
    for _ in range(2):
        assert hub.call("DELETE", receive(), token=token)[0] == 204
    hub.send_c2d("d1", "x", messageId="purged", ack="negative")
    assert hub.json("DELETE", "/devices/d1/commands") == {"deviceId": "d1", "moduleId": None, "totalMessagesPurged": 1}
    check_error(hub.call("DELETE", "/devices/nobody/commands"), 404, "DeviceNotFound")
    soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 2))
    hub.send_c2d("d1", "x", messageId="late", ack="full", expiryTimeUtc=soon)
    wait_until(lambda: hub.json("GET", "/devices/d1")["cloudToDeviceMessageCount"] == 0, "expiry", 30)
    records, path = [], "/messages/serviceBound/feedback"

    def batch():
        status, headers, body = hub.get(path)
        if status == 204:
            return len(records) == 5
        assert dict(headers)["content-type"].startswith("application/vnd.microsoft.iothub.feedback.json")
        lock = dict(headers)["etag"].strip('"')
        assert hub.call("POST", f"{path}/{lock}/abandon")[0] == 204
        status, headers, body = hub.get(path)
        lock = dict(headers)["etag"].strip('"')
        assert hub.call("DELETE", f"{path}/{lock}")[0] == 204
        assert hub.call("DELETE", f"{path}/{lock}")[0] == 412
        records.extend(json.loads(body))
        return len(records) >= 5

    wait_until(batch, "the records", 40)
    assert {record["originalMessageId"]: record["statusCode"] for record in records} == {
        "done": "Success", "refused": "Rejected", "abandoned": "DeliveryCountExceeded", "purged": "Purged", "late": "Expired",
    }
    assert all(record["deviceId"] == "d1" and record["deviceGenerationId"] == device.record["generationId"] for record in records)


# Bad input


def raw(hub, data, seconds=10):
    """What the hub says to these bytes until it closes or is silent."""
    with hub.raw_tls(hub.https_port, seconds) as tls:
        received = b""
        try:
            tls.sendall(data)
            while more := tls.recv(65536):
                received += more
                if b"\r\n\r\n" in received and len(received) > 20:
                    break
        except (TimeoutError, OSError):
            pass
        return received


@pytest.mark.parametrize(
    "data",
    [
        b"\0\0\0\0\r\n\r\n", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"GET / HTTP/1.1\r\nHost\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 1000 + b"\r\n", b"GET / HTTP/1.1\r\na: " + b"x" * 100000 + b"\r\n\r\n",
        b"GET /" + b"x" * 100000 + b" HTTP/1.1\r\n\r\n",
        b"POST /devices HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /devices HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx",
        b"POST /devices HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
    ids=lambda data: f"{data[:40]}",
)
def test_bad_http_is_refused(wired, data):
    answer = raw(wired, data)
    assert not answer or re.match(rb"HTTP/1.1 4\d\d|HTTP/1.1 505", answer), answer[:200]
    assert wired.get("/healthz", token=None)[0] == 200


def test_bodies_have_a_bound(wired, device):
    head = (
        f"PUT /devices/{device.id}?{API} HTTP/1.1\r\nHost: x\r\nAuthorization: {wired.owner()}\r\n"
        "Content-Type: application/json\r\n"
    ).encode()
    before = wired.rss_bytes()
    endless = head + b"Transfer-Encoding: chunked\r\n\r\n"
    with wired.raw_tls(wired.https_port) as tls:
        tls.sendall(endless)
        sent = 0
        try:
            while sent < 64 << 20:
                tls.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                sent += 65536
        except OSError:
            pass
        assert sent < 64 << 20
    assert wired.rss_bytes() - before < 32 << 20


# The process


def test_metrics_are_sane(wired, device):
    status, headers, body = wired.get("/metrics", token=None)
    assert status == 200
    with device.connect() as client:
        client.publish(device.events, b"x")
    text = wired.get("/metrics", token=None)[2].decode()
    assert device.id not in text, "no label may grow with the fleet"
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9_]+(\{[a-z_]+=\"[^\"]*\"(,[a-z_]+=\"[^\"]*\")*\})? [-+0-9.eInfN]+", line) for line in lines)
    names = [line.rpartition(" ")[0] for line in lines]
    assert len(names) == len(set(names)) < 1000
    assert wired.metric("holdfast_telemetry_messages_total") >= 1
    assert wired.metric("process_resident_memory_bytes") > 1 << 20


def test_no_secret_in_a_log_at_its_loudest(own_wired):
    hub = own_wired("", "--log", "trace")
    device = hub.create("d1")
    device.connect().close()
    device.connect(expect=5, password=device.token(key="AAAA")).close()
    device.connect(expect=5, password="SharedAccessSignature sr=x&sig=topsecret&se=1").close()
    hub.get("/devices/d1", token="SharedAccessSignature sr=x&sig=topsecret&se=1&skn=iothubowner")
    hub.call("PUT", "/holdfast/v1/policies/p1", {"keyName": "p1", "rights": "ServiceConnect"})
    hub.json("GET", "/holdfast/v1/policies")
    hub.json("POST", "/devices/keys/regenerate", {"policyKey": "both", "devices": [{"id": "d1"}]})
    secrets = [hub.policy_key, device.key, device.secondary, "topsecret"]
    secrets += [re.search(r"sig=([^&]+)", device.token()).group(1)]
    assert hub.stop() == 0
    log = hub.log_text()
    assert len(log.splitlines()) > 20
    for secret in secrets:
        assert secret not in log and quote(secret, safe="") not in log
    assert "SharedAccessSignature sr" not in log and "SharedAccessKey=" not in log


def test_a_second_serve_is_refused(wired):
    second = subprocess.run(
        [hubs.find_binary(), "serve", "--no-profile", "--data-dir", str(wired.data_dir), "--mqtt-port", "0", "--amqp-port", "0", "--https-port", "0"],
        capture_output=True, text=True, timeout=30,
    )
    assert second.returncode != 0
    assert "already" in second.stderr or "another" in second.stderr, second.stderr
    assert str(wired.data_dir) in second.stderr
    assert wired.get("/readyz", token=None)[0] == 200


def test_sighup_leaves_connections_alone(wired, device):
    with device.connect(transport="tls") as client:
        wired.process.send_signal(signal.SIGHUP)
        client.publish(device.events, b"x")
        assert wired.get("/readyz", token=None)[0] == 200
        client.expect_silence()
    assert wired.process.poll() is None


def test_sigterm_keeps_what_was_acknowledged(own_wired):
    hub = own_wired()
    devices = [hub.create(f"d{n}") for n in range(8)]
    acknowledged = [0] * 8
    stopping = threading.Event()

    def send(n):
        client = devices[n].connect(transport=("plain", "tls")[n % 2], clean=False)
        try:
            while True:
                client.publish(devices[n].events, b"%d" % acknowledged[n])
                acknowledged[n] += 1
        except (Closed, OSError):
            pass

    silent = [socket.create_connection(("127.0.0.1", port)) for port in (hub.plain_port, hub.mqtt_port, hub.https_port)]
    threads = [threading.Thread(target=send, args=[n]) for n in range(8)]
    [thread.start() for thread in threads]
    wait_until(lambda: min(acknowledged) > 50, "some messages of each")
    begin = time.monotonic()
    assert hub.stop() == 0
    assert time.monotonic() - begin < 12
    [thread.join(10) for thread in threads]
    [connection.close() for connection in silent]
    hub.start()
    for n, device in enumerate(devices):
        with hub.stream(device.id) as following:
            assert [following()["body"] for _ in range(acknowledged[n])] == list(range(acknowledged[n]))


def refused_start(data_dir):
    started = subprocess.run(
        [hubs.find_binary(), "serve", "--no-profile", "--data-dir", str(data_dir), "--listen", "127.0.0.1",
         "--mqtt-port", "0", "--amqp-port", "0", "--https-port", "0"],
        capture_output=True, text=True, timeout=30,
    )
    # 7: a file cannot be used; 1: the whole directory is of another version.
    assert started.returncode in (1, 7), started.stderr
    assert "panicked" not in started.stderr
    return started.stderr


def test_data_of_a_newer_version_and_damaged_files_are_refused_and_left_alone(own_wired):
    hub = own_wired()
    hub.create("d1")
    assert hub.stop() == 0
    description, meta = hub.data_dir / "holdfast.json", hub.data_dir / "events" / "meta"
    for path, damage, words in [
        (description, description.read_bytes().replace(b'"formatVersion": 1', b'"formatVersion": 2'), ("format 2", "newer")),
        (description, b"nonsense", ("holdfast.json", "damaged")),
        (meta, b"\xff" * 40, ("meta", "damaged")),
    ]:
        good = path.read_bytes()
        assert damage != good
        path.write_bytes(damage)
        said = refused_start(hub.data_dir)
        assert all(word in said for word in words), said
        assert path.read_bytes() == damage, "nothing may be repaired by guessing"
        path.write_bytes(good)
    hub.start()
    assert hub.json("GET", "/devices/d1")["deviceId"] == "d1"


def test_a_damaged_segment_costs_the_damaged_events_only(own_wired):
    hub = own_wired()
    device = hub.create("d1")
    with device.connect() as client:
        for n in range(100):
            client.publish(device.events, b'{"n":%d}' % n)
    assert hub.stop() == 0
    segment = max(hub.data_dir.glob("events/p*/*.seg"), key=lambda path: path.stat().st_size)
    data = bytearray(segment.read_bytes())
    at = data.index(b'{"n":50}')
    data[at] ^= 0xFF
    segment.write_bytes(data)
    hub.start()
    with device.connect() as client:
        client.publish(device.events, b'{"n":100}')
    with hub.stream("d1") as following:
        got = [following()["body"]["n"]]
        while got[-1] != 100:
            got.append(following()["body"]["n"])
    assert got == sorted(got) and set(range(40)) | set(range(60, 101)) <= set(got) and 50 not in got
    damage = [line for line in hub.log_text().splitlines() if "ERROR" in line]
    assert damage and all("damaged" in line and segment.name in line for line in damage), damage
