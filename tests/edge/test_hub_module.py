"""The edge hub as a module that is stopped, started, changed and restarted while the daemon runs."""

import contextlib
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from device import UPSTREAM, module, wait_edge_hub, wait_until
from downstream import numbers
from test_hub_faults import all_of, five, queue_bytes, queues_are_empty, random_seed, shown

FAST = {"MessageCount": "-1", "MessageDelay": "0.5"}
KEEP = {"keep": 'FROM /messages/* WHERE NOT IS_DEFINED($connectionModuleId) INTO BrokeredEndpoint("/modules/sink/inputs/in")'}
PORTS = {"mqtt": 8883, "amqp": 5671, "https": 443}


def system(status="running", **env):
    return {
        "edgeAgent": {"type": "docker", "settings": {"image": "mcr.microsoft.com/azureiotedge-agent:1.5"}},
        "edgeHub": {"type": "docker", "status": status, "restartPolicy": "always",
                    "settings": {"image": "mcr.microsoft.com/azureiotedge-hub:1.5"},
                    "env": {name: {"value": value} for name, value in env.items()}},
    }


def wait_hub(device, status, seconds=60, **fields):
    def told(reported):
        hub = reported.get("systemModules", {}).get("edgeHub", {})
        return hub.get("runtimeStatus") == status and all(hub.get(k) == v for k, v in fields.items())

    return device.wait_reported(told, f"edgeHub to be {status} {fields or ''}", seconds)["systemModules"]["edgeHub"]


def open_ports(device):
    """Which of the edge hub's ports take connections, from the machine itself."""
    program = (
        "import socket, sys\n"
        "for port in map(int, sys.argv[1:]):\n"
        "    with socket.socket() as probe:\n"
        "        print(port if probe.connect_ex(('127.0.0.1', port)) == 0 else 0)\n"
    )
    done = subprocess.run(
        ["nsenter", f"--net=/run/netns/{device.machine.name}", sys.executable, "-c", program, *map(str, PORTS.values())],
        capture_output=True, text=True, check=True, timeout=30)
    return {name for name, port in PORTS.items() if str(port) in done.stdout.split()}


def upstream_connections(device):
    """Established connections from the machine to the hub."""
    listed = subprocess.run(
        ["ss", "--net", device.machine.name, "--numeric", "--tcp", "--no-header", "state", "established",
         f"dst {device.hub.address}"], capture_output=True, text=True, check=True, timeout=30)
    return len(listed.stdout.splitlines())


def open_files(device):
    return len(list(Path(f"/proc/{device.process.pid}/fd").iterdir()))


def operate(device, operation):
    """POST to the management socket, as the original's tools do; the HTTP status."""
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as client:
        client.settimeout(30)
        client.connect(f"{device.folder}/mgmt.sock")
        client.sendall(f"POST /modules/edgeHub/{operation}?api-version=2022-08-03 HTTP/1.1\r\nHost: x\r\n"
                       "Content-Length: 0\r\nConnection: close\r\n\r\n".encode())
        return int(client.recv(65536).split()[1])


def test_stopped_means_stopped_and_what_is_stored_stays(device, hub, leaf_of, sensor, python_image):
    idle = module(python_image, status="stopped")
    modules = {"sensor": module(sensor, env=FAST), "sink": idle}
    device.wait_status(200, device.deploy(modules, KEEP), 120)
    wait_edge_hub(device)
    with shown(device):
        leaf = leaf_of(device, "leaf", messages=40, delay=0.01).start()
        leaf.wait("done")
        assert queue_bytes(device) > 0
        running = upstream_connections(device)
        sensor_started = device.machine.inspect("sensor")["State"]["StartedAt"]

        device.wait_status(200, device.deploy(modules, KEEP, system=system("stopped")))
        told = wait_hub(device, "stopped", exitCode=0, restartCount=0)
        assert told["status"] == "stopped" and not told["lastExitTimeUtc"].startswith("0001")
        assert open_ports(device) == set()
        # `$edgeAgent` alone goes on speaking with the hub.
        # Those for single requests are kept for some seconds.
        wait_until(lambda: upstream_connections(device) <= running, f"no more than {running} connections", 20)
        listed = {line.split()[0]: line.split()[1] for line in device.cli("list").stdout.splitlines()[1:]}
        assert listed["edgeHub"] == "stopped" and listed["edgeAgent"] == "running"
        assert device.machine.inspect("sensor")["State"]["StartedAt"] == sensor_started
        kept = queue_bytes(device)
        assert kept > 0

        # Also over a crash of the daemon.
        device.kill()
        device.start()
        wait_hub(device, "stopped")
        assert open_ports(device) == set() and queue_bytes(device) == kept

        modules["sink"] = module(python_image)
        device.deploy(modules, KEEP, system=system())
        wait_hub(device, "running", restartCount=0)
        wait_until(lambda: open_ports(device) == set(PORTS), "the ports to be open", 20)

        def inputs():
            found = [event for event in device.module_events("sink") if event.get("event") == "forwarded"]
            return [int(event["properties"]["number"]) for event in found]

        # Its SDK calls handlers side by side: the order in which they print says nothing.
        wait_until(lambda: set(inputs()) == set(range(1, 41)), "the stored messages", 60)


