"""Devices behind an edge device: their messages, twins, methods, and what becomes of them while the link is down."""

import hashlib
import json
import random
import ssl
import subprocess
import time

import pytest

from device import UPSTREAM, wait_edge_hub, wait_until
from downstream import Leaf, connection_string, hosts_of, in_order, numbers, register

WAYS = [("python", "Mqtt"), ("python", "MqttWs"), ("node", "Mqtt"), ("node", "Amqp"), ("node", "AmqpWs")]


@pytest.mark.parametrize("sdk, transport", WAYS)
def test_a_device_behind_the_gateway_is_a_device_of_the_hub(gateway, hub, leaf_of, sdk, transport):
    with hub.events(gateway.id) as events:
        leaf = leaf_of(gateway, "leaf", sdk=sdk, transport=transport, messages=20).start()
        leaf.wait("ready")
        leaf.wait("done")
        wait_until(lambda: len(numbers(events, leaf.name)) >= 20, "its messages", 30)
        assert numbers(events, leaf.name) == list(range(1, 21))
    status, answer = hub.request("POST", f"/twins/{leaf.name}/methods", {
        "methodName": "echo", "payload": {"a": 1}, "responseTimeoutInSeconds": 10, "connectTimeoutInSeconds": 10})
    assert (status, answer) == (200, {"status": 200, "payload": {"a": 1}})
    hub.ok("PATCH", f"/twins/{leaf.name}", {"properties": {"desired": {"interval": 7}}})
    wait_until(lambda: hub.twin(leaf.name)["properties"]["reported"].get("interval") == 7, "the reported interval", 30)


def test_a_cloud_to_device_message_reaches_the_device_and_is_completed(gateway, hub, leaf_of):
    leaf = leaf_of(gateway, "told", sdk="node", transport="Amqp", cloudToDevice=True).start()
    leaf.wait("ready")
    hub.cli("c2d", "send", leaf.name, "good morning")
    leaf.wait("told", text="good morning")
    waiting = lambda: hub.ok("GET", f"/devices/{leaf.name}")["cloudToDeviceMessageCount"]  # noqa: E731
    wait_until(lambda: waiting() == 0, "the message to be complete", 30)


def test_a_foreign_key_is_refused_and_the_neighbours_go_on(gateway, hub, leaf_of):
    good = leaf_of(gateway, "good", messages=40, delay=0.05).start()
    good.wait("ready")
    bad = leaf_of(gateway, "bad", key="AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=").start()
    bad.wait("refused")
    unknown = leaf_of(gateway, "gone")
    hub.ok("DELETE", f"/devices/{unknown.name}")
    unknown.start().wait("refused")
    good.wait("done")
    assert good.sent() == list(range(1, 41)) and not good.events("unsent")
    assert not bad.events("connected") and not unknown.events("connected")


def test_a_device_that_is_disabled_is_put_out(gateway, hub, leaf_of):
    leaf = leaf_of(gateway, "leaf", messages=10_000, delay=0.2).start()
    leaf.wait("ready")
    hub.ok("PUT", f"/devices/{leaf.name}", {**hub.ok("GET", f"/devices/{leaf.name}"), "status": "disabled"},
           headers={"If-Match": "*"})
    status, answer = hub.method(gateway.id, "$edgeHub", "RefreshDeviceScopeIdentityCache", {"deviceIds": [leaf.name]})
    assert status == 200, answer
    sent = len(leaf.sent())
    time.sleep(3)
    assert len(leaf.sent()) <= sent + 2, "a disabled device still sends"


def test_a_device_that_was_moved_to_another_parent_is_put_out_within_about_a_minute(gateway, hub, leaf_of):
    """Nobody tells the edge hub, and the device says nothing."""
    moved, stays = leaf_of(gateway, "moved").start(), leaf_of(gateway, "stays").start()
    for leaf in (moved, stays):
        leaf.wait("ready")
    connected = lambda leaf: hub.reported(gateway.id, "$edgeHub").get("clients", {}).get(leaf.name)  # noqa: E731
    wait_until(lambda: connected(moved) and connected(stays), "both to be reported as connected", 30)
    other = f"other-{gateway.id}"
    hub.create_edge_device(other)
    scope = hub.ok("GET", f"/devices/{other}")["deviceScope"]
    device = {**hub.ok("GET", f"/devices/{moved.name}"), "deviceScope": scope, "parentScopes": [scope]}
    hub.ok("PUT", f"/devices/{moved.name}", device, headers={"If-Match": "*"})
    since = time.monotonic()
    try:
        wait_until(lambda: not connected(moved), "the device to be put out", 90)
    except AssertionError as error:
        raise AssertionError(f"{error}\nlog:\n{gateway.log_tail()}") from None
    print(f"put out after {time.monotonic() - since:.1f} s")
    assert connected(stays)


def make_certificate(folder, name):
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
         "-subj", f"/CN={name}", "-keyout", key, "-out", certificate], check=True, capture_output=True)
    der = ssl.PEM_cert_to_DER_cert(certificate.read_text())
    return certificate, key, hashlib.sha256(der).hexdigest().upper()


