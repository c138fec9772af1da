"""An internet of our own in a network namespace: name servers, web servers, a metadata service, private services.

Everything that arrives is written down, so a test asks the far end, not the sandbox, what got through. The process's
main thread stands in a second namespace that plays the machine Runra runs on; nothing touches the real one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
from aiohttp import web

from runra.node.network import namespaces
from runra.node.network.netlink import Netlink

HOST, ROUTER = "51.15.0.2", "51.15.0.1"
GOOD, EVIL, SHARED, OTHER = "93.184.216.10", "93.184.216.11", "93.184.216.12", "93.184.216.13"
DNS, SECOND_DNS, DOH = "93.184.216.53", "8.8.8.8", "1.1.1.1"
METADATA, PRIVATE, CGNAT, BENCH = "169.254.169.254", "10.9.9.9", "100.64.0.9", "198.18.0.9"
ADDRESSES = (GOOD, EVIL, SHARED, OTHER, DNS, SECOND_DNS, DOH, METADATA, PRIVATE, CGNAT, BENCH)

NAMES = {
    "good.example": [GOOD],
    "api.wild.example": [GOOD],
    "a.b.wild.example": [GOOD],
    "wild.example": [GOOD],
    "evil.example": [EVIL],
    "xn--mnchen-3ya.example": [GOOD],
    "model.example": [OTHER],
    "shared-good.example": [SHARED],
    "shared-evil.example": [SHARED],
    "private.example": [PRIVATE],
    "meta.example": [METADATA],
    "mixed.example": [PRIVATE, GOOD],
    "self.example": [HOST],
}


@dataclass
class Seen:
    """One thing that arrived somewhere: `kind` is dns, tls, http, tcp or udp."""

    kind: str
    at: str
    port: int
    what: str = ""
    more: dict[str, Any] = field(default_factory=dict)


class Internet:
    def __init__(self, folder: Path) -> None:
        self.seen: list[Seen] = []
        self.rebound: dict[str, list[list[str]]] = {}
        #: Contents by path, the same at every address.
        self.files: dict[str, bytes] = {}
        self.ca = folder / "ca.pem"
        self._folder = folder
        self._certificates()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._failed: BaseException | None = None

    def clear(self) -> None:
        self.seen.clear()

    def at(self, address: str, kind: str | None = None) -> list[Seen]:
        return [seen for seen in self.seen if seen.at == address and kind in (None, seen.kind)]

    def asked(self) -> list[str]:
        """Every name the operator's name server was asked for."""
        return [seen.what for seen in self.seen if seen.kind == "dns" and seen.at == DNS]

    # --- making it ---

    def _certificates(self) -> None:
        def openssl(*words: str) -> None:
            subprocess.run(["openssl", *words], cwd=self._folder, check=True, capture_output=True)

        new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
        openssl(
            "req",
            "-x509",
            *new,
            "-keyout",
            "ca.key",
            "-out",
            "ca.pem",
            "-days",
            "2",
            "-subj",
            "/CN=test ca",
            "-addext",
            "keyUsage=critical,keyCertSign",
            "-addext",
            "basicConstraints=critical,CA:TRUE",
        )
        names = ",".join(f"DNS:{name}" for name in (*NAMES, "*.wild.example") if name != "evil.example")
        (self._folder / "ext").write_text(f"subjectAltName={names}\nextendedKeyUsage=serverAuth\n")
        openssl("req", *new, "-keyout", "key.pem", "-out", "csr.pem", "-subj", "/CN=test")
        openssl(
            "x509",
            "-req",
            "-in",
            "csr.pem",
            "-CA",
            "ca.pem",
            "-CAkey",
            "ca.key",
            "-CAcreateserial",
            "-out",
            "cert.pem",
            "-days",
            "2",
            "-extfile",
            "ext",
        )

    def run(self, namespace: int) -> None:
        """The thread: serves until stopped."""
        namespaces.enter(namespace)
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._start())
        except BaseException as error:
            self._failed = error
            raise
        finally:
            self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._runner.cleanup())
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()

    def wait(self) -> None:
        assert self._ready.wait(10)
        assert self._failed is None

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._http)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        for address in ADDRESSES:
            tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            tls.load_cert_chain(self._folder / "cert.pem", self._folder / "key.pem")
            tls.sni_callback = self._sni(address)
            await web.TCPSite(self._runner, address, 80).start()
            await web.TCPSite(self._runner, address, 8080).start()
            await web.TCPSite(self._runner, address, 443, ssl_context=tls).start()
            for port in (22, 25, 853, 5432):
                await asyncio.start_server(self._tcp(address, port), address, port)
            for port in (53, 443, 9999):
                await self._loop.create_datagram_endpoint(
                    lambda a=address, p=port: _Datagrams(self, a, p), local_addr=(address, port)
                )
            await asyncio.start_server(self._dns_tcp(address), address, 53)

    def _sni(self, address: str) -> Any:
        def called(_: Any, name: str | None, __: Any) -> None:
            self.seen.append(Seen("tls", address, 443, name or ""))

        return called

    async def _http(self, request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        at, port = request.transport.get_extra_info("sockname")[:2]
        seen = Seen("http", at, port, f"{request.method} {request.raw_path}", {"headers": dict(request.headers)})
        self.seen.append(seen)
        if request.path in self.files:
            kind = "text/html" if request.path.endswith("/") else "application/octet-stream"
            return web.Response(body=self.files[request.path], content_type=kind)
        if request.path == "/sse":
            stream = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await stream.prepare(request)
            for n in range(5):
                await stream.write(f"data: {n}\n\n".encode())
                await asyncio.sleep(0.1)
            return stream
        if request.path == "/bytes":
            left = int(request.query["n"])
            stream = web.StreamResponse()
            await stream.prepare(request)
            while left:
                piece = min(left, 1 << 17)
                await stream.write(bytes(piece))
                left -= piece
            return stream
        if request.path == "/redirect":
            return web.Response(status=302, headers={"Location": "http://evil.example/stolen"})
        if request.path == "/ws":
            ws = web.WebSocketResponse()
            await ws.prepare(request)
            async for message in ws:
                await ws.send_str(f"echo {message.data}")
            return ws
        body = await request.read()
        return web.json_response({"at": at, "host": request.headers.get("Host"), "size": len(body)})

    def _tcp(self, address: str, port: int) -> Any:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.seen.append(Seen("tcp", address, port))
            try:
                if port == 22:
                    writer.write(b"SSH-2.0-test\r\n")
                while data := await reader.read(65536):
                    self.seen[-1].more["data"] = data
                    writer.write(b"got " + data)
                    await writer.drain()
            except OSError:
                self.seen.append(Seen("reset", address, port))
            finally:
                self.seen.append(Seen("end", address, port))
                writer.close()

        return serve

    def _dns_tcp(self, address: str) -> Any:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(asyncio.IncompleteReadError, OSError):
                while True:
                    length = int.from_bytes(await reader.readexactly(2), "big")
                    answer = self.answer(await reader.readexactly(length), address)
                    writer.write(len(answer).to_bytes(2, "big") + answer)
            writer.close()

        return serve

    def answer(self, data: bytes, at: str) -> bytes:
        query = dns.message.from_wire(data)
        response = dns.message.make_response(query)
        response.flags |= dns.flags.RA
        question = query.question[0]
        name = question.name.to_text(omit_final_dot=True).lower()
        self.seen.append(Seen("dns", at, 53, name, {"type": dns.rdatatype.to_text(question.rdtype)}))
        if name == "cname.good.example":
            response.answer.append(dns.rrset.from_text(question.name, 60, "IN", "CNAME", "private.example."))
            response.answer.append(dns.rrset.from_text("private.example.", 60, "IN", "A", PRIVATE))
            return response.to_wire()
        if name == "cname-reverse.example":
            inner = "9.9.9.10.in-addr.arpa."
            response.answer.append(dns.rrset.from_text(question.name, 60, "IN", "CNAME", inner))
            response.answer.append(dns.rrset.from_text(inner, 60, "IN", "PTR", "payroll.corp.example."))
            return response.to_wire()
        if question.rdtype == dns.rdatatype.PTR:
            response.answer.append(dns.rrset.from_text(question.name, 60, "IN", "PTR", "payroll.corp.example."))
            return response.to_wire()
        if question.rdtype == dns.rdatatype.HTTPS:
            text = f"1 . alpn=h2 ipv4hint={PRIVATE}"
            response.answer.append(dns.rrset.from_text(question.name, 60, "IN", "HTTPS", text))
            return response.to_wire()
        if question.rdtype == dns.rdatatype.TXT:
            response.answer.append(dns.rrset.from_text(question.name, 60, "IN", "TXT", '"tunnelled"'))
            return response.to_wire()
        if name in self.rebound:
            answers = self.rebound[name]
            addresses, ttl = (answers.pop(0) if len(answers) > 1 else answers[0]), 0
        elif name.endswith(".tunnel.example"):
            addresses, ttl = [GOOD], 60
        else:
            addresses, ttl = NAMES.get(name, []), 60
            if name not in NAMES:
                response.set_rcode(dns.rcode.NXDOMAIN)
        if question.rdtype == dns.rdatatype.A and addresses:
            response.answer.append(dns.rrset.from_text(question.name, ttl, "IN", "A", *addresses))
        return response.to_wire()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, internet: Internet, address: str, port: int) -> None:
        self._internet, self._at, self._port = internet, address, port

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, source: Any) -> None:
        if self._port == 53:
            self._transport.sendto(self._internet.answer(data, self._at), source)
        else:
            self._internet.seen.append(Seen("udp", self._at, self._port, data.decode(errors="replace")))
            self._transport.sendto(b"got " + data, source)


