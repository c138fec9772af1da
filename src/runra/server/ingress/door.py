"""Who comes in: from a request's name, headers and target to an exposed port of a sandbox, or to a refusal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from starlette.responses import Response

from runra.errors import RunraError
from runra.node.agent.types import AgentLost
from runra.server.ingress.headers import COOKIE, SECURE_COOKIE, Headers, cookies, values
from runra.server.ingress.hosts import Names, Place
from runra.server.ingress.pages import Refusal
from runra.server.ingress.tokens import TOKEN_HEADER, take_parameter
from runra.server.nodeport import Node, Sandbox
from runra.server.ports import Exposed, Ports, allowed

_SAFE: Final = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class Admitted:
    """A request that may pass. `target` is what it asks for, without our own parameter."""

    exposed: Exposed
    sandbox: Sandbox
    target: bytes
    authority: bytes
    cuts: int


class Door:
    """Decides about every request to a preview; nothing passes by any other way."""

    def __init__(self, node: Node, ports: Ports, names: Names) -> None:
        self._node = node
        self._ports = ports
        self._names = names

    def admit(self, place: Place, method: str, target: bytes, headers: Headers) -> Admitted | Response:
        """The way in, or the redirect that follows a signed link. Raises the refusal otherwise.

        A port that is not exposed, a sandbox that is gone and one that never was are the same 404: a name tells a
        stranger nothing.
        """
        exposed = self._ports.find(place)
        sandbox = self._node.sandboxes.get(place.sandbox_id)
        if exposed is None or sandbox is None or not allowed(sandbox.config, place.port):
            raise Refusal("not_exposed", "No sandbox exposes a port under this name.", 404, "SANDBOX_NOT_FOUND")
        if not target.startswith(b"/") and target != b"*":
            raise Refusal("bad_request", "The request's target is no path.", 400, "INVALID_REQUEST")
        target, signed = take_parameter(target)
        if signed is not None:
            left_ms = self._ports.left_ms(exposed, [signed]) if exposed.row.private else 0
            if exposed.row.private and not left_ms:
                raise Refusal("private", "This link is not valid any more. Ask for a new one.", 401, "UNAUTHORIZED")
            if method in _SAFE:
                return self._clean(headers, target, signed, left_ms)
        elif exposed.row.private:
            self._check(exposed, method, headers)
        return Admitted(exposed, sandbox, target, _authority(headers), exposed.cuts)

    def _check(self, exposed: Exposed, method: str, headers: Headers) -> None:
        if self._ports.has_token(exposed, values(headers, TOKEN_HEADER)):
            return
        if not self._ports.left_ms(exposed, cookies(headers)):
            raise Refusal(
                "private",
                "It opens with the header X-Runra-Preview-Token, or with a signed link.",
                401,
                "UNAUTHORIZED",
            )
        if not _from_itself(method, headers, told=self._names.trustworthy):
            raise Refusal("private", "Another site's page may not use this preview.", 403, "FORBIDDEN")

    def _clean(self, headers: Headers, target: bytes, signed: bytes, left_ms: int) -> Response:
        """Take the link out of the address bar, its history and every Referer: a cookie carries it from here on. The
        address is whole, since a path like //elsewhere would be another site's."""
        secure = self._names.scheme == "https"
        answer = {
            "Location": f"{self._names.scheme}://{_authority(headers).decode()}{target.decode('latin-1')}",
            "Cache-Control": "no-store",
            "Referrer-Policy": "no-referrer",
        }
        if left_ms:
            name = (SECURE_COOKIE if secure else COOKIE).decode()
            answer["Set-Cookie"] = (
                f"{name}={signed.decode()}; Path=/; HttpOnly; SameSite=Lax; Max-Age={-(-left_ms // 1000)}"
                f"{'; Secure' if secure else ''}"
            )
        return Response(status_code=303, headers=answer)


def _authority(headers: Headers) -> bytes:
    """The name and port the client used, which led here: behind a forwarded port it is not the one we know."""
    return values(headers, b"host")[0].lower()


def _from_itself(method: str, headers: Headers, *, told: bool) -> bool:
    """Whether a request with our cookie is one of the preview's own pages, or a visit. Previews of other sandboxes lie
    under the same domain, so for a browser they are the same site, and SameSite does not hold them off.

    Browsers tell by Sec-Fetch-Site and Origin. Where they do not tell (`told`), over plain HTTP, another's <script src>
    carries neither: what no own page's Origin or Referer vouches for must then be a visit, which asks for HTML."""
    own = _authority(headers)
    if any(origin.partition(b"://")[2].lower() != own for origin in values(headers, b"origin")):
        return False
    if any(site in (b"same-site", b"cross-site") for site in values(headers, b"sec-fetch-site")):
        return method in _SAFE and values(headers, b"sec-fetch-mode") == [b"navigate"]
    if told or values(headers, b"sec-fetch-site") or values(headers, b"origin"):
        return True
    if any(page.partition(b"://")[2].partition(b"/")[0].lower() == own for page in values(headers, b"referer")):
        return True
    return method in _SAFE and any(b"text/html" in kinds for kinds in values(headers, b"accept"))


def explain(error: RunraError) -> Refusal:
    """A failure on the way in, as a visitor is told it."""
    if isinstance(error, Refusal):
        return error
    state, reason = error.details.get("state"), error.details.get("reason")
    if state == "paused":
        return Refusal("paused", "Resume it, or create it with autoResume so that a visit does.", 503)
    if state == "terminated" or reason == "closed":
        return Refusal("closed", "The preview was closed while this was under way.", 404, "SANDBOX_NOT_FOUND")
    if error.code == "RESOURCE_EXHAUSTED":
        return Refusal("too_many", "The sandbox takes no more connections now. Try again.", 503, "RESOURCE_EXHAUSTED")
    if reason == "port_closed":
        return Refusal("port_closed", error.message, 502)
    if reason == "connection_broke" or isinstance(error, AgentLost):
        return Refusal("connection_broke", "It ended before its answer did.", 502)
    return Refusal("failed", "The server failed on the way to the sandbox; its log says how.", 502, "INTERNAL_ERROR")
