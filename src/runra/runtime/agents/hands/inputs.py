"""What a model gives each tool: one type each, whose docstring and fields are what the model is told."""

from __future__ import annotations

import inspect
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from runra.contract import EXEC_TIMEOUT_MS, PathText, Text

_MAX_MS: Final = int(EXEC_TIMEOUT_MS.high)
#: Longest content that is written at once, in characters.
_CONTENT: Final = 8 << 20


class Input(BaseModel):
    """A model's input: numbers may be text, as some models write them; an unknown field is an error."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", validate_default=False)


class Bash(Input):
    """Run a command in the sandbox's shell (bash where there is one, else sh). The folder it ends in is where the next
    one begins; variables are not kept. Output is stdout and stderr together; of a long one the middle is left out. Run
    servers and other lasting programs in the background, with their output in a file."""

    command: Text = Field(min_length=1, max_length=100_000, description="What to run.")
    description: Text | None = Field(None, max_length=1000, description="What for, in a few words.")
    timeout_ms: int = Field(120_000, ge=1, le=_MAX_MS, description="After so many ms it is killed.")


class Read(Input):
    """Read a text file, with line numbers. For a long file, say which part."""

    path: PathText = Field(description="The file; a relative path begins where bash is.")
    offset: int = Field(1, ge=1, description="The first line.")
    limit: int = Field(1000, ge=1, le=10_000, description="How many lines at most.")


class Write(Input):
    """Write a file, whole: it is made, with the folders above it, or replaced."""

    path: PathText = Field(description="The file; a relative path begins where bash is.")
    content: str = Field(max_length=_CONTENT, description="All that is to be in it.")


class Edit(Input):
    """Replace a piece of a text file. The piece must be in it exactly as given, and once only unless replaceAll is
    set."""

    path: PathText = Field(description="The file; a relative path begins where bash is.")
    old_string: str = Field(
        min_length=1, max_length=_CONTENT, description="The piece, exactly, without the line numbers of read."
    )
    new_string: str = Field(max_length=_CONTENT, description="What comes in its place.")
    replace_all: bool = Field(False, description="Replace every place where it stands.")


class Glob(Input):
    """Find files by name, such as **/*.py or src/**/test_*.{ts,tsx}. Names come sorted, .git is left out."""

    pattern: Text = Field(min_length=1, max_length=1000, description="** stands for any number of folders.")
    path: PathText | None = Field(None, description="The folder to look in; where bash is when left out.")


class Grep(Input):
    """Find lines in files by an extended regular expression. Lines come as file:number:line; binary files and .git are
    left out."""

    pattern: Text = Field(min_length=1, max_length=10_000, description="The expression, as grep -E takes it.")
    path: PathText | None = Field(None, description="A folder or a file; where bash is when left out.")
    include: Text | None = Field(None, max_length=200, description="Only files of such a name, as in *.py or *.{c,h}.")
    ignore_case: bool = Field(False, description="Whether capitals count as small letters.")
    context: int = Field(0, ge=0, le=20, description="Lines to show before and after each.")
    files_only: bool = Field(False, description="Only the names of the files.")
    limit: int = Field(200, ge=1, le=2000, description="How many lines at most.")


def schema(kind: type[Input]) -> dict[str, Any]:
    """The JSON schema of an input, without what a model has no use for."""
    made: dict[str, Any] = _plain(kind.model_json_schema(by_alias=True))
    made.pop("description", None)
    return made


def description(kind: type[Input]) -> str:
    """What the tool does, in one paragraph."""
    return " ".join(inspect.cleandoc(kind.__doc__ or "").split())


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if not isinstance(value, dict):
        return value
    kept = {name: _plain(inner) for name, inner in value.items() if name != "title" or isinstance(inner, dict)}
    either = kept.pop("anyOf", None)  # an optional one: leaving it out says the same
    if either is not None:
        kept |= next(one for one in either if one != {"type": "null"})
        kept.pop("default", None)
    return kept
