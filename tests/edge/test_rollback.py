"""A deployment whose modules do not become healthy is taken back."""

from device import module

ENDLESS = {"MessageCount": "-1", "MessageDelay": "0.5"}
SOON = {"agent": {"rollback_after": "12s", "env": {"CoolOffTimeUnitInSeconds": "1"}}}


def crashing(image):
    return module(image, options={"Cmd": ["sh", "-c", "exit 1"]})


def test_a_broken_deployment_is_rolled_back(make_device, site, sensor, python_image):
    device = make_device(SOON).start()
    device.machine.pull(python_image)
    device.wait_status(200, device.deploy({"sensor": module(sensor, env=ENDLESS)}))
    device.wait_module("sensor")
    newer = site.image("holdfast-simulated-sensor", "2")
    device.deploy({"sensor": module(newer, env=ENDLESS), "broken": crashing(python_image)})
    # Told when it is decided; carried out after that.
    reported = device.wait_status(500, seconds=90)
    assert "broken" in reported["lastDesiredStatus"]["description"]
    # Back to the first image, without the module that never was.
    device.wait_reported(
        lambda reported: reported.get("modules", {}).get("sensor", {}).get("settings", {}).get("image") == sensor
        and reported["modules"]["sensor"]["runtimeStatus"] == "running" and "broken" not in reported["modules"],
        "the last good deployment", 90,
    )
    # A daemon that starts again does not try the broken one again.
    device.kill()
    device.start()
    device.wait_container("sensor")
    assert device.machine.state("broken") is None
    # The next deployment is a new chance.
    version = device.deploy({"sensor": module(newer, env=ENDLESS)})
    device.wait_status(200, version)
    device.wait_reported(
        lambda reported: reported["modules"]["sensor"]["settings"]["image"] == newer, "the new image", 30
    )


def test_rollback_can_be_switched_off(make_device, sensor, python_image):
    device = make_device({"agent": {"rollback": False, "env": {"CoolOffTimeUnitInSeconds": "1", "MaxRestartCount": "2"}}}).start()
    device.machine.pull(python_image)
    device.wait_status(200, device.deploy({"sensor": module(sensor, env=ENDLESS)}))
    device.deploy({"sensor": module(sensor, env=ENDLESS), "broken": crashing(python_image)})
    device.wait_module("broken", "failed", 60)
    assert device.machine.state("sensor") == "running"
