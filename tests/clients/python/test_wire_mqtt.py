"""MQTT at the level of packets (mqtt.md section 12): the contract's corners, and clients that mean no good."""

import json
import socket
import struct
import threading
import time
from urllib.parse import unquote

import pytest

from hub import sas_token, wait_until
from wire import (
    CONNACK, PINGREQ, PINGRESP, PUBACK, PUBLISH, SUBACK, UNSUBACK, UNSUBSCRIBE, Closed, Mqtt, connect, packet,
    puback, publish, subscribe, text,
)

TWIN = "$iothub/twin/res/#"
DESIRED = "$iothub/twin/PATCH/properties/desired/#"
METHODS = "$iothub/methods/POST/#"
EVENT_BYTES_MAX = 256 * 1024


@pytest.fixture
def device(wired, device_id):
    return wired.create(device_id)


@pytest.fixture(params=["plain", "tls", "websocket"])
def transport(request):
    return request.param


def events_of(device, count):
    with device.hub.stream(device.id) as following:
        return [following() for _ in range(count)]


# Transport


def test_every_transport_carries_every_channel(wired, device, transport):
    with device.connect(transport=transport) as client:
        assert client.subscribe(device.bound, TWIN, DESIRED, METHODS) == [1, 1, 1, 1]
        client.publish(device.events + "a=b&%24.mid=1", b"hello")
        wired.send_c2d(device.id, "down")
        assert client.expect(PUBLISH).body == b"down"
        client.disconnect()
    (event,) = events_of(device, 1)
    assert event["body"] == "hello"


@pytest.mark.parametrize("protocol", ["mqtt", "MQTT"])
@pytest.mark.parametrize("path", ["/$iothub/websocket", "/$iothub/websocket?iothub-no-client-cert=true"])
def test_the_upgrade_echoes_the_protocol_as_it_was_spelled(wired, device, protocol, path):
    with Mqtt(wired, "websocket", protocol=protocol, path=path) as client:
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in client.headers)}
        assert headers["sec-websocket-protocol"] == protocol
        # paho-mqtt of Python scans lines: whatever mentions the connection must mention the upgrade.
        assert all("upgrade" in line.lower() for line in client.headers if "connection" in line.lower())
        client.write(connect(device.client_id, device.username, device.token()))
        client.expect_connack()


def test_packets_and_frames_are_independent(device):
    with Mqtt(device.hub, "websocket") as client:
        data = connect(device.client_id, device.username, device.token())
        for at in range(0, len(data), 7):
            client.write(data[at : at + 7])
        client.expect_connack()
        two = publish(device.events, b"1", packet_id=1) + publish(device.events, b"2", packet_id=2)
        client.write(two + packet(PINGREQ)[:1])
        client.write(packet(PINGREQ)[1:])
        kinds = sorted(client.packet()[0] for _ in range(3))
        assert kinds == [PUBACK, PUBACK, PINGRESP]


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param({"data": packet(PINGREQ), "mask": False}, id="not masked"),
        pytest.param({"data": b"text", "opcode": 1}, id="text"),
        pytest.param({"data": b"x", "opcode": 3}, id="reserved opcode"),
        pytest.param({"data": b"x" * 126, "opcode": 9}, id="long ping"),
        pytest.param({"data": b"x", "opcode": 9, "fin": False}, id="split ping"),
        pytest.param({"data": b"x", "opcode": 0}, id="continuation of nothing"),
    ],
)
def test_bad_frames_end_the_connection(device, frame):
    with device.connect(transport="websocket") as client:
        client.send_frame(**frame)
        client.expect_closed()


def test_a_frame_that_lies_about_its_length_is_not_believed(device):
    with device.connect(transport="websocket") as client:
        before = device.hub.rss_bytes()
        client.socket.sendall(b"\x82\xff" + struct.pack(">Q", 1 << 62) + b"\0\0\0\0")
        client.socket.sendall(b"\x30\xff\xff\xff\x7f" + b"x" * 1000)
        client.expect_closed()
        assert device.hub.rss_bytes() - before < 8 << 20


def test_byte_by_byte_is_fine(device):
    with Mqtt(device.hub) as client:
        for byte in connect(device.client_id, device.username, device.token()):
            client.socket.sendall(bytes([byte]))
        client.expect_connack()
        for byte in publish(device.events, b"slow", packet_id=9):
            client.socket.sendall(bytes([byte]))
        assert client.expect(PUBACK) == b"\0\x09"


# CONNECT


def refused(device, code=5, **fields):
    device.connect(expect=code, **fields).close()


def test_connects_that_are_let_in(wired, device):
    host, name = wired.host, device.id
    for username in [
        f"{host}/{name}/?api-version=2020-09-30&DeviceClientType=x%20y&model-id=dtmi%3Acom%3Aex%3AT%3B1",
        f"{host}/{name}/?DeviceClientType=x&api-version=2016-11-14",
        f"{host}/{name}/?api-version=2021-04-12&model-id=dtmi:com:ex:T;1&DeviceClientType=azure-iot-device%2F1",
        f"{host}/{name}/?api-version=2021-04-12&api-version=nonsense",
        f"{host}/{name}/api-version=2016-11-14",
        f"{host.upper()}/{name}/?api-version=2021-04-12",
    ]:
        device.connect(username=username).close()
    assert wired.json("GET", f"/twins/{name}")["modelId"] == "dtmi:com:ex:T;1"


