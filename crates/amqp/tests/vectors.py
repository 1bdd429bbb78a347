#!/usr/bin/env python3
"""Makes tests/wire/amqp-vectors.json with other implementations, and lets one of them read what ours writes.

    python3 -m venv venv && venv/bin/pip install python-qpid-proton azure-eventhub
    venv/bin/python crates/amqp/tests/vectors.py          # writes the vectors
    venv/bin/python crates/amqp/tests/vectors.py --check  # reads every frame that the transcripts say we send

Each vector holds bytes that another implementation wrote, and what it was given to write, as text that the test
`vectors.rs` makes of what it reads. The file is committed: the tests need no Python.
"""

import json
import pathlib
import re
import struct
import sys
import uuid

import proton
from azure.eventhub._pyamqp import _decode, _encode
from azure.eventhub._pyamqp.message import Header, Message, Properties
from azure.eventhub._pyamqp.types import TYPE, VALUE

WIRE = pathlib.Path(__file__).parents[3] / "tests" / "wire"
PROTON = "qpid-proton 0.40"
PYAMQP = "azure-eventhub 5.15.1 (pyamqp)"
UUID = uuid.UUID("00112233-4455-6677-8899-aabbccddeeff")

# Kind and value. Compound values hold such pairs again.
VALUES = [
    ("null", None),
    ("bool", True),
    ("bool", False),
    ("ubyte", 255),
    ("ushort", 65535),
    ("uint", 0),
    ("uint", 255),
    ("uint", 4294967295),
    ("ulong", 0),
    ("ulong", 200),
    ("ulong", 18446744073709551615),
    ("byte", -128),
    ("short", -32768),
    ("int", -5),
    ("int", 2147483647),
    ("long", 127),
    ("long", -9223372036854775808),
    ("float", 1.5),
    ("double", -2.25),
    ("char", "é"),
    ("timestamp", 1700000000123),
    ("uuid", UUID),
    ("binary", b""),
    ("binary", bytes(range(256)) * 2),
    ("string", "grüße"),
    ("string", "s" * 300),
    ("symbol", "amqp:accepted:list"),
    ("list", []),
    ("list", [("int", 1), ("string", "a"), ("null", None), ("list", [("bool", True)])]),
    ("list", [("string", "x" * 100)] * 4),
    ("map", [(("symbol", "k"), ("long", 500)), (("string", "n"), ("map", []))]),
    ("array", ("string", ["0", "1", "two"])),
    ("array", ("symbol", ["MSSBCBS", "PLAIN"])),
    ("array", ("int", [1, -1, 70000])),
    ("array", ("uuid", [UUID, UUID])),
    ("described", (("symbol", "apache.org:selector-filter:string"), ("string", "amqp.annotation.x-opt-offset > '-1'"))),
    ("described", (("ulong", 0x468C00000004), ("string", "x"))),
]


def text(kind, value):
    """What the Rust test shows for a value."""
    if kind == "null":
        return "null"
    if kind == "list":
        return "list[" + ", ".join(text(*item) for item in value) + "]"
    if kind == "map":
        return "map{" + ", ".join(f"{text(*key)}={text(*item)}" for key, item in value) + "}"
    if kind == "array":
        return "array[" + ", ".join(text(value[0], item) for item in value[1]) + "]"
    if kind == "described":
        return f"described({text(*value[0])}, {text(*value[1])})"
    if kind == "bool":
        return "bool:true" if value else "bool:false"
    if kind == "binary":
        return "binary:" + value.hex()
    if kind == "uuid":
        return "uuid:" + value.hex
    return f"{kind}:{value}"


PROTON_TYPES = {
    "bool": "BOOL", "ubyte": "UBYTE", "ushort": "USHORT", "uint": "UINT", "ulong": "ULONG", "byte": "BYTE",
    "short": "SHORT", "int": "INT", "long": "LONG", "float": "FLOAT", "double": "DOUBLE", "char": "CHAR",
    "timestamp": "TIMESTAMP", "uuid": "UUID", "binary": "BINARY", "string": "STRING", "symbol": "SYMBOL",
}  # fmt: skip


def put(data, kind, value):
    """Writes a value with qpid-proton."""
    if kind == "null":
        data.put_null()
    elif kind == "list":
        data.put_list()
        data.enter()
        for item in value:
            put(data, *item)
        data.exit()
    elif kind == "map":
        data.put_map()
        data.enter()
        for key, item in value:
            put(data, *key)
            put(data, *item)
        data.exit()
    elif kind == "array":
        data.put_array(False, getattr(proton.Data, PROTON_TYPES[value[0]]))
        data.enter()
        for item in value[1]:
            put(data, value[0], item)
        data.exit()
    elif kind == "described":
        data.put_described()
        data.enter()
        put(data, *value[0])
        put(data, *value[1])
        data.exit()
    else:
        getattr(data, "put_" + kind)(value)


def by_proton(kind, value):
    data = proton.Data()
    put(data, kind, value)
    return data.encode()


def for_pyamqp(kind, value):
    if kind == "null":
        return None
    if kind == "list":
        return {TYPE: "LIST", VALUE: [for_pyamqp(*item) for item in value]}
    if kind == "map":
        return {TYPE: "MAP", VALUE: [(for_pyamqp(*key), for_pyamqp(*item)) for key, item in value]}
    if kind == "array":
        return {TYPE: "ARRAY", VALUE: [for_pyamqp(value[0], item) for item in value[1]]}
    if kind == "described":
        return {TYPE: "DESCRIBED", VALUE: (for_pyamqp(*value[0]), for_pyamqp(*value[1]))}
    return {TYPE: kind.upper(), VALUE: value}


