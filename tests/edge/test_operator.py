"""What an operator sees who deploys with the command line: the device's answer, and tables that fit the terminal."""

import fcntl
import json
import os
import pty
import struct
import subprocess
import termios

from device import UPSTREAM, module
from site_net import find_binary

ENDLESS = {"MessageCount": "-1", "MessageDelay": "0.5"}
SOON = {"agent": {"rollback_after": "12s", "env": {"CoolOffTimeUnitInSeconds": "1"}}}


def deploy(device, modules, routes=None, *extra):
    """`holdfast edge deploy`: its exit code, what it printed, and what it told people."""
    content = json.dumps(device.manifest(modules, routes))
    command = [find_binary(), "edge", "deploy", device.id, "--content", content, "--output", "json",
               "--data-dir", str(device.hub.data_dir), *extra]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def states(told):
    return {row["moduleId"]: row["runtimeStatus"] for row in told["status"]["moduleStates"]}


def on_terminal(device, width, *arguments):
    """The lines that a command writes to a terminal of this width."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 25, width, 0, 0))
    command = [find_binary(), *arguments, "--data-dir", str(device.hub.data_dir)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=subprocess.PIPE)
    os.close(theirs)
    text = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # the other side is closed
            break
        if not piece:
            break
        text += piece
    os.close(ours)
    problem = process.communicate(timeout=30)[1].decode()
    assert process.returncode == 0, problem
    return text.decode().splitlines()


def test_a_deployment_is_followed_to_its_end(device, site, sensor):
    wanted = {"sensor": module(sensor, env=ENDLESS)}
    code, told, said = deploy(device, wanted, UPSTREAM, "--wait")  # it may be connecting still
    assert (code, told["result"]) == (0, "done"), said
    assert states(told) == {"edgeAgent": "running", "edgeHub": "running", "sensor": "running"}
    status = told["status"]
    for system in (status["edgeAgent"], status["edgeHub"]):
        assert system["lastDesiredVersion"] == system["desiredVersion"] and system["lastDesiredStatus"]["code"] == 200
        assert system["connectionState"] == "Connected"
    # The same once more has new versions, of which both tell too.
    code, told, said = deploy(device, wanted, UPSTREAM)
    assert (code, told["result"]) == (0, "done"), said
    ident = device.machine.containers()["sensor"][1]

    # An image that is no text: the device refuses it and leaves everything as it is.
    odd = {"type": "docker", "status": "running", "settings": {"image": 7}}
    code, told, said = deploy(device, {**wanted, "odd": odd}, UPSTREAM)
    assert (code, told["result"]) == (1, "refused"), said
    assert "modules.odd.settings.image" in said and "hint: " in said
    assert device.machine.containers()["sensor"] == ("running", ident)

    # An image that nobody has: the device goes on trying, which is told within the time given.
    missing = site.image("no-such-image")
    code, told, said = deploy(device, {**wanted, "missing": module(missing)}, UPSTREAM, "--wait", "60")
    assert (code, told["result"]) == (1, "failing"), said
    assert missing in said

    # A route that does not compile: said before it is sent, and told by the edge hub when it is sent all the same.
    routes = {**UPSTREAM, "astray": "FROM /* INTO nowhere"}
    content = json.dumps(device.manifest(wanted, routes))
    done = subprocess.run([find_binary(), "edge", "deploy", device.id, "--content", content, "--data-dir",
                           str(device.hub.data_dir)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "route astray" in done.stderr, done.stderr
    code, told, said = deploy(device, wanted, routes, "--no-check")
    assert (code, told["result"]) == (1, "hubRefused"), said
    assert "route astray" in said and states(told)["sensor"] == "running"

    # The state of the device fits terminals of any width, and is all there.
    for width in (40, 60, 80, 120):
        for arguments in (["edge", "status", device.id], ["edge", "modules", device.id], ["edge", "status"]):
            lines = on_terminal(device, width, *arguments)
            assert max(map(len, lines)) <= width, (width, lines)
        text = " ".join(on_terminal(device, width, "edge", "status", device.id))
        for part in ("$edgeAgent", "$edgeHub", "400", "astray:", "sensor", "docker"):
            assert part in text, (width, part, text)


def test_a_device_that_is_away_takes_the_deployment_later(make_device, sensor):
    device = make_device()
    code, told, said = deploy(device, {"sensor": module(sensor, env=ENDLESS)})
    assert (code, told["result"]) == (0, "waiting"), said
    device.start()
    device.wait_status(200, told["status"]["desiredVersion"])
    device.wait_module("sensor")


def test_a_deployment_that_is_taken_back_is_a_failure(make_device, sensor, python_image):
    device = make_device(SOON).start()
    device.machine.pull(python_image)
    code, told, said = deploy(device, {"sensor": module(sensor, env=ENDLESS)}, None, "--wait")
    assert (code, told["result"]) == (0, "done"), said
    broken = module(python_image, options={"Cmd": ["sh", "-c", "exit 1"]})
    code, told, said = deploy(device, {"sensor": module(sensor, env=ENDLESS), "broken": broken})
    assert (code, told["result"]) == (1, "takenBack"), said
    assert "broken" in said
