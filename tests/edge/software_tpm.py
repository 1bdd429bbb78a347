"""Software TPMs (Debian: swtpm), as device daemons use them."""

import contextlib
import shutil
import socket
import struct
import subprocess
from pathlib import Path

from site_net import end, free_port, wait_until

OWNER, ENDORSEMENT, LOCKOUT = 0x40000001, 0x4000000B, 0x4000000A
PASSWORD = struct.pack(">IHBH", 0x40000009, 0, 1, 0)


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
            answer = connection.recv(4096)
        assert answer[6:10] == bytes(4), f"command {code:#x}: {answer.hex()}"
