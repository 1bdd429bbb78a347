"""The edge hub when something goes wrong: kills, flapping links, full and damaged disks, clients that behave badly.

Every test counts: what was acknowledged arrives at the hub, and each sender's messages in order.
"""

import contextlib
import random
import shutil
import signal
import time
from urllib.parse import quote

import pytest

from device import UPSTREAM, run, wait_edge_hub, wait_until
from downstream import CLIENTS, Leaf, hosts_of, in_order, numbers

INPUT = {
    **UPSTREAM,
    "in": 'FROM /messages/modules/source/outputs/out INTO BrokeredEndpoint("/modules/sink/inputs/in")',
}


def random_seed():
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    return random.Random(seed)


def queue_bytes(device):
    """Bytes of the edge hub's queues on the disk."""
    total = 0
    for file in (device.home / "hub" / "queues").glob("*"):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            total += file.stat().st_size
    return total


def queues_are_empty(device):
    wait_until(lambda: queue_bytes(device) == 0, f"the queues to give their space back ({queue_bytes(device)} bytes)", 20)


def all_of(events, leaves, count, seconds=60):
    """Waits for everything that was acknowledged; none is lost, and each sender's messages are in order."""
    missing = lambda: {leaf.name: count - len(set(numbers(events, leaf.name))) for leaf in leaves}  # noqa: E731
    try:
        wait_until(lambda: all(n <= 0 for n in missing().values()), "all messages", seconds)
    except AssertionError as error:
        raise AssertionError(f"{error}; missing {missing()}") from None
    for leaf in leaves:
        # One more may have come of a device that ended before it was told.
        assert in_order(numbers(events, leaf.name))[:count] == list(range(1, count + 1)), leaf.name


def five(leaf_of, gateway, **options):
    """Five devices over both protocols."""
    kinds = [("node", "Mqtt"), ("node", "Amqp"), ("python", "Mqtt"), ("node", "AmqpWs"), ("node", "MqttWs")]
    leaves = [leaf_of(gateway, f"leaf{number}", sdk=sdk, transport=transport, **options).start()
              for number, (sdk, transport) in enumerate(kinds)]
    for leaf in leaves:
        leaf.wait("ready")
    return leaves


@contextlib.contextmanager
def shown(device):
    """Shows the daemon's log when something fails."""
    try:
        yield
    except BaseException:
        print(f"{device.id}:\n{device.log_tail()}")
        raise


@pytest.mark.parametrize("kills", [2, pytest.param(12, marks=pytest.mark.long)])
def test_kill_9_at_random_instants(gateway, hub, leaf_of, kills):
    dice = random_seed()
    count = 150 * kills
    with hub.events(gateway.id) as events, shown(gateway):
        leaves = five(leaf_of, gateway, messages=count, delay=0.02)
        for _ in range(kills):
            time.sleep(dice.uniform(0.2, 2.5))
            gateway.kill()
            gateway.start()
        for leaf in leaves:
            leaf.wait("done", 60 + 20 * kills)
        all_of(events, leaves, count)
        queues_are_empty(gateway)


@pytest.mark.parametrize("protocol, flaps", [("amqp", 4), pytest.param("amqp", 20, marks=pytest.mark.long),
                                             pytest.param("mqtt", 20, marks=pytest.mark.long)])
def test_a_link_that_flaps(make_device, hub, leaf_of, protocol, flaps):
    gateway = make_device({"upstream": {"protocol": protocol}}).start()
    gateway.deploy({}, UPSTREAM)
    wait_edge_hub(gateway)
    dice = random_seed()
    count = 75 * flaps
    with hub.events(gateway.id) as events, shown(gateway):
        leaves = five(leaf_of, gateway, messages=count, delay=0.03)
        for _ in range(flaps):
            time.sleep(dice.uniform(0.05, 1.5))
            gateway.machine.cut_from_hub()
            time.sleep(dice.uniform(0.05, 1.5))
            gateway.machine.mend_to_hub()
        for leaf in leaves:
            leaf.wait("done", 60 + 10 * flaps)
            assert not leaf.events("unsent"), "a device noticed that the link was down"
        all_of(events, leaves, count)
        queues_are_empty(gateway)


