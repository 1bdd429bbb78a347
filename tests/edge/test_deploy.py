"""Deployments: what runs is what was asked for, and what is reported is what runs."""

import json

import pytest

from device import UPSTREAM, module, wait_until

FAST = {"MessageCount": "-1", "MessageDelay": "0.5"}


def sleeper(image, **fields):
    return module(image, options={"Cmd": ["sh", "-c", "exec sleep 100000"], "StopTimeout": 1}, **fields)


def test_a_module_is_deployed_updated_and_removed(device, hub, site, sensor):
    with hub.events(device.id) as events:
        version = device.deploy({"sensor": module(sensor, env=FAST)}, UPSTREAM)
        device.wait_status(200, version)
        device.wait_module("sensor")
        events.wait(lambda event: "machine" in json.dumps(event), "telemetry of the sensor")
    first = device.machine.containers()["sensor"][1]
    reported = device.module("sensor")
    assert reported["settings"]["image"] == sensor
    assert reported["settings"]["imageHash"] == device.machine.inspect("sensor")["Image"]

    version = device.deploy({"sensor": module(site.image("holdfast-simulated-sensor", "2"), env=FAST)}, UPSTREAM)
    device.wait_status(200, version)
    device.wait_module("sensor")
    second = device.machine.containers()["sensor"][1]
    assert second != first
    assert device.module("sensor")["settings"]["imageHash"] != reported["settings"]["imageHash"]

    version = device.deploy({}, UPSTREAM)
    device.wait_status(200, version)
    wait_until(lambda: "sensor" not in device.machine.containers(), "the container to be gone", 30)
    assert "sensor" not in device.reported().get("modules", {})
    # The hub is told beside everything else.
    wait_until(lambda: hub.request("GET", f"/devices/{device.id}/modules/sensor")[0] == 404,
               "the identity of the removed module to be removed too", 30)


def test_what_has_not_changed_is_not_touched(device, sensor, python_image):
    modules = {"sensor": module(sensor, env=FAST), "idle": sleeper(python_image)}
    device.wait_status(200, device.deploy(modules, UPSTREAM), 120)
    before = {name: device.machine.inspect(name)["State"]["StartedAt"] for name in modules}
    ids = {name: device.machine.containers()[name][1] for name in modules}
    modules["idle"]["env"] = {"NEW": {"value": 1}}
    device.wait_status(200, device.deploy(modules, UPSTREAM))
    assert device.machine.containers()["sensor"][1] == ids["sensor"]
    assert device.machine.inspect("sensor")["State"]["StartedAt"] == before["sensor"]
    assert device.machine.containers()["idle"][1] != ids["idle"]
    assert "NEW=1" in device.machine.inspect("idle")["Config"]["Env"]


def test_status_alone_stops_and_starts_without_a_new_container(device, python_image):
    device.wait_status(200, device.deploy({"idle": sleeper(python_image)}), 120)
    ident = device.machine.containers()["idle"][1]
    device.wait_status(200, device.deploy({"idle": sleeper(python_image, status="stopped")}))
    device.wait_container("idle", "exited")
    device.wait_status(200, device.deploy({"idle": sleeper(python_image)}))
    device.wait_container("idle", "running")
    assert device.machine.containers()["idle"][1] == ident


def test_create_options_pass_untouched_and_the_module_finds_its_way(device, site, python_image):
    options = {
        "Cmd": ["sh", "-c", "exec sleep 100000"],
        "Env": ["FROM_OPTIONS=1"],
        "Labels": {"mine": "x" * 1200},
        "WorkingDir": "/tmp",
        "StopTimeout": 1,
        "HostConfig": {"Memory": 268435456, "CapDrop": ["NET_RAW"], "ExtraHosts": ["printer:192.0.2.7"],
                       "Tmpfs": {"/scratch": "size=1m"}, "LogConfig": {"Type": "json-file", "Config": {"max-size": "5m"}}},
    }
    text = json.dumps(options)
    settings = {"image": python_image, "createOptions": text[:512]}
    pieces = [text[at:at + 512] for at in range(512, len(text), 512)]
    settings.update({f"createOptions{number:02}": piece for number, piece in enumerate(pieces, 1)})
    wanted = {**module(python_image, env={"FROM_MANIFEST": 7}), "settings": settings}
    device.wait_status(200, device.deploy({"odd": wanted}), 120)
    made = device.machine.inspect("odd")
    env = dict(line.split("=", 1) for line in made["Config"]["Env"])
    assert env["FROM_OPTIONS"] == "1" and env["FROM_MANIFEST"] == "7"
    assert env["IOTEDGE_DEVICEID"] == device.id and env["IOTEDGE_MODULEID"] == "odd"
    assert env["IOTEDGE_GATEWAYHOSTNAME"] == device.id and env["IOTEDGE_IOTHUBHOSTNAME"] == device.hub.address
    assert made["Config"]["Labels"]["mine"] == "x" * 1200 and made["Config"]["WorkingDir"] == "/tmp"
    host = made["HostConfig"]
    assert host["Memory"] == 268435456 and host["CapDrop"] == ["NET_RAW"] and host["Tmpfs"] == {"/scratch": "size=1m"}
    assert host["LogConfig"]["Config"]["max-size"] == "5m"
    hosts = device.machine.docker("exec", "odd", "cat", "/etc/hosts")
    assert "192.0.2.7\tprinter" in hosts and "edgeHub" in hosts and device.id in hosts
    workload = env["IOTEDGE_WORKLOADURI"].removeprefix("unix://")
    device.machine.docker("exec", "--user", "1000", "odd", "test", "-S", workload)
    # Reported as it was asked for, in pieces again.
    told = device.module("odd")["settings"]
    keys = sorted(key for key in told if key.lower().startswith("createoptions"))
    assert len(keys) > 1 and json.loads("".join(told[key] for key in keys)) == options


