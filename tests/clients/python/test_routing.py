"""Message routing: routes to the built-in endpoint and to a webhook, conditions, enrichments, and an endpoint that fails."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from azure.iot.device import IoTHubDeviceClient, Message

import hub as hubs
from hub import wait_until

ROUTING = "/holdfast/v1/routing"


class Webhook:
    """A server that collects events, and fails as it is told."""

    def __init__(self):
        self.received, self.mode, self.attempts = [], "ok", 0
        self.hung = threading.Event()
        webhook = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                webhook.attempts += 1
                mode = webhook.mode
                if mode == "hang":
                    webhook.hung.wait(60)
                    return
                if mode == "ok":
                    webhook.received.extend(json.loads(line) for line in body.splitlines() if line)
                self.send_response({"ok": 200, "error": 500, "refuse": 400}[mode])
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}/events"

    def close(self):
        self.hung.set()
        self.server.shutdown()
        self.server.server_close()

    def of(self, device_id):
        return [e for e in list(self.received) if e["SystemProperties"].get("connectionDeviceId") == device_id]

    def numbers(self, device_id):
        return [event["Body"]["n"] for event in self.of(device_id)]


@pytest.fixture
def routed(hub):
    """The hub with nothing defined about routing, and as it was before afterwards."""
    before = ask(hub, "GET", "definition").json()
    ask(hub, "PUT", "definition", json={})
    yield hub
    ask(hub, "PUT", "definition", json={})
    ask(hub, "PUT", "definition", json=before)


@pytest.fixture
def webhook(routed):
    server = Webhook()
    settings = {"url": server.url, "format": "json", "timeoutSeconds": 1, "batchEventsMax": 10}
    put(routed, "endpoints/hook", {"type": "http", "settings": settings})
    yield server
    server.close()


def ask(hub, method, path, **options):
    return hub.request(method, f"{ROUTING}/{path}", **options)


def put(hub, path, body):
    answer = ask(hub, "PUT", path, json=body)
    assert answer.status_code in (200, 201), answer.text


def route(hub, name, condition, endpoint="hook", source="DeviceMessages"):
    put(hub, f"routes/{name}", {"source": source, "condition": condition, "endpointNames": [endpoint]})


def health(hub):
    return {entry["endpointId"]: entry for entry in ask(hub, "GET", "health").json()}


class Sender:
    """A device of the SDK."""

    def __init__(self, hub, device_id):
        self.client = IoTHubDeviceClient.create_from_connection_string(
            hub.device_connection_string(device_id), server_verification_cert=hub.ca_pem
        )
        self.client.connect()

    def send(self, body, **properties):
        message = Message(json.dumps(body), content_type="application/json", content_encoding="utf-8")
        message.custom_properties.update(properties)
        self.client.send_message(message)


@pytest.fixture
def sender(hub, device):
    made = Sender(hub, device)
    yield made
    made.client.shutdown()


def test_conditions_decide_where_messages_go(webhook, routed, device, sender):
    routed.request("PATCH", f"/twins/{device}", json={"tags": {"site": "north"}})
    route(routed, "property", "level = 'high'")
    route(routed, "body", "$body.temperature > 30")
    route(routed, "twin", "$twin.tags.site = 'south' AND kind = 'sited'")
    route(routed, "built-in", "level = 'both'", endpoint="events")
    route(routed, "both", "level = 'both'")
    with routed.events(device) as events:
        sender.send({"n": 1}, level="high")
        sender.send({"n": 2, "temperature": 31})
        sender.send({"n": 3, "temperature": 30})
        sender.send({"n": 4}, level="both")
        sender.send({"n": 5}, kind="sited")
        routed.request("PATCH", f"/twins/{device}", json={"tags": {"site": "south"}})
        sender.send({"n": 6}, kind="sited")
        wait_until(lambda: webhook.numbers(device) == [1, 2, 4, 6], "the webhook to have its four")
        # What takes no route takes the fallback route; one message can take both ways.
        assert [event["body"]["n"] for event in events.wait(3)] == [3, 4, 5]
    # Without the fallback route nothing is left for those.
    put(routed, "fallbackRoute", {"isEnabled": False})
    with routed.events(device, "latest") as events:
        sender.send({"n": 7})
        sender.send({"n": 8}, level="both")
        assert [event["body"]["n"] for event in events.wait(1)] == [8]


def test_enrichments_are_added(webhook, routed, device, sender):
    routed.request("PATCH", f"/twins/{device}", json={"tags": {"site": "north"}})
    route(routed, "all", "true")
    for key, value in {"stage": "test", "hub": "$iothubname", "site": "$twin.tags.site", "no": "$twin.tags.no"}.items():
        put(routed, f"enrichments/{key}", {"value": value, "endpointNames": ["hook"]})
    sender.send({"n": 1}, stage="own")
    wait_until(lambda: webhook.numbers(device) == [1], "the message")
    expected = {"stage": "test", "hub": "localhost", "site": "north", "no": "$twin.tags.no"}
    assert webhook.of(device)[0]["Properties"] == expected


@pytest.mark.parametrize("mode", ["error", "hang"])
def test_an_endpoint_that_fails_gets_everything_in_order_later(webhook, routed, device, sender, mode):
    route(routed, "all", "true")
    sender.send({"n": 0})
    wait_until(lambda: webhook.numbers(device) == [0], "the first message")
    webhook.mode = mode
    for number in range(1, 30):
        sender.send({"n": number})
    wait_until(lambda: health(routed)["hook"]["healthStatus"] == "unhealthy", "the endpoint to be unhealthy")
    attempts = webhook.attempts
    wait_until(lambda: webhook.attempts > attempts, "another attempt", 60)
    assert health(routed)["hook"]["lag"] > 0 and health(routed)["hook"]["lastKnownError"]
    webhook.mode = "ok"
    wait_until(lambda: webhook.numbers(device)[-1] == 29, "everything", 60)
    first = list(dict.fromkeys(webhook.numbers(device)))
    assert first == list(range(30))
    wait_until(lambda: health(routed)["hook"]["healthStatus"] == "healthy", "the endpoint to be healthy")
    assert health(routed)["hook"]["deadLetters"] == 0


def test_what_is_refused_becomes_a_dead_letter_and_can_be_put_back(webhook, routed, device, sender):
    route(routed, "all", "true")
    webhook.mode = "refuse"
    sender.send({"n": 1})
    sender.send({"n": 2})
    wait_until(lambda: health(routed)["hook"]["deadLetters"] == 2, "two dead letters")
    letters = ask(routed, "GET", "endpoints/hook/deadLetters").json()
    assert [letter["event"]["body"]["n"] for letter in letters] == [2, 1]
    assert all(letter["deviceId"] == device and "400" in letter["reason"] for letter in letters)
    webhook.mode = "ok"
    answer = ask(routed, "POST", "endpoints/hook/deadLetters/replay")
    assert answer.json() == {"replayed": 2, "gone": 0}
    wait_until(lambda: webhook.numbers(device) == [1, 2], "both")
    assert ask(routed, "GET", "endpoints/hook/deadLetters").json() == []
    metrics = routed.request("GET", "/metrics").text
    assert 'holdfast_endpoint_dead_letters_total{endpoint="hook"}' in metrics


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_nothing_is_lost_when_the_hub_ends_in_the_middle(webhook, routed, device, how):
    if routed.process is None:
        pytest.fail("this test needs a hub of its own: unset HOLDFAST_TEST_CONNECTION_STRING")
    route(routed, "all", "true")
    sender = Sender(routed, device)
    for number in range(50):
        sender.send({"n": number})
    wait_until(lambda: len(webhook.numbers(device)) == 50, "the first half")
    webhook.mode = "error"
    for number in range(50, 100):
        sender.send({"n": number})
    sender.client.shutdown()
    if how == "kill":
        routed.kill()
    else:
        hubs.stop(routed)
        assert routed.process.returncode == 0
    webhook.mode = "ok"
    routed.process = hubs.start(routed.data_dir).process
    wait_until(lambda: webhook.numbers(device)[-1] == 99, "the second half", 60)
    numbers = webhook.numbers(device)
    # A run may be repeated, but nothing comes for the first time before what was sent before it.
    assert list(dict.fromkeys(numbers)) == list(range(100))
    if how == "stop":
        assert numbers == list(range(100)), "a hub that is stopped in order saves its checkpoints"


def test_routes_are_tried_out(routed, device, sender):
    bad = ask(routed, "PUT", "routes/bad", json={"source": "DeviceMessages", "condition": "a = 3", "endpointNames": ["events"]})
    assert bad.status_code == 400
    assert bad.json()["details"]["compilationErrors"][0]["location"]["start"] == {"line": 1, "column": 1}
    message = {"body": '{"t":31}', "systemProperties": {"contentType": "application/json", "contentEncoding": "utf-8"}}
    body = {"message": message, "route": {"source": "DeviceMessages", "condition": "$body.t > 30"}}
    assert routed.request("POST", "/routing/routes/$testnew", json=body).json()["result"] == "true"
    sender.send({"t": 31})
    live = {"condition": f"$body.t > 30 AND $connectionDeviceId = '{device}'"}
    wait_until(lambda: ask(routed, "POST", "routes/$testlive", json=live).json()["matched"] == 1, "the message")
