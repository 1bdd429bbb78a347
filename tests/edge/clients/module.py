"""A module behind an edge device, on the unmodified Azure IoT device SDK for Python.

One argument, a JSON object: `connectionString` (with ModuleId and GatewayHostName), `ca` (file), `listen` (prints what
comes to this input), `messages` (how many to send to output `out`), `bytes` (size of each), `delay` (seconds between them).
Prints one JSON object per line; ends at SIGTERM.
"""

import json
import signal
import sys
import threading

from azure.iot.device import IoTHubModuleClient, Message
from azure.iot.device.exceptions import ClientError

STOP = threading.Event()
OUTPUT = threading.Lock()


def say(event, **rest):
    with OUTPUT:
        # In one write: warnings go to the same file, from other threads.
        sys.stdout.write(json.dumps({"event": event, **rest}) + "\n")
        sys.stdout.flush()


def send(client, number, size):
    message = Message("x" * size)
    message.custom_properties["number"] = str(number)
    while not STOP.is_set():
        try:
            client.send_message_to_output(message, "out")
            say("sent", number=number)
            return
        except ClientError as error:
            say("unsent", number=number, why=repr(error))
            STOP.wait(0.3)


def listen(client, name):
    """Not by a handler: the SDK runs those side by side, so that their order says nothing."""
    while True:
        message = client.receive_message_on_input(name)
        say("input", number=int(message.custom_properties["number"]))


def main():
    options = json.loads(sys.argv[1])
    with open(options["ca"], encoding="ascii") as file:
        client = IoTHubModuleClient.create_from_connection_string(
            options["connectionString"], server_verification_cert=file.read())
    while not STOP.is_set():
        try:
            client.connect()
            break
        except ClientError as error:
            say("unreachable", why=repr(error))
            STOP.wait(1)
    if options.get("listen"):
        threading.Thread(target=listen, args=(client, options["listen"]), daemon=True).start()
    say("ready")
    for number in range(1, options.get("messages", 0) + 1):
        send(client, number, options.get("bytes", 16))
        STOP.wait(options.get("delay", 0))
    say("done")
    STOP.wait()
    client.shutdown()


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: STOP.set())
    main()
