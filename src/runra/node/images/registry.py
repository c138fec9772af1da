"""A client of image registries: OCI distribution specification 1.1, Docker registry v2 with its tokens.

What a registry answers is hostile input: sizes are bounded, digests checked while bytes come, redirects lose the
login on their way to another host, a create (which any tenant may send) reaches public addresses only, and what is at
one sends nobody to others.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

import aiohttp
from yarl import URL

from runra.contract import Credentials, Reference
from runra.errors import RunraError
from runra.node.images.addresses import Anywhere, PublicOnly, is_host, refuse_private
from runra.node.images.answers import TryAgain, lost, read, refused, strange
from runra.node.images.manifest import INDEXES, MANIFESTS, MOST_CONFIG, MOST_MANIFEST, Descriptor, digest_of
from runra.node.settings import RegistrySettings

log = logging.getLogger(__name__)

#: Where Docker's registry answers; the name in references is another one.
_API_HOSTS: Final = {"docker.io": "registry-1.docker.io"}
_LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_ACCEPT: Final = ", ".join((*INDEXES, *MANIFESTS))
_REDIRECTS: Final = 5
_ATTEMPTS: Final = 5
#: Seconds before the second attempt; each further one waits three times as long.
FIRST_WAIT = 0.2
_MOST_TOKEN: Final = 1 << 20
#: Longest wait a registry may ask for before we give up instead, in seconds.
_MOST_PATIENCE: Final = 30.0
#: Seconds without a byte, and for a connection.
_STALL: Final = 60.0
_CONNECT: Final = 20.0
_CHUNK: Final = 1 << 20
_CHALLENGE: Final = re.compile(r'([a-zA-Z_]+)="([^"]*)"')


Done = TypeVar("Done")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One server that may have an image: a mirror or the registry itself."""

    base: URL
    host: str
    settings: RegistrySettings
    upstream: bool
    #: Whether it may be at an address that is not public: the operator named it, or an administrator asks. Where it
    #: sends us may be at one only if it is at one itself, or the operator says so (settings.private).
    private: bool

    @property
    def name(self) -> str:
        return self.base.raw_host or ""


