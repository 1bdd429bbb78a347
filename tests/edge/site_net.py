"""A site: a network of its own with a hub and an image registry, in which edge machines stand.

The site is a bridge; hub and registry listen on its address. Each machine is a network namespace with a container engine of
its own, joined to the bridge by a link that a test can cut. Nothing here touches the machine's own engine or ports; of its
packet filter, one rule for this bridge, since an engine that was once started here lets nothing cross bridges.
"""

import base64
import contextlib
import http.client
import json
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).parent.parent / "clients" / "python"))

from hub import find_binary, parse_connection_string, read_env, sas_token, wait_until  # noqa: E402

API_VERSION = "2021-04-12"
REGISTRY_USER, REGISTRY_PASSWORD = "holdfast", "only-for-tests"


def run(*command, **options):
    """Runs a command; its standard output. A failure shows what it printed."""
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=120, **options)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stdout}{done.stderr}"
    return done.stdout


def free_port(address):
    with socket.socket() as probe:
        probe.bind((address, 0))
        return probe.getsockname()[1]


def end(process, seconds=30):
    """Asks a process to end; kills it after a while."""
    if process and process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return process.returncode if process else None


class Site:
    """Bridge, hub and registry."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.machines = 0
        self.bridge, self.net = self._make_bridge()
        self.address = f"{self.net}.1"
        self._rule = ["FORWARD", "--in-interface", self.bridge, "--out-interface", self.bridge, "--jump", "ACCEPT"]
        self._filter("--insert")
        self.hub = None
        self.registry = None
        self._registry_process = None

    @staticmethod
    def _make_bridge():
        numbers = list(range(1, 250))
        random.shuffle(numbers)
        for number in numbers:
            name = f"hfs{number}"
            # A bridge without an address of its own takes the lowest of its ports: when that machine goes, the others send
            # to nobody until their neighbour entries expire, which takes minutes.
            own = f"02:48:46:00:00:{number:02x}"
            made = subprocess.run(["ip", "link", "add", name, "address", own, "type", "bridge"], capture_output=True, text=True)
            if made.returncode == 0:
                run("ip", "address", "add", f"10.213.{number}.1/24", "dev", name)
                run("ip", "link", "set", name, "up")
                return name, f"10.213.{number}"
        raise AssertionError(f"no free bridge: {made.stderr}")

    def _filter(self, action):
        # Without the program there is no filter in the way either.
        with contextlib.suppress(FileNotFoundError):
            subprocess.run(["iptables", "--wait", action, *self._rule], capture_output=True)

    def start_hub(self, config=""):
        self.hub = SiteHub(self.folder / "hub", self.address, config).start()
        return self.hub

    def start_registry(self):
        port = int(self.registry.rpartition(":")[2]) if self.registry else free_port(self.address)
        self.registry = f"{self.address}:{port}"
        config = self.folder / "registry.yml"
        hashed = run("perl", "-e", "print crypt($ARGV[0], $ARGV[1])", REGISTRY_PASSWORD, "$2b$05$holdfastholdfastholdfO")
        (self.folder / "htpasswd").write_text(f"{REGISTRY_USER}:{hashed}\n")
        images = os.environ.get("HOLDFAST_EDGE_IMAGES")
        assert images, "HOLDFAST_EDGE_IMAGES is not set: run this with `cargo xtask test --only edge`"
        config.write_text(
            f"version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\n"
            f"storage: {{filesystem: {{rootdirectory: {images}}}}}\n"
            f'http: {{addr: "{self.registry}", secret: for-one-run}}\n'
            f"auth: {{htpasswd: {{realm: holdfast, path: {self.folder / 'htpasswd'}}}}}\n"
        )
        with open(self.folder / "registry.log", "ab") as log:
            self._registry_process = subprocess.Popen(["docker-registry", "serve", config], stdout=log, stderr=log)

        def listening():
            assert self._registry_process.poll() is None, (self.folder / "registry.log").read_text()
            with contextlib.suppress(OSError):
                socket.create_connection((self.address, port), timeout=1).close()
                return True

        wait_until(listening, "the registry to listen")

    def stop_registry(self):
        end(self._registry_process)

    def image(self, name, tag="1"):
        """Full name of an image of the suite."""
        return f"{self.registry}/{name}:{tag}"

    def credentials(self, password=REGISTRY_PASSWORD):
        return {"site": {"address": self.registry, "username": REGISTRY_USER, "password": password}}

    def close(self):
        self.stop_registry()
        if self.hub:
            self.hub.stop()
        self._filter("--delete")
        subprocess.run(["ip", "link", "delete", self.bridge], capture_output=True)


class SiteHub:
    """`holdfast serve` on the site's address, on free ports that stay the same over restarts."""

    def __init__(self, data_dir, address, config=""):
        self.data_dir, self.address = Path(data_dir), address
        self.log = self.data_dir.parent / "hub.log"
        self.config = self.data_dir.parent / "hub.toml"
        self.config.write_text(config)
        self.process = None
        self.ports = {name: free_port(address) for name in ("mqtt", "amqp", "https")}

    def start(self):
        env_file = self.data_dir / "connection.env"
        with contextlib.suppress(FileNotFoundError):
            env_file.unlink()
        ports = [word for name, port in self.ports.items() for word in (f"--{name}-port", str(port))]
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [find_binary(), "serve", "--data-dir", str(self.data_dir), "--no-profile", "--config", str(self.config),
                 "--host", self.address, "--listen", self.address, "--blob-port", "0", *ports],
                stdout=log, stderr=log,
            )

        def ready():
            assert self.process.poll() is None, f"serve ended with {self.process.returncode}:\n{self.log.read_text()}"
            if not env_file.exists():
                return False
            values = read_env(env_file)
            self.ca = values["HOLDFAST_CA"]
            self.owner = values["HOLDFAST_OWNER_CS"]
            self.dps_host, self.id_scope = values["HOLDFAST_DPS_HOST"], values["HOLDFAST_ID_SCOPE"]
            self.dps_owner = values["HOLDFAST_DPS_CS"]
            with contextlib.suppress(OSError):
                return self.request("GET", "/readyz")[0] == 200

        wait_until(ready, "the hub to be ready", 30)
        return self

    def stop(self):
        return end(self.process)

    def request(self, method, path, body=None, timeout=30, headers=None):
        """A service request with every right; status and JSON."""
        parts = parse_connection_string(self.owner)
        token = sas_token(self.address, parts["SharedAccessKey"], parts["SharedAccessKeyName"])
        context = ssl.create_default_context(cafile=self.ca)
        connection = http.client.HTTPSConnection(self.address, self.ports["https"], timeout=timeout, context=context)
        with contextlib.closing(connection):
            separator = "&" if "?" in path else "?"
            connection.request(
                method, f"{path}{separator}api-version={API_VERSION}",
                body=None if body is None else json.dumps(body),
                headers={"Authorization": token, "Content-Type": "application/json", **(headers or {})},
            )
            answer = connection.getresponse()
            text = answer.read()
        try:
            return answer.status, json.loads(text) if text else None
        except ValueError:
            return answer.status, text.decode(errors="replace")

    def ok(self, method, path, body=None, **options):
        status, answer = self.request(method, path, body, **options)
        assert status in (200, 201, 204), f"{method} {path}: {status} {answer}"
        return answer

    def cli(self, *arguments):
        """A command of `holdfast` aimed at this hub; its standard output."""
        return run(find_binary(), *arguments, "--data-dir", self.data_dir)

    def create_edge_device(self, device_id):
        """Its connection string."""
        device = self.ok("PUT", f"/devices/{device_id}", {"deviceId": device_id, "capabilities": {"iotEdge": True}})
        key = device["authentication"]["symmetricKey"]["primaryKey"]
        return f"HostName={self.address};DeviceId={device_id};SharedAccessKey={key}"

    def twin(self, device_id, module_id=None):
        path = f"/twins/{device_id}" + (f"/modules/{quote(module_id, safe='')}" if module_id else "")
        return self.ok("GET", path)

    def reported(self, device_id, module_id="$edgeAgent"):
        return self.twin(device_id, module_id)["properties"]["reported"]

    def apply(self, device_id, content):
        self.ok("POST", f"/devices/{device_id}/applyConfigurationContent", {"modulesContent": content})

    def method(self, device_id, module_id, name, payload=None, response_timeout=30):
        """Status and payload of a direct method; or of the failure."""
        body = {"methodName": name, "payload": payload, "responseTimeoutInSeconds": response_timeout,
                "connectTimeoutInSeconds": 5}
        status, answer = self.request(
            "POST", f"/twins/{device_id}/modules/{quote(module_id, safe='')}/methods", body, timeout=response_timeout + 15
        )
        if status != 200:
            return status, answer
        return answer["status"], answer["payload"]

    def events(self, device_id):
        return HubEvents(self, device_id)


