"""Who may do what: API keys, their scopes, and the owner of a sandbox. The only place that decides it."""

from __future__ import annotations

import hashlib
import secrets
import string
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final, get_args

from runra.contract import (
    KeyCreate,
    KeyCreated,
    KeyInfo,
    KeyLimits,
    OrganizationInfo,
    Resources,
    SandboxConfig,
    Scope,
    same_image,
)
from runra.errors import RunraError, not_found
from runra.events import now_iso
from runra.ids import new_id
from runra.server.faults import bad_request, shown
from runra.server.store import Store
from runra.server.store.keys import KeyRow, add_key, all_keys, has_organization, note_use, remove_key

_ALPHABET: Final = string.ascii_letters + string.digits
_SECRET_LENGTH: Final = 40
#: Longest Authorization header worth hashing.
_LONGEST: Final = 256

SCOPES: Final[tuple[str, ...]] = get_args(Scope)
PROFILES: Final[Mapping[str, tuple[str, ...]]] = {
    "read-only": ("sandbox:read", "billing:read"),
    "sandbox-user": ("sandbox:*",),
    "full": ("sandbox:*", "billing:read", "billing:manage", "webhooks:manage", "admin:*"),
}


def new_secret() -> str:
    """A key as its owner sees it: 238 random bits from the system's CSPRNG."""
    return "rra_live_" + "".join(secrets.choice(_ALPHABET) for _ in range(_SECRET_LENGTH))


