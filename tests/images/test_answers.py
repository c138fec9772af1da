"""What stands between a registry and us, and answers that are none: each is said, nothing is left to chance."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from typing import Any

import pytest
from aiohttp import web

from runra.node.images import answers, registry
from tests.hosting import Host
from tests.images.conftest import pull, refused
from tests.images.oci import busybox, image
from tests.images.registries import OddRegistry


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "FIRST_WAIT", 0.005)


async def test_behind_a_proxy_that_compresses_what_may_be(odd: OddRegistry, host: Host) -> None:
    """nginx with gzip on does so, with JSON of registries and of what gives tokens."""
    made = image(busybox())
    name = odd.push(made, "packed:1")

    def sent(request: web.Request, body: bytes, kind: str) -> web.Response:
        if "gzip" not in request.headers.get("Accept-Encoding", ""):
            return web.Response(body=body, content_type=kind)
        return web.Response(body=gzip.compress(body), headers={"Content-Encoding": "gzip", "Content-Type": kind})

    def hook(request: web.Request, number: int) -> Any:
        if request.path == "/token":
            return sent(request, b'{"token":"good"}', "application/json")
        if request.headers.get("Authorization") != "Bearer good":
            challenge = f'Bearer realm="http://{odd.host}/token"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})
        if "/manifests/" in request.path:
            return sent(request, made.manifest, made.kind)
        blob = made.blobs[request.path.rpartition("/")[2]]
        return sent(request, blob, "application/json" if blob.startswith(b"{") else "application/octet-stream")

    odd.hook = hook
    assert (await pull(host, name)).layers == 1


def _challenge(realm: str) -> web.Response:
    return web.Response(status=401, headers={"WWW-Authenticate": f'Bearer realm="{realm}",service="x"'})


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("https://[x/", "no address"),
        ("https://h:99999/", "no address"),
        ("https://h:abc/", "no address"),
        (f"https://{'a' * 64}.example/", "no host"),
        ("https://a..example/", "no host"),
        ("https://xn--a.%zz/", "no host"),
        ("https://127.1/", "no host"),
        ("https://2130706433/", "no host"),
        ("https://\xb2/", "no host"),
    ],
)
async def test_where_nobody_can_be_sent(odd: OddRegistry, host: Host, target: str, says: str) -> None:
    """By a redirect, and for a token."""
    for answer in (
        web.Response(status=302, headers={"Location": target}),
        _challenge(target.replace("https", "http")),
    ):
        odd.hook = lambda request, number, answer=answer: answer
        error = await refused(pull(host, f"{odd.host}/x:1"))
        assert error.code == "INVALID_REQUEST"
        assert says in error.message
    assert [event.type for event in host.events if event.type.startswith("image.e")] == ["image.error"] * 2


async def test_names_only_a_resolver_can_judge(odd: OddRegistry, host: Host) -> None:
    odd.hook = lambda request, number: web.Response(status=302, headers={"Location": "https://xn--a.invalid/"})
    error = await refused(pull(host, f"{odd.host}/x:1"))
    assert "cannot be reached" in error.message


async def test_tokens_that_are_none(odd: OddRegistry, host: Host) -> None:
    for body in (b"[" * 200_000, b"[]", b"null", b'{"token": 5}', b'{"token": "a\\nb"}', b"\xff"):

        def hook(request: web.Request, number: int, body: bytes = body) -> web.Response:
            if request.path == "/token":
                return web.Response(body=body, content_type="application/json")
            return _challenge(f"http://{odd.host}/token")

        odd.hook = hook
        assert "gave no token" in (await refused(pull(host, f"{odd.host}/x:1"))).message


async def test_a_wait_that_is_no_number(odd: OddRegistry, host: Host) -> None:
    name = odd.push(image(busybox()), "limited:1")
    waits = dict(enumerate(("\xb2", "-1", "nan", "soon"), 1))
    odd.hook = lambda request, number: (
        web.Response(status=429, headers={"Retry-After": waits[number]})
        if "/manifests/" in request.path and number in waits
        else None
    )
    await pull(host, name)


async def test_what_is_wrong_is_said_in_a_few_words(odd: OddRegistry, host: Host) -> None:
    """Whatever length the names in somebody's JSON have."""
    name = odd.push(image(busybox()), "wordy:1")
    body = b'{"config": {"digest": "sha256:%s", "size": 1, "annotations": {"%s": 5}}}' % (b"0" * 64, b"x" * 1_000_000)
    odd.hook = lambda request, number: web.Response(body=body)
    assert len((await refused(pull(host, name))).message) < 1000


@pytest.mark.parametrize("what", ["manifest", "token"])
async def test_answers_that_drip(odd: OddRegistry, host: Host, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Byte by byte, so that there is never silence: it is slow, and nothing else is said of it."""
    monkeypatch.setattr(answers, "_WHOLE", 0.1)
    name = odd.push(image(busybox()), "slow:1")

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(b" ")
                await asyncio.sleep(0.02)
        return response

    odd.hook = lambda request, number: (
        drip(request) if what == "manifest" or request.path == "/token" else _challenge(f"http://{odd.host}/token")
    )
    error = await refused(pull(host, name))
    assert (error.status, error.retryable) == (502, True)
    assert "did not come whole within" in error.message
