"""Engines that restart, hang or have no room, and a disk that is full."""

import contextlib
import os
import signal
import subprocess
import time

from device import module, run, wait_until

ENDLESS = {"MessageCount": "-1", "MessageDelay": "0.5"}


def test_the_engine_restarts_under_us(device, sensor):
    device.wait_status(200, device.deploy({"sensor": module(sensor, env=ENDLESS)}))
    device.machine.stop_engine()
    time.sleep(2)
    assert device.process.poll() is None
    device.machine.start_engine()
    device.wait_container("sensor")
    device.wait_status(200)
    version = device.deploy({"sensor": module(sensor, env={**ENDLESS, "NEW": "1"})})
    device.wait_status(200, version)


def test_an_engine_that_hangs_and_comes_back(device, sensor):
    device.wait_status(200, device.deploy({"sensor": module(sensor, env=ENDLESS)}))
    os.kill(device.machine.engine.pid, signal.SIGSTOP)
    try:
        version = device.deploy({"sensor": module(sensor, env={**ENDLESS, "NEW": "1"})})
        # The daemon is not stuck with it: methods are answered.
        wait_until(lambda: device.hub.method(device.id, "$edgeAgent", "ping")[0] == 200, "an answer to ping", 30)
    finally:
        os.kill(device.machine.engine.pid, signal.SIGCONT)
    device.wait_status(200, version, 90)


def test_no_engine_at_all_is_told(make_device, sensor):
    device = make_device({"engine": {"socket": "unix:///nonexistent/engine.sock"}}).start(wait=False)
    device.deploy({"sensor": module(sensor)})
    reported = device.wait_status(500)
    assert "/nonexistent/engine.sock" in reported["lastDesiredStatus"]["description"]
    assert device.process.poll() is None


@contextlib.contextmanager
def small_disk(path, size):
    path.mkdir(parents=True, exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(path)], capture_output=True)


def test_a_full_disk_stops_nothing_that_runs(make_device, sensor):
    device = make_device()
    with small_disk(device.home, "24m"):
        device.start()
        device.wait_status(200, device.deploy({"sensor": module(sensor, env=ENDLESS)}))
        started = device.machine.inspect("sensor")["State"]["StartedAt"]
        filler = device.home / "filler"
        with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))
        time.sleep(3)
        assert device.process.poll() is None, device.log_tail()
        assert device.machine.inspect("sensor")["State"]["StartedAt"] == started
        filler.unlink()
        version = device.deploy({"sensor": module(sensor, env={**ENDLESS, "NEW": "1"})})
        device.wait_status(200, version)
        device.stop()


def test_an_engine_without_room_for_an_image(own_machine, make_device, sensor, python_image):
    machine = own_machine()
    machine.stop_engine()
    with small_disk(machine.folder / "engine", "48m"):
        machine.start_engine()
        device = make_device(on=machine).start()
        device.wait_status(200, device.deploy({"sensor": module(sensor, env=ENDLESS)}))
        device.deploy({"sensor": module(sensor, env=ENDLESS), "big": module(python_image)})
        reported = device.wait_status(500, seconds=120)
        assert "no space left" in reported["lastDesiredStatus"]["description"]
        assert machine.state("sensor") == "running"
        version = device.deploy({"sensor": module(sensor, env=ENDLESS)})
        device.wait_status(200, version)
        device.stop()
        machine.docker("rm", "--force", "sensor")
        machine.stop_engine()
