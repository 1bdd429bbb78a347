"""The unmodified provisioning device client over MQTT and MQTT over WebSocket, and the device on its hub afterwards."""

import http.server
import json
import threading

import pytest
import requests
from azure.iot.device import IoTHubDeviceClient, ProvisioningDeviceClient, X509
from azure.iot.device.exceptions import ClientError, CredentialError, ServiceError

from dps import Certificate, Provisioning, client_certificates, derive_key, primary_key, signing_certificates
from hub import sas_token


@pytest.fixture
def dps(hub):
    return Provisioning(hub)


def by_key(dps, registration_id, key, websockets=False):
    return ProvisioningDeviceClient.create_from_symmetric_key(
        dps.host,
        registration_id,
        dps.id_scope,
        key,
        websockets=websockets,
        server_verification_cert=dps.ca_pem,
    )


def by_certificate(dps, registration_id, files, websockets=False):
    return ProvisioningDeviceClient.create_from_x509_certificate(
        dps.host,
        registration_id,
        dps.id_scope,
        X509(*files),
        websockets=websockets,
        server_verification_cert=dps.ca_pem,
    )


def twin_on_hub(dps, result, **credential):
    """Connects to the assigned hub and reads the twin."""
    state = result.registration_state
    make = IoTHubDeviceClient.create_from_symmetric_key
    if "x509" in credential:
        make = IoTHubDeviceClient.create_from_x509_certificate
    client = make(
        hostname=state.assigned_hub, device_id=state.device_id, server_verification_cert=dps.ca_pem, **credential
    )
    try:
        client.connect()
        return client.get_twin()
    finally:
        client.shutdown()


def test_individual_key_assigns_and_brings_the_initial_twin(dps, device_id, websockets):
    enrollment = dps.enroll(
        device_id,
        deviceId=f"{device_id}-on-hub",
        initialTwin={"tags": {"line": 4}, "properties": {"desired": {"interval": 5}}},
    )
    key = primary_key(enrollment)
    result = by_key(dps, device_id, key, websockets).register()
    assert result.status == "assigned"
    state = result.registration_state
    assert (state.assigned_hub, state.device_id) == (dps.host, f"{device_id}-on-hub")
    assert state.sub_status == "initialAssignment"
    twin = twin_on_hub(dps, result, symmetric_key=key)
    assert twin["desired"]["interval"] == 5
    stored = dps.registration(device_id)
    assert (stored["status"], stored["etag"]) == ("assigned", state.etag)


def test_group_key_derives_keys(dps, device_id, websockets):
    group = dps.group(f"group-{device_id}", initialTwin={"properties": {"desired": {"of": "group"}}})
    key = derive_key(primary_key(group), device_id)
    result = by_key(dps, device_id, key, websockets).register()
    assert result.registration_state.device_id == device_id
    assert twin_on_hub(dps, result, symmetric_key=key)["desired"]["of"] == "group"
    listed = dps.request("POST", f"/registrations/group-{device_id}/query")
    assert [one["registrationId"] for one in listed.json()] == [device_id]
    # The group's own key is nobody's.
    with pytest.raises((CredentialError, ClientError)):
        by_key(dps, device_id, primary_key(group), websockets).register()


def test_individual_certificate(dps, device_id, websockets, tmp_path):
    certificate = Certificate(device_id)
    dps.enroll(device_id, client_certificates(certificate.pem))
    files = certificate.files(tmp_path)
    result = by_certificate(dps, device_id, files, websockets).register()
    assert result.status == "assigned"
    assert twin_on_hub(dps, result, x509=X509(*files))["desired"]["$version"] == 1


def test_group_certificate_with_intermediate(dps, device_id, websockets, tmp_path):
    root = Certificate("root", is_ca=True)
    line = Certificate("line", issuer=root, is_ca=True)
    dps.group(f"x-{device_id}", signing_certificates(root.pem))
    certificate = Certificate(device_id, issuer=line)
    files = certificate.files(tmp_path, line)
    result = by_certificate(dps, device_id, files, websockets).register()
    assert result.status == "assigned"
    assert twin_on_hub(dps, result, x509=X509(*files))["reported"]["$version"] == 1


def test_certificates_that_do_not_count(dps, device_id, tmp_path):
    expired = Certificate(device_id, expired=True)
    dps.enroll(device_id, client_certificates(expired.pem))
    with pytest.raises((CredentialError, ClientError)):
        by_certificate(dps, device_id, expired.files(tmp_path)).register()
    other = Certificate(device_id)
    with pytest.raises((CredentialError, ClientError)):
        by_certificate(dps, device_id, other.files(tmp_path)).register()


def test_wrong_key_and_unknown_device(dps, device_id):
    dps.enroll(device_id)
    stranger = derive_key("MDEyMzQ1Njc4OWFiY2RlZg==", "x")
    for registration_id in (device_id, f"{device_id}-unknown"):
        with pytest.raises((CredentialError, ClientError)):
            by_key(dps, registration_id, stranger).register()