def digest(secret: str) -> str:
    """What is stored of a key. A fast hash is right here: a key is random and far too long to guess, so the
    slowness that protects a human's password would protect nothing and cost every call."""
    return hashlib.sha256(secret.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Key:
    """A key as calls are checked against it. `expires` is Unix seconds."""

    row: KeyRow
    scopes: frozenset[str]
    limits: KeyLimits | None
    expires: float | None

    @classmethod
    def of(cls, row: KeyRow) -> Key:
        return cls(
            row=row,
            scopes=frozenset(row.scopes),
            limits=KeyLimits.model_validate(dict(row.limits)) if row.limits else None,
            expires=datetime.fromisoformat(row.expires_at).timestamp() if row.expires_at else None,
        )

    @property
    def id(self) -> str:
        return self.row.id

    @property
    def organization_id(self) -> str:
        return self.row.organization_id

    def may(self, scope: str) -> bool:
        """`sandbox:*` covers every sandbox scope. `admin:*` covers none of them: it opens no tenant's sandboxes."""
        return scope in self.scopes or (scope.startswith("sandbox:") and "sandbox:*" in self.scopes)


class Access:
    """The keys of this server, in memory. One process serves a store, so what it revokes is revoked everywhere."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._by_hash: dict[str, Key] = {}
        self._used: dict[str, float] = {}

    async def load(self) -> None:
        self._by_hash = {row.hash: Key.of(row) for row in await all_keys(self._store)}

    @property
    def empty(self) -> bool:
        return not self._by_hash

    # --- checks ---------------------------------------------------------------------------------------------

    def authenticate(self, headers: Iterable[tuple[bytes, bytes]]) -> Key:
        """The key a call carries. Looking its hash up takes the same time however close a guess came."""
        given = [value for name, value in headers if name == b"authorization"]
        if not given:
            raise RunraError("UNAUTHORIZED", "no API key; send the header 'Authorization: Bearer <key>'")
        scheme, _, secret = given[0].partition(b" ")
        if len(given) > 1 or scheme.lower() != b"bearer" or len(secret) > _LONGEST:
            raise RunraError("UNAUTHORIZED", "send exactly one header 'Authorization: Bearer <key>'")
        key = self.known(secret.strip().decode("latin-1"))
        if key is None:
            raise RunraError("UNAUTHORIZED", "this API key is not known here, or was revoked; ask for a new one")
        now = time.time()
        if key.expires is not None and key.expires <= now:
            raise RunraError("UNAUTHORIZED", f"this API key expired at {key.row.expires_at}; ask for a new one")
        self._used[key.id] = now
        return key

    def known(self, secret: str) -> Key | None:
        return self._by_hash.get(digest(secret))

    @staticmethod
    def require(key: Key, scope: str) -> None:
        if not key.may(scope):
            raise RunraError(
                "FORBIDDEN",
                f"this API key lacks the scope {scope!r}; use a key that has it",
                details={"scope": scope, "scopes": sorted(key.scopes)},
            )

    @staticmethod
    def require_owner(key: Key, sandbox_id: str, organization_id: str | None) -> None:
        """Another tenant's sandbox answers exactly as one that does not exist."""
        if organization_id is None or organization_id != key.organization_id:
            raise not_found(sandbox_id[:64])

    @staticmethod
    def require_limits(key: Key, config: SandboxConfig) -> None:
        """The create stays within what its key allows (`maxSandboxes` is counted where the row is written)."""
        limits = key.limits
        if limits is None:
            return
        asked: Resources = config.resources
        Access.require_image(key, config.image)
        for field, value, most in (
            ("resources.cpu", asked.cpu, limits.cpu),
            ("resources.memoryMb", asked.memory_mb, limits.memory_mb),
            ("resources.diskMb", asked.disk_mb, limits.disk_mb),
        ):
            if most is not None and value > most:
                raise _limited(field, value, f"at most {most}")

    @staticmethod
    def require_volume(key: Key, size_mb: int) -> None:
        """A volume is no larger than the disk of a sandbox this key may make."""
        most = key.limits.disk_mb if key.limits else None
        if most is not None and size_mb > most:
            raise _limited("sizeMb", size_mb, f"at most {most}")

    @staticmethod
    def require_image(key: Key, image: str) -> None:
        """The image is one the key is for, however its name is written."""
        allowed = key.limits.images if key.limits else None
        if allowed is not None and not any(same_image(image, one) for one in allowed):
            raise _limited("image", image, f"one of {', '.join(allowed) or 'none'}")

    # --- keys -----------------------------------------------------------------------------------------------

    async def create(self, maker: Key, wanted: KeyCreate) -> KeyCreated:
        """Make a key that can do no more than its maker: not in scopes, limits or lifetime."""
        scopes = wanted.scopes if wanted.scopes is not None else PROFILES[wanted.profile or "read-only"]
        lacking = sorted(scope for scope in scopes if not maker.may(scope))
        if lacking:
            raise RunraError(
                "FORBIDDEN",
                f"this API key lacks {', '.join(lacking)} itself, so it cannot grant it",
                details={"lacking": lacking},
            )
        organization_id = wanted.organization_id or maker.organization_id
        if organization_id != maker.organization_id and not await has_organization(self._store, organization_id):
            raise bad_request("organizationId", "there is no such organization; list them", organization_id)
        secret = new_secret()
        row = KeyRow(
            id=new_id("key"),
            organization_id=organization_id,
            name=wanted.name,
            prefix=secret[:13],
            hash=digest(secret),
            scopes=sorted(set(scopes)),
            limits=_narrowed(maker.limits, wanted.limits),
            created_at=now_iso(),
            expires_at=_expiry(maker, wanted.expires_at),
            last_used_at=None,
        )
        await add_key(self._store, row)
        self._by_hash[row.hash] = Key.of(row)
        return KeyCreated(**_public(row), key=secret)

    async def create_first(self, secret: str) -> None:
        """The key an empty store starts with: every scope, in an organization of its own."""
        organization = OrganizationInfo(id=new_id("org"), name="default", created_at=now_iso())
        row = KeyRow(
            id=new_id("key"),
            organization_id=organization.id,
            name="bootstrap",
            prefix=secret[:13],
            hash=digest(secret),
            scopes=sorted(PROFILES["full"]),
            limits=None,
            created_at=now_iso(),
            expires_at=None,
            last_used_at=None,
        )
        await add_key(self._store, row, organization)
        self._by_hash[row.hash] = Key.of(row)

    async def revoke(self, key_id: str) -> KeyInfo:
        """From this moment on the key opens nothing."""
        row = next((key.row for key in self._by_hash.values() if key.id == key_id), None)
        if row is None:
            raise bad_request("id", "there is no such API key; list them with GET /v1/api-keys", key_id, status=404)
        # Out of memory first: should the write fail, the caller sees an error and the key is already useless.
        del self._by_hash[row.hash]
        self._used.pop(key_id, None)
        await remove_key(self._store, key_id)
        return KeyInfo(**_public(row))

    def listed(self, organization_id: str | None, limit: int, offset: int) -> tuple[list[KeyInfo], int]:
        """Keys, newest first, of one organization or of all."""
        rows = [key.row for key in reversed(self._by_hash.values())]
        rows = [row for row in rows if organization_id is None or row.organization_id == organization_id]
        return [KeyInfo(**_public(self._with_use(row))) for row in rows[offset : offset + limit]], len(rows)

    def _with_use(self, row: KeyRow) -> KeyRow:
        used = self._used.get(row.id)
        return row if used is None else replace(row, last_used_at=_iso(used))

    async def flush(self) -> None:
        """Write when keys were last used. Calls only note it in memory: an exec touches no database."""
        used, self._used = self._used, {}
        if not used:
            return
        await note_use(self._store, {key_id: _iso(at) for key_id, at in used.items()})
        for key in list(self._by_hash.values()):
            if key.id in used and key.row.hash in self._by_hash:
                self._by_hash[key.row.hash] = replace(key, row=replace(key.row, last_used_at=_iso(used[key.id])))


def _limited(field: str, value: object, allowed: str) -> RunraError:
    return RunraError(
        "FORBIDDEN",
        f"{field}: this API key allows {allowed}, not {shown(value)}",
        details={"field": field, "value": value},
    )


def _public(row: KeyRow) -> dict[str, object]:
    return {name: value for name, value in row.values().items() if name != "hash"}


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _expiry(maker: Key, wanted: str | None) -> str | None:
    if wanted is None:
        return maker.row.expires_at
    try:
        at = datetime.fromisoformat(wanted)
        if at.tzinfo is None:
            raise ValueError
        seconds = at.timestamp()
    except (ValueError, OverflowError):
        raise bad_request("expiresAt", "must be ISO 8601 with a time zone, like 2030-01-31T12:00:00Z", wanted) from None
    if seconds <= time.time():
        raise bad_request("expiresAt", "must be in the future", wanted)
    if maker.expires is not None and seconds > maker.expires:
        raise RunraError(
            "FORBIDDEN", f"expiresAt: this API key ends at {maker.row.expires_at} and cannot make one that outlives it"
        )
    return _iso(seconds)


def _narrowed(maker: KeyLimits | None, wanted: KeyLimits | None) -> dict[str, object] | None:
    """The new key's limits: what was asked, within what its maker has itself."""
    asked = wanted.model_dump(by_alias=True, exclude_none=True) if wanted else {}
    held = maker.model_dump(by_alias=True, exclude_none=True) if maker else {}
    for name, most in held.items():
        value = asked.setdefault(name, most)
        wider = not set(value) <= set(most) if isinstance(most, list) else value > most
        if wider:
            raise RunraError(
                "FORBIDDEN", f"limits.{name}: this API key's own limit is {most}, so it cannot grant {value}"
            )
    return asked or None
