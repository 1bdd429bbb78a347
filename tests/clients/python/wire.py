"""A hub on free ports, and clients that write bytes: what no SDK would ever send must be answered too."""

import base64
import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import struct
import subprocess
import time
from pathlib import Path
from urllib.parse import quote, urlencode

import hub as hubs
from hub import sas_token, wait_until

API = "api-version=2021-04-12"
CONNECT, CONNACK, PUBLISH, PUBACK, SUBSCRIBE, SUBACK = 1, 2, 3, 4, 8, 9
UNSUBSCRIBE, UNSUBACK, PINGREQ, PINGRESP, DISCONNECT = 10, 11, 12, 13, 14


class WireHub:
    """`holdfast serve` on free ports, with a listener without TLS and an administrator's one."""

    def __init__(self, data_dir, config="", *extra):
        self.data_dir = Path(data_dir)
        self.log = self.data_dir.parent / f"{self.data_dir.name}.log"
        self.config_path = self.data_dir.parent / f"{self.data_dir.name}.toml"
        self.config_path.write_text(config)
        self.extra = extra
        self.process = None

    def start(self):
        env_file = self.data_dir / "connection.env"
        with contextlib.suppress(FileNotFoundError):
            env_file.unlink()
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [hubs.find_binary(), "serve", "--data-dir", str(self.data_dir), "--no-profile", "--config",
                 str(self.config_path), "--listen", "127.0.0.1", "--mqtt-port", "0", "--amqp-port", "0", "--https-port", "0",
                 "--mqtt-plain", "127.0.0.1:0", *self.extra],
                stdout=log, stderr=subprocess.STDOUT,
            )

        def ready():
            assert self.process.poll() is None, f"serve ended with {self.process.returncode}:\n{self.log_text()}"
            if not env_file.exists():
                return False
            values = hubs.read_env(env_file)
            if "HOLDFAST_MQTT_PLAIN" not in values:
                return False
            self.ca = values["HOLDFAST_CA"]
            self.host = values["HOLDFAST_HOST"]
            parts = hubs.parse_connection_string(values["HOLDFAST_OWNER_CS"])
            self.policy, self.policy_key = parts["SharedAccessKeyName"], parts["SharedAccessKey"]
            self.https_port = int(values["HOLDFAST_HTTPS_PORT"])
            self.mqtt_port = int(values["HOLDFAST_MQTT_PORT"])
            self.plain_port = int(values["HOLDFAST_MQTT_PLAIN"].rpartition(":")[2])
            with contextlib.suppress(OSError):
                return self.get("/readyz", token=None)[0] == 200

        wait_until(ready, "the hub to be ready", 30)
        return self

    def log_text(self):
        return self.log.read_text(errors="replace")

    def stop(self, signal_number=signal.SIGTERM):
        """Ends the hub; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        return self.process.wait(timeout=30)

    def rss_bytes(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    # HTTPS

    def tls(self, **options):
        context = ssl.create_default_context(cafile=self.ca)
        if options.get("certificate"):
            context.load_cert_chain(*options["certificate"])
        return context

    def https(self, timeout=30):
        return http.client.HTTPSConnection("localhost", self.https_port, timeout=timeout, context=self.tls())

    def raw_tls(self, port, timeout=10, **options):
        tcp = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        return self.tls(**options).wrap_socket(tcp, server_hostname="localhost")

    def owner(self):
        return sas_token(self.host, self.policy_key, self.policy)

    def call(self, method, path, body=None, headers=(), token="owner"):
        """One request; gives status, headers as they came (a list of pairs) and body."""
        headers = dict(headers)
        if token == "owner":
            token = self.owner()
        if token:
            headers["Authorization"] = token
        if body is not None and not isinstance(body, (bytes, str)):
            body = json.dumps(body)
            headers.setdefault("Content-Type", "application/json; charset=utf-8")
        if "api-version" not in path and not path.startswith(("/healthz", "/readyz", "/metrics")):
            path += ("&" if "?" in path else "?") + API
        connection = self.https()
        try:
            connection.request(method, path, body=body, headers=headers)
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()

    def get(self, path, **options):
        return self.call("GET", path, **options)

    def json(self, method, path, body=None, expect=200, **options):
        status, _, text = self.call(method, path, body, **options)
        assert status == expect, (status, text)
        return json.loads(text) if text else None

    # identities

    def create(self, device_id, module_id=None, **body):
        """Registers an identity; gives the client that can log in as it."""
        path = f"/devices/{quote(device_id, safe='')}"
        if module_id:
            path += f"/modules/{quote(module_id, safe='')}"
            body = {"deviceId": device_id, "moduleId": module_id, **body}
        else:
            body = {"deviceId": device_id, **body}
        record = self.json("PUT", path, body)
        return Device(self, device_id, module_id, record)

    def send_c2d(self, device_id, body, expect=201, **options):
        return self.json("POST", f"/holdfast/v1/devices/{device_id}/messages", {"body": body, **options}, expect)

    @contextlib.contextmanager
    def stream(self, device_id, start="earliest"):
        """A function that gives the next event of a device."""
        connection = self.https()
        query = urlencode({"device": device_id, "from": start})
        headers = {"Authorization": self.owner(), "Accept": "text/event-stream"}
        connection.request("GET", f"/holdfast/v1/events?{query}", headers=headers)
        response = connection.getresponse()
        assert response.status == 200, response.read()

        def following():
            while True:
                line = response.readline()
                assert line, "the event stream ended"
                if line.startswith(b"data:"):
                    return json.loads(line[5:])

        try:
            yield following
        finally:
            connection.close()

    def metric(self, name):
        """Sum over the labels of a metric."""
        text = self.get("/metrics", token=None)[2].decode()
        lines = [line for line in text.splitlines() if line.startswith((name + " ", name + "{"))]
        assert lines, f"no metric {name}"
        return sum(float(line.rpartition(" ")[2]) for line in lines)


class Device:
    """A registered identity."""

    def __init__(self, hub, device_id, module_id, record):
        self.hub, self.id, self.module_id, self.record = hub, device_id, module_id, record
        self.client_id = f"{device_id}/{module_id}" if module_id else device_id
        keys = record["authentication"]["symmetricKey"]
        self.key, self.secondary = keys["primaryKey"], keys["secondaryKey"]
        self.path = f"devices/{device_id}" + (f"/modules/{module_id}" if module_id else "")
        self.events = f"{self.path}/messages/events/"
        self.bound = f"{self.path}/messages/devicebound/#"

    @property
    def username(self):
        return f"{self.hub.host}/{self.client_id}/?api-version=2021-04-12"

    def resource(self):
        return f"{self.hub.host}/devices/{quote(self.id, safe='')}" + (
            f"/modules/{quote(self.module_id, safe='')}" if self.module_id else ""
        )

    def token(self, lifetime=3600, key=None):
        return sas_token(self.resource(), key or self.key, lifetime=lifetime)

    def connect(self, expect=0, **options):
        """A connected client."""
        transport = options.pop("transport", "plain")
        client = Mqtt(self.hub, transport)
        fields = {"client_id": self.client_id, "username": self.username, "password": self.token(), **options}
        client.write(connect(**fields))
        client.session_present = client.expect_connack(expect)
        return client


def length_bytes(length):
    out = b""
    while True:
        byte, length = length % 128, length // 128
        out += bytes([byte | (128 if length else 0)])
        if not length:
            return out


def text(value):
    data = value.encode() if isinstance(value, str) else value
    return struct.pack(">H", len(data)) + data


def packet(kind, body=b"", flags=0):
    return bytes([kind << 4 | flags]) + length_bytes(len(body)) + body


def connect(client_id, username=None, password=None, clean=True, keep_alive=60, will=None, level=4, name="MQTT",
            properties=b""):
    flags = (2 if clean else 0) | (0x80 if username is not None else 0) | (0x40 if password is not None else 0)
    payload = text(client_id)
    if will:
        topic, body, *more = will
        flags |= 4 | 8 | (0x20 if "retain" in more else 0)
        payload += text(topic) + text(body)
    for field in (username, password):
        if field is not None:
            payload += text(field)
    return packet(CONNECT, text(name) + bytes([level, flags]) + struct.pack(">H", keep_alive) + properties + payload)


def publish(topic, body=b"", qos=1, packet_id=1, flags=0):
    head = text(topic) + (struct.pack(">H", packet_id) if qos else b"")
    return packet(PUBLISH, head + body, flags | qos << 1)


def subscribe(*filters, packet_id=1, qos=1):
    body = b"".join(text(f) + bytes([qos]) for f in filters)
    return packet(SUBSCRIBE, struct.pack(">H", packet_id) + body, 2)


def puback(packet_id):
    return packet(PUBACK, struct.pack(">H", packet_id))


class Closed(Exception):
    """The other side closed the connection."""


class Publish:
    def __init__(self, flags, body):
        self.dup, self.qos, self.retain = bool(flags & 8), flags >> 1 & 3, bool(flags & 1)
        size = struct.unpack(">H", body[:2])[0]
        self.topic = body[2 : 2 + size].decode()
        rest = body[2 + size :]
        self.packet_id = None
        if self.qos:
            self.packet_id, rest = struct.unpack(">H", rest[:2])[0], rest[2:]
        self.body = rest

    def __repr__(self):
        return f"Publish({self.topic}, q{self.qos}, id={self.packet_id}, dup={self.dup}, {self.body[:60]!r})"


class Mqtt:
    """An MQTT connection at the level of packets: over TCP, TLS or a WebSocket."""

    def __init__(self, hub, transport="plain", timeout=10, **options):
        self.web = transport == "websocket"
        if transport == "plain":
            self.socket = socket.create_connection(("127.0.0.1", hub.plain_port), timeout=timeout)
        else:
            self.socket = hub.raw_tls(hub.https_port if self.web else hub.mqtt_port, timeout, **options)
        self.buffer = b""
        self.frames = b""
        self.next_id = 1
        if self.web:
            self.headers = self.upgrade(options.get("protocol", "mqtt"), options.get("path", "/$iothub/websocket"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def upgrade(self, protocol, path):
        key = base64.b64encode(os.urandom(16)).decode()
        self.socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            data = self.socket.recv(1)
            if not data:
                raise Closed()
            head += data
        lines = head.decode().split("\r\n")
        assert " 101 " in lines[0], lines
        return lines[1:]

    def send_frame(self, data, opcode=2, fin=True, mask=True):
        first = bytes([(0x80 if fin else 0) | opcode])
        bit = 0x80 if mask else 0
        if len(data) < 126:
            head = first + bytes([bit | len(data)])
        elif len(data) < 65536:
            head = first + bytes([bit | 126]) + struct.pack(">H", len(data))
        else:
            head = first + bytes([bit | 127]) + struct.pack(">Q", len(data))
        self.socket.sendall(head + (b"\0\0\0\0" if mask else b"") + data)

    def write(self, data):
        if self.web:
            self.send_frame(data)
        else:
            self.socket.sendall(data)

    def receive(self):
        """More bytes of the MQTT stream into the buffer."""
        data = self.socket.recv(65536)
        if not data:
            raise Closed()
        if not self.web:
            self.buffer += data
            return
        self.frames += data
        while len(self.frames) >= 2:
            size, start = self.frames[1] & 127, 2
            if size == 126:
                size, start = struct.unpack(">H", self.frames[2:4])[0], 4
            elif size == 127:
                size, start = struct.unpack(">Q", self.frames[2:10])[0], 10
            if len(self.frames) < start + size:
                return
            opcode = self.frames[0] & 15
            body, self.frames = self.frames[start : start + size], self.frames[start + size :]
            if opcode == 8:
                raise Closed()
            if opcode in (0, 2):
                self.buffer += body

    def packet(self, seconds=10):
        """The next packet as (kind, flags, body); raises Closed or TimeoutError."""
        self.socket.settimeout(seconds)
        while True:
            parsed = self.parse()
            if parsed:
                return parsed
            try:
                self.receive()
            except (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
                raise Closed() from error

    def parse(self):
        length, shift, at = 0, 0, 1
        while True:
            if len(self.buffer) <= at:
                return None
            byte = self.buffer[at]
            length |= (byte & 127) << shift
            shift, at = shift + 7, at + 1
            if not byte & 128:
                break
        if len(self.buffer) < at + length:
            return None
        first, body = self.buffer[0], self.buffer[at : at + length]
        self.buffer = self.buffer[at + length :]
        return first >> 4, first & 15, body

    def expect(self, kind, seconds=10):
        """The next packet, which must be of this kind."""
        got, flags, body = self.packet(seconds)
        assert got == kind, f"expected packet {kind}, got {got} {body[:80]!r}"
        return Publish(flags, body) if kind == PUBLISH else body

    def expect_connack(self, code=0):
        body = self.expect(CONNACK)
        assert body[1] == code, f"CONNACK {body[1]}, expected {code}"
        if code:
            self.expect_closed()
        return bool(body[0])

    def expect_closed(self, seconds=10):
        """Nothing more comes but the end."""
        try:
            got = self.packet(seconds)
        except Closed:
            return
        raise AssertionError(f"expected the end of the connection, got packet {got}")

    def expect_silence(self):
        """Nothing is on the way: the answer to a ping is the next packet."""
        self.write(packet(PINGREQ))
        self.expect(PINGRESP)

    def subscribe(self, *filters, qos=1):
        self.write(subscribe(*filters, packet_id=77, qos=qos))
        body = self.expect(SUBACK)
        assert body[:2] == b"\0\x4d"
        return list(body[2:])

    def publish(self, topic, body=b"", flags=0):
        """A publish at QoS 1 that is acknowledged."""
        self.next_id += 1
        self.write(publish(topic, body, packet_id=self.next_id, flags=flags))
        assert self.expect(PUBACK) == struct.pack(">H", self.next_id)

    def disconnect(self):
        self.write(packet(DISCONNECT))
        self.expect_closed()
        self.close()

    def close(self):
        with contextlib.suppress(OSError):
            self.socket.close()

    def reset(self):
        """Ends the connection as a crash of the client would."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def unix(seconds):
    return int(time.time()) + seconds
