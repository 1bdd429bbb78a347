"""A device as a user would write it, on the unmodified Azure IoT device SDK (MQTT over TLS).

Connects, sends telemetry, answers direct methods, takes cloud-to-device messages, and reports what it is told by
desired properties. Prints one JSON line for each thing that happens; ends with 0 once it has seen one method call, one
message and one desired change and has sent its telemetry, or with 1 after the deadline.
"""

import argparse
import json
import sys
import threading
from pathlib import Path

from azure.iot.device import IoTHubDeviceClient, Message, MethodResponse


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connection-string", required=True)
    parser.add_argument("--ca", required=True, help="PEM file of the hub's certificate authority")
    parser.add_argument("--messages", type=int, default=5)
    parser.add_argument("--websockets", action="store_true")
    parser.add_argument("--deadline", type=float, default=60.0, help="seconds")
    options = parser.parse_args()

    lock = threading.Lock()
    seen = {"method": threading.Event(), "c2d": threading.Event(), "twin-desired": threading.Event()}

    def tell(event, **details):
        with lock:
            print(json.dumps({"event": event, **details}), flush=True)
        if event in seen:
            seen[event].set()

    client = IoTHubDeviceClient.create_from_connection_string(
        options.connection_string,
        server_verification_cert=Path(options.ca).read_text(),
        websockets=options.websockets,
    )

    def on_method(request):
        response = MethodResponse.create_from_method_request(request, 200, {"done": request.name})
        client.send_method_response(response)
        tell("method", name=request.name, payload=request.payload)

    def on_desired(patch):
        tell("twin-desired", patch=patch)
        reported = {key: value for key, value in patch.items() if not key.startswith("$")}
        client.patch_twin_reported_properties(reported)
        tell("twin-reported", reported=reported)

    client.on_method_request_received = on_method
    client.on_message_received = lambda message: tell("c2d", data=message.data.decode())
    client.on_twin_desired_properties_patch_received = on_desired
    client.connect()
    tell("connected")
    twin = client.get_twin()
    tell("twin", desired=twin["desired"], reported=twin["reported"])
    for number in range(options.messages):
        message = Message(json.dumps({"temperature": 20 + number, "number": number}))
        message.content_type = "application/json"
        message.content_encoding = "utf-8"
        message.custom_properties["alert"] = "true" if number == options.messages - 1 else "false"
        client.send_message(message)
        tell("telemetry-sent", number=number)
    tell("ready")
    complete = all(event.wait(options.deadline) for event in seen.values())
    client.shutdown()
    tell("done" if complete else "deadline")
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main())
