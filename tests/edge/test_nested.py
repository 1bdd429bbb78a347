"""Edge devices below edge devices: the lower one has no way to the hub but the upper one."""

import random

import pytest

from device import UPSTREAM, module, wait_edge_hub, wait_until
from downstream import in_order, numbers
from site_net import Machine

FOREIGN_KEY = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="


@pytest.fixture(scope="module")
def lower_machine(site, folder):
    """A machine with an engine; nothing of the site but what its tests let through reaches it."""
    made = Machine(site, folder / "low")
    try:
        made.start_engine()
        yield made
    finally:
        made.close()


@pytest.fixture
def descend(hub, make_device, lower_machine):
    """Makes an edge device below another one, on a machine that cannot reach the hub; not started."""
    devices = []

    def make(parent, protocol="amqp", on=None, settings=None):
        machine = on or lower_machine
        settings = {
            "device": {"parent_hostname": parent.id},
            "upstream": {"protocol": protocol, "amqp_port": 5671, "mqtt_port": 8883, "https_port": 443},
            "certificates": {"trust_bundle": str(parent.home / "identity" / "ca.pem")},
            **(settings or {}),
        }
        child = make_device(settings, on=machine)
        hub.cli("edge", "set-parent", child.id, parent.id)
        child.know(parent)
        machine.cut_from_hub()
        devices.extend([parent, child])
        return child

    yield make
    for device in dict.fromkeys(devices):  # shown when the test has failed
        print(f"{device.id}:\n{device.log_tail()}")
    lower_machine.mend()
    lower_machine.mend_to_hub()


@pytest.fixture
def parent(make_device):
    return top(make_device)


def top(make_device, protocol="amqp"):
    device = make_device({"upstream": {"protocol": protocol}}).start()
    device.deploy({}, UPSTREAM)
    wait_edge_hub(device)
    return device


def ready(child):
    """A deployment has come down to it, and its reports have gone up."""
    child.deploy({}, UPSTREAM)
    child.start()
    wait_edge_hub(child)
    return child


@pytest.mark.parametrize("protocol", ["amqp", "mqtt"])
def test_a_child_lives_by_its_parent_alone(hub, make_device, descend, leaf_of, sensor, protocol):
    """Provisioning, deployment, module identities, reports, telemetry, twins, methods and messages over two levels."""
    parent = top(make_device, protocol)
    child = descend(parent, protocol)
    child.machine.mend_to_hub()
    child.machine.pull(sensor)
    child.machine.cut_from_hub()
    child.deploy({"sensor": module(sensor, env={"MessageCount": "5", "MessageDelay": "0.2"}, imagePullPolicy="never")}, UPSTREAM)
    with hub.events(child.id) as events:
        child.start()
        child.wait_status(200, seconds=90)
        child.wait_module("sensor")
        wait_edge_hub(child)
        assert hub.ok("GET", f"/devices/{child.id}/modules/sensor")["managedBy"]
        telemetry = lambda: [e for e in list(events.received) if e.get("moduleId") == "sensor"]  # noqa: E731
        wait_until(lambda: len(telemetry()) >= 5, "telemetry of the child's module", 30)
        assert all(event["deviceId"] == child.id for event in telemetry())
        leaves = [
            leaf_of(child, "mqtt", messages=50, delay=0.01).start(),
            leaf_of(child, "amqp", sdk="node", transport="Amqp", messages=50, delay=0.01, cloudToDevice=True).start(),
        ]
        for leaf in leaves:
            leaf.wait("done")
            wait_until(lambda leaf=leaf: len(set(numbers(events, leaf.name))) == 50, f"messages of {leaf.name}", 30)
            assert in_order(numbers(events, leaf.name)) == list(range(1, 51))
    for leaf in leaves:
        status, answer = hub.request("POST", f"/twins/{leaf.name}/methods", {
            "methodName": "echo", "payload": {"a": 1}, "responseTimeoutInSeconds": 10, "connectTimeoutInSeconds": 10})
        assert (status, answer) == (200, {"status": 200, "payload": {"a": 1}})
        hub.ok("PATCH", f"/twins/{leaf.name}", {"properties": {"desired": {"interval": 7}}})
        reported = lambda leaf=leaf: hub.twin(leaf.name)["properties"]["reported"]  # noqa: E731
        wait_until(lambda reported=reported: reported().get("interval") == 7, "the reported interval", 30)
    told = leaves[1]
    hub.cli("c2d", "send", told.name, "good morning")
    told.wait("told", text="good morning")
    waiting = lambda: hub.ok("GET", f"/devices/{told.name}")["cloudToDeviceMessageCount"]  # noqa: E731
    wait_until(lambda: waiting() == 0, "the message to be complete", 30)
    status, answer = hub.method(child.id, "$edgeAgent", "ping")
    assert status == 200, answer