@pytest.mark.parametrize("cut", [8, pytest.param(60, marks=pytest.mark.long)])
def test_a_mended_link_is_noticed_soon(gateway, hub, leaf_of, cut):
    with hub.events(gateway.id) as events, shown(gateway):
        leaf = leaf_of(gateway, "leaf", messages=20_000, delay=0.1).start()
        wait_until(lambda: len(numbers(events, leaf.name)) > 3, "messages before the cut", 30)
        gateway.machine.cut_from_hub()
        try:
            time.sleep(cut)
            seen = len(numbers(events, leaf.name))
        finally:
            gateway.machine.mend_to_hub()
        mended = time.monotonic()
        wait_until(lambda: len(numbers(events, leaf.name)) > seen, "the first message after it", 60)
        took = time.monotonic() - mended
        print(f"first message {took:.1f} s after the link was mended")
        assert took < 15
        leaf.stop()
        all_of(events, [leaf], len(leaf.sent()))
        queues_are_empty(gateway)


@pytest.mark.parametrize("protocol", ["amqp", "mqtt"])
def test_a_cut_without_a_word_is_noticed_while_nothing_is_awaited(make_device, hub, leaf_of, protocol):
    """Nobody sends, so only TCP can tell; what came for a device meanwhile reaches it soon after."""
    gateway = make_device({"upstream": {"protocol": protocol}}).start()
    gateway.deploy({}, UPSTREAM)
    wait_edge_hub(gateway)
    told = lambda: gateway.log_text().count("the hub above cannot be reached")  # noqa: E731
    with shown(gateway):
        leaf = leaf_of(gateway, "leaf", sdk="node", transport="Amqp", cloudToDevice=True).start()
        leaf.wait("ready")
        hub.cli("c2d", "send", leaf.name, "before")
        leaf.wait("told", text="before")
        # What the edge hub reports of its clients and of its modules has gone, and its answers are here.
        hub_of = lambda: hub.reported(gateway.id, "$edgeHub")  # noqa: E731
        wait_until(lambda: hub_of().get("clients", {}).get(leaf.name, {}).get("status") == "Connected", "its report", 30)
        # Nothing tells that a link is idle; one on which something is still awaited is noticed even sooner.
        time.sleep(3)
        before = told()
        gateway.machine.cut_from_hub()
        try:
            cut = time.monotonic()
            wait_until(lambda: told() > before, "the cut to be noticed", 40)
            took = time.monotonic() - cut
            hub.cli("c2d", "send", leaf.name, "while away")
        finally:
            gateway.machine.mend_to_hub()
        mended = time.monotonic()
        leaf.wait("told", text="while away")
        print(f"noticed after {took:.1f} s; told {time.monotonic() - mended:.1f} s after the link was mended")
        # 10 s of silence, and 9 s for the answer.
        assert took < 30 and time.monotonic() - mended < 15


@pytest.fixture
def small_disk(make_device, folder):
    """An edge device whose home has 12 MiB."""
    device = make_device()
    device.home.mkdir()
    run("mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", device.home)
    device.start()
    device.deploy({}, UPSTREAM)
    wait_edge_hub(device)
    yield device
    device.stop()
    run("umount", "--lazy", device.home)


def test_a_full_disk_refuses_and_loses_nothing(small_disk, hub, field):
    """What does not fit is not acknowledged; when there is room again, sending goes on."""
    device = small_disk
    with hub.events(device.id) as events, shown(device):
        source = module_client(hub, device, field, "source", messages=400, bytes=50_000, delay=0.01).start()
        source.wait("ready")
        device.machine.cut_from_hub()
        try:
            wait_until(lambda: shutil.disk_usage(device.home).free < 1_200_000, "the disk to be full", 60)
            sent = steady(lambda: len(source.sent()))
            assert 0 < sent < 400
        finally:
            device.machine.mend_to_hub()
        source.wait("done", 120)
        wait_until(lambda: len(set(module_numbers(events, "source"))) == 400, "all messages", 60)
        assert in_order(module_numbers(events, "source")) == list(range(1, 401))
        queues_are_empty(device)


def steady(value, seconds=3):
    """Waits until a value has stayed the same for a while."""
    last, since = value(), time.monotonic()
    deadline = since + 60
    while time.monotonic() < deadline:
        time.sleep(0.1)
        now = value()
        if now != last:
            last, since = now, time.monotonic()
        elif time.monotonic() - since > seconds:
            return last
    raise AssertionError("it does not settle")


