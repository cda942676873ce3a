"""nghttpx as an upstream: another program that was not written with us in mind."""

from __future__ import annotations

import subprocess

from started import accepts, free_port, until

from gw.testing import PATIENCE


class Nghttpx:
    """Takes HTTP/2 in cleartext on *port*, and passes it on to *upstream*, a port, in HTTP/1.1."""

    def __init__(self, program: str, upstream: int) -> None:
        self.port = free_port()
        command = [program, "--no-location-rewrite", "--errorlog-file=/dev/null", "--conf=/dev/null", "-n1"]
        command += [f"-f127.0.0.1,{self.port};no-tls", f"-b127.0.0.1,{upstream}"]
        self._child = subprocess.Popen(command)
        until(lambda: accepts(self._child, self.port), "nghttpx listens")

    def close(self) -> None:
        self._child.terminate()
        self._child.wait(PATIENCE)
