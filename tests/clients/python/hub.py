"""Starts `holdfast serve` for a test run and talks to the parts of it that the SDKs have no call for yet."""

import base64
import contextlib
import fcntl
import hashlib
import hmac
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from urllib.parse import quote, quote_plus, urlencode

import requests

START_DEADLINE_SECONDS = 30


def wait_until(condition, what, seconds=20.0):
    """Waits for `condition()` to be true; fails with `what` after the deadline."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        result = condition()
        if result:
            return result
        time.sleep(0.02)
    raise AssertionError(f"after {seconds} s still waiting for: {what}")


def parse_connection_string(text):
    """`key=value;…` as a dict; values may hold `=`."""
    return dict(part.split("=", 1) for part in text.split(";"))


def sas_token(resource, key, policy=None, lifetime=3600):
    """A shared access signature as the Python SDKs make it."""
    expiry = int(time.time()) + lifetime
    encoded = quote_plus(resource)
    digest = hmac.new(base64.b64decode(key), f"{encoded}\n{expiry}".encode(), hashlib.sha256).digest()
    token = f"SharedAccessSignature sr={encoded}&sig={quote(base64.b64encode(digest))}&se={expiry}"
    return f"{token}&skn={policy}" if policy else token


class Hub:
    """A hub under test: a fresh `holdfast serve`, or the endpoint named by HOLDFAST_TEST_CONNECTION_STRING."""

    def __init__(self, owner, ca, process=None, data_dir=None, log=None):
        self.owner = owner
        self.ca = ca
        self.process = process
        self.data_dir = data_dir
        self.log = log
        parts = parse_connection_string(owner)
        self.host = parts["HostName"]
        self.policy = parts["SharedAccessKeyName"]
        self.policy_key = parts["SharedAccessKey"]

    @property
    def ca_pem(self):
        return Path(self.ca).read_text()

    def authorization(self):
        return sas_token(self.host, self.policy_key, self.policy)

    def request(self, method, path, **kwargs):
        """A service request with owner rights; `path` starts with `/`."""
        headers = {"Authorization": self.authorization(), **kwargs.pop("headers", {})}
        params = {"api-version": "2021-04-12", **kwargs.pop("params", {})}
        return requests.request(
            method, f"https://{self.host}{path}", headers=headers, params=params, verify=self.ca, timeout=30, **kwargs
        )

    def create_device(self, device_id, **body):
        response = self.request("PUT", f"/devices/{quote(device_id, safe='')}", json={"deviceId": device_id, **body})
        assert response.status_code == 200, response.text
        return response.json()

    def device_connection_string(self, device_id, module_id=None):
        path = f"/devices/{quote(device_id, safe='')}" + (f"/modules/{quote(module_id, safe='')}" if module_id else "")
        key = self.request("GET", path).json()["authentication"]["symmetricKey"]["primaryKey"]
        module = f";ModuleId={module_id}" if module_id else ""
        return f"HostName={self.host};DeviceId={device_id}{module};SharedAccessKey={key}"

    def send_c2d(self, device_id, body, **options):
        response = self.request("POST", f"/holdfast/v1/devices/{device_id}/messages", json={"body": body, **options})
        assert response.status_code == 201, response.text
        return response.json()

    def connected(self, device_id):
        return self.request("GET", f"/devices/{device_id}").json()["connectionState"] == "Connected"

    def events(self, device_id, start="earliest"):
        """Follows the events of one device in a thread; use as a context manager."""
        return Events(self, device_id, start)

    def kill(self):
        """kill -9, as a power cut would be to the process."""
        self.process.kill()
        self.process.wait()


class Events:
    """Collects events of one device from the event stream."""

    def __init__(self, hub, device_id, start):
        self._hub, self._device_id, self._start = hub, device_id, start
        self.received = []
        self._connection = None

    def __enter__(self):
        # http.client and not requests: urllib3 holds small chunks back until it has more of them.
        context = ssl.create_default_context(cafile=self._hub.ca)
        self._connection = http.client.HTTPSConnection(self._hub.host, context=context)
        query = urlencode({"device": self._device_id, "from": self._start})
        headers = {"Authorization": self._hub.authorization(), "Accept": "text/event-stream"}
        self._connection.request("GET", f"/holdfast/v1/events?{query}", headers=headers)
        response = self._connection.getresponse()
        assert response.status == 200, response.read()
        threading.Thread(target=self._collect, args=[response], daemon=True).start()
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self._connection.sock.shutdown(socket.SHUT_RDWR)

    def _collect(self, response):
        with contextlib.suppress(Exception):  # closing the connection ends the iteration with an error
            for line in response:
                if line.startswith(b"data:"):
                    self.received.append(json.loads(line[5:]))

    def wait(self, count, seconds=20):
        wait_until(lambda: len(self.received) >= count, f"{count} events (have {len(self.received)})", seconds)
        return self.received[:count]


def find_binary():
    binary = os.environ.get("HOLDFAST_BIN") or shutil.which("holdfast")
    if not binary:
        raise RuntimeError("set HOLDFAST_BIN to the holdfast program (cargo xtask test does)")
    return binary


def start(data_dir, *extra):
    """Starts `holdfast serve` on the ports that the SDKs fix, and waits until it is ready."""
    log_path = Path(data_dir).parent / f"{Path(data_dir).name}.log"
    log = open(log_path, "ab")
    process = subprocess.Popen(
        [find_binary(), "serve", "--data-dir", str(data_dir), "--no-profile", *extra],
        stdout=log,
        stderr=subprocess.STDOUT,
    )
    env_file = Path(data_dir) / "connection.env"

    def ready():
        if process.poll() is not None:
            raise AssertionError(f"holdfast serve ended with {process.returncode}:\n{log_path.read_text()}")
        if not env_file.exists():
            return None
        values = read_env(env_file)
        try:
            answer = requests.get("https://localhost/readyz", verify=values["HOLDFAST_CA"], timeout=2)
        except requests.RequestException:
            return None
        return values if answer.status_code == 200 else None

    values = wait_until(ready, "holdfast serve to be ready", START_DEADLINE_SECONDS)
    return Hub(values["HOLDFAST_OWNER_CS"], values["HOLDFAST_CA"], process, data_dir, log_path)


def read_env(path):
    """The variables of a connection.env, as a shell would read them."""
    values = {}
    for line in Path(path).read_text().splitlines():
        if line and not line.startswith("#") and "=" in line:
            name, value = line.removeprefix("export ").split("=", 1)
            values[name] = "".join(shlex.split(value))
    return values


def stop(hub):
    if hub.process and hub.process.poll() is None:
        hub.process.send_signal(signal.SIGTERM)
        hub.process.wait(timeout=20)


@contextlib.contextmanager
def exclusive_ports():
    """Ports 443, 8883 and 5671 may be used by one test at a time on a machine."""
    with open(Path(tempfile.gettempdir()) / "holdfast-ports.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


SECRET = re.compile(r"SharedAccessSignature sr=|SharedAccessKey=")


def assert_clean_log(hub):
    """No secret and no line that asks for a human may be in the log of a run."""
    text = Path(hub.log).read_text()
    assert not SECRET.search(text), "a secret is in the log"
    errors = [line for line in text.splitlines() if " ERROR " in line or '"level":"ERROR"' in line]
    assert not errors, "errors in the log:\n" + "\n".join(errors[:10])
