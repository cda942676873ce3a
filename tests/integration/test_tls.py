"""TLS over sockets: curl and openssl as clients, nginx as the upstream."""

import contextlib
import json
import subprocess

import pytest
from certificates import Authority
from conftest import to
from nginx_upstream import Nginx
from started import start_gateway

from gw.testing import PATIENCE


def run(*command, check=True, **rest):
    done = subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE, **rest)
    assert not check or done.returncode == 0, done.stderr + done.stdout
    return done


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def secure(variant, echo, authority, tmp_path_factory):
    """A gateway that speaks TLS, with a certificate for one more name, and asks for clients' certificates."""
    told = {"client_subject": "x-client-subject", "client_names": "x-client-names"}
    tls = {
        "enabled": True,
        **authority.issue("gw.test", "127.0.0.1"),
        "certificates": [{"hosts": ["*.other.test"], **authority.issue("*.other.test")}],
        "client_certificates": {"verify": "optional", "ca_file": authority.ca_file},
    }
    configuration = to(echo, proxy={"route_prefix": "/", "header_rewrite": told}) | variant | {"tls": tls}
    with contextlib.closing(start_gateway(configuration, folder=tmp_path_factory.mktemp("secure"))) as started:
        yield started


@pytest.fixture
def curl(peer, secure, authority):
    program = peer("curl")

    def call(*arguments, name="gw.test", path="/", check=True):
        options = ["-sS", "--max-time", "20", "--cacert", authority.ca_file]
        where = ["--resolve", f"{name}:{secure.port}:127.0.0.1", f"https://{name}:{secure.port}{path}"]
        return run(program, *options, *arguments, *where, check=check)

    return call


@pytest.mark.parametrize(("version", "spoken"), [("--http1.1", b"HTTP/1.1 200"), ("--http2", b"HTTP/2 200")])
def test_curl_verifies_us_and_speaks_either_protocol(curl, version, spoken):
    output = curl(version, "-i").stdout
    assert output.startswith(spoken)
    assert dict(json.loads(output.partition(b"\r\n\r\n")[2])["headers"])["x-forwarded-proto"] == "https"


def test_curl_gets_the_certificate_of_the_name_that_it_asks_for(curl):
    assert b"200" in curl("-o", "/dev/null", "-w", "%{http_code}", name="a.other.test").stdout
    assert curl(name="elsewhere.test", check=False).returncode == 60


def test_a_large_answer_and_a_large_body_arrive_whole(curl):
    for version in ("--http1.1", "--http2"):
        assert len(curl(version, path="/bytes?n=5000000").stdout) == 5_000_000


def test_the_upstream_hears_of_the_client_s_certificate(curl, authority):
    shown = authority.issue("client.test", common_name="somebody")
    output = curl("--cert", shown["cert_file"], "--key", shown["key_file"], "-H", "X-Client-Subject: CN=admin").stdout
    headers = json.loads(output)["headers"]
    assert [value for name, value in headers if name == "x-client-names"] == ["DNS:client.test"]
    (subject,) = [value for name, value in headers if name == "x-client-subject"]
    assert subject.startswith("CN=somebody,")


def test_openssl_sees_the_whole_chain(peer, secure, authority):
    output = run(
        peer("openssl"), "s_client", "-connect", f"127.0.0.1:{secure.port}", "-servername", "gw.test",
        "-CAfile", authority.ca_file, "-verify_return_error", "-alpn", "h2,http/1.1", input=b"",
    ).stdout  # fmt: skip
    assert b"Verify return code: 0 (ok)" in output
    assert b"ALPN protocol: h2" in output
    assert output.count(b"\n   i:") == 2


@pytest.mark.parametrize("version", ["-tls1_1", "-tls1"])
def test_openssl_is_refused_old_versions(peer, secure, version):
    done = run(
        peer("openssl"), "s_client", "-connect", f"127.0.0.1:{secure.port}", version,
        "-cipher", "ALL:@SECLEVEL=0", check=False, input=b"",
    )  # fmt: skip
    assert done.returncode != 0


def test_plain_http_is_refused_and_said_without_a_traceback(peer, secure):
    done = run(peer("curl"), "-sS", "--max-time", "20", f"http://127.0.0.1:{secure.port}/", check=False)
    assert done.returncode != 0
    secure.wait_for(r"TLS handshakes failed; the last, with 127\.0\.0\.1: ")


@pytest.fixture(scope="module")
def nginx(peer, authority, tmp_path_factory):
    with contextlib.closing(
        Nginx(peer("nginx"), tmp_path_factory.mktemp("upstream"), tls=authority.issue("up.test"))
    ) as started:
        yield started


def behind(nginx, authority, **http2):
    tls = {"enabled": True, "ca_file": authority.ca_file, "sni_hostname": "up.test"}
    return to(nginx, tls=tls, http2=http2)


@pytest.mark.parametrize(
    ("http2", "spoken"),
    [({}, b"HTTP/1.1"), ({"enabled": True}, b"HTTP/2.0"), ({"enabled": True, "prefer": "never"}, b"HTTP/1.1")],
)
def test_nginx_is_spoken_to_over_tls(nginx, authority, peer, serve, variant, http2, spoken):
    started = serve(behind(nginx, authority, **http2) | variant)
    for _ in range(3):
        output = run(peer("curl"), "-sS", "-i", "--max-time", "20", f"http://127.0.0.1:{started.port}/protocol").stdout
        assert output.endswith(b"up.test:%d %s" % (nginx.port, spoken)), output
    output = run(peer("curl"), "-sS", "--max-time", "20", f"http://127.0.0.1:{started.port}/file.bin").stdout
    assert len(output) == 102_400


def test_nginx_under_another_name_is_not_trusted(nginx, authority, peer, serve, variant):
    configuration = behind(nginx, authority)
    configuration["upstreams"][0]["tls"]["sni_hostname"] = "other.test"
    started = serve(configuration | variant)
    output = run(peer("curl"), "-sS", "-i", "--max-time", "20", f"http://127.0.0.1:{started.port}/protocol").stdout
    assert output.startswith(b"HTTP/1.1 502 ")


def test_load_over_http2_to_nginx_without_an_error(nginx, authority, peer, serve, variant):
    """It closes each connection after 50 requests, by GOAWAY: no request is lost over it."""
    started = serve(behind(nginx, authority, enabled=True) | variant)
    url = f"http://127.0.0.1:{started.port}/small.txt"
    output = run(peer("h2load"), "-n", "3000", "-c", "4", "-m", "20", url).stdout
    assert b"3000 succeeded, 0 failed, 0 errored, 0 timeout" in output, output
    assert b"status codes: 3000 2xx" in output, output