@contextlib.contextmanager
def connected(folder: Path) -> Iterator[Internet]:
    """This thread on a machine of its own that is connected to an internet of its own."""
    internet = Internet(folder)
    before = namespaces.current()
    machine, world = namespaces.fresh(), namespaces.fresh()
    thread: threading.Thread | None = None
    try:
        namespaces.enter(world)
        with Netlink() as link:
            link.up(1)
            link.add_veth("up", "down", machine)
            for address in ADDRESSES:
                link.add_address(1, address)
            index = socket.if_nametoindex("up")
            link.add_address(index, ROUTER)
            link.up(index)
            link.add_route(index, HOST)
        namespaces.enter(machine)
        with Netlink() as link:
            link.up(1)
            index = socket.if_nametoindex("down")
            link.add_address(index, HOST)
            link.up(index)
            link.add_route(index, ROUTER)
            link.add_route(index, None, ROUTER)
        thread = threading.Thread(target=internet.run, args=(world,), name="internet")
        thread.start()
        internet.wait()
        yield internet
    finally:
        namespaces.enter(before)
        if thread is not None:
            internet.stop()
            thread.join(10)
        for descriptor in (before, machine, world):
            os.close(descriptor)


def shown(text: str) -> Any:
    """What a probe inside printed."""
    try:
        return json.loads(text)
    except ValueError:
        raise AssertionError(f"the probe said: {text}") from None
