"""What is read from a hostile side, and what a policy's words mean: without a sandbox."""

from __future__ import annotations

import contextlib
import ssl
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runra.contract import Egress
from runra.node.network import hello
from runra.node.network.http import looks_like_http
from runra.node.network.policy import NOTHING, OPEN, address_of, denied, normal, policy_of


def _hello(name: str | None) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = ssl.create_default_context()
    context.check_hostname = False
    client = context.wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


def test_a_real_hello() -> None:
    assert hello.server_name(_hello("good.example")) == "good.example"
    assert hello.server_name(_hello(None)) is None
    data = _hello("good.example")
    for cut in range(len(data)):
        with pytest.raises(hello.Incomplete):
            hello.server_name(data[:cut])
    # Cut into records of one byte each it is still the same message.
    message = data[5:]
    split = b"".join(b"\x16\x03\x01\x00\x01" + message[n : n + 1] for n in range(len(message)))
    assert hello.server_name(split) == "good.example"


def test_two_names_are_none() -> None:
    data = _hello("good.example")
    at = data.index(b"\x00\x00\x00\x11\x00\x0f\x00\x00\x0cgood.example")
    extension = data[at : at + 21]
    doubled = bytearray(data[:at] + extension + data[at:])
    for place, width in ((3, 2), (6, 3)):
        old = int.from_bytes(doubled[place : place + width], "big")
        doubled[place : place + width] = (old + 21).to_bytes(width, "big")
    sessions = 5 + 4 + 34
    suites = sessions + 1 + doubled[sessions]
    rest = suites + 2 + int.from_bytes(doubled[suites : suites + 2], "big")
    lengths = rest + 1 + doubled[rest]
    doubled[lengths : lengths + 2] = (int.from_bytes(doubled[lengths : lengths + 2], "big") + 21).to_bytes(2, "big")
    with pytest.raises(hello.Bad, match="two server names"):
        hello.server_name(bytes(doubled))


@given(st.binary(max_size=600))
def test_garbage_is_refused(data: bytes) -> None:
    for prefix in (b"", b"\x16\x03\x01\x00\x40\x01\x00\x00\x3c", b"\x16\x03\x01"):
        try:
            found = hello.server_name(prefix + data)
        except (hello.Bad, hello.Incomplete):
            continue
        assert found is None or found.isascii()


@given(st.integers(0, 400), st.integers(0, 255))
def test_a_changed_byte_never_yields_another_exception(at: int, value: int) -> None:
    data = bytearray(_HELLO)
    data[at % len(data)] = value
    with contextlib.suppress(hello.Bad, hello.Incomplete):
        hello.server_name(bytes(data))


_HELLO = _hello("good.example")


@pytest.mark.parametrize(
    ("text", "form"),
    [
        ("Example.COM", "example.com"), ("example.com.", "example.com"), ("münchen.de", "xn--mnchen-3ya.de"),
        ("XN--MNCHEN-3YA.de", "xn--mnchen-3ya.de"), ("_srv.example.com", "_srv.example.com"),
        ("example.com..", None), ("a..b", None), ("", None), (".", None), ("a b", None), ("a/b", None), ("a:b", None),
        ("10.0.0.1", None), ("127.1", None), ("0x7f.1", None), ("2130706433", None), ("a.0x1", None), ("-a.com", None),
        ("a\0.com", None), ("x" * 64 + ".com", None), ("a." * 130 + "com", None), ("good.example@evil", None),
    ],
)  # fmt: skip
def test_one_form_of_a_name(text: str, form: str | None) -> None:
    assert normal(text) == form


@given(st.text(max_size=40))
def test_the_form_is_final(text: str) -> None:
    form = normal(text)
    assert form is None or (normal(form) == form and address_of(form) is None)


def test_policies() -> None:
    assert policy_of(None) is OPEN
    assert policy_of(Egress()) is OPEN
    assert policy_of(Egress(default="deny")) is NOTHING
    assert policy_of(Egress(allow=["a.b"], default="allow")) is OPEN
    listed = policy_of(Egress(allow=["a.example:443", "*.b.example", "198.51.100.0/24:22", "8.8.8.8"]))
    assert listed.allows_name("a.example", 443)
    assert listed.allows_name("a.example")
    assert listed.allows_name("x.y.b.example", 1)
    for name, port in (
        ("a.example", 80),
        ("b.example", 80),
        ("xb.example", 80),
        ("a.example.evil", 443),
        ("x.b.example", 25),
    ):
        assert not listed.allows_name(name, port)
    assert listed.allows_address(IPv4Address("198.51.100.7"), 22)
    assert listed.allows_address(IPv4Address("8.8.8.8"), 853)
    for address, port in (("198.51.100.7", 23), ("8.8.4.4", 53), ("8.8.8.8", 25)):
        assert not listed.allows_address(IPv4Address(address), port)


def test_denied_ranges() -> None:
    for text in (
        "0.0.0.0 10.1.2.3 100.64.0.1 100.100.100.200 127.0.0.1 168.63.129.16 169.254.169.254 169.254.170.2 172.16.0.1 "
        "172.31.255.255 192.0.0.192 192.0.2.1 192.168.1.1 198.18.0.1 198.19.255.255 203.0.113.9 224.0.0.1 255.255.255.255"
    ).split():
        assert denied(IPv4Address(text)), text
    for text in ("1.1.1.1", "172.32.0.1", "100.128.0.1", "8.8.8.8", "192.0.1.1"):
        assert not denied(IPv4Address(text)), text


def test_what_looks_like_http() -> None:
    assert looks_like_http(b"GET / HTTP/1.1\r\n")
    assert looks_like_http(b"PRI * HTTP/2.0\r\n")
    for text in (
        b"\r\nGET / HTTP/1.1\r\n",
        b" get / http/1.1\r\n",
        b"M-SEARCH * HTTP/1.1\r\n",
        b"get\t/\tHTTP/1.1",
        b"GET /",
    ):
        assert looks_like_http(text), text
    for text in (b"G", b"\r\n", b"get", b"get / HTT", b"hello"):
        assert looks_like_http(text) is None, text
    for text in (b"SSH-2.0-x\r\n", b"get key\r\n", b"EHLO x\r\n", b"*1\r\n", b"A\0\0", b"{"):
        assert looks_like_http(text) is False, text
    assert not looks_like_http(b"\x00\x00\x00\x08\x04\xd2\x16\x2f")