def test_connects_that_are_refused(wired, device):
    other = wired.create(device.id + "-other")
    host, name = wired.host, device.id
    expired = sas_token(device.resource(), device.key, lifetime=-301)
    for fields in [
        {"client_id": other.id},
        {"client_id": ""},
        {"client_id": name.upper()},
        {"client_id": f"{name}/m"},
        {"username": f"{host}/{name}/?DeviceClientType=x"},
        {"username": f"{host}/{name}"},
        {"username": f"{host}/{name}/m/x/?api-version=2021-04-12"},
        {"username": ""},
        {"username": None, "password": None},
        {"password": None},
        {"password": ""},
        {"password": "SharedAccessSignature"},
        {"password": "SharedAccessSignature sr=&sig=&se="},
        {"password": b"\xff\xfe"},
        {"password": device.token().replace("se=", "se=9")},
        {"password": device.token(key=other.key)},
        {"password": other.token()},
        {"password": expired},
        {"password": sas_token(f"{host}/devices/{name}x", device.key)},
        {"password": sas_token(f"{host}/device", device.key)},
        {"password": sas_token(f"other.host/devices/{name}", device.key)},
        {"password": wired.owner().replace("iothubowner", "service")},
    ]:
        refused(device, **fields)
    refused(device, client_id="nobody", username=f"{host}/nobody/?api-version=2021-04-12")
    wired.json("PUT", f"/devices/{name}", {**device.record, "status": "disabled"}, headers={"If-Match": "*"})
    refused(device)


def test_every_credential_of_a_device_works(wired, device):
    device.connect(password=device.token(key=device.secondary)).close()
    device.connect(password=sas_token(device.resource(), wired.policy_key, wired.policy)).close()
    device.connect(password=wired.owner()).close()
    kind, _, rest = device.token().partition(" ")
    device.connect(password=f"{kind} " + "&".join(reversed(rest.split("&")))).close()
    # Within the tolerated difference of clocks.
    device.connect(password=device.token(lifetime=-240)).close()
    policies = {p["keyName"]: p for p in wired.json("GET", "/holdfast/v1/policies")}
    service = policies["service"]["primaryKey"]
    refused(device, password=sas_token(device.resource(), service, "service"))


@pytest.mark.parametrize(
    "data, answer",
    [
        (dict(level=3, name="MQIsdp"), b"\x20\x02\x00\x01"),
        (dict(level=3), b"\x20\x02\x00\x01"),
        (dict(level=6), b"\x20\x02\x00\x01"),
        (dict(level=0), b"\x20\x02\x00\x01"),
        # CONNACK of MQTT 5: no session, unsupported protocol version, no properties.
        (dict(level=5, properties=b"\0"), b"\x20\x03\x00\x84\x00"),
    ],
)
def test_other_protocol_levels_are_told_so(device, data, answer):
    with Mqtt(device.hub) as client:
        client.write(connect(device.client_id, device.username, device.token(), **data))
        received = b""
        while len(received) < len(answer):
            more = client.socket.recv(100)
            assert more, received
            received += more
        assert received == answer
        client.expect_closed()


GOOD = dict(client_id="d", username="localhost/d/?api-version=2021-04-12", password="x")


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(connect(**GOOD, name="MQXX"), id="protocol name"),
        pytest.param(packet(PINGREQ), id="ping first"),
        pytest.param(publish("devices/d/messages/events/", b"x"), id="publish first"),
        pytest.param(b"\x10\xff\xff\xff\xff\x7f", id="length of five bytes"),
        pytest.param(b"\x10\xff\xff\xff\x7f" + text("MQTT"), id="length of 256 MB"),
        pytest.param(b"\x00\x00", id="type 0"),
        pytest.param(b"\xf0\x00", id="type 15"),
        pytest.param(b"\x11" + connect(**GOOD)[1:], id="flags of CONNECT"),
        pytest.param(packet(1, text("MQTT") + b"\x04\x03\0\x3c" + text("d")), id="reserved bit"),
        pytest.param(packet(1, text("MQTT") + b"\x04\x42\0\x3c" + text("d") + text("p")), id="password without user"),
        pytest.param(packet(1, text("MQTT") + b"\x04\x1e\0\x3c" + text("d") + text("t") + text("b")), id="will QoS 3"),
        pytest.param(packet(1, text("MQTT") + b"\x04\x22\0\x3c" + text("d")), id="will retain without will"),
        pytest.param(packet(1, text("MQTT") + b"\x04\x82\0\x3c" + text(b"\xff\xfe") + text("u")), id="client id not UTF-8"),
        pytest.param(packet(1, text("MQTT") + b"\x04\x82\0\x3c" + text("d\0") + text("u")), id="NUL"),
        pytest.param(packet(1, text("MQTT") + b"\x04\x82\0\x3c" + text("d") + b"\xff\xffshort"), id="lying string"),
        pytest.param(connect(**GOOD)[:1] + bytes([connect(**GOOD)[1] + 1]) + connect(**GOOD)[2:] + b"x", id="rest"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="HTTP"),
    ],
)
def test_malformed_connects_end_the_connection_without_an_answer(wired, data):
    with Mqtt(wired) as client:
        client.write(data)
        client.expect_closed()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(connect(**GOOD), id="second CONNECT"),
        pytest.param(packet(2, b"\0\0"), id="CONNACK"),
        pytest.param(packet(SUBACK, b"\0\1\0"), id="SUBACK"),
        pytest.param(packet(PINGRESP), id="PINGRESP"),
        pytest.param(packet(PINGREQ, b"x"), id="ping with a body"),
        pytest.param(packet(PINGREQ, flags=1), id="flags of ping"),
        pytest.param(packet(0), id="type 0"),
        pytest.param(packet(15), id="type 15"),
        pytest.param(packet(PUBACK, b"\0"), id="short PUBACK"),
        pytest.param(packet(PUBACK, b"\0\1\0"), id="long PUBACK"),
        pytest.param(packet(SUBACK - 1, b"\0\1", 2), id="PUBCOMP"),
        pytest.param(packet(8, b"\0\1" + text("a") + b"\1", 0), id="flags of SUBSCRIBE"),
        pytest.param(packet(8, b"\0\1", 2), id="SUBSCRIBE to nothing"),
        pytest.param(packet(8, b"\0\0" + text("a") + b"\1", 2), id="SUBSCRIBE with id 0"),
        pytest.param(packet(8, b"\0\1" + text("a") + b"\3", 2), id="SUBSCRIBE QoS 3"),
        pytest.param(packet(8, b"\0\1" + text(b"\xff") + b"\1", 2), id="filter not UTF-8"),
        pytest.param(packet(8, b"\0\1\xff\xffa", 2), id="lying filter"),
        pytest.param(packet(10, b"\0\1", 2), id="UNSUBSCRIBE of nothing"),
        pytest.param(packet(3, b"\xff\xffx"), id="lying topic"),
        pytest.param(packet(3, b"\0"), id="short PUBLISH"),
        pytest.param(packet(3, text("") + b"x"), id="no topic"),
        pytest.param(packet(3, text("$iothub/twin/GET/?$rid=1") + b"\0\0", 2), id="QoS 1 with id 0"),
        pytest.param(packet(3, text("$iothub/twin/GET/?$rid=1") + b"\0", 2), id="QoS 1 without id"),
        pytest.param(packet(3, text("$iothub/twin/GET/?$rid=1") + b"\0\1", 6), id="QoS 3"),
        pytest.param(b"\x30\xff\xff\xff\xff\x01", id="length of five bytes"),
        pytest.param(b"\x30\xff\xff\xff\x7f", id="length of 256 MB"),
    ],
)
def test_malformed_packets_end_the_session(device, data):
    with device.connect() as client:
        client.write(data)
        client.expect_closed()