class Registry:
    """One image's registry and its mirrors, for one pull. `credentials` are sent to the registry alone.

    Use as a context manager. `private` allows a registry at an address that is not public.
    """

    def __init__(
        self,
        reference: Reference,
        configured: Mapping[str, RegistrySettings],
        credentials: Credentials | None,
        *,
        private: bool,
    ) -> None:
        self._reference = reference
        self._name = reference.short
        self._configured = configured
        self._credentials = credentials
        own = configured.get(reference.host, RegistrySettings())
        self._endpoints = [
            Endpoint(base, base.authority, configured.get(base.authority, RegistrySettings()), False, True)
            for base in map(URL, own.mirrors)
        ]
        host = _API_HOSTS.get(reference.host, reference.host)
        self._endpoints.append(Endpoint(URL(f"https://{host}"), host, own, True, private or own.private))
        #: By host: the login in use, and the base URL where it is another one than configured.
        self._headers: dict[str, str] = {}
        self._bases: dict[str, URL] = {}
        self._anywhere = Anywhere()
        self._sessions: dict[tuple[str, bool], aiohttp.ClientSession] = {}

    async def __aenter__(self) -> Registry:
        return self

    async def __aexit__(self, *_: object) -> None:
        for session in self._sessions.values():
            await session.close()

    # --- what a pull needs ---

    async def manifest(self, reference: str, expected: str | None = None) -> tuple[bytes, str, str]:
        """A manifest or index by tag or digest: its bytes, media type and digest."""
        data, kind = await self._small(f"manifests/{reference}", MOST_MANIFEST, {"Accept": _ACCEPT}, expected)
        return data, kind, digest_of(data)

    async def config(self, descriptor: Descriptor) -> bytes:
        if descriptor.size > MOST_CONFIG:
            raise RunraError("INVALID_REQUEST", f"{self._name}: its config is {descriptor.size} bytes long")
        data, _ = await self._small(f"blobs/{descriptor.digest}", descriptor.size, {}, descriptor.digest)
        return data

    async def blob(
        self, digest: str, start: int, sink: Callable[[bytes, int], None], senders: set[Endpoint] | None = None
    ) -> None:
        """Hand on a blob's bytes from `start`, in order, as `sink(bytes, offset)` in a thread. A registry that does
        not know ranges sends all of it again: then offsets begin at 0. Raises what `sink` raises. Who sends is added
        to `senders`."""
        headers = {"Range": f"bytes={start}-"} if start else {}
        async with self._get(f"blobs/{digest}", headers) as (endpoint, response):
            if senders is not None:
                senders.add(endpoint)
            offset = start
            if response.status == 200:
                offset = 0
            elif not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                self.blame({endpoint})
                raise TryAgain(strange(self._name, response, "sent another range than was asked for"))
            try:
                async for part in response.content.iter_chunked(_CHUNK):
                    await asyncio.to_thread(sink, part, offset)
                    offset += len(part)
            except (aiohttp.ClientError, TimeoutError) as error:
                self.blame({endpoint})
                raise TryAgain(lost(self._name, response.url.raw_host or "", error)) from None

    def blame(self, senders: set[Endpoint]) -> bool:
        """Ask those who sent something wrong, or cannot be reached, no more in this pull. False when there is nobody
        else to be asked."""
        left = [endpoint for endpoint in self._endpoints if endpoint not in senders]
        if not left and len(senders) > 1:
            left = self._endpoints[-1:]  # parts of several: what the registry itself sends alone may be right
        self._endpoints = left or self._endpoints
        return bool(left)

    async def retried(self, work: Callable[[], Awaitable[Done]], progress: Callable[[], int] = lambda: 0) -> Done:
        """Do it again, with growing waits, as long as that can help: at most five times without any progress."""
        attempt, reached = 0, progress()
        while True:
            try:
                return await work()
            except TryAgain as again:
                if progress() > reached:
                    attempt, reached = 0, progress()
                wait = again.wait if again.wait is not None else FIRST_WAIT * 3**attempt
                attempt += 1
                if attempt == _ATTEMPTS or wait > _MOST_PATIENCE:
                    raise again.error from None
                log.info("image %s: %s; trying again in %.1f s", self._name, again.error.message, wait)
                await asyncio.sleep(wait)

    # --- requests ---

    async def _small(self, path: str, most: int, headers: dict[str, str], expected: str | None) -> tuple[bytes, str]:
        async def once() -> tuple[bytes, str]:
            async with self._get(path, headers) as (endpoint, response):
                try:
                    data = await read(response, most)
                except (aiohttp.ClientError, TimeoutError) as error:
                    self.blame({endpoint})
                    raise TryAgain(lost(self._name, response.url.raw_host or "", error)) from None
                if data is None:
                    long = strange(self._name, response, f"sent more than {most} bytes")
                    raise TryAgain(long, 0.0) if self.blame({endpoint}) else long
                if expected is not None and digest_of(data) != expected:
                    self.blame({endpoint})
                    raise TryAgain(strange(self._name, response, f"sent other content than {expected}"))
                return data, response.headers.get("Content-Type", "").partition(";")[0].strip()

        return await self.retried(once)

    @asynccontextmanager
    async def _get(self, path: str, headers: dict[str, str]) -> AsyncIterator[tuple[Endpoint, aiohttp.ClientResponse]]:
        """The first good answer of the mirrors and the registry, in their order, and whose it is."""
        failure: RunraError | TryAgain | None = None
        for endpoint in self._endpoints:
            try:
                response = await self._ask(endpoint, path, headers)
            except (RunraError, TryAgain) as error:
                failure = error
                continue
            try:
                yield endpoint, response
            finally:
                response.close()
            return
        assert failure is not None
        raise failure

    async def _ask(self, endpoint: Endpoint, path: str, headers: dict[str, str]) -> aiohttp.ClientResponse:
        base = self._bases.get(endpoint.host, endpoint.base)
        try:
            response = await self._follow(endpoint, base / "v2" / self._reference.repository / path, headers)
        except aiohttp.ClientConnectorCertificateError as error:
            raise RunraError(
                "INVALID_REQUEST",
                f"registry {endpoint.host}: its certificate is not trusted ({error.certificate_error}); name its "
                "authority with caFile in the registries file, or allow it there with insecure",
                details={"host": endpoint.host},
            ) from None
        except (aiohttp.ClientError, TimeoutError) as error:
            # What speaks no TLS may be spoken to without it, where the operator said so and on this machine itself.
            plain = endpoint.settings.insecure or endpoint.base.host in _LOOPBACK
            if plain and base.scheme == "https" and isinstance(error, aiohttp.ClientSSLError):
                self._bases[endpoint.host] = base.with_scheme("http")
                return await self._ask(endpoint, path, headers)
            if not endpoint.upstream:  # else each request would wait for a mirror that is gone
                self.blame({endpoint})
            raise TryAgain(lost(self._name, endpoint.host, error)) from None
        if response.status in (200, 206):
            return response
        response.close()
        raise self._refused(endpoint, response)

    async def _follow(self, endpoint: Endpoint, url: URL, headers: dict[str, str]) -> aiohttp.ClientResponse:
        """Answer a challenge once, and go where a registry sends us, without its login."""
        login = self._headers.get(endpoint.host)
        asked = False
        first = url
        for _ in range(_REDIRECTS):
            own = _place(url) == _place(first)
            sent = {**headers, **({"Authorization": login} if login and own else {})}
            response = await self._send(endpoint, url, sent)
            if response.status == 401 and own and not asked:
                asked = True
                response.close()
                login = await self._login(endpoint, response, url)
                if login is None:
                    return response
                self._headers[endpoint.host] = login
                continue
            if response.status not in (301, 302, 303, 307, 308):
                return response
            response.close()
            target = response.headers.get("Location")
            if not target:
                raise strange(self._name, response, "redirects to nowhere")
            try:
                target.encode()  # what was no UTF-8 cannot be sent either
                url = url.join(URL(target, encoded=True))
                _place(url)  # its port is read only now
            except ValueError:
                raise strange(self._name, response, "redirects to what is no address") from None
            if url.scheme != "https" and not (url.scheme == "http" and first.scheme == "http"):
                raise strange(self._name, response, f"redirects to {url.scheme}, which is not safe")
        raise RunraError("INVALID_REQUEST", f"registry {endpoint.host} redirects in circles")

    async def _send(self, endpoint: Endpoint, url: URL, headers: dict[str, str]) -> aiohttp.ClientResponse:
        host = url.raw_host or ""
        if not is_host(host):
            raise RunraError("INVALID_REQUEST", f"registry {endpoint.host} sends to {host[:100]!r}, which is no host")
        private = endpoint.settings.private or (
            endpoint.private and (host == endpoint.name or self._anywhere.private(endpoint.name))
        )
        if not private:
            refuse_private(host, endpoint.name)
        return await self._session(endpoint, private).get(url, headers=headers, allow_redirects=False)

    def _session(self, endpoint: Endpoint, private: bool) -> aiohttp.ClientSession:
        key = endpoint.host, private
        if key not in self._sessions:
            settings = endpoint.settings
            context = ssl.create_default_context(cafile=None)
            if settings.ca_file is not None:
                try:
                    context.load_verify_locations(settings.ca_file)
                except (OSError, ssl.SSLError) as error:
                    raise RunraError("INVALID_CONFIG", f"caFile {settings.ca_file}: {error}") from None
            if settings.insecure:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            resolver = self._anywhere if private else PublicOnly(endpoint.name)
            self._sessions[key] = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=context, resolver=resolver, limit=8),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT, sock_read=_STALL),
                auto_decompress=False,
                # Blobs are stored as they are named, compressed or not; nothing is to be packed for the way.
                headers={"User-Agent": "runra", "Accept-Encoding": "identity"},
                cookie_jar=aiohttp.DummyCookieJar(),
            )
        return self._sessions[key]

    def _refused(self, endpoint: Endpoint, response: aiohttp.ClientResponse) -> RunraError | TryAgain:
        return refused(self._name, endpoint.host, response, login=self._known(endpoint) is not None)

    # --- logging in ---

    def _known(self, endpoint: Endpoint) -> tuple[str, str] | None:
        """The login for an endpoint: the caller's for the registry itself, else the operator's for that host."""
        if endpoint.upstream and self._credentials is not None:
            return self._credentials.username, self._credentials.password.get_secret_value()
        if endpoint.settings.username:
            return endpoint.settings.username, endpoint.settings.password
        return None

    async def _login(self, endpoint: Endpoint, response: aiohttp.ClientResponse, url: URL) -> str | None:
        """The Authorization header a challenge asks for; None when there is nothing to answer it with."""
        scheme, _, rest = response.headers.get("WWW-Authenticate", "").partition(" ")
        known = self._known(endpoint)
        basic = None
        if known is not None:
            basic = "Basic " + base64.b64encode(f"{known[0]}:{known[1]}".encode()).decode()
        if scheme.lower() == "basic":
            return basic
        if scheme.lower() != "bearer":
            return None
        asked = {name.lower(): value for name, value in _CHALLENGE.findall(rest)}
        query = {"scope": asked.get("scope") or f"repository:{self._reference.repository}:pull"}
        if "service" in asked:
            query["service"] = asked["service"]
        try:
            realm = URL(asked.get("realm", "")).update_query(query)
        except ValueError:
            raise strange(self._name, response, "asks for a login at what is no address") from None
        # The login goes to the realm: never over plain HTTP when the registry itself was reached over TLS.
        if not realm.raw_host or realm.scheme not in (("https",) if url.scheme == "https" else ("http", "https")):
            raise strange(self._name, response, "asks for a login at an address that is not safe")
        answer = await self._send(endpoint, realm, {"Authorization": basic} if basic else {})
        try:
            if answer.status != 200:
                raise self._refused(endpoint, answer)
            body = await read(answer, _MOST_TOKEN)
        finally:
            answer.close()
        try:
            told = json.loads(body or b"")
            token = told.get("token") or told.get("access_token")
        except (ValueError, AttributeError, RecursionError):
            token = None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise strange(self._name, response, "gave no token")
        return f"Bearer {token}"


def _place(url: URL) -> tuple[str, str | None, int | None]:
    """Where a URL leads to: what has the same one may have the login."""
    return url.scheme, url.raw_host, url.port