def test_wrong_registry_credentials_stop_that_module_only(device, site, sensor, python_image):
    device.machine.pull(python_image)
    modules = {"sensor": module(sensor, env=FAST), "idle": sleeper(python_image, imagePullPolicy="never")}
    device.machine.docker("image", "rm", "--force", sensor)
    device.deploy(modules, credentials=site.credentials("wrong-password"))
    reported = device.wait_status(500)
    device.wait_container("idle", "running")
    assert sensor in json.dumps(reported["lastDesiredStatus"])
    assert "wrong-password" not in json.dumps(device.reported())
    assert "wrong-password" not in device.log_text()
    device.wait_status(200, device.deploy(modules))
    device.wait_container("sensor", "running")


def test_an_image_that_does_not_exist_stops_that_module_only(device, site, sensor):
    missing = site.image("no-such-image")
    device.deploy({"sensor": module(sensor, env=FAST), "missing": module(missing)})
    reported = device.wait_status(500)
    assert missing in reported["lastDesiredStatus"]["description"]
    device.wait_container("sensor", "running")
    version = device.deploy({"sensor": module(sensor, env=FAST)})
    device.wait_status(200, version)


def run_nothing(**fields):
    return {"type": "docker", "status": "running", **fields}


@pytest.mark.parametrize(
    ("schema", "extra", "code"),
    [
        ("2.0", {}, 412),
        (None, {}, 412),
        ("1.1", {"odd": run_nothing(settings={"image": 7})}, 400),
        ("1.1", {"odd": run_nothing(settings={"image": "x", "createOptions": "{"})}, 400),
    ],
    ids=["newer schema", "no schema", "wrong type", "options that are no JSON"],
)
def test_a_manifest_that_cannot_be_used_leaves_the_modules_alone(device, sensor, schema, extra, code):
    modules = {"sensor": module(sensor, env=FAST)}
    device.wait_status(200, device.deploy(modules))
    ident = device.machine.containers()["sensor"][1]
    device.deploy({"sensor": module(sensor, env={"NEW": "1"}), **extra}, schema=schema)
    reported = device.wait_status(code)
    assert reported["lastDesiredStatus"]["description"]
    assert device.machine.containers()["sensor"] == ("running", ident)
    device.wait_status(200, device.deploy(modules))
    assert device.machine.containers()["sensor"] == ("running", ident)


def test_foreign_containers_are_left_alone(device, sensor, python_image):
    device.machine.pull(python_image)
    device.machine.docker("run", "--detach", "--network", "none", "--name", "foreign", python_image, "sleep", "100000")
    ident = device.machine.containers()["foreign"][1]
    device.wait_status(200, device.deploy({"sensor": module(sensor, env=FAST)}))
    device.wait_status(200, device.deploy({}))
    assert device.machine.containers()["foreign"] == ("running", ident)


def test_modules_start_in_order(device, python_image):
    names = ["late", "early", "middle"]
    order = {"early": 0, "middle": 1, "late": 2}
    modules = {name: {**sleeper(python_image), "startupOrder": order[name]} for name in names}
    device.wait_status(200, device.deploy(modules), 120)
    started = {name: device.machine.inspect(name)["State"]["StartedAt"] for name in names}
    assert started["early"] < started["middle"] < started["late"]


def test_the_daemon_lists_what_runs(device, sensor):
    device.wait_status(200, device.deploy({"sensor": module(sensor, env=FAST)}))
    listed = device.cli("list").stdout
    for name in ("edgeAgent", "edgeHub", "sensor"):
        assert name in listed
    system = device.reported()["systemModules"]
    assert system["edgeAgent"]["runtimeStatus"] == "running" and system["edgeHub"]["runtimeStatus"] == "running"