@pytest.mark.parametrize(
    "topic",
    [
        "", "x", "/", "devices", "devices/{d}", "devices/{d}/messages", "devices/{d}/messages/eventsx",
        "devices/{d}/messages/devicebound/", "devices/other/messages/events/", "devices/{d}x/messages/events/",
        "devices/{d}/modules/m/messages/events/", "DEVICES/{d}/messages/events/", "$iothub/twin/GET/", "$iothub/twin/GET/x/?$rid=1", "$iothub/twin/GET/?rid=1",
        "$iothub/twin/PATCH/properties/desired/?$rid=1", "$iothub/twin/PATCH/properties/reported/",
        "$iothub/twin/DELETE/?$rid=1", "$iothub/twin/res/200/?$rid=1", "$iothub/methods/POST/x/?$rid=1",
        "$iothub/methods/res/200/", "$iothub/methods/res/", "$iothub/x",
        "$dps/registrations/PUT/iotdps-register/?$rid=1", "$SYS/x",
    ],
)
@pytest.mark.parametrize("qos", [0, 1])
def test_unknown_and_foreign_topics_end_the_session(device, topic, qos):
    with device.connect() as client:
        client.write(publish(topic.format(d=device.id), b"x", qos=qos))
        client.expect_closed()


def test_topics_that_are_not_utf_8_end_the_session(device):
    for bad in (b"\xff", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"a\0b"):
        with device.connect() as client:
            client.write(publish(device.events.encode() + bad, b"x"))
            client.expect_closed()


def test_qos_2_ends_the_session(device):
    with device.connect() as client:
        client.write(publish(device.events, b"x", qos=2))
        client.expect_closed()


@pytest.mark.parametrize("tail", [b"", b"\xf0\x00"])
def test_what_came_before_an_error_is_kept(device, tail):
    """The acknowledgement may be lost with the connection; the message may not."""
    with device.connect() as client:
        client.write(publish(device.events, b"first") + b"\xf0\x00" + tail)
        with pytest.raises(Closed):
            while True:
                assert client.packet()[0] == PUBACK
    assert events_of(device, 1)[0]["body"] == "first"


# Sessions


def test_clean_and_stored_sessions(wired, device):
    with device.connect(clean=False) as client:
        assert not client.session_present
        assert client.subscribe(device.bound, METHODS) == [1, 1]
        client.disconnect()
    wired.send_c2d(device.id, "while away")
    with device.connect(clean=False) as client:
        assert client.session_present
        message = client.expect(PUBLISH)
        assert message.body == b"while away"
        client.write(puback(message.packet_id))
        client.expect_silence()
        client.disconnect()
    with device.connect(clean=True) as client:
        assert not client.session_present
        wired.send_c2d(device.id, "nobody listens")
        client.expect_silence()
        client.disconnect()
    with device.connect(clean=False) as client:
        assert not client.session_present, "CleanSession 1 must have erased the stored one"
        client.expect_silence()


def test_an_expired_token_ends_the_connection_and_not_the_session(own_wired):
    hub = own_wired('[hub]\ntoken_grace = "1s"\nclock_skew = "0s"\n')
    device = hub.create("d1")
    device.connect(expect=5, password=device.token(lifetime=-2)).close()
    client = device.connect(clean=False, password=device.token(lifetime=3))
    start = time.monotonic()
    client.subscribe(device.bound, TWIN)
    client.publish(device.events, b"before")
    client.expect_closed(seconds=15)
    assert time.monotonic() - start > 2, "closed before the token had expired"
    hub.send_c2d("d1", "while away")
    with device.connect(clean=False, password=device.token()) as client:
        assert client.session_present
        # Without a new subscription.
        message = client.expect(PUBLISH)
        assert message.body == b"while away"
        client.write(puback(message.packet_id))
        client.publish(device.events, b"after")
    assert [event["body"] for event in events_of(device, 2)] == ["before", "after"]


def test_silence_and_slow_logins_end_when_the_configuration_says(own_wired):
    hub = own_wired('[mqtt]\nconnect_timeout = "1s"\nsilence_max = "2s"\n')
    device = hub.create("d1")
    with Mqtt(hub) as client:
        client.expect_closed(seconds=8)
    with device.connect(keep_alive=0) as client:
        client.expect_closed(seconds=10)