def module_client(hub, device, machine, name, **options):
    """A module of the edge device that runs beside it; `source` sends, and `sink` listens at an input."""
    path = f"/devices/{device.id}/modules/{quote(name, safe='')}"
    identity = hub.ok("PUT", path, {"deviceId": device.id, "moduleId": name})
    key = identity["authentication"]["symmetricKey"]["primaryKey"]
    client = Leaf(
        machine, f"{name}-{device.id}", device.home / "identity" / "ca.pem", hosts_of(device),
        connectionString=f"HostName={hub.address};DeviceId={device.id};ModuleId={name};SharedAccessKey={key};"
                         f"GatewayHostName={device.id}",
        program=CLIENTS / "module.py", **options)
    return client


def module_numbers(events, name):
    found = []
    for event in list(events.received):
        properties = event.get("properties") or {}
        if event.get("moduleId") == name and "number" in properties:
            found.append(int(properties["number"]))
    return found


def test_messages_end_at_their_age(gateway, hub, leaf_of):
    gateway.deploy({}, UPSTREAM, hub_settings={"storeAndForwardConfiguration": {"timeToLiveSecs": 4}})
    wait_edge_hub(gateway)
    with hub.events(gateway.id) as events, shown(gateway):
        leaf = leaf_of(gateway, "leaf", messages=10_000, delay=0.1).start()
        wait_until(lambda: len(numbers(events, leaf.name)) >= 3, "the first messages", 30)
        gateway.machine.cut_from_hub()
        try:
            before = len(leaf.sent())
            leaf.wait("sent", number=before + 100)
        finally:
            gateway.machine.mend_to_hub()
        newest = leaf.sent()[-1]
        # That one may have become too old before the link was used again; those after it have not.
        wait_until(lambda: max(numbers(events, leaf.name), default=0) >= newest, "messages that are not too old", 30)
        leaf.stop()
        arrived = in_order(numbers(events, leaf.name))
        assert arrived == sorted(arrived)
        assert before + 20 not in arrived, "a message outlived its age by seconds"
        queues_are_empty(gateway)


def test_a_module_that_never_acknowledges_harms_nobody(gateway, hub, field, leaf_of):
    """Others go on while one is silent; when it is back it gets everything in order."""
    gateway.deploy({}, INPUT)
    wait_edge_hub(gateway)
    with hub.events(gateway.id) as events, shown(gateway):
        sink = module_client(hub, gateway, field, "sink", listen="in").start()
        sink.wait("ready")
        source = module_client(hub, gateway, field, "source", messages=300, delay=0.01).start()
        sink.wait("input", number=10)
        sink.process.send_signal(signal.SIGSTOP)
        leaf = leaf_of(gateway, "leaf", messages=50, delay=0.02).start()
        leaf.wait("done")
        source.wait("done")
        assert not source.events("unsent")
        all_of(events, [leaf], 50)
        wait_until(lambda: len(set(module_numbers(events, "source"))) == 300, "the source's messages", 30)
        sink.process.send_signal(signal.SIGCONT)
        inputs = lambda: in_order([event["number"] for event in sink.events("input")])  # noqa: E731
        wait_until(lambda: len(inputs()) == 300, f"the inputs; {len(inputs())}", 90)
        assert inputs() == list(range(1, 301))
        source.stop()
        sink.stop()
        queues_are_empty(gateway)


def test_a_flood_and_broken_connections_harm_nobody(gateway, hub, field, leaf_of):
    """One module sends as fast as it can; others are killed in the middle, over and over."""
    dice = random_seed()
    with hub.events(gateway.id) as events, shown(gateway):
        flood = module_client(hub, gateway, field, "flood", messages=100_000, bytes=20_000).start()
        rude = module_client(hub, gateway, field, "rude", messages=100_000, bytes=2_000).start()
        flood.wait("sent", number=20)
        leaf = leaf_of(gateway, "leaf", messages=100, delay=0.02).start()
        for _ in range(3):
            rude.wait("ready")
            time.sleep(dice.uniform(0.1, 0.8))
            rude.kill()
            rude.log.write_text("")
            rude.start()
        leaf.wait("done")
        assert not leaf.events("unsent")
        all_of(events, [leaf], 100)
        rude.kill()
        flood.stop()
        sent = set(flood.sent())
        wait_until(lambda: sent <= set(module_numbers(events, "flood")), "what was acknowledged of the flood", 60)
        order = in_order(module_numbers(events, "flood"))
        assert order == list(range(1, len(order) + 1))
        queues_are_empty(gateway)


