"""A module on the unmodified Azure IoT device SDK for Python, started from the edge environment."""

import json
import signal
import sys
import threading
import time

from azure.iot.device import IoTHubModuleClient, Message, MethodResponse

STOP = threading.Event()
PRINTING = threading.Lock()


def say(event, **rest):
    # Each line in one piece: handlers have threads of their own, and `print` writes the line end by itself, of which engines
    # make a record of its own (asked for the last lines, Podman 4.3 forgets the piece before it: its issue 19545).
    with PRINTING:
        sys.stdout.write(json.dumps({"event": event, **rest}) + "\n")
        sys.stdout.flush()


def forward(client, message):
    """A reading becomes an alert, with its body and its property `sequenceNumber`."""
    body = json.loads(message.data)
    alert = Message(json.dumps({"alert": body, "by": "python"}))
    alert.content_type = "application/json"
    alert.content_encoding = "utf-8"
    alert.custom_properties["source"] = message.input_name
    for name, value in message.custom_properties.items():
        alert.custom_properties[name] = value
    client.send_message_to_output(alert, "alerts")
    say("forwarded", input=message.input_name, properties=dict(message.custom_properties))


def answer(client, request):
    say("method", name=request.name, payload=request.payload)
    if request.name == "echo":
        return 200, request.payload
    if request.name == "call":
        params = {"methodName": request.payload["method"], "payload": request.payload.get("payload"),
                  "responseTimeoutInSeconds": 10, "connectTimeoutInSeconds": 5}
        result = client.invoke_method(params, request.payload["device"], request.payload.get("module"))
        return 200, result
    return 404, {"message": f"no method {request.name}"}


def main():
    client = IoTHubModuleClient.create_from_edge_environment()
    lock = threading.Lock()

    def on_message(message):
        with lock:
            forward(client, message)

    def on_method(request):
        try:
            status, payload = answer(client, request)
        except Exception as error:  # told to the caller
            status, payload = 500, {"message": repr(error)}
        client.send_method_response(MethodResponse.create_from_method_request(request, status, payload))

    def on_desired(patch):
        patch.pop("$version", None)
        client.patch_twin_reported_properties(patch)
        say("reported", patch=patch)

    client.connect()
    client.on_message_received = on_message
    client.on_method_request_received = on_method
    client.on_twin_desired_properties_patch_received = on_desired
    desired = client.get_twin()["desired"]
    desired.pop("$version", None)
    client.patch_twin_reported_properties({"started": time.time(), **desired})
    say("ready")
    while not STOP.wait(0.2):
        pass
    client.shutdown()
    say("stopped")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: STOP.set())
    try:
        main()
    except Exception as error:
        say("failed", error=repr(error))
        sys.exit(1)