def test_stored_sessions_survive_kill_9(own_wired):
    hub = own_wired()
    device = hub.create("d1")
    client = device.connect(clean=False)
    client.subscribe(device.bound, TWIN, METHODS)
    hub.send_c2d("d1", "delivered")
    first = client.expect(PUBLISH)
    assert not first.dup
    for n in range(50):
        client.publish(device.events, b"%d" % n)
    hub.send_c2d("d1", "also delivered")
    assert client.expect(PUBLISH).body == b"also delivered"
    hub.process.kill()
    hub.process.wait()
    hub.start()
    with device.connect(clean=False) as client:
        assert client.session_present
        # Not acknowledged before the cut: again, in order, marked as duplicates.
        bodies = []
        for _ in range(2):
            message = client.expect(PUBLISH, seconds=70)
            assert message.dup
            bodies.append(message.body)
            client.write(puback(message.packet_id))
        assert bodies == [b"delivered", b"also delivered"]
        client.write(publish("$iothub/twin/GET/?$rid=1", b" ", qos=0))
        assert client.expect(PUBLISH).topic == "$iothub/twin/res/200/?$rid=1"
        wait_until(lambda: hub.json("GET", "/devices/d1")["cloudToDeviceMessageCount"] == 0, "both to be complete")
    assert [event["body"] for event in events_of(device, 50)] == list(range(50))


def test_a_twin_get_as_first_packet_without_subscription_is_not_answered(device):
    with device.connect() as client:
        client.write(publish("$iothub/twin/GET/?$rid=1", b" "))
        client.expect(PUBACK)
        client.expect_silence()


def test_subscriptions(wired, device):
    module = wired.create(device.id, "m1")
    with module.connect() as client:
        granted = client.subscribe(
            f"{module.path}/messages/devicebound/#", f"{module.path}/inputs/#", f"{module.path}/#", TWIN, METHODS
        )
        assert granted == [1] * 5
    with device.connect() as client:
        assert client.subscribe(device.bound, TWIN, DESIRED, METHODS, qos=2) == [1] * 4
        assert client.subscribe(device.bound, TWIN, qos=0) == [0, 0]
        foreign = ["#", "+/#", "devices/#", "devices/other/messages/devicebound/#", "$SYS/#", "$iothub/#", "x" * 60000]
        assert client.subscribe(*foreign) == [0x80] * len(foreign)
        client.write(packet(UNSUBSCRIBE, b"\0\x05" + text("never/subscribed") + text(TWIN), 2))
        assert client.expect(UNSUBACK) == b"\0\x05"
        client.write(publish("$iothub/twin/GET/?$rid=1", qos=0))
        client.expect_silence()


def test_a_flood_of_subscribes_is_answered_and_bounded(device):
    with device.connect() as client:
        before = device.hub.rss_bytes()
        flood = b"".join(
            subscribe(*([device.bound, TWIN, "a/b"] * 20), packet_id=n % 65535 + 1, qos=n % 2) for n in range(3000)
        )
        writer = threading.Thread(target=client.socket.sendall, args=[flood], daemon=True)
        writer.start()
        for n in range(3000):
            body = client.expect(SUBACK, seconds=60)
            assert struct.unpack(">H", body[:2])[0] == n + 1
            assert body[2:] == bytes([n % 2, n % 2, 0x80] * 20)
        writer.join()
        assert device.hub.rss_bytes() - before < 24 << 20


def test_one_subscribe_with_very_many_filters(device):
    """As many as a packet can hold: one answer with as many codes, or the end; not a crash."""
    with device.connect() as client:
        client.write(subscribe(*["a"] * 60000))
        try:
            body = client.expect(SUBACK, seconds=30)
            assert body[2:] == b"\x80" * 60000
        except Closed:
            pass
    device.connect().close()


# Keep-alive, takeover, will


def test_keep_alive(device):
    with device.connect(keep_alive=2) as client:
        begin = time.monotonic()
        client.expect_closed(seconds=10)
        assert 2.5 < time.monotonic() - begin < 6
    with device.connect(keep_alive=2) as client:
        for _ in range(8):  # any packet counts; together longer than 1.5 times the keep-alive
            time.sleep(0.5)
            client.write(puback(4711))
        client.expect_silence()


def test_a_takeover_closes_the_older_connection_only_when_it_succeeds(device):
    old = device.connect(will=(device.events, "gone"))
    refused(device, password=device.token(key="AAAA"))
    old.expect_silence()
    new = device.connect()
    old.expect_closed()
    new.publish(device.events, b"new")
    assert events_of(device, 1)[0]["body"] == "new", "a takeover publishes no will"
    new.disconnect()


def test_a_storm_of_takeovers_leaves_one_session(wired, device):
    """The last one in stays, every other one is closed, nothing leaks."""
    clients, failures = [], []
    lock = threading.Lock()

    def worker():
        try:
            for _ in range(25):
                client = Mqtt(wired)
                client.write(connect(device.client_id, device.username, device.token(), clean=False))
                try:
                    # 3: overtaken by a newer one while it was let in; every SDK tries again.
                    assert client.expect(CONNACK)[1] in (0, 3)
                except Closed:
                    pass  # taken over before its CONNACK was written
                with lock:
                    clients.append(client)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=worker) for _ in range(8)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert not failures, failures

    def alive(client):
        try:
            client.write(packet(PINGREQ))
            return client.packet(5)[0] == PINGRESP
        except (Closed, OSError):
            return False

    assert sum(alive(client) for client in clients) == 1
    assert wired.json("GET", f"/devices/{device.id}")["connectionState"] == "Connected"
    for client in clients:
        client.close()
    wait_until(
        lambda: wired.json("GET", f"/devices/{device.id}")["connectionState"] == "Disconnected", "the end of the last"
    )