@pytest.mark.long
def test_certificates_are_renewed_under_load(make_device, hub, leaf_of):
    """The edge CA, and with it the server certificate, is renewed while devices send."""
    # A life of 90 days, and dated back by one.
    soon, due = 25, int(91 * 86400 * 0.8) - 86400
    gateway = make_device()
    issued = gateway.home / "identity" / "edge-ca.pem"
    gateway.machine.cut()
    gateway.start(clock=f"-{due - soon}s", wait=False)
    wait_until(issued.exists, "an edge CA", 30)
    wait_until(gateway.answers, "the daemon", 30)
    first = issued.read_text()
    gateway.stop()
    gateway.machine.mend()
    gateway.start()
    gateway.deploy({}, UPSTREAM)
    wait_edge_hub(gateway)
    with hub.events(gateway.id) as events, shown(gateway):
        leaves = five(leaf_of, gateway, messages=20_000, delay=0.03)
        assert issued.read_text() == first, "the renewal came too early for this test"
        wait_until(lambda: issued.read_text() != first, "a new edge CA", soon + 60)
        wait_until(lambda: "server certificate was renewed" in gateway.log_text(), "a new server certificate", 60)
        sent = [len(leaf.sent()) for leaf in leaves]
        wait_until(lambda: all(len(leaf.sent()) > n + 20 for leaf, n in zip(leaves, sent)), "messages after it", 30)
        late = leaf_of(gateway, "late", messages=5).start()
        late.wait("done")
        for leaf in leaves:
            leaf.stop()
            assert not leaf.events("unsent"), "a device noticed the renewal"
            all_of(events, [leaf], len(leaf.sent()))
        all_of(events, [late], 5)
        queues_are_empty(gateway)


def test_a_damaged_store_delivers_the_rest(gateway, hub, leaf_of):
    dice = random_seed()
    leaf = leaf_of(gateway, "leaf", messages=200, delay=0.01)
    with hub.events(gateway.id) as events, shown(gateway):
        leaf.start().wait("ready")
        gateway.machine.cut_from_hub()
        try:
            leaf.wait("done")
            gateway.kill()
            arrived = len(set(numbers(events, leaf.name)))
            segments = [file for file in (gateway.home / "hub" / "queues").glob("*.q") if file.stat().st_size > 20_000]
            content = bytearray(segments[0].read_bytes())
            # In the body of one message in the middle of those that have not been sent.
            at = content.index(b'{"number": 150}' if b'{"number": 150}' in content else b'"number": 150')
            for _ in range(3):
                content[at + dice.randrange(8)] ^= 0x5A
            segments[0].write_bytes(content)
            gateway.start()
        finally:
            gateway.machine.mend_to_hub()
        wait_until(lambda: 200 in numbers(events, leaf.name), f"the last message ({arrived} before)", 60)
        found = in_order(numbers(events, leaf.name))
        assert found == sorted(found)
        lost = set(range(1, 201)) - set(found)
        assert 150 in lost and len(lost) <= 16, f"lost {sorted(lost)}"
        told = [line for line in gateway.log_text().splitlines() if "damaged" in line]
        assert told, f"nothing was said about the damage:\n{gateway.log_tail()}"
        again = leaf_of(gateway, "again", messages=5).start()
        again.wait("done")
        all_of(events, [again], 5)
        queues_are_empty(gateway)


def test_a_segment_without_a_header_is_set_aside(gateway, hub, leaf_of):
    """A store of which a whole segment cannot be read is opened, and everybody goes on."""
    leaf = leaf_of(gateway, "leaf", messages=30)
    with hub.events(gateway.id) as events, shown(gateway):
        leaf.start().wait("ready")
        gateway.machine.cut_from_hub()
        try:
            leaf.wait("done")
            gateway.kill()
            for segment in (gateway.home / "hub" / "queues").glob("*.q"):
                content = bytearray(segment.read_bytes())
                # The first sector, as a disk loses it.
                content[:512] = bytes(min(512, len(content)))
                segment.write_bytes(content)
            gateway.start()
        finally:
            gateway.machine.mend_to_hub()
        # The edge hub is started by the agent, after the daemon answers.
        told = lambda: any(word in gateway.log_text() for word in ("set aside", "damaged"))  # noqa: E731
        wait_until(told, f"the log to tell of it\n{gateway.log_tail()}", 20)
        again = leaf_of(gateway, "again", messages=20).start()
        again.wait("done")
        all_of(events, [again], 20)
