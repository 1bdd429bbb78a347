"""Fixtures: one site with a hub, a registry and a machine for the whole run; a fresh device for every test."""

import itertools
import os
import shutil
import signal
import tempfile
import time
import uuid
from pathlib import Path

import pytest

from aziot import AziotDevice
from device import UPSTREAM, EdgeDevice, wait_edge_hub
from downstream import Leaf, connection_string, hosts_of, register
from site_net import Machine, Site

RUN = uuid.uuid4().hex[:4]
COUNTER = itertools.count(1)


def pytest_configure(config):
    """A run that is asked to end takes down what it has put up: namespaces and bridges would stay."""
    def interrupt(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, interrupt)


def pytest_collection_modifyitems(config, items):
    """Long tests are left out, not skipped, unless they are asked for."""
    if os.environ.get("HOLDFAST_TEST_LONG") != "1":
        long = [item for item in items if item.get_closest_marker("long")]
        if long:
            config.hook.pytest_deselected(items=long)
            items[:] = [item for item in items if item not in long]


@pytest.fixture(scope="session")
def folder():
    # Short, since paths of unix sockets are.
    path = Path(tempfile.mkdtemp(prefix="hfe"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def site(folder):
    if os.geteuid() != 0:
        pytest.fail("container engines and network namespaces need root")
    made = Site(folder)
    try:
        made.start_registry()
        made.start_hub()
        yield made
    finally:
        made.close()


@pytest.fixture
def hub(site):
    return site.hub


@pytest.fixture(scope="session")
def the_machine(site, folder):
    made = Machine(site, folder / "m1")
    try:
        made.start_engine()
        yield made
    finally:
        made.close()


@pytest.fixture
def machine(the_machine):
    """The machine, with its engine running and its link whole."""
    the_machine.mend()
    if the_machine.engine.poll() is not None:
        the_machine.start_engine()
    yield the_machine
    the_machine.mend()


@pytest.fixture
def own_machine(site, folder):
    """Makes machines that a test may ruin."""
    made = []

    def make():
        machine = Machine(site, folder / f"o{uuid.uuid4().hex[:4]}")
        made.append(machine)
        machine.start_engine()
        return machine

    yield make
    for machine in made:
        machine.close()
        shutil.rmtree(machine.folder, ignore_errors=True)


@pytest.fixture
def make_device(machine, folder):
    """Makes devices, by default on the one machine; not started."""
    made = []

    def make(settings=None, on=None):
        number = next(COUNTER)
        device = EdgeDevice(on or machine, f"edge-{RUN}-{number}", folder / f"d{number}", settings)
        made.append(device)
        return device

    yield make
    for device in made:
        device.close()


@pytest.fixture
def device(make_device):
    """A device with its daemon running."""
    return make_device().start()


@pytest.fixture
def aziot(machine, folder):
    """Makes such devices."""
    made = []

    def make(device_id, provisioning, **options):
        device = AziotDevice(machine, device_id, folder / f"p{time.monotonic_ns() % 10**9}", provisioning, **options)
        made.append(device)
        return device

    yield make
    for device in made:
        device.close()


@pytest.fixture
def name():
    """An id for devices and groups that no other test has."""
    return f"p{time.monotonic_ns() % 10**10}"


@pytest.fixture
def sensor(site):
    return site.image("holdfast-simulated-sensor")


@pytest.fixture
def python_image(site):
    return site.image("python-module")


@pytest.fixture
def node_image(site):
    return site.image("node-module")


@pytest.fixture(scope="module")
def field(site, folder):
    """A machine without an engine, on which downstream devices run."""
    made = Machine(site, folder / "field")
    yield made
    made.close()


@pytest.fixture
def gateway(device):
    """An edge device whose edge hub sends everything on."""
    device.deploy({}, UPSTREAM)
    wait_edge_hub(device)
    return device


@pytest.fixture
def leaf_of(field, hub):
    """Makes devices behind an edge device; gives a function of edge device, name and options of `Leaf`."""
    made = []

    def make(parent, name, *, sdk="python", transport="Mqtt", key=None, **options):
        leaf_id = f"{name}-{parent.id}"
        identity = register(hub, leaf_id, parent.id)
        if key:
            identity["authentication"]["symmetricKey"]["primaryKey"] = key
        leaf = Leaf(
            field, leaf_id, parent.home / "identity" / "ca.pem", hosts_of(parent), sdk=sdk, transport=transport,
            connectionString=connection_string(hub, identity, parent.id), **options,
        )
        made.append(leaf)
        return leaf

    yield make
    for leaf in made:
        leaf.kill()