@pytest.mark.parametrize("end", ["reset", "close", "silence", "error", "half-close"])
def test_a_will_is_published_when_a_connection_ends_without_goodbye(device, end):
    will = (device.events + "a=b&%24.ct=text%2Fplain", "gone", "retain")
    client = device.connect(will=will, keep_alive=1)
    if end == "reset":
        client.reset()
    elif end == "close":
        client.close()
    elif end == "error":
        client.write(packet(15))
    elif end == "half-close":
        client.socket.shutdown(socket.SHUT_WR)
        client.expect_closed()
    (event,) = events_of(device, 1)
    assert event["body"] == "gone"
    assert event["properties"] == {"a": "b", "iothub-MessageType": "Will", "mqtt-retain": "true"}


def test_no_will_after_a_goodbye_or_for_a_foreign_topic(wired, device):
    other = wired.create(device.id + "x")
    device.connect(will=(device.events, "never")).disconnect()
    device.connect(will=(other.events, "never")).reset()
    device.connect(will=("anything", "never")).reset()
    wait_until(lambda: wired.json("GET", f"/devices/{device.id}")["connectionState"] == "Disconnected", "the end")
    with device.connect() as client:
        client.publish(device.events, b"marker")
    with other.connect() as client:
        client.publish(other.events, b"marker")
    assert events_of(device, 1)[0]["body"] == "marker"
    assert events_of(other, 1)[0]["body"] == "marker"


def test_a_session_ends_with_its_authority(wired, device_id):
    def change(device, **body):
        wired.json("PUT", f"/devices/{device.id}", {**device.record, **body}, headers={"If-Match": "*"})

    device = wired.create(device_id)
    client = device.connect()
    change(device, status="disabled")
    client.expect_closed(2)
    refused(device)
    change(device, status="enabled")
    client, secondary = device.connect(), None
    key = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="
    change(device, authentication={"type": "sas", "symmetricKey": {"primaryKey": key, "secondaryKey": device.secondary}})
    client.expect_closed(2)
    refused(device)
    secondary = device.connect(password=device.token(key=device.secondary))
    module = wired.create(device_id, "m")
    module_client = module.connect()
    assert wired.call("DELETE", f"/devices/{device_id}")[0] == 204
    secondary.expect_closed(2)
    module_client.expect_closed(2)
    refused(device, password=device.token(key=device.secondary))


# Telemetry


@pytest.mark.parametrize(
    "bag, system, properties",
    [
        ("", {}, {}),
        ("/", {}, {}),
        ("?a=b", {}, {"a": "b"}),
        ("a=b/", {}, {"a": "b"}),
        ("%24.mid=1&%24.cid=2&%24.uid=u&%24.to=t&a=b", {"messageId": "1", "correlationId": "2", "userId": "u", "to": "t"}, {"a": "b"}),
        ("a=b&$.mid=1", {"messageId": "1"}, {"a": "b"}),
        ("path=/x/y&t=12:30", {}, {"path": "/x/y", "t": "12:30"}),
        ("a=1+1&b=%2B", {}, {"a": "1+1", "b": "+"}),
        ("a=&b", {}, {"a": "", "b": None}),
        ("a=1&a=2", {}, {"a": "2"}),
        ("a=b=c", {}, {"a": "b=c"}),
        ("a=%zz&b=%4", {}, {"a": "%zz", "b": "%4"}),
        ("%E2%82%AC=%F0%9F%98%80", {}, {"€": "😀"}),
        ("%24.ct=application%2Fjson%3Bcharset%3Dutf-8&%24.ce=utf-8", {"contentType": "application/json;charset=utf-8", "contentEncoding": "utf-8"}, {}),
    ],
)
def test_property_bags(device, bag, system, properties):
    with device.connect() as client:
        client.publish(device.events + bag, b'{"x":1}')
    (event,) = events_of(device, 1)
    got = event.get("systemProperties", {})
    assert {name: value for name, value in got.items() if name in system} == system
    assert event.get("properties", {}) == properties


@pytest.mark.parametrize(
    "bag",
    [
        "&", "&&&&", "=", "==", "=x", "&=&=", "%", "%%", "%24.", "%24.mid", "%24.mid=", "$.", "$", "a=%ff%fe",
        "%00=%00", "%24.exp=never&%24.ctime=-1", "%24.cdid=other&%24.cmid=m&iothub-connection-device-id=other",
        "iothub-enqueuedtime=1970-01-01T00:00:00Z&iothub-message-source=x", "&".join(f"k{n}=v" for n in range(5000)),
        "k=" + "v" * 60000, "k" * 60000, "%24.mid=" + "x" * 60000, "a=b&" * 15000,
    ],
    ids=lambda bag: f"{bag[:40]}({len(bag)})",
)
def test_property_bags_that_lie_harm_nobody(device, bag):
    with device.connect() as client:
        client.publish(device.events + bag, b"body")
        client.publish(device.events, b"after")
    first, after = events_of(device, 2)
    assert (first["body"], after["body"]) == ("body", "after")
    assert first["deviceId"] == device.id and "moduleId" not in first
    assert first["source"] == "Telemetry"
    assert first["enqueuedTime"] > "2020"
    assert "iothub-connection-device-id" not in first["systemProperties"]


def test_sizes_of_messages(device):
    with device.connect() as client:
        client.publish(device.events, b"x" * EVENT_BYTES_MAX)
        client.publish(device.events, b"")
    with device.connect() as client:
        client.write(publish(device.events, b"x" * (EVENT_BYTES_MAX + 1)))
        client.expect_closed()
    with device.connect() as client:
        client.write(publish(device.events + "k=" + "v" * 1000, b"x" * (EVENT_BYTES_MAX - 100)))
        client.expect_closed()
    with device.connect(transport="tls") as client:
        client.socket.sendall(b"\x32\xff\xff\xff\x7f" + text(device.events))
        client.expect_closed()


