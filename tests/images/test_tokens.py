"""A real registry that takes tokens, and what gives them (distribution's token specification)."""

from __future__ import annotations

import base64
import json
import secrets
import ssl
import subprocess
import time
from pathlib import Path
from typing import Any

from aiohttp import BasicAuth, web

from tests.hosting import Host
from tests.images.conftest import leftovers, pull, refused
from tests.images.oci import busybox, image
from tests.images.registries import OddRegistry, needs, real_registry


def _packed(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def signed(folder: Path, access: list[dict[str, Any]]) -> str:
    """A JSON Web Token (RFC 7519) with RS256, that carries its certificate."""
    certificate = ssl.PEM_cert_to_DER_cert((folder / "tokens.pem").read_text())
    head = {"typ": "JWT", "alg": "RS256", "x5c": [base64.b64encode(certificate).decode()]}
    now = int(time.time())
    claims = {"iss": "test", "sub": "me", "aud": "here", "exp": now + 300, "nbf": now - 10, "iat": now - 10}
    claims |= {"jti": secrets.token_hex(8), "access": access}
    text = f"{_packed(json.dumps(head).encode())}.{_packed(json.dumps(claims).encode())}"
    words = ["openssl", "dgst", "-sha256", "-sign", str(folder / "tokens.key")]
    done = subprocess.run(words, input=text.encode(), capture_output=True, check=True, timeout=20)
    return f"{text}.{_packed(done.stdout)}"


async def test_a_registry_that_takes_tokens(odd: OddRegistry, host: Host, tmp_path: Path) -> None:
    needs("openssl", "openssl")
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tokens"]
    words = [*request, "-keyout", "tokens.key", "-out", "tokens.pem"]
    subprocess.run(words, cwd=tmp_path, capture_output=True, check=True, timeout=60)
    with real_registry(tmp_path / "registry") as running:
        running.push(image(busybox()), "team/app:1")
    asked: list[str] = []

    def give(request: web.Request, number: int) -> web.Response:
        asked.append(request.query["scope"])
        assert request.query["service"] == "here"
        kind, name, actions = request.query["scope"].split(":")
        known = request.headers.get("Authorization") == BasicAuth("me", "my-password").encode()
        access = [{"type": kind, "name": name, "actions": actions.split(",")}] if known else []
        return web.json_response({"token": signed(tmp_path, access)})

    odd.hook = give
    token = (f"http://{odd.host}/token", tmp_path / "tokens.pem")
    with real_registry(tmp_path / "registry", token=token) as running:
        name = f"{running.host}/team/app:1"
        for login in (None, ("me", "wrong")):
            error = await refused(pull(host, name, login=login))
            assert (error.code, error.details["status"]) == ("INVALID_REQUEST", 401)
        await pull(host, name, login=("me", "my-password"))
    assert set(asked) == {"repository:team/app:pull"}
    assert leftovers(host) == []
