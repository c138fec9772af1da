"""JSON answers, each made once: a model straight to bytes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic_core import PydanticSerializationError
from starlette.responses import Response

from runra.contract import Page, Pagination, Wire
from runra.server.faults import JSON

Item = TypeVar("Item", bound=Wire)


def dumped(model: Wire) -> str:
    """A model as JSON."""
    try:
        return model.model_dump_json(by_alias=True)
    except PydanticSerializationError:
        # A name in a sandbox need not be UTF-8. It goes out with its odd bytes as lone surrogates, escaped, which
        # Python's and JavaScript's clients can send back; one such file must not hide the others of its folder.
        return json.dumps(model.model_dump(by_alias=True))


def answer(model: Wire, status: int = 200) -> Response:
    return Response(dumped(model), status, media_type=JSON)


def plain(content: Any, status: int = 200) -> Response:
    """An answer that is already JSON values."""
    return Response(json.dumps(content, ensure_ascii=False), status, media_type=JSON)


def page(items: Sequence[Item], total: int, limit: int, offset: int) -> Response:
    """A collection, in the one shape of the contract."""
    pagination = Pagination(total=total, limit=limit, offset=offset, has_more=offset + len(items) < total)
    return answer(Page[Any](data=list(items), pagination=pagination))


def empty() -> Response:
    return Response(status_code=204)
