"""A shelf: folders of one kind that outlive sandboxes and servers, each with a record beside it.

The record is what makes a folder exist: it is written last and deleted first. A folder without one is the rest of a
make or a delete that a crash cut short, and is thrown away at the next start. A record without its folder stays: the
disk it lies on may only be missing today.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from runra.errors import RunraError, no_such

log = logging.getLogger(__name__)


class Kept(BaseModel):
    """What every record on a shelf says."""

    id: str
    organization_id: str
    name: str | None
    created_at: str


K = TypeVar("K", bound=Kept)


class Shelf(Generic[K]):
    """`records` lies on the server's own disk, `home` where sandboxes' folders are, so that copies share and moving to
    the trash is a rename."""

    def __init__(
        self, what: str, model: type[K], records: Path, home: Path, throw_away: Callable[[Path], None]
    ) -> None:
        self._what = what
        self._model = model
        self._records = records
        self._home = home
        self._throw_away = throw_away
        self._kept: dict[str, K] = {}

    def load(self) -> set[Path]:
        """Read what an earlier server kept. Returns the folders that were not on record, thrown away by now."""
        self._records.mkdir(mode=0o700, parents=True, exist_ok=True)
        names = set()
        for path in self._records.glob("*.json"):
            names.add(path.stem)
            try:
                record = self._model.model_validate_json(path.read_text())
            except (OSError, ValidationError) as error:
                log.error("%s %s has no readable record, its folder stays unused: %s", self._what, path.stem, error)
                continue
            self._kept[record.id] = record
            if not self.folder(record.id).is_dir():
                log.error("%s %s: its folder is not there", self._what, record.id)
        there = self._home.iterdir() if self._home.exists() else ()
        rubbish = {folder for folder in there if folder.name not in names}
        for folder in rubbish:
            self._throw_away(folder)
        return rubbish

    def folder(self, kept_id: str) -> Path:
        return self._home / kept_id

    def place(self, kept_id: str) -> Path:
        """Where the folder of a new one is to be made."""
        folder = self.folder(kept_id)
        if kept_id in self._kept or folder.exists():
            raise RunraError("INVALID_STATE", f"{self._what} {kept_id} is there already")
        self._home.mkdir(mode=0o700, exist_ok=True)
        return folder

    def __iter__(self) -> Iterator[K]:
        return iter(list(self._kept.values()))

    def __contains__(self, kept_id: str) -> bool:
        return kept_id in self._kept

    def find(self, organization_id: str, reference: str) -> K:
        """The organization's own, by id or name. Raises INVALID_REQUEST (404) otherwise."""
        for record in self._kept.values():
            if record.organization_id == organization_id and reference in (record.id, record.name):
                return record
        raise no_such(self._what, reference)

    def get(self, kept_id: str) -> K:
        try:
            return self._kept[kept_id]
        except KeyError:
            raise no_such(self._what, kept_id) from None

    def put(self, record: K) -> None:
        """Write a record whose folder is complete; it outlives a power cut."""
        path = self._records / f"{record.id}.json"
        fresh = path.with_suffix(".new")
        with fresh.open("w") as file:
            file.write(record.model_dump_json())
            file.flush()
            os.fsync(file.fileno())
        fresh.rename(path)
        self._sync()
        self._kept[record.id] = record

    def drop(self, kept_id: str) -> None:
        """Forget it; from here on its folder is rubbish. The caller throws that away."""
        (self._records / f"{kept_id}.json").unlink(missing_ok=True)
        self._sync()
        self._kept.pop(kept_id, None)

    def throw_away(self, kept_id: str) -> None:
        if self.folder(kept_id).exists():
            self._throw_away(self.folder(kept_id))

    def _sync(self) -> None:
        fd = os.open(self._records, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