def test_a_device_with_a_certificate(gateway, hub, field, tmp_path):
    name = f"cert-{gateway.id}"
    certificate, key, thumbprint = make_certificate(tmp_path, name)
    register(hub, name, gateway.id, {"authentication": {
        "type": "selfSigned", "x509Thumbprint": {"primaryThumbprint": thumbprint, "secondaryThumbprint": thumbprint}}})
    leaf = Leaf(field, name, gateway.home / "identity" / "ca.pem", hosts_of(gateway), certificate=str(certificate),
                key=str(key), host=gateway.id, device=name, messages=3)
    foreign, foreign_key, _ = make_certificate(tmp_path, f"foreign-{name}")
    with hub.events(name) as events:
        leaf.start().wait("done")
        wait_until(lambda: numbers(events, name) == [1, 2, 3], "its messages", 30)
    leaf.kill()
    leaf.options.update(certificate=str(foreign), key=str(foreign_key))
    leaf.start().wait("refused")
    leaf.kill()


@pytest.mark.parametrize("protocol", ["mqtt", "mqtt-ws", "amqp", "amqp-ws"])
def test_every_way_upstream_survives_a_cut(make_device, hub, leaf_of, protocol):
    """None lost, order kept, whatever the edge hub speaks with the hub."""
    gateway = make_device({"upstream": {"protocol": protocol}}).start()
    gateway.deploy({}, UPSTREAM)
    wait_edge_hub(gateway)
    with hub.events(gateway.id) as events:
        leaf = leaf_of(gateway, "leaf", messages=300, delay=0.02).start()
        leaf.wait("sent", number=30)
        gateway.machine.cut_from_hub()
        try:
            leaf.wait("sent", number=200)
        finally:
            gateway.machine.mend_to_hub()
        leaf.wait("done")
        wait_until(lambda: len(set(numbers(events, leaf.name))) == 300, "all messages", 60)
        assert in_order(numbers(events, leaf.name)) == list(range(1, 301))
        assert not leaf.events("unsent"), "the device noticed that the link was down"


def test_offline_from_the_start_with_kill_9(gateway, hub, leaf_of):
    """A device that was seen once is let in offline; what it sends survives crashes of the edge hub."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    dice = random.Random(seed)
    leaf = leaf_of(gateway, "leaf", messages=400, delay=0.02)
    leaf.start().wait("ready")
    with hub.events(gateway.id) as events:
        gateway.machine.cut_from_hub()
        try:
            for _ in range(3):
                seen = len(leaf.sent())
                wait_until(lambda: len(leaf.sent()) >= min(seen + dice.randrange(10, 60), 395), "more messages", 60)
                gateway.kill()
                gateway.start()
            leaf.wait("done", 120)
        finally:
            gateway.machine.mend_to_hub()
        wait_until(lambda: len(set(numbers(events, leaf.name))) == 400, "all messages", 60)
        assert in_order(numbers(events, leaf.name)) == list(range(1, 401)), f"seed {seed}"


def test_twins_are_there_offline_and_merged_afterwards(gateway, hub, leaf_of):
    leaf = leaf_of(gateway, "leaf").start()
    leaf.wait("ready")
    hub.ok("PATCH", f"/twins/{leaf.name}", {"properties": {"desired": {"level": 1}}})
    leaf.wait("desired")
    leaf.kill()
    gateway.machine.cut_from_hub()
    try:
        hub.ok("PATCH", f"/twins/{leaf.name}", {"properties": {"desired": {"level": 2}}})
        began = time.monotonic()
        leaf.log.write_text("")
        twin = leaf.start().wait("twin")["twin"]
        assert twin["desired"]["level"] == 1 and time.monotonic() - began < 20
    finally:
        gateway.machine.mend_to_hub()
    wait_until(lambda: any(event["patch"].get("level") == 2 for event in leaf.events("desired")), f"the change; {leaf.log.read_text()}", 60)
    wait_until(lambda: hub.twin(leaf.name)["properties"]["reported"].get("level") == 2, "the report", 30)


def test_a_bad_route_is_told_and_the_others_go_on(gateway, hub, leaf_of):
    gateway.deploy({}, {**UPSTREAM, "bad": "FROM /messages/* WHERE (( INTO $upstream"})
    wait_edge_hub(gateway, 400)
    told = json.dumps(hub.reported(gateway.id, "$edgeHub")["lastDesiredStatus"])
    assert "bad" in told
    with hub.events(gateway.id) as events:
        leaf = leaf_of(gateway, "leaf", messages=3).start()
        leaf.wait("done")
        wait_until(lambda: numbers(events, leaf.name) == [1, 2, 3], "its messages", 30)


def test_clients_are_reported(gateway, hub, leaf_of):
    leaf = leaf_of(gateway, "leaf").start()
    leaf.wait("ready")
    clients = lambda: hub.reported(gateway.id, "$edgeHub").get("clients", {})  # noqa: E731
    wait_until(lambda: clients().get(leaf.name, {}).get("status") == "Connected", "the client", 30)
    leaf.stop()
    wait_until(lambda: leaf.name not in clients(), "the client to be gone", 30)


@pytest.mark.long
def test_a_hundred_children(gateway, hub, field):
    leaves = []
    for number in range(100):
        identity = register(hub, f"child{number}-{gateway.id}", gateway.id)
        leaves.append(Leaf(
            field, identity["deviceId"], gateway.home / "identity" / "ca.pem", hosts_of(gateway), messages=10, delay=0.2,
            connectionString=connection_string(hub, identity, gateway.id)))
    with hub.events(gateway.id) as events:
        for leaf in leaves:
            leaf.start()
        for leaf in leaves:
            leaf.wait("done", 300)
        for leaf in leaves:
            wait_until(lambda leaf=leaf: numbers(events, leaf.name) == list(range(1, 11)), f"all of {leaf.name}", 60)
    for leaf in leaves:
        leaf.kill()
