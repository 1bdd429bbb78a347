"""Software TPMs (Debian: swtpm), as device daemons use them."""

import contextlib
import os
import shutil
import socket
import struct
import subprocess
import threading
import tty
from pathlib import Path

from site_net import end, free_port, wait_until

OWNER, ENDORSEMENT, LOCKOUT = 0x40000001, 0x4000000B, 0x4000000A
PASSWORD = struct.pack(">IHBH", 0x40000009, 0, 1, 0)


def whole(read):
    """A command or an answer, which says its size in its header."""
    text = b""
    while len(text) < 6 or len(text) < struct.unpack(">I", text[2:6])[0]:
        piece = read()
        if not piece:
            raise ConnectionError("cut off")
        text += piece
    return text


class SoftwareTpm:
    """A TPM on a unix socket; on TCP of a machine's own loopback if one is given."""

    def __init__(self, folder, machine=None):
        self.folder, self.machine = Path(folder), machine
        self.process = None
        if machine:
            self.port = free_port("127.0.0.1")
            self.address = f"swtpm:host=127.0.0.1,port={self.port}"
            self._server = f"type=tcp,port={self.port}"
        else:
            self.socket = self.folder / "tpm"
            self.address = f"swtpm:path={self.socket}"
            self._server = f"type=unixio,path={self.socket}"
        self.start()

    def start(self):
        """Power on."""
        self.folder.mkdir(parents=True, exist_ok=True)
        command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.folder}", "--server", self._server,
                   "--flags", "startup-clear"]
        if self.machine:
            self.process = self.machine.spawn(*command, log="swtpm.log")
            listening = self._listens
        else:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            listening = self._connects
        wait_until(listening, "swtpm to listen", 20)
        return self

    def _connects(self):
        assert self.process.poll() is None, "swtpm has ended"
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.connect(str(self.socket))
            return True

    def _listens(self):
        assert self.process.poll() is None, "swtpm has ended"
        listening = subprocess.run(["ip", "netns", "exec", self.machine.name, "cat", "/proc/net/tcp"], capture_output=True, text=True)
        return f"0100007F:{self.port:04X} 00000000:0000 0A" in listening.stdout

    def stop(self):
        """Power off."""
        end(self.process)
        if not self.machine:
            self.socket.unlink(missing_ok=True)

    def replace(self):
        """Another TPM in its place."""
        self.stop()
        shutil.rmtree(self.folder)
        return self.start()

    def clear(self):
        """What `tpm2_clear` does: the storage root key is another one from now on, and everything below it is lost."""
        self._command(0x126, LOCKOUT)

    def set_auth(self, hierarchy, value):
        """Sets the authorization value of a hierarchy that has none."""
        self._command(0x129, hierarchy, struct.pack(">H", len(value)) + value)

    def _command(self, code, handle, parameters=b""):
        body = struct.pack(">II", handle, len(PASSWORD)) + PASSWORD + parameters
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(30)
            connection.connect(str(self.socket))
            connection.sendall(struct.pack(">HII", 0x8002, 10 + len(body), code) + body)
            answer = whole(lambda: connection.recv(4096))
        assert answer[6:10] == bytes(4), f"command {code:#x}: {answer.hex()}"


class DeviceNode:
    """A character device in front of a TPM, which takes a command in one write and gives its answer to one read, as those
    of the kernel do; in truth a terminal. Use as a context manager."""

    def __init__(self, tpm):
        self.tpm = tpm
        # Its end stays open here, too: without one, reading the other end fails.
        self._near, self._end = os.openpty()
        for side in (self._near, self._end):
            tty.setraw(side)
        self.address = f"device:{os.ttyname(self._end)}"
        self.commands = 0

    def __enter__(self):
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_):
        os.close(self._end)

    def _serve(self):
        with contextlib.suppress(OSError):
            while True:
                command = whole(lambda: os.read(self._near, 4096))
                # A connection per command, as swtpm serves one at a time; what is loaded stays in the TPM.
                with socket.socket(socket.AF_UNIX) as connection:
                    connection.connect(str(self.tpm.socket))
                    connection.sendall(command)
                    answer = whole(lambda: connection.recv(4096))
                self.commands += 1
                os.write(self._near, answer)
        os.close(self._near)
