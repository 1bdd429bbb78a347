"""What the commands of `holdfast-edge` tell of a running daemon: deployments that are not in force, modules that are not to run."""

import json
import re

from device import UPSTREAM, module, wait_edge_hub
from test_hub_module import open_ports, system, wait_hub


def found(device, *names):
    """What `check` finds, without the checks that need other machines."""
    done = device.cli("check", "--output", "json", "--dont-run", "host-local-time", check=False)
    checks = json.loads(done.stdout)["checks"]
    return [checks[name] for name in names]


def test_what_is_not_in_force_is_told_with_reason_and_remedy(device, sensor):
    version = device.deploy({"sensor": module(sensor)}, UPSTREAM)
    device.wait_status(200, version)
    wait_edge_hub(device)
    listed = device.cli("list")
    assert "sensor" in listed.stdout and not listed.stderr, listed.stderr
    assert [check["result"] for check in found(device, "deployment-accepted", "routes-compiled")] == ["ok", "ok"]

    resources = device.cli("system", "resources").stdout
    assert re.search(r"^sensor +[0-9.]+ % +[0-9.]+ [KM]iB ", resources, re.MULTILINE), resources
    info = device.cli("system", "info").stdout
    assert re.search(r"^memory +[0-9.]+ GiB$", info, re.MULTILINE) and "{" not in info, info

    # A manifest that cannot be used, with a route that does not compile.
    refused = device.deploy({"sensor": module(sensor)}, {**UPSTREAM, "bad": "FROM /messages/* WHERE (( INTO $upstream"}, schema="7.0")
    device.wait_status(412, refused)
    wait_edge_hub(device, 400)
    listed = device.cli("list")
    for words in (f"deployment {refused} was refused (code 412)", f"deployment {version} stays in force", "route bad", "hint:"):
        assert words in listed.stderr, listed.stderr
    assert {line.split()[0] for line in listed.stdout.splitlines()[1:]} == {"edgeAgent", "edgeHub", "sensor"}
    for check in found(device, "deployment-accepted", "routes-compiled"):
        assert check["result"] == "error" and "holdfast edge deploy" in check["remedy"], check
    assert device.machine.state("sensor") == "running"


def test_a_module_that_is_to_be_stopped_is_not_said_to_be_restarted(device):
    device.wait_status(200, device.deploy({}, UPSTREAM, system=system("stopped")))
    wait_hub(device, "stopped")
    refused = device.cli("restart", "edgeHub", check=False)
    assert (refused.returncode, refused.stdout) == (5, ""), refused
    assert "wants edgeHub stopped" in refused.stderr and "hint:" in refused.stderr, refused.stderr
    assert open_ports(device) == set()
    device.wait_status(200, device.deploy({}, UPSTREAM))
    wait_hub(device, "running")
    assert "restarted edgeHub" in device.cli("restart", "edgeHub").stdout