@pytest.mark.parametrize("above, below", [("amqp", "amqp"), ("mqtt", "mqtt"), pytest.param("amqp-ws", "mqtt-ws", marks=pytest.mark.long)])
def test_nothing_is_lost_when_either_link_is_down(hub, make_device, descend, leaf_of, above, below):
    parent = top(make_device, above)
    child = ready(descend(parent, below))
    count = 300
    with hub.events(child.id) as events:
        leaf = leaf_of(child, "leaf", messages=count, delay=0.02).start()
        leaf.wait("sent", number=30)
        parent.machine.cut_from_hub()
        try:
            leaf.wait("sent", number=100)
        finally:
            parent.machine.mend_to_hub()
        leaf.wait("sent", number=130)
        parent.machine.cut()
        try:
            leaf.wait("sent", number=200)
        finally:
            parent.machine.mend()
        leaf.wait("done")
        wait_until(lambda: len(set(numbers(events, leaf.name))) == count, "all messages", 60)
        assert in_order(numbers(events, leaf.name)) == list(range(1, count + 1))
        assert not leaf.events("unsent"), "the device noticed that a link was down"


@pytest.mark.parametrize("protocol", [pytest.param("mqtt", marks=pytest.mark.long), "amqp"])
def test_either_edge_hub_may_be_killed(hub, make_device, descend, leaf_of, protocol):
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    dice = random.Random(seed)
    parent = top(make_device, protocol)
    child = ready(descend(parent, protocol))
    count = 300
    with hub.events(child.id) as events:
        leaf = leaf_of(child, "leaf", messages=count, delay=0.02).start()
        leaf.wait("sent", number=20)
        for victim in dice.sample([parent, child], 2):
            seen = len(leaf.sent())
            goal = min(seen + dice.randrange(10, 60), count - 5)
            wait_until(lambda goal=goal: len(leaf.sent()) >= goal, "more messages", 60)
            victim.kill()
            victim.start()
        leaf.wait("done", 120)
        wait_until(lambda: len(set(numbers(events, leaf.name))) == count, f"all messages (seed {seed})", 60)
        assert in_order(numbers(events, leaf.name)) == list(range(1, count + 1)), f"seed {seed}"


def test_only_children_are_let_through(hub, parent, descend, leaf_of):
    """An edge device that is nobody's child gets nothing from the parent; once it is adopted it comes in."""
    child = descend(parent)
    hub.cli("edge", "remove-child", parent.id, child.id)
    child.deploy({}, UPSTREAM)
    child.start()
    wait_until(lambda: refusals(parent, child.id) > 0, f"a refusal of {child.id}; {parent.log_tail()}", 30)
    assert "lastDesiredStatus" not in hub.reported(child.id, "$edgeAgent")
    # It tries again every few seconds, and its parent asks the hub when it does: nobody has to tell the parent.
    hub.cli("edge", "add-child", parent.id, child.id)
    wait_edge_hub(child)
    leaf = leaf_of(child, "leaf", messages=3).start()
    with hub.events(child.id) as events:
        leaf.wait("done")
        wait_until(lambda: numbers(events, leaf.name) == [1, 2, 3], "its messages", 30)


