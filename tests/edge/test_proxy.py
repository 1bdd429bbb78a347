"""A device whose only way out is an HTTP proxy that wants a password."""

import json
import sys

import pytest

from aziot import AziotDevice, dps
from device import UPSTREAM, module, wait_until

PROXY = '''
import base64, select, socket, sys, threading
listener = socket.create_server(("0.0.0.0", 3128))
WANTED = b"Basic " + base64.b64encode(b"edge:pa ss")
def serve(near):
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        data = near.recv(4096)
        if not data:
            return
        head += data
    line, *rest = head.split(b"\\r\\n")
    method, target, _ = line.split(b" ")
    given = next((h.split(b":", 1)[1].strip() for h in rest if h.lower().startswith(b"proxy-authorization:")), b"")
    if given != WANTED:
        sys.stdout.write("refused " + target.decode() + "\\n"); sys.stdout.flush()
        near.sendall(b"HTTP/1.1 407 Proxy Authentication Required\\r\\nContent-Length: 0\\r\\n\\r\\n")
        return near.close()
    host, _, port = target.decode().rpartition(":")
    sys.stdout.write("connect " + target.decode() + "\\n"); sys.stdout.flush()
    far = socket.create_connection((host, int(port)))
    near.sendall(b"HTTP/1.1 200 Connection established\\r\\n\\r\\n")
    while True:
        for source in select.select([near, far], [], [])[0]:
            data = source.recv(65536)
            if not data:
                near.close(); far.close()
                return
            (far if source is near else near).sendall(data)
while True:
    near, _ = listener.accept()
    threading.Thread(target=serve, args=[near], daemon=True).start()
'''


@pytest.fixture
def proxy(field):
    process = field.spawn(sys.executable, "-c", PROXY, log="proxy.log")
    log = field.folder / "proxy.log"
    log.write_text("")
    field.proxy_lines = lambda: log.read_text().split("\n")
    yield field
    process.kill()
    process.wait()


@pytest.mark.parametrize("protocol", ["amqp-ws", "mqtt-ws"])
def test_everything_goes_through_the_proxy(make_device, machine, hub, proxy, sensor, protocol):
    device = make_device({"upstream": {"protocol": protocol, "proxy": f"http://edge:pa%20ss@{proxy.address}:3128"}})
    # The way to registries is the engine's own affair.
    machine.pull(sensor)
    machine.cut_from_hub()
    try:
        device.start()
        with hub.events(device.id) as events:
            env = {"MessageCount": "5", "MessageDelay": "0.2"}
            modules = {"sensor": module(sensor, env=env, imagePullPolicy="never")}
            device.wait_status(200, device.deploy(modules, UPSTREAM))
            device.wait_module("sensor")
            events.wait(lambda event: "machine" in json.dumps(event), "telemetry", 60)
        status, _ = hub.method(device.id, "$edgeAgent", "ping")
        assert status == 200
        wanted = f"connect {hub.address}:{hub.ports['https']}"
        assert proxy.proxy_lines().count(wanted) >= 2, proxy.proxy_lines()
        device.stop()
    finally:
        machine.mend_to_hub()


def test_a_proxy_that_refuses_is_told(make_device, machine, hub, proxy):
    device = make_device({"upstream": {"protocol": "amqp-ws", "proxy": f"http://edge:wrong@{proxy.address}:3128"}})
    machine.cut_from_hub()
    try:
        device.start()
        wait_until(lambda: any(line.startswith("refused") for line in proxy.proxy_lines()), "the proxy to refuse", 30)
        wait_until(lambda: "407" in device.log_text(), f"the log to say so\n{device.log_tail()}", 30)
        assert "wrong" not in device.log_text()
        device.stop()
    finally:
        machine.mend_to_hub()


def test_provisioning_goes_through_the_proxy_of_the_agents_environment(machine, folder, hub, proxy, tmp_path):
    """As a config.toml of the original names it: `https_proxy` in `[agent.env]`, with AMQP over WebSockets."""
    name = f"proxied-{machine.name}"
    key = "c2VjcmV0IGtleSBvZiBhIHNpbmdsZSBlbnJvbGxtZW50"
    hub.cli("dps", "enrollment", "create", name, "--edge", "true", "--primary-key", key)
    attestation = f'method = "symmetric_key"\nregistration_id = "{name}"\nsymmetric_key = {{ value = "{key}" }}'
    env = f'[agent]\n[agent.env]\nUpstreamProtocol = "AmqpWs"\nhttps_proxy = "http://edge:pa%20ss@{proxy.address}:3128"\n'
    device = AziotDevice(machine, name, tmp_path / "d", f"{dps(hub, attestation)}\n{env}", protocol="amqp-ws")
    machine.cut_from_hub()
    try:
        device.works()
        assert len([line for line in proxy.proxy_lines() if line.startswith("connect")]) >= 3
        device.stop()
    finally:
        machine.mend_to_hub()
        device.close()
