"""Podman's Docker-compatible socket: deploy, update, logs, restart, adopt, remove."""

import json
import shutil
import time

import pytest

from device import UPSTREAM, module, wait_until
from site_net import PodmanMachine

ENDLESS = {"MessageCount": "-1", "MessageDelay": "0.5"}

# Podman's own default is more than root without CAP_SYS_RESOURCE may set, as in many a virtual machine for builds.
LIMITS = {"HostConfig": {"Ulimits": [{"Name": name, "Soft": 1024, "Hard": 4096} for name in ("nofile", "nproc")]}}


def limited(image, **fields):
    return module(image, options=LIMITS, **fields)


@pytest.fixture(scope="module")
def podman(site, folder):
    made = PodmanMachine(site, folder / "pod")
    try:
        made.start_engine()
        yield made
    finally:
        made.close()
        shutil.rmtree(made.folder, ignore_errors=True)


def test_a_module_lives_its_life_on_podman(make_device, podman, hub, site, sensor, python_image):
    device = make_device(on=podman).start()
    with hub.events(device.id) as events:
        version = device.deploy({"sensor": limited(sensor, env=ENDLESS), "py": limited(python_image)}, UPSTREAM)
        device.wait_status(200, version, 180)
        device.wait_module("sensor")
        # Workload API, trust and names work in its containers: telemetry comes through the edge hub.
        try:
            events.wait(lambda event: "machine" in json.dumps(event), "telemetry of the sensor", 60)
            device.wait_event("py", "ready", 60)
        except AssertionError as error:
            logs = [podman.docker("logs", name)[-1000:] for name in ("sensor", "py")]
            raise AssertionError(f"{error}\n{logs}\n{device.log_tail()}") from None
    status, payload = hub.method(device.id, "py", "echo", {"a": 1})
    assert (status, payload) == (200, {"a": 1})
    first = podman.containers()["sensor"][1]

    # Logs.
    request = {"schemaVersion": "1.0", "items": {"id": "py", "filter": {"tail": 100}}, "encoding": "none", "contentType": "text"}
    status, answer = hub.method(device.id, "$edgeAgent", "GetModuleLogs", request)
    assert status == 200 and '"ready"' in answer[0]["payload"], answer

    # Restart by hand, and a crash that is noticed.
    before = podman.inspect("sensor")["State"]["StartedAt"]
    status, answer = hub.method(device.id, "$edgeAgent", "RestartModule", {"schemaVersion": "1.0", "id": "sensor"})
    assert status == 200, answer
    wait_until(lambda: podman.inspect("sensor")["State"]["StartedAt"] != before, "the restart", 30)
    device.wait_module("sensor")
    podman.docker("kill", "sensor")
    device.wait_module("sensor", "backoff", 30)
    device.wait_module("sensor", "running", 60, restartCount=1)
    assert podman.containers()["sensor"][1] == first

    # A daemon that is started again takes up what runs.
    started = podman.inspect("py")["State"]["StartedAt"]
    device.stop()
    device.start()
    device.wait_status(200)
    assert podman.inspect("py")["State"]["StartedAt"] == started

    # Update, status, removal.
    newer = limited(site.image("holdfast-simulated-sensor", "2"), env=ENDLESS)
    device.wait_status(200, device.deploy({"sensor": newer, "py": limited(python_image)}, UPSTREAM), 120)
    second = podman.containers()["sensor"][1]
    assert second != first
    device.wait_status(200, device.deploy({"sensor": {**newer, "status": "stopped"}}, UPSTREAM))
    device.wait_module("sensor", "stopped")
    assert podman.containers()["sensor"] == ("exited", second)
    wait_until(lambda: "py" not in podman.containers(), "the container to be gone", 30)
    device.wait_status(200, device.deploy({}, UPSTREAM))
    wait_until(lambda: not podman.containers(), "all containers to be gone", 30)


def test_podman_refuses_and_comes_back(make_device, podman, site, sensor):
    device = make_device(on=podman).start()
    device.deploy({"sensor": limited(sensor, env=ENDLESS), "missing": limited(site.image("no-such-image"))}, UPSTREAM)
    reported = device.wait_status(500, seconds=60)
    assert "no-such-image" in reported["lastDesiredStatus"]["description"]
    device.wait_module("sensor")
    # Podman's service may go: containers are not its children.
    podman.stop_engine()
    time.sleep(3)
    assert device.process.poll() is None
    podman.start_engine()
    device.wait_status(200, device.deploy({"sensor": limited(sensor, env={**ENDLESS, "NEW": "1"})}, UPSTREAM), 90)
    assert "NEW=1" in podman.inspect("sensor")["Config"]["Env"]