class HubEvents:
    """Follows the events of one device and its modules, from the beginning, in a thread; use as a context manager."""

    def __init__(self, hub, device_id):
        self._hub, self._device_id = hub, device_id
        self.received = []
        self._process = None

    def __enter__(self):
        import threading

        self._process = subprocess.Popen(
            [find_binary(), "monitor", "--json", "--from", "earliest", "--data-dir", str(self._hub.data_dir)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        threading.Thread(target=self._collect, daemon=True).start()
        return self

    def _collect(self):
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if self._device_id in line:
                    self.received.append(event)

    def __exit__(self, *_):
        end(self._process)

    def bodies(self):
        return [event_body(event) for event in list(self.received)]

    def wait(self, condition, what, seconds=30):
        """Waits until some event satisfies the condition; that event."""
        def found():
            return next((event for event in list(self.received) if condition(event)), None)

        return wait_until(found, f"{what} (have {len(self.received)} events, the last {self.received[-1:]})", seconds)


def event_body(event):
    body = event.get("body")
    if isinstance(body, str):
        with contextlib.suppress(ValueError):
            return json.loads(body)
        with contextlib.suppress(ValueError):
            return json.loads(base64.b64decode(body))
    return body


class Machine:
    """A network namespace with a container engine, on a link that can be cut."""

    def __init__(self, site, folder):
        self.site, self.folder = site, Path(folder)
        site.machines += 1
        number = site.machines
        self.name = f"{site.bridge}m{number}"
        self.address = f"{site.net}.{10 + number}"
        self.link = f"{self.name}o"
        self.engine = None
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "hosts").write_text("127.0.0.1 localhost\n")
        self._network()

    def _network(self):
        inner = f"{self.name}i"
        run("ip", "netns", "add", self.name)
        run("ip", "link", "add", self.link, "type", "veth", "peer", "name", inner)
        run("ip", "link", "set", self.link, "master", self.site.bridge, "up")
        run("ip", "link", "set", inner, "netns", self.name)
        inside = ["ip", "-n", self.name]
        run(*inside, "link", "set", "lo", "up")
        run(*inside, "address", "add", f"{self.address}/24", "dev", inner)
        run(*inside, "link", "set", inner, "up")

    def cut(self):
        """Pulls the cable."""
        run("ip", "link", "set", self.link, "down")

    def mend(self):
        run("ip", "link", "set", self.link, "up")

    def cut_from_hub(self):
        """What goes to the hub goes to nobody, without a word; the rest of the site goes on."""
        run("ip", "-n", self.name, "route", "replace", f"{self.site.address}/32", "via", f"{self.site.net}.250")

    def mend_to_hub(self):
        subprocess.run(["ip", "-n", self.name, "route", "delete", f"{self.site.address}/32"], capture_output=True)

    @staticmethod
    def _die_with_us():
        import ctypes

        ctypes.CDLL(None).prctl(1, signal.SIGTERM)

    def spawn(self, *command, log, env=None):
        """Starts a program in this machine's network; it ends with us."""
        with open(self.folder / log, "ab") as file:
            return subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{self.name}", *map(str, command)],
                stdin=subprocess.DEVNULL, stdout=file, stderr=file, env={**os.environ, **(env or {})},
                preexec_fn=self._die_with_us,
            )

    # The engine

    @property
    def engine_socket(self):
        return f"unix://{self.folder}/engine.sock"

    def start_engine(self):
        (self.folder / "daemon.json").write_text("{}")
        self.engine = self.spawn(
            "dockerd", "--config-file", self.folder / "daemon.json", "--data-root", self.folder / "engine",
            "--exec-root", self.folder / "x", "--pidfile", self.folder / "engine.pid", "--host", self.engine_socket,
            "--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false", "--log-level=warn",
            "--insecure-registry", self.site.registry, log="engine.log",
        )

        def answers():
            assert self.engine.poll() is None, f"dockerd ended:\n{(self.folder / 'engine.log').read_text()[-2000:]}"
            return subprocess.run(["docker", "version"], env=self._docker_env(), capture_output=True).returncode == 0

        wait_until(answers, "the container engine", 60)

    def _docker_env(self):
        return {**os.environ, "DOCKER_HOST": self.engine_socket, "DOCKER_CONFIG": str(self.folder / "docker")}

    def docker(self, *arguments):
        return run("docker", *arguments, env=self._docker_env())

    def containers(self):
        """Names and states of all containers."""
        lines = self.docker("ps", "--all", "--no-trunc", "--format", "{{.Names}}\t{{.State}}\t{{.ID}}").splitlines()
        return {name: (state, ident) for name, state, ident in (line.split("\t") for line in lines)}

    def remove_containers(self):
        names = []
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            names = list(self.containers())
        for name in names:
            # It may be on its way out; the others are not.
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                self.docker("rm", "--force", "--volumes", name)

    def state(self, name):
        return self.containers().get(name, (None, None))[0]

    def inspect(self, name):
        return json.loads(self.docker("inspect", name))[0]

    def stop_engine(self):
        """As a service manager would; containers end with it."""
        end(self.engine, 60)

    def pull(self, *images):
        """Puts images on the machine by hand, as a technician would before it goes into the field."""
        if any(subprocess.run(["docker", "image", "inspect", image], env=self._docker_env(), capture_output=True).returncode
               for image in images):
            self.docker("login", "--username", REGISTRY_USER, "--password", REGISTRY_PASSWORD, self.site.registry)
            for image in images:
                self.docker("pull", "--quiet", image)
            self.docker("logout", self.site.registry)

    def processes(self):
        """Ids of everything that runs on this machine: in its network, and in containers of its engine."""
        namespace = os.stat(f"/run/netns/{self.name}").st_ino
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    if os.stat(entry / "ns" / "net").st_ino == namespace:
                        found.append(int(entry.name))
        return found

    def power_cut(self):
        """Everything ends at once and without a word, the link is down, and what stood in /run is gone."""
        containers = []
        with contextlib.suppress(AssertionError):
            for name in self.containers():
                pid = self.inspect(name)["State"]["Pid"]
                if pid:
                    containers.append(pid)
        self.cut()
        for pid in self.processes() + containers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self.engine:
            self.engine.wait(timeout=30)
        wait_until(lambda: not self.processes(), "everything to be dead")
        self._unmount()
        shutil.rmtree(self.folder / "x", ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            (self.folder / "engine.sock").unlink()
        # A machine that starts has the network's bridges no more.
        links = json.loads(run("ip", "-n", self.name, "-j", "link", "show", "type", "bridge") or "[]")
        for link in links:
            if "ifname" in link:
                run("ip", "-n", self.name, "link", "delete", link["ifname"])

    def _unmount(self):
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for mount in sorted((m for m in mounts if m.startswith(f"{self.folder}/")), reverse=True):
            subprocess.run(["umount", "--lazy", mount], capture_output=True)

    def close(self):
        self.remove_containers()
        self.stop_engine()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._unmount()
        subprocess.run(["ip", "link", "delete", self.link], capture_output=True)
        subprocess.run(["ip", "netns", "delete", self.name], capture_output=True)
        time.sleep(0)


class PodmanMachine(Machine):
    """The same with Podman behind its Docker-compatible socket."""

    def _podman(self):
        folder = self.folder
        return ["podman", "--root", folder / "engine", "--runroot", folder / "x", "--tmpdir", folder / "t",
                "--network-config-dir", folder / "net", "--cgroup-manager", "cgroupfs", "--events-backend", "file"]

    def _podman_env(self):
        return {"CONTAINERS_CONF": str(self.folder / "containers.conf"),
                "CONTAINERS_REGISTRIES_CONF": str(self.folder / "registries.conf")}

    def start_engine(self):
        folder = self.folder
        for name in ("net", "t"):
            (folder / name).mkdir(exist_ok=True)
        (folder / "registries.conf").write_text(f'[[registry]]\nlocation = "{self.site.registry}"\ninsecure = true\n')
        (folder / "containers.conf").write_text("")
        socket_path = folder / "engine.sock"
        with contextlib.suppress(FileNotFoundError):
            socket_path.unlink()
        self.engine = self.spawn(*self._podman(), "system", "service", "--time=0", self.engine_socket,
                                 log="engine.log", env=self._podman_env())

        def answers():
            assert self.engine.poll() is None, f"podman ended:\n{(folder / 'engine.log').read_text()[-2000:]}"
            return subprocess.run(["docker", "version"], env=self._docker_env(), capture_output=True).returncode == 0

        wait_until(answers, "Podman's socket", 60)
