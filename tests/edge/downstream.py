"""Devices behind an edge device: processes on machines of the site, with unmodified SDKs."""

import contextlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

from site_net import end, wait_until

CLIENTS = Path(__file__).parent / "clients"


def register(hub, leaf_id, parent_id=None, body=None):
    """Makes a device, below an edge device if one is named; its description."""
    made = {"deviceId": leaf_id, **(body or {})}
    if parent_id:
        made["deviceScope"] = hub.ok("GET", f"/devices/{parent_id}")["deviceScope"]
    return hub.ok("PUT", f"/devices/{quote(leaf_id, safe='')}", made)


def connection_string(hub, leaf, gateway):
    key = leaf["authentication"]["symmetricKey"]["primaryKey"]
    return f"HostName={hub.address};DeviceId={leaf['deviceId']};SharedAccessKey={key};GatewayHostName={gateway}"


def hosts_of(*devices):
    return "".join(f"{device.machine.address} {device.id}\n" for device in devices)


class Leaf:
    """One such process."""

    def __init__(self, machine, name, ca, hosts, *, transport="Mqtt", sdk="python", program=CLIENTS / "leaf.py", **options):
        self.machine, self.name, self.sdk = machine, name, sdk
        self.log = machine.folder / f"{name}.out"
        self.log.write_text("")
        self.hosts = machine.folder / f"{name}.hosts"
        self.hosts.write_text(f"127.0.0.1 localhost\n{hosts}")
        self.options = {"ca": str(ca), "transport": transport, **options}
        self.program = program
        self.process = None

    def start(self):
        program = [sys.executable, self.program] if self.sdk == "python" else ["node", CLIENTS / "leaf.mjs"]
        script = 'mount --bind "$0" /etc/hosts && exec "$@"'
        self.process = self.machine.spawn(
            "unshare", "--mount", "sh", "-c", script, self.hosts, *program, json.dumps(self.options),
            log=self.log.name, env={"NODE_EXTRA_CA_CERTS": self.options["ca"]},
        )
        return self

    def events(self, kind=None):
        found = []
        for line in self.log.read_text().splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and kind in (None, event.get("event")):
                    found.append(event)
        return found

    def sent(self):
        """Numbers of messages that were acknowledged."""
        return [event["number"] for event in self.events("sent")]

    def wait(self, kind, seconds=60, **fields):
        def found():
            for event in self.events(kind):
                if all(event.get(key) == value for key, value in fields.items()):
                    return event
            if self.process and self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self.process.returncode}")
            return None

        try:
            return wait_until(found, f"{self.name} to print {kind} {fields or ''}", seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; it said:\n{self.log.read_text()[-2000:]}") from None

    def stop(self):
        end(self.process, 10)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=10)


def numbers(events, device_id):
    """Numbers of a device's messages in the order in which the hub has them, repetitions included."""
    found = []
    for event in list(events.received):
        if event.get("deviceId") != device_id:
            continue
        properties = event.get("properties") or event.get("applicationProperties") or {}
        if "number" in properties:
            found.append(int(properties["number"]))
    return found


def in_order(received):
    """The same without repetitions: each number where it came first."""
    return list(dict.fromkeys(received))
