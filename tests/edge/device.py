"""An edge device: `holdfast-edge` on a machine of the site."""

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

from site_net import REGISTRY_PASSWORD, end, run, wait_until

SECRET = re.compile(r"SharedAccessSignature sr=|SharedAccessKey=|" + re.escape(REGISTRY_PASSWORD))

# A route that sends everything on.
UPSTREAM = {"up": "FROM /messages/* INTO $upstream"}


def edge_binary():
    binary = os.environ.get("HOLDFAST_EDGE_BIN")
    assert binary, "HOLDFAST_EDGE_BIN is not set: run this with `cargo xtask test --only edge`"
    return binary


def fake_clock():
    """The library behind the program `faketime`."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))
    assert found, "libfaketime is not installed: apt-get install faketime"
    return str(found[0])


class EdgeDevice:
    """A device with an identity in the hub and a home of its own; its daemon may be started and ended at will."""

    def __init__(self, machine, device_id, folder, settings=None):
        self.machine, self.id, self.folder = machine, device_id, Path(folder)
        self.hub = machine.site.hub
        self.process = None
        # When the daemon started whose reports were seen last, and the same of the one before.
        self.reporting_run = self.former_run = None
        self.home = self.folder / "home"
        self.config = self.folder / "edge.toml"
        self.log = self.machine.folder / f"{device_id}.log"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.binary = edge_binary()
        self.hosts = None
        connection_string = self.hub.create_edge_device(device_id)
        self.write_config(connection_string, settings or {})

    def write_config(self, connection_string, settings):
        hub = self.hub
        sections = {
            "device": {"hostname": self.id, "home": str(self.home)},
            "provisioning": {"connection_string": connection_string},
            "upstream": {"ca": hub.ca, "amqp_port": hub.ports["amqp"], "mqtt_port": hub.ports["mqtt"],
                         "https_port": hub.ports["https"]},
            "engine": {"socket": self.machine.engine_socket, "network": "azure-iot-edge"},
            "api": {"workload": f"unix://{self.folder}/workload.sock", "management": f"unix://{self.folder}/mgmt.sock"},
            "observe": {"filter": "info,holdfast_agent=debug"},
        }
        for name, values in settings.items():
            sections.setdefault(name, {}).update(values)
        lines = []
        for name, values in sections.items():
            plain = {key: value for key, value in values.items() if not isinstance(value, dict)}
            lines.append(f"[{name}]")
            lines += [f"{key} = {json.dumps(value)}" for key, value in plain.items()]
            for key, table in values.items():
                if isinstance(table, dict):
                    lines.append(f"[{name}.{key}]")
                    lines += [f"{inner} = {json.dumps(value)}" for inner, value in table.items()]
        self.config.write_text("\n".join(lines) + "\n")
        self.config.chmod(0o600)

    def know(self, *devices):
        """From the next start on, the daemon finds these devices by their names."""
        self.hosts = self.folder / "hosts"
        lines = [f"{device.machine.address} {device.id}\n" for device in devices]
        self.hosts.write_text("127.0.0.1 localhost\n" + "".join(lines))

    def start(self, *, clock=None, wait=True):
        """Starts the daemon; with a clock that is off by so much if one is given (`-5y`)."""
        # Not the program `faketime`, which stays in between and does not pass signals on.
        env = {"LD_PRELOAD": fake_clock(), "FAKETIME": clock, "FAKETIME_DONT_FAKE_MONOTONIC": "1"} if clock else {}
        self.started = time.monotonic()
        self.former_run = self.reporting_run
        names = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', self.hosts]
        self.process = self.machine.spawn(
            *(names if self.hosts else []), self.binary, "run", "--config", self.config, log=f"{self.id}.log", env=env
        )
        if wait:
            wait_until(self.answers, f"holdfast-edge of {self.id} to answer", 30)
        return self

    def answers(self):
        if self.process.poll() is not None:
            raise AssertionError(f"holdfast-edge ended with {self.process.returncode}:\n{self.log_tail()}")
        return self.cli("list", check=False).returncode == 0

    def cli(self, *arguments, check=True):
        """A command of `holdfast-edge` aimed at this daemon."""
        command = ["nsenter", f"--net=/run/netns/{self.machine.name}", edge_binary(), *map(str, arguments),
                   "--config", str(self.config)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert not check or done.returncode == 0, f"{arguments}: {done.stdout}{done.stderr}"
        return done

    def stop(self):
        """Ends the daemon as a service manager does; its exit code."""
        return end(self.process, 60)

    def kill(self):
        """kill -9."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(timeout=10)

    def log_text(self):
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def log_tail(self):
        return "\n".join(self.log_text().splitlines()[-30:])

    # Deployments

    def deploy(self, modules, routes=None, **options):
        """Applies a manifest; the arguments are those of `manifest`."""
        self.hub.apply(self.id, self.manifest(modules, routes, **options))
        return self.hub.twin(self.id, "$edgeAgent")["properties"]["desired"]["$version"]

    def manifest(self, modules, routes=None, *, credentials=None, system=None, hub_settings=None, schema="1.1", others=None):
        """A manifest; `modules` are the module objects of `$edgeAgent` by name."""
        site = self.machine.site
        runtime = {"type": "docker", "settings": {"registryCredentials": site.credentials() if credentials is None else credentials}}
        system = system or {
            "edgeAgent": {"type": "docker", "settings": {"image": "mcr.microsoft.com/azureiotedge-agent:1.5"}},
            "edgeHub": {"type": "docker", "status": "running", "restartPolicy": "always",
                        "settings": {"image": "mcr.microsoft.com/azureiotedge-hub:1.5"}},
        }
        return {
            "$edgeAgent": {"properties.desired": {
                **({"schemaVersion": schema} if schema else {}), "runtime": runtime, "systemModules": system, "modules": modules}},
            "$edgeHub": {"properties.desired": {
                "schemaVersion": "1.1", "routes": routes or {},
                "storeAndForwardConfiguration": {"timeToLiveSecs": 7200}, **(hub_settings or {})}},
            **{name: {"properties.desired": desired} for name, desired in (others or {}).items()},
        }

    def reported(self):
        return self.hub.reported(self.id)

    def module(self, name):
        return self.reported().get("modules", {}).get(name, {})

    def wait_reported(self, condition, what, seconds=60):
        """Waits until the reported properties of `$edgeAgent` satisfy the condition. What a daemon reported that has ended
        since, and of which another one was started, does not count."""
        last = {}

        def satisfied():
            last["reported"] = self.reported()
            self.reporting_run = last["reported"].get("systemModules", {}).get("edgeAgent", {}).get("lastStartTimeUtc")
            return (self.former_run is None or self.reporting_run != self.former_run) and condition(last["reported"])

        try:
            wait_until(satisfied, what, seconds)
            return last["reported"]
        except AssertionError as error:
            raise AssertionError(f"{error}\nreported: {json.dumps(last['reported'])}\nlog:\n{self.log_tail()}") from None

    def wait_status(self, code, version=None, seconds=60):
        """Waits for a result of the last deployment."""
        def told(reported):
            status = reported.get("lastDesiredStatus", {})
            return status.get("code") == code and (version is None or reported.get("lastDesiredVersion") == version)

        return self.wait_reported(told, f"status {code}, version {version}", seconds)

    def wait_module(self, name, status="running", seconds=60, **fields):
        """Waits until a module is reported with this status and these fields."""
        def told(reported):
            module = reported.get("modules", {}).get(name, {})
            return module.get("runtimeStatus") == status and all(module.get(k) == v for k, v in fields.items())

        return self.wait_reported(told, f"module {name} to be {status} {fields or ''}", seconds)

    def wait_container(self, name, state="running", seconds=60):
        """Waits until the engine says so, whatever is reported."""
        def so():
            return self.machine.state(name) == state

        try:
            return wait_until(so, f"container {name} to be {state}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}: {self.machine.containers()}\nlog:\n{self.log_tail()}") from None

    def module_events(self, name):
        """What a module has printed, one JSON object per line."""
        events = []
        log = ""
        with contextlib.suppress(AssertionError):  # not made yet
            log = self.machine.docker("logs", name)
        for line in log.splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    events.append(event)
        return events

    def wait_event(self, name, event, seconds=60, **fields):
        def found():
            matching = (e for e in self.module_events(name) if e.get("event") == event)
            return next((e for e in matching if all(e.get(k) == v for k, v in fields.items())), None)

        try:
            return wait_until(found, f"{name} to print {event} {fields or ''}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{name}: {self.module_events(name)[-5:]}\nlog:\n{self.log_tail()}") from None

    # Numbers

    def pss_bytes(self):
        text = Path(f"/proc/{self.process.pid}/smaps_rollup").read_text()
        return int(re.search(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)[1]) * 1024

    def close(self):
        code = self.stop()
        self.machine.remove_containers()
        text = self.log_text()
        assert not SECRET.search(text), "a secret is in the daemon's log"
        return code


def module(image, *, env=None, options=None, **fields):
    """A module object of a manifest."""
    settings = {"image": image}
    if options is not None:
        settings["createOptions"] = options if isinstance(options, str) else json.dumps(options)
    return {
        "type": "docker", "version": "1.0", "status": "running", "restartPolicy": "always", "settings": settings,
        **({"env": {name: {"value": value} for name, value in env.items()}} if env else {}),
        **fields,
    }


__all__ = ["EdgeDevice", "module", "run", "wait_until"]


def wait_edge_hub(device, code=200):
    """Waits until the edge hub has told that it took its deployment, or that it did not."""
    def applied():
        properties = device.hub.twin(device.id, "$edgeHub")["properties"]
        reported = properties["reported"]
        # What it told of a former deployment does not count.
        return (reported.get("lastDesiredStatus", {}).get("code") == code
                and reported.get("lastDesiredVersion") == properties["desired"]["$version"])

    wait_until(applied, f"$edgeHub to report {code}; log:\n{device.log_tail()}", 60)