@pytest.mark.parametrize("restarts", [5, pytest.param(30, marks=pytest.mark.long)])
def test_restarts_lose_nothing_that_was_acknowledged(gateway, hub, leaf_of, restarts):
    dice = random_seed()
    count = 120 * restarts
    with hub.events(gateway.id) as events, shown(gateway):
        before = wait_hub(gateway, "running")
        files = open_files(gateway)
        leaves = five(leaf_of, gateway, messages=count, delay=0.02)
        for number in range(restarts):
            time.sleep(dice.uniform(0.1, 2.0))
            if number % 2:
                assert gateway.cli("restart", "edgeHub").returncode == 0
            else:
                status, answer = hub.method(
                    gateway.id, "$edgeAgent", "RestartModule", {"schemaVersion": "1.0", "id": "edgeHub"})
                assert (status, answer) == (200, None), answer
        for leaf in leaves:
            leaf.wait("done", 60 + 20 * restarts)
        all_of(events, leaves, count)
        queues_are_empty(gateway)
        after = wait_hub(gateway, "running", restartCount=0)
        assert after["lastStartTimeUtc"] > before["lastStartTimeUtc"]
        assert after["lastExitTimeUtc"] > before["lastStartTimeUtc"]
        # Nothing of the former runs is left.
        for leaf in leaves:
            leaf.stop()
        wait_until(lambda: open_files(gateway) <= files + 5, f"files to be closed ({files} before)", 30)
    assert gateway.process.poll() is None


def test_one_that_is_stopped_by_hand_is_started_again(gateway, hub, leaf_of):
    with shown(gateway), hub.events(gateway.id) as events:
        leaf = leaf_of(gateway, "leaf", messages=400, delay=0.1).start()
        leaf.wait("ready")
        assert operate(gateway, "stop") == 204
        assert open_ports(gateway) == set()
        # As a container that ended by itself: after a pause that is counted.
        wait_hub(gateway, "backoff")
        wait_hub(gateway, "running", 40, restartCount=1)
        leaf.wait("done", 120)
        wait_until(lambda: len(set(numbers(events, leaf.name))) >= 400, "its messages", 60)


def test_its_environment_and_its_absence_take_effect_at_once(gateway):
    assert open_ports(gateway) == set(PORTS)
    wanted = system(amqpSettings__enabled="false", httpSettings__enabled="false")
    gateway.wait_status(200, gateway.deploy({}, UPSTREAM, system=wanted))
    wait_until(lambda: open_ports(gateway) == {"mqtt"}, "MQTT alone", 20)
    gateway.wait_status(200, gateway.deploy({}, UPSTREAM, system={"edgeAgent": wanted["edgeAgent"]}))
    wait_until(lambda: open_ports(gateway) == set(), "no port at all", 20)
    gateway.wait_reported(lambda reported: "edgeHub" not in reported["systemModules"], "no edgeHub", 20)
    assert "edgeHub" not in gateway.cli("list").stdout
    gateway.wait_status(200, gateway.deploy({}, UPSTREAM))
    wait_hub(gateway, "running")
    wait_until(lambda: open_ports(gateway) == set(PORTS), "all ports", 20)


def test_a_port_that_is_taken_is_told_and_the_modules_run(make_device, sensor):
    device = make_device()
    thief = device.machine.spawn(
        sys.executable, "-c", "import socket,time; s=socket.create_server(('0.0.0.0',5671)); time.sleep(600)", log="thief.log")
    try:
        wait_until(lambda: "amqp" in open_ports(device), "the port to be taken", 20)
        device.start()
        device.deploy({"sensor": module(sensor, env=FAST)}, UPSTREAM)
        hub = wait_hub(device, "backoff", exitCode=1)
        assert "5671" in hub["statusDescription"] and "AMQP" in hub["statusDescription"]
        device.wait_module("sensor")
    finally:
        thief.kill()
        thief.wait()
    wait_hub(device, "running", 60)
    wait_until(lambda: open_ports(device) == set(PORTS), "the ports", 20)
