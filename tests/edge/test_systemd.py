"""The systemd unit: what systemd says of it, and what becomes of the daemon under a systemd of its own.

The second part starts systemd as the first process of fresh namespaces, with control groups below one that the test makes,
and with no units but ours: the machine's own systemd, if it has one, is not touched.
"""

import contextlib
import os
import shutil
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from device import edge_binary, module, wait_until

UNIT = Path(__file__).parents[2] / "packaging" / "holdfast-edge.service"
EXPOSURE_MAX = 3.0
GROUPS = Path("/sys/fs/cgroup")
# What every unit stands on, empty.
TARGETS = ["sysinit.target", "basic.target", "shutdown.target", "network-online.target", "suite.target"]

BOOT = r"""
set -e
folder=$1
grep -E '^[^ ]+ [^ ]+ cgroup2? ' /proc/self/mounts > "$folder/groups" || true
umount --recursive --lazy /sys/fs/cgroup
[ "$(wc -l < "$folder/groups")" = 1 ] || mount -t tmpfs tmpfs /sys/fs/cgroup
while read -r device path type options rest; do
    mkdir -p "$path"
    case $type in
        cgroup2) mount -t cgroup2 cgroup2 "$path" ;;
        *) mount -t cgroup -o "$(echo "$options" | tr , '\n' | grep -vxE 'rw|ro|relatime|nosuid|nodev|noexec' | paste -sd,)" \
               cgroup "$path" || true ;;
    esac
done < "$folder/groups"
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
export container=other SYSTEMD_UNIT_PATH="$folder/units"
exec /lib/systemd/systemd --system --unit=suite.target --log-target=console --show-status=0
"""


@pytest.fixture
def unit(make_device, tmp_path):
    """The unit with our binary, before or under a systemd."""
    device = make_device()
    device.binary = shutil.copy(edge_binary(), device.folder / "holdfast-edge")
    return device


def well_formed(device, folder):
    text = UNIT.read_text().replace("/usr/local/bin/holdfast-edge", str(device.binary))
    path = folder / UNIT.name
    path.write_text(text)
    return path


