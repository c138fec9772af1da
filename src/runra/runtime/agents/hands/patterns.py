"""Patterns of file names: `*`, `?`, `[…]`, `{a,b}`, and `**` for any number of folders."""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import Callable
from typing import Final

#: How many patterns one with braces may stand for.
_MOST: Final = 100


def braces(pattern: str) -> list[str]:
    """The patterns that one with `{a,b}` stands for, from the outside in; at most 100."""
    found = re.search(r"\{([^{}]*,[^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    before, after = pattern[: found.start()], pattern[found.end() :]
    made: list[str] = []
    for choice in found.group(1).split(","):
        made += braces(before + choice + after)
        if len(made) >= _MOST:
            break
    return made[:_MOST]


def root(pattern: str) -> tuple[str, str]:
    """The folder a pattern surely leads into, and what is left of it: only that folder need be looked through."""
    parts = pattern.split("/")
    fixed: list[str] = []
    while len(parts) > 1 and not re.search(r"[*?\[{]", parts[0]):
        fixed.append(parts.pop(0))
    folder = "/".join(fixed) or ("/" if pattern.startswith("/") else ".")
    return folder, "/".join(parts)


def matcher(pattern: str) -> Callable[[str], bool]:
    """Whether a relative path matches. Without a slash a pattern is one of names in the folder itself."""
    forms = [_parts(one) for one in braces(pattern)]
    return lambda name: any(_matches(form, name.split("/")) for form in forms)


#: One part of a pattern: an expression for one name; None is `**`.
_Part = re.Pattern[str] | None


def _parts(pattern: str) -> list[_Part]:
    # fnmatch's expressions never go back over what they have passed, whatever pattern a model writes.
    parts = posixpath.normpath(pattern).split("/")
    return [None if part == "**" else re.compile(fnmatch.translate(part)) for part in parts]


def _matches(parts: list[_Part], names: list[str]) -> bool:
    """As with `*` in one name: only the latest `**` need ever be gone back to, so this takes no more than parts times
    names."""
    part = name = 0
    back: tuple[int, int] | None = None
    while name < len(names):
        if part < len(parts) and parts[part] is None:
            back = (part, name)
            part += 1
        elif part < len(parts) and _is(parts[part], names[name]):
            part, name = part + 1, name + 1
        elif back is not None:
            back = (back[0], back[1] + 1)
            part, name = back[0] + 1, back[1]
        else:
            return False
    return all(form is None for form in parts[part:])


def _is(form: _Part, name: str) -> bool:
    return form is not None and form.match(name) is not None