def test_foreign_scope(dps, device_id):
    key = primary_key(dps.enroll(device_id))
    client = ProvisioningDeviceClient.create_from_symmetric_key(
        dps.host, device_id, "0neFFFFFFFF", key, server_verification_cert=dps.ca_pem
    )
    with pytest.raises((CredentialError, ClientError)):
        client.register()


def test_disabled_enrollment(dps, device_id):
    key = primary_key(dps.enroll(device_id, provisioningStatus="disabled"))
    with pytest.raises((ServiceError, ClientError)):
        by_key(dps, device_id, key).register()
    dps.enroll(device_id, provisioningStatus="enabled")
    assert by_key(dps, device_id, key).register().status == "assigned"


def test_registering_again_keeps_or_resets(hub, dps, device_id):
    twin = {"properties": {"desired": {"fresh": True}}}
    key = primary_key(dps.enroll(device_id, initialTwin=twin))
    assert by_key(dps, device_id, key).register().status == "assigned"
    patch = {"properties": {"desired": {"fresh": None, "worn": 1}}}
    assert hub.request("PATCH", f"/twins/{device_id}", json=patch).status_code == 200
    again = by_key(dps, device_id, key).register()
    assert again.registration_state.sub_status == "initialAssignment"
    assert twin_on_hub(dps, again, symmetric_key=key)["desired"]["worn"] == 1
    reset = {"updateHubAssignment": True, "migrateDeviceData": False}
    dps.enroll(device_id, initialTwin=twin, reprovisionPolicy=reset)
    again = by_key(dps, device_id, key).register()
    assert again.registration_state.sub_status == "deviceDataReset"
    desired = twin_on_hub(dps, again, symmetric_key=key)["desired"]
    assert desired["fresh"] is True and "worn" not in desired


class Webhook(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        length = int(self.headers["content-length"])
        self.server.asked.append((self.path, json.loads(self.rfile.read(length))))
        body = json.dumps(self.server.answer).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_custom_allocation(dps, device_id):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Webhook)
    server.asked = []
    server.answer = {
        "iotHubHostName": dps.host,
        "payload": {"hello": "device"},
        "initialTwin": {"tags": {}, "properties": {"desired": {"chosen": "by hook"}}},
    }
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/choose?code=1"
        custom = {"webhookUrl": url, "apiVersion": "2021-10-01"}
        key = primary_key(dps.enroll(device_id, allocationPolicy="custom", customAllocationDefinition=custom))
        client = by_key(dps, device_id, key)
        client.provisioning_payload = {"model": "m1"}
        result = client.register()
        assert json.loads(result.registration_state.response_payload)["hello"] == "device"
        assert twin_on_hub(dps, result, symmetric_key=key)["desired"]["chosen"] == "by hook"
        path, asked = server.asked[0]
        assert path == "/choose?code=1"
        assert asked["deviceRuntimeContext"]["payload"] == {"model": "m1"}
        server.answer = {"iotHubHostName": "stranger.example"}
        with pytest.raises((ServiceError, ClientError)):
            by_key(dps, device_id, key).register()
        assert dps.registration(device_id)["errorCode"] == 400208
    finally:
        server.shutdown()


def test_https_device_api(dps, device_id):
    """The answers that C# and the edge's identity service insist on; Python has no HTTPS client for this."""
    key = primary_key(dps.enroll(device_id))
    path = f"{dps.id_scope}/registrations/{device_id}"
    # The identity service lower-cases the whole resource.
    token = sas_token(path.lower(), key, "registration")

    def call(method, rest, token=token, **kwargs):
        return requests.request(
            method,
            f"https://{dps.host}/{path}{rest}",
            params={"api-version": "2021-06-01"},
            headers={"Authorization": token} if token else {},
            verify=dps.ca,
            timeout=30,
            **kwargs,
        )

    begun = call("PUT", "/register", json={"registrationId": device_id})
    assert begun.status_code == 202 and begun.json()["status"] == "assigning"
    assert int(begun.headers["retry-after"]) > 0 and "location" in begun.headers
    done = call("GET", f"/operations/{begun.json()['operationId']}")
    assert done.status_code == 200 and done.json()["registrationState"]["assignedHub"] == dps.host
    last = call("POST", "", json={"registrationId": device_id})
    assert last.json()["deviceId"] == device_id
    unknown = call("GET", "/operations/4.0.x")
    assert unknown.status_code == 404 and unknown.json()["errorCode"] == 404203
    foreign = call("PUT", "/register", json={"registrationId": "someone-else"})
    assert foreign.status_code == 400 and foreign.json()["errorCode"] == 400202
    large = call("PUT", "/register", json={"registrationId": device_id, "payload": "x" * 100_000})
    assert large.status_code == 413
    for token in (None, sas_token(path, derive_key(key, "x")), "garbage"):
        refused = call("PUT", "/register", token=token, json={})
        assert refused.status_code == 401 and refused.json()["errorCode"] == 401002