def test_systemd_has_nothing_to_say_against_it(unit, tmp_path):
    path = well_formed(unit, tmp_path)
    for command in (["verify", path], ["security", "--offline=true", f"--threshold={EXPOSURE_MAX * 10:.0f}", path]):
        done = subprocess.run(["systemd-analyze", *command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{command[0]}: {done.stdout[-3000:]}{done.stderr}"
    assert not done.stderr.strip(), done.stderr


class Systemd:
    """A systemd of its own that runs the daemon of a device."""

    def __init__(self, device, settings):
        self.device, self.folder = device, device.folder
        self.name = f"hft{uuid.uuid4().hex[:6]}"
        units = self.folder / "units"
        units.mkdir()
        well_formed(device, units)
        drop_in = units / f"{UNIT.name}.d"
        drop_in.mkdir()
        # Private /tmp: what the test keeps there is brought in.
        lines = ["[Service]", "ExecStart=", f"ExecStart={device.binary} run --config {device.config}",
                 f"BindPaths={device.machine.site.folder}",
                 f"StandardOutput=append:{device.log}", f"StandardError=append:{device.log}", *settings]
        (drop_in / "suite.conf").write_text("\n".join(lines) + "\n")
        for target in TARGETS:
            (units / target).write_text("[Unit]\nDefaultDependencies=no\n")
        (self.folder / "boot.sh").write_text(BOOT)
        self.process = None
        self.groups = []

    def start(self):
        groups = [path for path in [GROUPS, *GROUPS.iterdir()] if (path / "cgroup.procs").exists()]
        self.groups = [path / self.name for path in groups]
        enter = "; ".join(f'mkdir -p {path}/{self.name} && echo $$ > {path}/{self.name}/cgroup.procs' for path in groups)
        script = (f'({enter}) 2>/dev/null; {enter} 2>/dev/null; exec unshare --pid --mount --cgroup --uts --ipc --fork --mount-proc '
                  f'--kill-child --propagation private sh {self.folder}/boot.sh {self.folder}')
        self.process = self.device.machine.spawn("sh", "-c", script, log="systemd.log")
        wait_until(lambda: self.init() and self.systemctl("is-system-running", check=False).strip() in ("running", "degraded"),
                   "systemd to be up", 30)
        return self

    def init(self):
        """Process id of this systemd."""
        assert self.process.poll() is None, (self.device.machine.folder / "systemd.log").read_text()[-2000:]
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return children[0] if children else None

    def inside(self, *command, check=True):
        done = subprocess.run(["nsenter", "--target", self.init(), "--pid", "--mount", *command], capture_output=True,
                              text=True, timeout=90)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}\n{self.device.log_tail()}"
        return done.stdout

    def systemctl(self, *arguments, check=True):
        return self.inside("systemctl", *arguments, check=check)

    def show(self, name):
        return self.systemctl("show", "--value", "--property", name, UNIT.name).strip()

    def close(self):
        if self.process:
            self.process.kill()
            self.process.wait(timeout=10)
        wait_until(self._no_groups, "the control groups to be empty", 20)

    def _no_groups(self):
        # Not by a search: groups of other engines come and go meanwhile.
        tops = [top for top in self.groups if top.exists()]
        for top in tops:
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
        return not any(top.exists() for top in tops)


@pytest.fixture
def systemd(unit):
    made = []

    def make(*settings):
        made.append(Systemd(unit, settings))
        return made[-1].start()

    yield make
    for one in made:
        one.close()


def test_under_systemd(unit, systemd, python_image):
    init = systemd("WatchdogSec=10", "RestartSec=1", "StartLimitIntervalSec=0")
    # Ready is told, and only then the start is over.
    init.systemctl("start", UNIT.name)
    assert init.show("ActiveState") == "active" and init.show("SubState") == "running"
    assert unit.cli("list").returncode == 0
    # The sandbox leaves room for everything that the daemon does.
    sleeper = module(python_image, options={"Cmd": ["sh", "-c", "exec sleep 100000"], "StopTimeout": 1})
    unit.wait_status(200, unit.deploy({"idle": sleeper}), 120)
    started = unit.machine.inspect("idle")["State"]["StartedAt"]
    hub = unit.reported()["systemModules"]["edgeHub"]
    assert hub["runtimeStatus"] == "running", hub
    # Fed for longer than the watchdog waits.
    time.sleep(14)
    assert init.show("NRestarts") == "0" and init.show("ActiveState") == "active"
    init.systemctl("reload", UNIT.name)
    assert init.show("ActiveState") == "active"

    # A daemon that hangs is ended and started again; its modules are taken up.
    hung = init.show("MainPID")
    init.inside("kill", "-STOP", hung)
    wait_until(lambda: init.show("NRestarts") == "1", "systemd to notice", 40)
    wait_until(lambda: init.show("ActiveState") == "active", "the daemon to be back", 40)
    assert init.show("MainPID") != hung
    # The status in the twin is still that of the daemon that hung.
    unit.wait_reported(lambda reported: reported["systemModules"]["edgeHub"]["lastStartTimeUtc"] > hub["lastStartTimeUtc"],
                       "the new daemon to report", 40)

    # A stop is told, is over soon, and leaves modules alone.
    begun = time.monotonic()
    init.systemctl("stop", UNIT.name)
    assert time.monotonic() - begun < 30
    assert init.show("ActiveState") == "inactive" and init.show("Result") == "success"
    assert unit.reported()["lastDesiredStatus"]["code"] == 406
    assert unit.machine.inspect("idle")["State"]["StartedAt"] == started and unit.machine.state("idle") == "running"

    # A configuration that cannot be used is no reason to try for ever, and says why.
    good = unit.config.read_text()
    unit.config.write_text(good.replace("[device]", "[device]\nnonsense = 1"))
    init.systemctl("start", UNIT.name, check=False)
    assert "nonsense" in unit.log_text()
    init.systemctl("stop", UNIT.name)
