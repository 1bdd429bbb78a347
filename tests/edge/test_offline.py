"""Crashes, power cuts, long times offline and clocks that are wrong."""

import json
import time

import pytest

from device import UPSTREAM, module, wait_until

ENDLESS = {"MessageCount": "-1", "MessageDelay": "0.5"}


def modules(sensor, python_image):
    return {
        "sensor": module(sensor, env=ENDLESS),
        "idle": module(python_image, options={"Cmd": ["sleep", "100000"], "StopTimeout": 1}),
    }


def starts(device, names):
    return {name: device.machine.inspect(name)["State"]["StartedAt"] for name in names}


def sequence(events):
    """Numbers of the sensor's messages, in the order of arrival."""
    numbers = []
    for event in list(events.received):
        properties = event.get("properties") or event.get("applicationProperties") or {}
        if "sequenceNumber" in properties:
            numbers.append(int(properties["sequenceNumber"]))
    return numbers


@pytest.mark.parametrize("how", ["kill -9", "stop"])
def test_a_daemon_that_starts_again_adopts_what_runs(device, sensor, python_image, how):
    device.wait_status(200, device.deploy(modules(sensor, python_image), UPSTREAM), 120)
    before = starts(device, ["sensor", "idle"])
    ids = device.machine.containers()
    if how == "kill -9":
        device.kill()
    else:
        assert device.stop() == 0
    ended = how == "stop" and device.machine.state("sensor") != "running"
    device.start()
    device.wait_module("sensor")
    device.wait_module("idle")
    device.wait_status(200)
    assert {name: ident for name, (_, ident) in device.machine.containers().items()} == {
        name: ident for name, (_, ident) in ids.items()}
    if not ended:
        assert starts(device, ["sensor", "idle"]) == before


def test_kill_9_and_start_offline(device, sensor, python_image):
    device.wait_status(200, device.deploy(modules(sensor, python_image), UPSTREAM), 120)
    device.machine.cut()
    device.kill()
    device.machine.docker("kill", "idle")
    device.machine.docker("rm", "--force", "sensor")
    device.start()
    # One is started again, the other made anew from the image and the identity that are here.
    device.wait_container("idle")
    device.wait_container("sensor")
    device.machine.mend()
    device.wait_status(200)
    device.wait_module("sensor")


def test_a_power_cut_and_a_cold_start_without_network(device, hub, sensor, python_image):
    with hub.events(device.id) as events:
        device.wait_status(200, device.deploy(modules(sensor, python_image), UPSTREAM), 120)
        wait_until(lambda: len(sequence(events)) >= 2, "messages before the cut", 30)
        device.machine.power_cut()
        device.process.wait(timeout=10)
        device.machine.start_engine()
        device.start()
        device.wait_container("sensor")
        device.wait_container("idle")
        # What the sensor sends meanwhile is kept.
        wait_until(lambda: "message 3 acknowledged" in device.machine.docker("logs", "--tail", "50", "sensor"),
                   "the edge hub to take messages offline", 30)
        had = len(sequence(events))
        device.machine.mend()
        wait_until(lambda: len(sequence(events)) >= had + 3, "the kept messages", 60)
        device.wait_module("sensor")
        device.wait_status(200)


@pytest.mark.parametrize("clock", ["-8y", "+6y"])
def test_a_clock_that_is_wrong_by_years(device, sensor, python_image, clock):
    device.wait_status(200, device.deploy(modules(sensor, python_image)), 120)
    assert device.stop() == 0
    for name in ("sensor", "idle"):
        device.machine.docker("rm", "--force", name)
    device.machine.cut()
    device.start(clock=clock)
    device.wait_container("idle")
    device.wait_container("sensor")
    device.machine.docker("kill", "idle")
    device.wait_container("idle")
    device.kill()
    device.machine.mend()
    # The clock is right again: nothing of the wrong time is left in the way.
    device.start()
    device.wait_module("idle")
    device.wait_status(200)


def test_a_deployment_that_came_while_offline(device, sensor, python_image):
    device.wait_status(200, device.deploy(modules(sensor, python_image)), 120)
    device.machine.cut()
    version = device.deploy({"sensor": module(sensor, env={**ENDLESS, "NEW": "1"})})
    time.sleep(3)
    device.machine.mend()
    device.wait_status(200, version, 60)
    wait_until(lambda: "idle" not in device.machine.containers(), "the module to be gone", 30)
    assert "NEW=1" in json.dumps(device.machine.inspect("sensor")["Config"]["Env"])
