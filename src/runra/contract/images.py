"""Images: how they are named, what a pull asks for, and how the API shows them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import Field, SecretStr

from runra.contract.base import ImageName, Request, Text, Wire

#: The registry of names without a host, and the folder there of names without one.
DEFAULT_REGISTRY: Final = "docker.io"
_OFFICIAL: Final = "library/"

# The grammar of the OCI distribution specification 1.1 ("Pulling manifests") and of Docker's references.
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST: Final = re.compile(rf"(?P<name>{_LABEL}(?:\.{_LABEL})*)(?::(?P<port>[0-9]{{1,5}}))?")
_REPOSITORY: Final = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """The full name of an image: `node:22` is repository `library/node` with tag `22` at `docker.io`.

    With a digest the tag means nothing and is left out. Two ways to write one name are equal once parsed.
    """

    host: str
    repository: str
    tag: str = ""
    digest: str = ""

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises ValueError that says what is wrong with it."""
        rest, at, digest = text.partition("@")
        if at and not _DIGEST.fullmatch(digest):
            raise ValueError(f"{text[:120]!r}: a digest is 'sha256:' and 64 hexadecimal digits")
        first, slash, path = rest.partition("/")
        # Docker's rule: what has a dot, a port or is 'localhost' is a host; anything else is a folder of docker.io.
        if not slash or not ("." in first or ":" in first or first == "localhost"):
            first, path = DEFAULT_REGISTRY, rest
        host = DEFAULT_REGISTRY if first.lower() == "index.docker.io" else first.lower()
        repository, colon, tag = path.partition(":")
        if host == DEFAULT_REGISTRY and "/" not in repository:
            repository = _OFFICIAL + repository
        if not _is_host(host):
            raise ValueError(f"{text[:120]!r}: {first[:60]!r} is no registry's host")
        if not _REPOSITORY.fullmatch(repository) or len(repository) > 200:
            raise ValueError(f"{text[:120]!r} is not an image's name such as 'python:3.12' or 'host:5000/team/app:tag'")
        if colon and not _TAG.fullmatch(tag):
            raise ValueError(f"{text[:120]!r}: {tag[:60]!r} is no tag")
        return cls(host, repository, "" if digest else tag or "latest", digest)

    def __str__(self) -> str:
        """In full, the same for every way to write it."""
        return f"{self.host}/{self.repository}" + (f"@{self.digest}" if self.digest else f":{self.tag}")

    @property
    def short(self) -> str:
        """As people write it: without the default registry and its default folder."""
        return str(self).removeprefix(f"{DEFAULT_REGISTRY}/").removeprefix(_OFFICIAL)


def _is_host(text: str) -> bool:
    """A name as resolvers take it (labels of 63, 253 in all), and a port there can be."""
    found = _HOST.fullmatch(text)
    return found is not None and len(found["name"]) <= 253 and 1 <= int(found["port"] or 443) <= 65_535


def same_image(one: str, other: str) -> bool:
    """Whether two names mean one image: `python:3.12` and `docker.io/library/python:3.12` do."""
    # What Runra names itself reads like a reference too, and is none.
    if one == other or any(name == "host" or name.startswith("snapshot:") for name in (one, other)):
        return one == other
    try:
        return Reference.parse(one) == Reference.parse(other)
    except ValueError:
        return False


ImageState = Literal["ready", "pulling"]
ImageSource = Literal["registry", "archive", "commit"]


class Credentials(Request):
    """A registry's login. Kept in memory for one pull, and nowhere else."""

    username: Text = Field(min_length=1, max_length=1024)
    password: SecretStr = Field(min_length=1, max_length=65_536)


class ImagePull(Request):
    """The body of a pull. `shared` makes the image usable by every organization of this server, else only by the
    caller's; unset, an image pulled with credentials is not shared and any other is."""

    reference: ImageName = Field(examples=["python:3.12"])
    credentials: Credentials | None = None
    shared: bool | None = None


class ImageCommit(Request):
    """The body of a commit: the name for what the sandbox's files are now. `step` marks a step of a recipe."""

    reference: ImageName = Field(examples=["my-tools:1"])
    shared: bool = False
    step: bool = False


class ImageTag(Request):
    """The body of a naming: `image`, which is here, is called `reference` as well."""

    image: ImageName = Field(examples=["python:3.12"])
    reference: ImageName = Field(examples=["my-tools:1"])
    shared: bool = False


class ImagePrune(Request):
    """The body of a prune: images no sandbox uses, and that none used for `unusedForMs`, go."""

    unused_for_ms: int = Field(0, ge=0)


class ImageInfo(Wire):
    """An image as the API shows it. `entrypoint` and `cmd` are reported and not run: process 1 is Runra's own.

    `digest` is the manifest's at the registry, or one of the contents where there was no registry. `size_bytes` is
    what it takes on disk unpacked, layers shared with other images included. While it is being pulled, `done_bytes`
    of `total_bytes` have come.
    """

    reference: str
    state: ImageState = "ready"
    digest: str = ""
    platform: str = ""
    size_bytes: int = 0
    layers: int = 0
    env: dict[str, str] = Field(default_factory=dict)
    user: str = ""
    workdir: str = ""
    entrypoint: list[str] = Field(default_factory=list)
    cmd: list[str] = Field(default_factory=list)
    labels: dict[str, str] = Field(default_factory=dict)
    source: ImageSource = "registry"
    step: bool = False
    shared: bool = False
    created_at: str | None = Field(None, description="when it was built")
    added_at: str | None = Field(None, description="when it came to this server")
    last_used_at: str | None = None
    done_bytes: int | None = None
    total_bytes: int | None = None


class ImagePulling(Wire):
    """The answer to a pull: it goes on, and is told on the event stream after the event `after`, by events with this
    `pullId`. Others may pull an image of the same name at the same time."""

    reference: str
    pull_id: str
    state: ImageState = "pulling"
    after: str = ""


class ImagesPruned(Wire):
    """What a prune removed, and the bytes it gave back."""

    references: list[str]
    freed_bytes: int
