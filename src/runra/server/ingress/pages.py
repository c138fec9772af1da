"""What a visitor of a preview sees in place of it: a page for browsers, the API's error shape for everyone else."""

from __future__ import annotations

from html import escape
from typing import Final

from starlette.responses import Response

from runra.errors import ErrorCode, RunraError
from runra.server.faults import JSON, error_body
from runra.server.ingress.headers import Headers, values

_PAGE: Final = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:36rem;margin:20vh auto;padding:0 1rem;color:#222}}
h1{{font-size:1.3rem}}p{{color:#555}}@media(prefers-color-scheme:dark){{body{{background:#111;color:#eee}}p{{color:#aaa}}}}
</style><h1>{title}</h1><p>{text}</p>
"""
#: Nothing of this page may be framed, cached or run.
_GUARD: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_TITLES: Final = {
    "not_exposed": "Nothing is here",
    "private": "This preview is private",
    "paused": "The sandbox is paused",
    "port_closed": "Nothing listens on this port",
    "bad_answer": "The server in the sandbox gave no valid answer",
    "connection_broke": "The connection to the server in the sandbox broke",
    "no_answer": "The server in the sandbox did not answer in time",
    "too_many": "Too many connections",
    "bad_request": "This request makes no sense",
    "closed": "This preview was closed",
    "failed": "This preview failed",
}


class Refusal(RunraError):
    """What the ingress itself answers; `reason` is in its details and in the header X-Runra-Reason, which a sandbox's
    own answers cannot carry."""

    def __init__(self, reason: str, message: str, status: int, code: ErrorCode = "INVALID_STATE") -> None:
        retryable = status in (502, 503, 504)
        super().__init__(code, message, status=status, details={"reason": reason}, retryable=retryable)


def page(error: Refusal, headers: Headers, request_id: str) -> Response:
    reason = error.details["reason"]
    extra = {**_GUARD, "X-Runra-Reason": reason, "X-Request-Id": request_id}
    if error.status == 503:
        extra["Retry-After"] = "1"
    if any(b"text/html" in value.lower() for value in values(headers, b"accept")):
        text = _PAGE.format(title=_TITLES[reason], text=escape(error.message))
        return Response(text, error.status, extra, media_type="text/html; charset=utf-8")
    return Response(error_body(error, request_id), error.status, extra, media_type=JSON)