def test_duplicates_and_retained_messages(device):
    with device.connect() as client:
        client.write(publish(device.events, b"one", packet_id=5))
        client.expect(PUBACK)
        client.write(publish(device.events, b"one", packet_id=5, flags=8))
        assert client.expect(PUBACK) == b"\0\5"
        client.publish(device.events + "a=b", b"kept", flags=1)
        client.write(publish(device.events, b"q0", qos=0))
        client.expect_silence()
    events = events_of(device, 4)
    assert [event["body"] for event in events] == ["one", "one", "kept", "q0"]
    assert events[2]["properties"] == {"a": "b", "mqtt-retain": "true"}


def test_a_window_of_publishes_is_acknowledged_in_order(device):
    with device.connect() as client:
        data = b"".join(publish(device.events, b"%d" % n, packet_id=n) for n in range(1, 2001))
        threading.Thread(target=client.socket.sendall, args=[data], daemon=True).start()
        for n in range(1, 2001):
            assert client.expect(PUBACK) == struct.pack(">H", n)
    assert [event["body"] for event in events_of(device, 2000)] == list(range(1, 2001))


def test_module_output(wired, device):
    module = wired.create(device.id, "m1")
    with module.connect() as client:
        client.publish(module.events + "%24.on=out1&a=b/", b"x")
        client.write(publish(device.events, b"the device's own topic"))
        client.expect_closed()
    (event,) = events_of(device, 1)
    assert (event["moduleId"], event["systemProperties"]["outputName"]) == ("m1", "out1")
    assert event["properties"] == {"a": "b"}


# To the device


def test_a_cloud_to_device_topic(wired, device):
    properties = {"k=&/+%": "v=&/+% ü€😀", "plain": "x"}
    with device.connect() as client:
        client.subscribe(device.bound)
        wired.send_c2d(
            device.id, "body", messageId="id 1", correlationId="c/1", contentType="text/plain", contentEncoding="utf-8",
            properties=properties, ack="full",
        )
        message = client.expect(PUBLISH)
        assert (message.qos, message.dup, message.retain) == (1, False, False)
        assert message.packet_id > 0
        head, bag = message.topic.split("/devicebound/")
        assert head == f"devices/{device.id}/messages"
        pairs = [pair.split("=") for pair in bag.split("&")]
        assert all(len(pair) == 2 for pair in pairs), bag
        assert "/" not in bag
        keys = [unquote(key) for key, _ in pairs]
        values = {unquote(key): unquote(value) for key, value in pairs}
        assert values["$.mid"] == "id 1" and values["$.cid"] == "c/1" and values["$.ct"] == "text/plain"
        assert values["$.to"] == f"/devices/{device.id}/messages/deviceBound"
        assert values["iothub-ack"] == "full"
        assert {key: values[key] for key in properties} == properties
        assert all("%24." in key for key, _ in pairs if unquote(key).startswith("$."))
        firsts = [key.startswith("$.") for key in keys]
        assert firsts == sorted(firsts, reverse=True), "system properties come first"
        client.write(puback(message.packet_id))
        wait_until(lambda: wired.json("GET", f"/devices/{device.id}")["cloudToDeviceMessageCount"] == 0, "completion")
        wired.send_c2d(device.id, "bare")
        message = client.expect(PUBLISH)
        assert "%24.to=" in message.topic and not message.topic.endswith("/")


def test_a_message_without_puback_comes_again_marked(wired, device):
    client = device.connect(clean=False)
    client.subscribe(device.bound)
    wired.send_c2d(device.id, "again")
    assert not client.expect(PUBLISH).dup
    client.close()
    with device.connect(clean=False) as client:
        message = client.expect(PUBLISH)
        assert message.dup and message.body == b"again"
        client.write(puback(message.packet_id))
        wait_until(lambda: wired.json("GET", f"/devices/{device.id}")["cloudToDeviceMessageCount"] == 0, "completion")


@pytest.mark.parametrize("goodbye", [True, False])
def test_an_acknowledgement_counts_even_if_the_client_leaves_at_once(wired, device, goodbye):
    for n in range(10):
        wired.send_c2d(device.id, str(n))
    client = device.connect(clean=False)
    client.subscribe(device.bound)
    packets = b"".join(puback(client.expect(PUBLISH).packet_id) for _ in range(10))
    client.write(packets + (packet(14) if goodbye else b""))
    client.close()
    wait_until(lambda: wired.json("GET", f"/devices/{device.id}")["connectionState"] == "Disconnected", "the end")
    assert wired.json("GET", f"/devices/{device.id}")["cloudToDeviceMessageCount"] == 0


def test_qos_0_completes_what_was_written(wired, device):
    with device.connect() as client:
        client.subscribe(device.bound, qos=0)
        wired.send_c2d(device.id, "once")
        message = client.expect(PUBLISH)
        assert (message.qos, message.dup) == (0, False)
        wait_until(lambda: wired.json("GET", f"/devices/{device.id}")["cloudToDeviceMessageCount"] == 0, "completion")


def test_the_queue_is_bounded_and_ordered(wired, device):
    for n in range(50):
        wired.send_c2d(device.id, str(n))
    error = wired.send_c2d(device.id, "one too many", expect=403)
    assert error["Message"].startswith("ErrorCode:DeviceMaximumQueueDepthExceeded;")
    with device.connect() as client:
        client.subscribe(device.bound)
        for n in range(50):
            message = client.expect(PUBLISH)
            assert message.body == b"%d" % n
            client.write(puback(message.packet_id))
    wait_until(lambda: wired.json("GET", f"/devices/{device.id}")["cloudToDeviceMessageCount"] == 0, "completion")


