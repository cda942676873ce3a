"""A name server for tests, over UDP and TCP on one port of the loopback: it says what it is told to, lies included."""

from __future__ import annotations

import socketserver
import threading
from contextlib import contextmanager

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset

UDP_MOST = 512
CHAIN_MOST = 40


class NameServer:
    """Answers from *zone*: names to lines such as ``300 A 192.0.2.1``, to a code, or to `None` for silence."""

    def __init__(self, zone):
        self.zone = zone
        self.asked = []

    def answer(self, wire, over):
        query = dns.message.from_wire(wire)
        question = query.question[0]
        kind, name = dns.rdatatype.to_text(question.rdtype), question.name.to_text(omit_final_dot=True)
        self.asked.append((name, kind, over))
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        known = self.zone.get(name, dns.rcode.NXDOMAIN)
        if isinstance(known, dict):
            known = known.get(kind, ())
        if known is None:
            return None
        if isinstance(known, bytes):
            return wire[:2] + known
        if isinstance(known, dns.rcode.Rcode):
            response.set_rcode(known)
            return response.to_wire()
        for _ in range(CHAIN_MOST):  # an alias is followed here, as a recursive server does
            lines = self.zone.get(name, ())
            own = [each.split(" ", 2) for each in (lines.get(kind, ()) if isinstance(lines, dict) else lines)]
            alias = [each for each in own if each[1] == "CNAME"]
            found = alias or [each for each in own if each[1] == kind]
            if found:
                owner = dns.name.from_text(name)
                response.answer.append(
                    dns.rrset.from_text_list(owner, int(found[0][0]), "IN", found[0][1], [each[2] for each in found])
                )
            if not alias:
                break
            name = alias[0][2].removesuffix(".")
        wire = response.to_wire(max_size=65535)
        if over == "udp" and len(wire) > UDP_MOST:
            response.answer.clear()
            response.flags |= dns.flags.TC
            wire = response.to_wire()
        return wire


@contextmanager
def name_server(zone):
    """Run a `NameServer`; it has its address as ``address``."""
    server = NameServer(zone)

    class Datagram(socketserver.BaseRequestHandler):
        def handle(self):
            wire, sock = self.request
            if answer := server.answer(wire, "udp"):
                sock.sendto(answer, self.client_address)

    class Connection(socketserver.StreamRequestHandler):
        def handle(self):
            length = int.from_bytes(self.rfile.read(2))
            if answer := server.answer(self.rfile.read(length), "tcp"):
                self.wfile.write(len(answer).to_bytes(2) + answer)

    with _pair(Datagram, Connection) as (udp, tcp):
        server.address = f"127.0.0.1:{udp.server_address[1]}"
        threads = [threading.Thread(target=each.serve_forever, args=(0.02,)) for each in (udp, tcp)]
        for thread in threads:
            thread.start()
        try:
            yield server
        finally:
            for each in (udp, tcp):
                each.shutdown()
            for thread in threads:
                thread.join()


@contextmanager
def _pair(datagram, connection):
    for _ in range(20):
        udp = socketserver.UDPServer(("127.0.0.1", 0), datagram)
        try:
            tcp = socketserver.TCPServer(udp.server_address, connection)
        except OSError:  # the port is somebody else's there
            udp.server_close()
            continue
        with udp, tcp:
            yield udp, tcp
        return
    raise OSError("no port is free for both UDP and TCP")
