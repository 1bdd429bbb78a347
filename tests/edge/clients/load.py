"""Devices behind an edge device that send much: MQTT packets made here, since an SDK sends some hundreds a second.

One argument, a JSON object: `host` (name of the edge device), `address` (its address, if the name has none), `ca` (file), `rate` (messages per second in all), `seconds`,
`bytes` (of a message), `devices` (a list of `id`, `username`, `password`). Each message has its number, from 1 on, in the
application property `number`. Prints one JSON object per line: `connected`, then `done` with how many of each device were
acknowledged; ends when everything is.
"""

import asyncio
import json
import ssl
import struct
import sys

WINDOW = 500
PUBLISH_QOS1, PUBACK_BYTES = 0x32, 4


def say(event, **rest):
    # In one write: warnings go to the same file, from other threads.
    sys.stdout.write(json.dumps({"event": event, **rest}) + "\n")
    sys.stdout.flush()


def length(value):
    """MQTT's remaining length."""
    out = bytearray()
    while True:
        value, digit = divmod(value, 128)
        out.append(digit | (128 if value else 0))
        if not value:
            return bytes(out)


def text(value):
    data = value.encode()
    return struct.pack(">H", len(data)) + data


class Device:
    def __init__(self, options, device):
        self.options, self.id = options, device["id"]
        self.credentials = device["username"], device["password"]
        self.sent = self.acknowledged = 0
        self.moved = asyncio.Event()

    async def connect(self):
        context = ssl.create_default_context(cafile=self.options["ca"])
        host = self.options["host"]
        self.reader, self.writer = await asyncio.open_connection(
            self.options.get("address", host), 8883, ssl=context, server_hostname=host
        )
        user_name, password = 0x80, 0x40
        body = text("MQTT") + bytes([4, user_name | password]) + struct.pack(">H", 240) + text(self.id)
        body += text(self.credentials[0]) + text(self.credentials[1])
        self.writer.write(b"\x10" + length(len(body)) + body)
        answer = await self.reader.readexactly(4)
        assert answer[0] == 0x20 and answer[3] == 0, f"{self.id} is refused: {answer!r}"
        self.task = asyncio.create_task(self.listen())

    async def listen(self):
        left = b""
        while data := await self.reader.read(1 << 16):
            left += data
            whole = len(left) // PUBACK_BYTES
            kinds = set(left[: whole * PUBACK_BYTES : PUBACK_BYTES])
            assert kinds <= {0x40}, f"{self.id}: something else than acknowledgements: {kinds}"
            left = left[whole * PUBACK_BYTES :]
            self.acknowledged += whole
            self.moved.set()
        say("lost", device=self.id)

    def packet(self, number):
        topic = text(f"devices/{self.id}/messages/events/number={number}")
        body = topic + struct.pack(">H", (number - 1) % 65535 + 1) + b"x" * self.options["bytes"]
        return bytes([PUBLISH_QOS1]) + length(len(body)) + body

    async def send(self, rate):
        loop = asyncio.get_running_loop()
        begun = loop.time()
        total = int(rate * self.options["seconds"])
        while self.sent < total:
            due = min(total, int((loop.time() - begun) * rate))
            room = WINDOW - (self.sent - self.acknowledged)
            count = min(due - self.sent, room)
            if count > 0:
                self.writer.write(b"".join(self.packet(self.sent + n) for n in range(1, count + 1)))
                self.sent += count
                await self.writer.drain()
            await asyncio.sleep(0.01)
        while self.acknowledged < self.sent and not self.task.done():
            self.moved.clear()
            await self.moved.wait()


async def main():
    options = json.loads(sys.argv[1])
    devices = [Device(options, device) for device in options["devices"]]
    for device in devices:
        await device.connect()
    say("connected")
    await asyncio.gather(*(device.send(options["rate"] / len(devices)) for device in devices))
    say("done", acknowledged={device.id: device.acknowledged for device in devices})


if __name__ == "__main__":
    asyncio.run(main())
