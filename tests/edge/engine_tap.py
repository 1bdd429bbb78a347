"""Stands between the daemon and the engine, and notes when which request was made."""

import contextlib
import os
import re
import socket
import threading
import time

REQUEST = re.compile(rb"(GET|POST|DELETE|PUT|HEAD) (/[^ ]*) HTTP/1\.1\r\n")


class EngineTap:
    """A unix socket that passes everything on to the engine's."""

    def __init__(self, path, engine):
        self.path, self._engine = str(path), str(engine)
        self.requests = []
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(64)
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.socket(socket.AF_UNIX)
                try:
                    far.connect(self._engine)
                except OSError:
                    near.close()
                    continue
                threading.Thread(target=self._pass, args=[near, far, True], daemon=True).start()
                threading.Thread(target=self._pass, args=[far, near, False], daemon=True).start()

    def _pass(self, source, target, note):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if note:
                    now = time.time()
                    self.requests += [(now, f"{m[1].decode()} {m[2].decode()}") for m in REQUEST.finditer(data)]
                target.sendall(data)
        for end in (source, target):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def first(self, word, after):
        """When the first request with this in its line was made after a time; `None` when there was none."""
        return next((at for at, line in self.requests if at >= after and word in line), None)

    def close(self):
        self._listener.close()
