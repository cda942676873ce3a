"""nginx as an upstream: a program that was not written with us in mind."""

from __future__ import annotations

import subprocess
from pathlib import Path

from started import accepts, free_port, until

from gw.testing import PATIENCE

SIZE = 102_400

CONFIGURATION = """\
daemon off;
master_process off;
error_log stderr;
pid @FOLDER@/nginx.pid;
events { worker_connections 1024; }
http {
    access_log off;
    types { text/plain txt; application/octet-stream bin; }
    client_body_temp_path @FOLDER@/body;
    proxy_temp_path @FOLDER@/proxy;
    fastcgi_temp_path @FOLDER@/fastcgi;
    uwsgi_temp_path @FOLDER@/uwsgi;
    scgi_temp_path @FOLDER@/scgi;
    root @FOLDER@/served;
    server {
        listen 127.0.0.1:@PORT@@TLS@;
        location /protocol { default_type text/plain; return 200 "$http_host $server_protocol"; }
        location /zipped/ { alias @FOLDER@/served/; gzip on; gzip_types *; gzip_min_length 0; gzip_proxied any; }
        location /three/ { alias @FOLDER@/served/; keepalive_requests 3; }
        location /websocket/ {
            proxy_pass http://127.0.0.1:@BEHIND@;
            proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection upgrade;
        }
        location /hasty/ { alias @FOLDER@/served/; keepalive_timeout 10ms; }
    }
}
"""


class Nginx:
    """Listens on *port*; with *tls*, which are a certificate's files, it speaks HTTP/2 there as well, 50 requests a connection.

    What begins with ``/websocket/`` it passes on to the port *behind*.
    """

    def __init__(self, program: str, folder: Path, tls: dict[str, str] | None = None, behind: int = 9) -> None:
        self.port = free_port()
        (folder / "served").mkdir()
        (folder / "served" / "file.bin").write_bytes(bytes(range(256)) * (SIZE // 256))
        (folder / "served" / "small.txt").write_text("small\n" * 10)
        configuration = folder / "upstream.conf"
        secure = ""
        if tls is not None:
            secure = f" ssl http2; keepalive_requests 50; ssl_certificate {tls['cert_file']}; ssl_certificate_key {tls['key_file']}"
        configuration.write_text(
            CONFIGURATION.replace("@FOLDER@", str(folder))
            .replace("@PORT@", str(self.port))
            .replace("@TLS@", secure)
            .replace("@BEHIND@", str(behind))
        )
        self._log = (folder / "log").open("wb")
        self._child = subprocess.Popen([program, "-p", folder, "-c", configuration], stderr=self._log)
        until(lambda: accepts(self._child, self.port), "nginx listens")

    def close(self) -> None:
        self._child.terminate()
        self._child.wait(PATIENCE)
        self._log.close()