def twin_request(client, topic, body=b"", qos=0):
    client.write(publish(topic, body, qos=qos, packet_id=321))
    if qos:
        assert client.expect(PUBACK) == struct.pack(">H", 321)
    return client.expect(PUBLISH)


def test_twin_requests(wired, device):
    with device.connect() as client:
        client.subscribe(TWIN, qos=0)
        rid = "5C2a-%24 not re-encoded"
        answer = twin_request(client, f"$iothub/twin/GET/?$rid={rid}", b" ", qos=1)
        assert answer.topic == f"$iothub/twin/res/200/?$rid={rid}" and answer.qos == 0
        assert json.loads(answer.body) == {"desired": {"$version": 1}, "reported": {"$version": 1}}
        patch = "$iothub/twin/PATCH/properties/reported/?$rid=2"
        answer = twin_request(client, patch, b'{"a":{"b":1,"c":2}}')
        assert (answer.topic, answer.body) == ("$iothub/twin/res/204/?$rid=2&$version=2", b"")
        assert twin_request(client, patch, b'{"a":{"b":null}}').topic.endswith("$version=3")
        assert json.loads(twin_request(client, "$iothub/twin/GET/?$rid=3").body)["reported"] == {"a": {"c": 2}, "$version": 3}
        assert "/204/" in twin_request(client, patch + "&$version=3", b'{"d":1}').topic
        for status, topic, body in [
            (412, patch + "&$version=3", b'{"d":2}'),
            (400, patch, b""), (400, patch, b"[]"), (400, patch, b"1"), (400, patch, b"{"), (400, patch, b'{"a":1}x'),
            (400, patch, b"\xff"), (400, patch, b'{"a.b":1}'), (400, patch, b'{"a b":1}'),
            (400, patch, json.dumps({"x": "y" * 4097}).encode()),
            (400, patch, json.dumps({"k" * 1025: 1}).encode()),
            (400, patch, json.dumps({f"k{n}": "y" * 4000 for n in range(9)}).encode()),
            (400, patch, b'{"n":9999999999999999}'), (400, patch, b'{"a":[null]}'),
            (400, patch, b'{"a":' * 12 + b"1" + b"}" * 12), (400, patch, b'{"a":' * 20000 + b"1" + b"}" * 20000),
            (400, patch, b"[" * 200000),
        ]:
            answer = twin_request(client, topic, body)
            got = int(answer.topic.split("/")[3])
            assert got == status or (status == 412 and got == 400), (answer.topic, body[:80])
            error = json.loads(answer.body)
            assert str(error["errorCode"]).startswith(str(got)) and error["message"] and error["trackingId"]
        # At the limits it is taken.
        assert "/204/" in twin_request(client, patch, json.dumps({"x": "y" * 4096}).encode()).topic
        assert "/204/" in twin_request(client, patch, b'{"a":' * 10 + b"1" + b"}" * 10).topic
        assert "/204/" in twin_request(client, patch, b'{"n":4503599627370495,"m":-4503599627370496}').topic


def test_desired_properties(wired, device):
    with device.connect() as client:
        wired.json("PATCH", f"/twins/{device.id}", {"properties": {"desired": {"before": 1}}})
        client.expect_silence()
        client.subscribe(DESIRED)
        client.expect_silence()
        wired.json("PATCH", f"/twins/{device.id}", {"properties": {"desired": {"a": {"b": 1}, "before": None}}})
        message = client.expect(PUBLISH)
        assert message.topic == "$iothub/twin/PATCH/properties/desired/?$version=3"
        assert json.loads(message.body) == {"a": {"b": 1}, "before": None, "$version": 3}
        wired.json("PATCH", f"/twins/{device.id}", {"tags": {"t": 1}})
        client.expect_silence()
        wired.json("PUT", f"/twins/{device.id}", {"properties": {"desired": {"whole": True}}})
        message = client.expect(PUBLISH)
        # The whole new content; what is gone may be named with null.
        content = {key: value for key, value in json.loads(message.body).items() if value is not None}
        assert content == {"whole": True, "$version": 4}


class Call:
    """A direct method call in a thread."""

    def __init__(self, hub, path, **body):
        self.result = None
        self.thread = threading.Thread(target=self.run, args=[hub, path, body])
        self.thread.start()

    def run(self, hub, path, body):
        self.result = hub.call("POST", f"{path}/methods", {"methodName": "go", **body})

    def wait(self):
        self.thread.join(40)
        status, headers, body = self.result
        return status, json.loads(body), dict(headers).get("iothub-errorcode")


def answer(client, status=200, body=b"null", qos=0):
    request = client.expect(PUBLISH)
    name, rid = request.topic.removeprefix("$iothub/methods/POST/").split("/?$rid=")
    assert not set(rid) & set("=&/$")
    client.write(publish(f"$iothub/methods/res/{status}/?$rid={rid}", body, qos=qos))
    if qos:
        client.expect(PUBACK)
    return request, name, rid


