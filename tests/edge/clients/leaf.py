"""A device behind an edge device, on the unmodified Azure IoT device SDK for Python.

One argument, a JSON object: `connectionString` (with GatewayHostName), or `certificate` and `key` (files), `host` and
`device`; `ca` (file); `transport` (`Mqtt`, `MqttWs`); `messages` (how many to send), `delay` (seconds between them).
Prints one JSON object per line; ends at SIGTERM.
"""

import json
import signal
import sys
import threading
import time

from azure.iot.device import IoTHubDeviceClient, Message, MethodResponse, X509
from azure.iot.device.exceptions import ClientError, CredentialError

STOP = threading.Event()
OUTPUT = threading.Lock()


def say(event, **rest):
    with OUTPUT:
        # In one write: warnings go to the same file, from other threads.
        sys.stdout.write(json.dumps({"event": event, **rest}) + "\n")
        sys.stdout.flush()


def make(options):
    with open(options["ca"], encoding="ascii") as file:
        common = {"server_verification_cert": file.read(), "websockets": options["transport"] == "MqttWs"}
    if "connectionString" in options:
        return IoTHubDeviceClient.create_from_connection_string(options["connectionString"], **common)
    certificate = X509(options["certificate"], options["key"])
    return IoTHubDeviceClient.create_from_x509_certificate(certificate, options["host"], options["device"], **common)


def connect(client):
    """Tries until it is let in; says so each time it is not."""
    while not STOP.is_set():
        try:
            client.connect()
            say("connected")
            return
        except CredentialError:
            say("refused")
        except ClientError as error:
            say("unreachable", why=repr(error))
        STOP.wait(1)


def send(client, number):
    """Until it is acknowledged."""
    message = Message(json.dumps({"number": number}))
    message.content_type, message.content_encoding = "application/json", "utf-8"
    message.custom_properties["number"] = str(number)
    while not STOP.is_set():
        try:
            client.send_message(message)
            say("sent", number=number)
            return
        except ClientError as error:
            say("unsent", number=number, why=repr(error))
            STOP.wait(0.3)


def attend(client):
    def on_method(request):
        say("method", name=request.name, payload=request.payload)
        client.send_method_response(MethodResponse.create_from_method_request(request, 200, request.payload))

    def on_desired(patch):
        say("desired", patch=patch)
        patch.pop("$version", None)
        client.patch_twin_reported_properties(patch)

    client.on_method_request_received = on_method
    client.on_twin_desired_properties_patch_received = on_desired
    client.on_message_received = lambda message: say("told", text=message.data.decode())


def main():
    options = json.loads(sys.argv[1])
    client = make(options)
    connect(client)
    if STOP.is_set():
        return
    attend(client)
    while not STOP.is_set():
        try:
            say("twin", twin=client.get_twin())
            break
        except ClientError as error:
            say("no twin", why=repr(error))
            STOP.wait(0.5)
    say("ready")
    for number in range(1, options.get("messages", 0) + 1):
        send(client, number)
        if options.get("delay"):
            time.sleep(options["delay"])
    say("done")
    STOP.wait()
    client.shutdown()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: STOP.set())
    main()
