"""Restart policies, with cool-off times made short."""

import time

import pytest

from device import module, wait_until

QUICK = {"agent": {"rollback": False, "env": {
    "CoolOffTimeUnitInSeconds": "1", "MaxRestartCount": "3", "IntensiveCareTimeInMinutes": "1"}}}


def ending(image, code, after="0.3", **fields):
    return module(image, options={"Cmd": ["sh", "-c", f"sleep {after}; exit {code}"]}, **fields)


def test_every_policy(make_device, python_image):
    device = make_device(QUICK).start()
    modules = {
        f"{policy}-{code}": ending(python_image, code, restartPolicy=policy)
        for policy in ("never", "on-failure", "on-unhealthy", "always")
        for code in (0, 3)
    }
    device.deploy(modules)
    # The end of the line for what fails again and again: tried as often as allowed, with growing pauses, then left.
    for name in ("on-failure-3", "on-unhealthy-3", "always-3"):
        reported = device.wait_module(name, "failed", 90, restartCount=3)["modules"][name]
        assert reported["exitCode"] == 3
    device.wait_module("always-0", "failed", 60, restartCount=3)
    never = device.reported()["modules"]
    assert never["never-0"]["runtimeStatus"] == "stopped" and never["never-0"]["exitCode"] == 0
    assert never["never-3"]["runtimeStatus"] == "failed" and never["never-3"]["exitCode"] == 3
    for name in ("never-0", "never-3"):
        assert device.machine.inspect(name)["RestartCount"] == 0
        started = device.machine.inspect(name)["State"]["StartedAt"]
        assert started < device.machine.inspect("always-3")["State"]["StartedAt"]
    # Left alone.
    before = device.machine.inspect("always-3")["State"]["StartedAt"]
    time.sleep(6)
    assert device.machine.inspect("always-3")["State"]["StartedAt"] == before


def test_a_module_that_is_killed_comes_back_and_its_neighbour_does_not_notice(make_device, sensor, python_image):
    device = make_device(QUICK).start()
    idle = module(python_image, options={"Cmd": ["sleep", "100000"]})
    device.wait_status(200, device.deploy({"sensor": module(sensor, env={"MessageCount": "-1"}), "idle": idle}), 120)
    neighbour = device.machine.inspect("sensor")["State"]["StartedAt"]
    device.machine.docker("kill", "idle")
    wait_until(lambda: device.machine.inspect("idle")["State"]["ExitCode"] == 0
               and device.machine.state("idle") == "running", "the killed module to run again", 30)
    device.wait_module("idle", restartCount=1)
    assert device.machine.inspect("sensor")["State"]["StartedAt"] == neighbour


def test_a_container_that_somebody_removed_is_made_again(make_device, python_image):
    device = make_device(QUICK).start()
    idle = module(python_image, options={"Cmd": ["sleep", "100000"]})
    device.wait_status(200, device.deploy({"idle": idle}), 120)
    ident = device.machine.containers()["idle"][1]
    device.machine.docker("rm", "--force", "idle")
    device.wait_container("idle")
    assert device.machine.containers()["idle"][1] != ident


def test_a_module_that_fails_its_health_check_is_restarted(make_device, python_image):
    device = make_device(QUICK).start()
    options = {"Cmd": ["sleep", "100000"], "StopTimeout": 1,
               "Healthcheck": {"Test": ["CMD", "false"], "Interval": 500_000_000, "Retries": 2}}
    device.deploy({"sick": module(python_image, options=options, restartPolicy="on-unhealthy")})
    device.wait_container("sick")
    device.wait_reported(
        lambda reported: reported.get("modules", {}).get("sick", {}).get("restartCount", 0) >= 1,
        "the unhealthy module to be restarted", 60,
    )


@pytest.mark.long
def test_the_count_begins_anew_when_a_module_has_run_long_enough(make_device, python_image):
    device = make_device(QUICK).start()
    device.deploy({"slow": ending(python_image, 1, after="75")})
    device.wait_reported(
        lambda reported: reported.get("modules", {}).get("slow", {}).get("restartCount", 0) >= 1, "a restart", 120
    )
    device.wait_module("slow", "running", 90, restartCount=0)