def test_methods(wired, device):
    path = f"/twins/{device.id}"
    with device.connect() as client:
        call = Call(wired, path)
        assert call.wait()[0::2] == (404, "DeviceNotOnline"), "connected, but not subscribed"
        assert client.subscribe(METHODS, qos=0) == [0]
        for status, body, payload, qos in [
            (200, b'{"a":1}', {"a": 1}, 0), (500, b"null", None, 1), (200, b"", None, 0), (-5, b'"x"', "x", 0), (0, b"[1]", [1], 0),
        ]:
            call = Call(wired, path, payload={"q": "ü"})
            request, name, _ = answer(client, status, body, qos)
            assert (name, request.qos) == ("go", 0)
            assert json.loads(request.body) == {"q": "ü"}
            code, got, _ = call.wait()
            assert (code, got["status"], got.get("payload")) == (200, status, payload)
        call = Call(wired, path, payload="x" * (128 * 1024 - 2))
        request, _, _ = answer(client, 200, b'"' + b"y" * (128 * 1024 - 2) + b'"')
        assert len(request.body) == 128 * 1024
        assert len(call.wait()[1]["payload"]) == 128 * 1024 - 2
        # An answer that is not JSON, and one that nobody asked for.
        call = Call(wired, path)
        answer(client, 200, b"{not json")
        assert call.wait()[0::2] == (502, "GenericBadGateway")
        for rid in ("0", "4711", "no-number", "9" * 40):
            client.write(publish(f"$iothub/methods/res/200/?$rid={rid}", b"1", qos=0))
        call = Call(wired, path, responseTimeoutInSeconds=5)
        request = client.expect(PUBLISH)
        begin = time.monotonic()
        assert call.wait()[0::2] == (504, "GatewayTimeout")
        assert time.monotonic() - begin < 5.5
        rid = request.topic.split("$rid=")[1]
        client.write(publish(f"$iothub/methods/res/200/?$rid={rid}", b"1", qos=0))
        client.expect_silence()
        call = Call(wired, path)
        client.expect(PUBLISH)
        client.close()
        assert call.wait()[0::2] == (404, "DeviceConnectionClosedRemotely")
    call = Call(wired, path, connectTimeoutInSeconds=20)
    with device.connect() as client:
        client.subscribe(METHODS)
        answer(client, 201)
        assert call.wait()[1]["status"] == 201


def test_an_answer_larger_than_allowed(wired, device):
    with device.connect() as client:
        client.subscribe(METHODS)
        call = Call(wired, f"/twins/{device.id}", responseTimeoutInSeconds=5)
        answer(client, 200, b'"' + b"y" * (128 * 1024) + b'"')
        assert call.wait()[0] in (404, 502), "an answer of more than 128 KB is no answer"


def test_another_devices_answer_is_not_believed(wired, device):
    other = wired.create(device.id + "o")
    with device.connect() as client, other.connect() as thief:
        client.subscribe(METHODS)
        call = Call(wired, f"/twins/{device.id}")
        request = client.expect(PUBLISH)
        rid = request.topic.split("$rid=")[1]
        thief.write(publish(f"$iothub/methods/res/666/?$rid={rid}", b'"stolen"', qos=1))
        thief.expect(PUBACK)
        client.write(publish(f"$iothub/methods/res/200/?$rid={rid}", b'"own"', qos=0))
        assert call.wait()[1] == {"status": 200, "payload": "own"}


# Clients that mean no good


def test_a_reader_that_does_not_read_is_bounded_and_then_closed(wired, device):
    before = wired.rss_bytes()
    client = Mqtt(wired)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.write(connect(device.client_id, device.username, device.token()))
    client.expect_connack()
    client.subscribe(TWIN, qos=0)
    wired.json("PATCH", f"/twins/{device.id}", {"properties": {"desired": {f"k{n}": "x" * 4000 for n in range(7)}}})
    # 30 KB of answer for 30 bytes of question.
    question = publish("$iothub/twin/GET/?$rid=1", qos=0) * 1000
    client.socket.settimeout(2)
    sent = 0
    try:
        while sent < 30 << 20:
            sent += client.socket.send(question)
    except (TimeoutError, OSError):
        pass
    assert sent < 30 << 20, "a client that does not read must not be read from without end"
    assert wired.rss_bytes() - before < 32 << 20
    other = wired.create(device.id + "x")
    with other.connect() as fine:
        fine.publish(other.events, b"others are served")
    client.close()


def test_half_closed_connections_end(wired, device):
    for transport in ("plain", "tls"):
        client = device.connect(transport=transport)
        client.publish(device.events, b"x")
        # Of TCP, without the goodbye of TLS.
        socket.socket.shutdown(client.socket, socket.SHUT_WR)
        client.expect_closed(5)
    with Mqtt(wired) as client:
        client.write(connect(device.client_id, device.username, device.token())[:20])
        client.socket.shutdown(socket.SHUT_WR)
        client.expect_closed()


def test_publishes_of_a_client_that_half_closes_at_once_are_kept(device):
    with device.connect() as client:
        client.write(b"".join(publish(device.events, b"%d" % n, packet_id=n) for n in range(1, 101)))
        client.socket.shutdown(socket.SHUT_WR)
    assert [event["body"] for event in events_of(device, 100)] == list(range(1, 101))


def test_tls_that_is_none(wired, device):
    for port in (wired.mqtt_port, wired.https_port):
        for data in (b"\0" * 100, b"GET / HTTP/1.1\r\n\r\n", connect(**GOOD), b"\x16\x03\x01\xff\xff" + b"x" * 100):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as tcp:
                tcp.sendall(data)
                if data[0] == 0x16:
                    tcp.shutdown(socket.SHUT_WR)
                with pytest.raises((ConnectionResetError, Closed)):
                    while tcp.recv(1000):
                        pass
                    raise Closed
    device.connect(transport="tls").close()


def test_a_thousand_silent_connections_keep_nobody_out(wired, device):
    before = wired.rss_bytes()
    silent = []
    try:
        for port in (wired.plain_port, wired.mqtt_port, wired.https_port):
            for _ in range(1000):
                silent.append(socket.create_connection(("127.0.0.1", port), timeout=10))
        for transport in ("plain", "tls", "websocket"):
            begin = time.monotonic()
            with device.connect(transport=transport) as client:
                client.publish(device.events, b"served")
            assert time.monotonic() - begin < 5
        assert wired.rss_bytes() - before < 40 << 20
    finally:
        for connection in silent:
            connection.close()