def test_a_child_that_is_given_away_and_taken_back(hub, parent, descend, leaf_of):
    """It is put out with all that stand below it, keeps what they send, and loses none of it when it comes back."""
    child = ready(descend(parent))
    leaf = leaf_of(child, "leaf", messages=10_000, delay=0.1)
    with hub.events(child.id) as events:
        leaf.start().wait("sent", number=3)
        wait_until(lambda: len(numbers(events, leaf.name)) >= 3, "its messages", 30)
        hub.cli("edge", "remove-child", parent.id, child.id)
        refresh(hub, parent, child.id)
        aside = "messages of a sender that cannot send are put aside"
        wait_until(lambda: aside in child.log_text(), f"it to be refused; {child.log_tail()}", 60)
        sent = len(leaf.sent())
        wait_until(lambda: len(leaf.sent()) > sent + 20, "the child to keep what it cannot send", 30)
        arrived = len(set(numbers(events, leaf.name)))
        assert arrived < sent + 15, "it sends on"
        # Nothing of it is lost either when it comes back.
        hub.cli("edge", "add-child", parent.id, child.id)
        refresh(hub, parent, child.id)
        leaf.stop()
        total = len(leaf.sent())
        wait_until(lambda: len(set(numbers(events, leaf.name))) >= total, "what it kept", 120)
        assert in_order(numbers(events, leaf.name))[:total] == list(range(1, total + 1))


def refusals(device, name):
    return sum(1 for line in device.log_text().splitlines() if "refused a client" in line and name in line)


def refresh(hub, device, *names):
    status, answer = hub.method(device.id, "$edgeHub", "RefreshDeviceScopeIdentityCache", {"deviceIds": list(names)})
    assert status == 200, answer


def test_a_child_with_a_foreign_key_harms_nobody(hub, parent, descend, own_machine, leaf_of):
    good = ready(descend(parent))
    bad = descend(parent, on=own_machine())
    text = bad.config.read_text()
    key = hub.ok("GET", f"/devices/{bad.id}")["authentication"]["symmetricKey"]["primaryKey"]
    assert key in text
    bad.config.write_text(text.replace(key, FOREIGN_KEY))
    with hub.events(good.id) as events:
        leaf = leaf_of(good, "leaf", messages=60, delay=0.05).start()
        leaf.wait("sent", number=5)
        bad.start()
        wait_until(lambda: refusals(parent, bad.id) > 0, "the refusal", 30)
        leaf.wait("done")
        wait_until(lambda: numbers(events, leaf.name) == list(range(1, 61)), "all messages, once", 30)
    assert "lastDesiredStatus" not in hub.reported(bad.id, "$edgeAgent")


def test_three_levels(hub, parent, descend, own_machine, leaf_of):
    """A leaf of the grandchild is a device of the hub; the link in the middle may go away."""
    child = ready(descend(parent))
    grandchild = ready(descend(child, "mqtt", on=own_machine()))
    with hub.events(grandchild.id) as events:
        leaf = leaf_of(grandchild, "leaf", messages=200, delay=0.02).start()
        leaf.wait("sent", number=20)
        parent.machine.cut()
        try:
            leaf.wait("sent", number=120)
        finally:
            parent.machine.mend()
        leaf.wait("done")
        wait_until(lambda: len(set(numbers(events, leaf.name))) == 200, "all messages", 60)
        assert in_order(numbers(events, leaf.name)) == list(range(1, 201))
    status, answer = hub.request("POST", f"/twins/{leaf.name}/methods", {
        "methodName": "echo", "payload": {"a": 1}, "responseTimeoutInSeconds": 10, "connectTimeoutInSeconds": 10})
    assert (status, answer) == (200, {"status": 200, "payload": {"a": 1}})
    hub.ok("PATCH", f"/twins/{leaf.name}", {"properties": {"desired": {"interval": 7}}})
    wait_until(lambda: hub.twin(leaf.name)["properties"]["reported"].get("interval") == 7, "the reported interval", 30)
