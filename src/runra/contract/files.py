"""Files of a sandbox."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from runra.contract.base import PathText, Request, Wire

FileType = Literal["file", "directory", "symlink", "fifo", "socket", "char", "block"]


class FileEntry(Wire):
    """A name in a folder. `type` is of the name itself; `is_directory` follows a symbolic link."""

    name: str
    path: str
    is_directory: bool
    size_bytes: int
    modified_at: str
    mode: str = Field("", description="octal, such as '0644'")
    owner: str = ""
    group: str = ""
    symlink_target: str | None = None
    type: FileType = "file"


class MkdirRequest(Request):
    path: PathText
    recursive: bool = False


class MoveRequest(Request):
    from_: PathText = Field(alias="from")
    to: PathText


class WatchEvent(Wire):
    type: Literal["created", "modified", "deleted", "moved"]
    path: str