def by_pyamqp(kind, value):
    output = bytearray()
    _encode.encode_value(output, for_pyamqp(kind, value))
    return bytes(output)


def value_vectors():
    for kind, value in VALUES:
        shows = text(kind, value)
        name = shows if len(shows) < 60 else shows[:57] + "..."
        yield {"name": name, "by": PROTON, "kind": "value", "bytes": by_proton(kind, value).hex(), "shows": shows}
        if kind in ("char", "described", "float", "double"):
            continue  # not written, or not as asked, by this one
        yield {"name": name, "by": PYAMQP, "kind": "value", "bytes": by_pyamqp(kind, value).hex(), "shows": shows}


def message_vectors():
    ids = [("ulong", 7, proton.ulong(7)), ("uuid", UUID, UUID), ("string", "m-1", "m-1"), ("binary", b"\x01\x02", b"\x01\x02")]
    for kind, value, native in ids:
        message = proton.Message(
            id=native, correlation_id=native, user_id=b"hub", address="/devices/d1/messages/devicebound",
            subject="s", reply_to="cbs", content_type="application/json", content_encoding="utf-8", durable=True,
            priority=7, ttl=5.0, delivery_count=2, first_acquirer=True, expiry_time=1700000000.0, creation_time=1600000000.0,
            group_id="g", group_sequence=3, reply_to_group_id="rg", properties={"level": "storm"},
            annotations={proton.symbol("x-opt-sequence-number"): proton.long(5) if hasattr(proton, "long") else 5},
            body=b"{}", inferred=True,
        )  # fmt: skip
        yield {
            "name": f"every property, id of type {kind}", "by": PROTON, "kind": "message", "bytes": message.encode().hex(),
            "shows": {
                "header": "durable=true priority=7 ttl=5000 first=true count=2",
                "message_id": text(kind, value), "correlation_id": text(kind, value), "user_id": b"hub".hex(),
                "to": "/devices/d1/messages/devicebound", "subject": "s", "reply_to": "cbs",
                "content_type": "application/json", "content_encoding": "utf-8", "expiry": 1700000000000,
                "creation": 1600000000000, "group_id": "g", "group_sequence": 3, "reply_to_group_id": "rg",
                "application_properties": "map{string:level=string:storm}",
                "annotations": "map{symbol:x-opt-sequence-number=long:5}", "body": "data " + b"{}".hex(),
            },
        }  # fmt: skip
    message = proton.Message(body={"a": [1, True, None]})
    yield {"name": "value body", "by": PROTON, "kind": "message", "bytes": message.encode().hex(),
           "shows": {"body": "value map{string:a=list[long:1, bool:true, null]}"}}  # fmt: skip
    output = bytearray()
    _encode.encode_payload(output, Message(
        header=Header(durable=True), message_annotations={b"x-opt-partition-key": "k"},
        properties=Properties(message_id=UUID, to="$cbs", content_type=b"application/json"),
        application_properties={"operation": "put-token", "n": 1}, data=[b"one", b"two"], footer={b"f": True}))  # fmt: skip
    yield {
        "name": "sections of azure-eventhub", "by": PYAMQP, "kind": "message", "bytes": output.hex(),
        "shows": {
            "header": "durable=true priority=4 ttl=none first=false count=0",
            "annotations": "map{symbol:x-opt-partition-key=string:k}", "message_id": text("uuid", UUID), "to": "$cbs",
            "content_type": "application/json", "body": "data 6f6e65 74776f",
            "application_properties": "map{string:operation=string:put-token, string:n=int:1}",
        },
    }  # fmt: skip


def parse(line):
    """Bytes of a transcript: hex pairs and 'text'."""
    parts = line.split("'")
    return b"".join(
        part.encode() if index % 2 else bytes.fromhex(part) for index, part in enumerate(parts)
    )


FIELDS = {0x10: 10, 0x11: 8, 0x12: 14, 0x13: 11, 0x14: 11, 0x15: 6, 0x16: 3, 0x17: 1, 0x18: 1, 0x40: 1, 0x41: 3, 0x44: 2}


def check():
    """azure-eventhub takes fields by position: all of them must be there, in every frame that we send."""
    frames = 0
    for path in sorted(WIRE.glob("amqp-*.json")):
        for case in json.loads(path.read_text()):
            for step in case.get("steps", []):
                rest = parse(step.get("sends", ""))
                while rest:
                    if rest.startswith(b"AMQP"):
                        rest = rest[8:]
                        continue
                    (size,) = struct.unpack(">I", rest[:4])
                    frame, rest = rest[8:size], rest[size:]
                    if not frame:
                        continue
                    code, fields = _decode.decode_frame(memoryview(frame))
                    # A transfer has its payload behind the fields.
                    count = len(fields) - (code == 0x14)
                    assert count == FIELDS[code], f"{path.name}: {case['name']}: {count} fields in {code:#x}"
                    frames += 1
    print(f"{frames} frames read")


def main():
    if "--check" in sys.argv:
        return check()
    vectors = [*value_vectors(), *message_vectors()]
    lines = ",\n".join("  " + json.dumps(vector, ensure_ascii=False) for vector in vectors)
    (WIRE / "amqp-vectors.json").write_text(f"[\n{lines}\n]\n")
    print(f"{len(vectors)} vectors")


if __name__ == "__main__":
    main()
