"""The exporters `axiom` and `webhook` against a server that checks what comes, and that misbehaves."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Any

import pytest

from runra import webhooks
from runra.errors import RunraError
from runra.runtime.exporters import Pipeline, pipeline
from tests.exporters.backends import Backend, backend, hangs, resets, says
from tests.exporters.making import event
from tests.hosting import until

TOKEN = "xaat-00000000-test-token"
SECRET = "a webhook secret"


@asynccontextmanager
async def sending(provider: str = "axiom", **config: Any) -> AsyncIterator[tuple[Pipeline, Backend]]:
    """A started exporter and its server. What a test does not wait for is given up at its end."""
    async with backend() as server:
        own = {"token": TOKEN, "url": server.url} if provider == "axiom" else {"url": server.url, "secret": SECRET}
        it = pipeline({"provider": provider, "config": {**own, "flushIntervalMs": 10, **config}})
        await it.start()
        try:
            yield it, server
        finally:
            await it.close(0.5)


async def test_axiom_gets_gzipped_batches_with_its_token() -> None:
    async with sending(batchSize=10, dataset="my events") as (it, server):
        server.always = says(200, '{"ingested":10,"failed":0}')
        sent = [event(run_id="run_1") for _ in range(25)]
        for one in sent:
            it.offer(one)
        assert await it.flush()
        assert [len(got.json) for got in server.got] == [10, 10, 5]
        first = server.got[0]
        assert first.path == "/v1/datasets/my events/ingest"
        assert first.headers["authorization"] == f"Bearer {TOKEN}"
        assert first.headers["content-type"] == "application/json"
        assert first.headers["content-encoding"] == "gzip"
        rows = [row for got in server.got for row in got.json]
        assert [row["id"] for row in rows] == [one.id for one in sent]
        assert rows[0]["_time"] == sent[0].timestamp
        assert rows[0]["level"] == "info"
        assert rows[0]["runId"] == "run_1"
        assert rows[0]["data"] == sent[0].data


async def test_axioms_token_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AXIOM_TOKEN", "xaat-from-the-environment")
    monkeypatch.setenv("AXIOM_ORG_ID", "my-org")
    async with sending(token=None) as (it, server):
        it.offer(event())
        assert await it.flush()
        assert server.got[0].headers["authorization"] == "Bearer xaat-from-the-environment"
        assert server.got[0].headers["x-axiom-org-id"] == "my-org"


@pytest.mark.parametrize("provider", ["axiom", "webhook"])
@pytest.mark.parametrize("trouble", [says(500), says(503), says(429, Retry_After="0"), resets])
async def test_what_passes_is_tried_again_with_the_same_batch(provider: str, trouble: Any) -> None:
    async with sending(provider) as (it, server):
        server.answers = [trouble]
        it.offer(event())
        assert await it.flush()
        assert len(server.got) == 2
        assert server.got[0].content == server.got[1].content
        (stats,) = it.stats.values()
        assert (stats.exported, stats.dropped, stats.retries) == (1, 0, 1)


async def test_retry_after_is_held(caplog: pytest.LogCaptureFixture) -> None:
    async with sending() as (it, server):
        server.answers = [says(429, Retry_After="1")]
        begun = time.monotonic()
        it.offer(event())
        assert await it.flush()
        assert time.monotonic() - begun >= 1.0


async def test_retry_after_may_be_a_date() -> None:
    async with sending() as (it, server):
        server.answers = [says(503, Retry_After=formatdate(time.time() + 2, usegmt=True))]
        begun = time.monotonic()
        it.offer(event())
        assert await it.flush()
        assert time.monotonic() - begun >= 0.9  # a date has whole seconds


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 302])
async def test_what_will_not_pass_is_told_once_and_not_tried_again(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[RunraError] = []
    async with sending(onError=told.append) as (it, server):
        server.always = says(status, "no such token or dataset", Location="http://127.0.0.1:1/stolen")
        for _ in range(3):
            it.offer(event())
            assert await it.flush()
        assert len(server.got) == 3
        assert it.stats["axiom"].dropped == 3
        assert str(status) in it.stats["axiom"].failure
        await until(lambda: bool(told))
        assert len(told) == 1
        assert told[0].status == status
        assert TOKEN not in str(told[0])
    assert TOKEN not in caplog.text


async def test_a_slow_server_meets_the_deadline_and_the_run_meets_nothing() -> None:
    async with sending(timeoutMs=100) as (it, server):
        server.answers = [hangs]
        begun = time.perf_counter()
        for _ in range(100):
            it.offer(event())
        assert time.perf_counter() - begun < 0.1
        assert await it.flush()
        assert it.stats["axiom"].exported == 100
        assert it.stats["axiom"].retries == 1


async def test_a_server_that_is_not_there_is_tried_again() -> None:
    async with backend() as gone:
        url = gone.url
    it = pipeline({"provider": "axiom", "token": TOKEN, "url": url, "flushIntervalMs": 0})
    await it.start()
    it.offer(event())
    await until(lambda: it.stats["axiom"].retries > 0)
    assert "no answer from http://127.0.0.1" in it.stats["axiom"].failure
    assert not await it.close(0.1)


async def test_axiom_tells_which_events_it_refused() -> None:
    async with sending() as (it, server):
        server.always = says(200, '{"ingested":3,"failed":2,"failures":[{"error":"too many fields"}]}')
        for _ in range(5):
            it.offer(event())
        assert await it.flush()
        assert (it.stats["axiom"].exported, it.stats["axiom"].dropped) == (3, 2)
        assert "too many fields" in it.stats["axiom"].failure


async def test_a_server_that_answers_without_end_is_read_no_further() -> None:
    async def endless(request: Any, got: Any) -> Any:
        from aiohttp import web

        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(b"x" * 65536)

    async with sending() as (it, server):
        server.always = endless
        it.offer(event())
        assert await it.flush(5)
        assert it.stats["axiom"].exported == 1


async def test_the_environments_proxy_gets_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    async with backend() as proxy, sending() as (it, server):
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("http_proxy", proxy.url)
        it.offer(event())
        assert await it.flush()
        assert (len(server.got), len(proxy.got)) == (1, 0)


# --- webhook -------------------------------------------------------------------------------------------------------


async def test_a_webhook_is_signed_and_its_receiver_can_check_it() -> None:
    async with sending("webhook", headers={"X-Team": "a"}) as (it, server):
        sent = [event() for _ in range(3)]
        for one in sent:
            it.offer(one)
        assert await it.flush()
        (got,) = server.got
        assert webhooks.verify(SECRET, got.headers, got.body) == got.headers["webhook-id"]
        assert [one["id"] for one in got.json["events"]] == [one.id for one in sent]
        assert got.headers["x-team"] == "a"
        for change in ({"webhook-id": "dlv_other"}, {"webhook-timestamp": str(int(time.time()) - 10)}):
            with pytest.raises(RunraError, match="signature"):
                webhooks.verify(SECRET, {**got.headers, **change}, got.body)
        with pytest.raises(RunraError, match="signature"):
            webhooks.verify(SECRET, got.headers, got.body + b" ")
        with pytest.raises(RunraError, match="signature"):
            webhooks.verify("another", got.headers, got.body)


async def test_a_repeated_delivery_has_the_same_id_and_a_new_time() -> None:
    async with sending("webhook") as (it, server):
        server.answers = [says(503, Retry_After="1")]
        it.offer(event())
        assert await it.flush()
        one, two = server.got
        assert one.headers["webhook-id"] == two.headers["webhook-id"]
        assert one.headers["webhook-timestamp"] != two.headers["webhook-timestamp"]
        webhooks.verify(SECRET, two.headers, two.body)


def test_signatures_are_those_of_standard_webhooks() -> None:
    """The example of standardwebhooks.com's own test suites."""
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    body = b'{"test": 2432232314}'
    expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert webhooks.sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == expected


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"webhook-id": "a", "webhook-timestamp": "now", "webhook-signature": "v1,x"},
        {"webhook-id": "a", "webhook-timestamp": "1", "webhook-signature": "v1,x"},
        {"webhook-id": "a", "webhook-timestamp": "²", "webhook-signature": "v1,x"},
        {"webhook-id": "a", "webhook-timestamp": str(int(time.time()) + 9999), "webhook-signature": "v1,x"},
        {"webhook-id": "a", "webhook-timestamp": str(int(time.time())), "webhook-signature": "v1,é v2,x v1 ,"},
    ],
)
def test_what_is_no_signature_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(RunraError) as caught:
        webhooks.verify(webhooks.new_secret(), headers, b"{}")
    assert caught.value.code == "UNAUTHORIZED"


def test_new_secrets_differ_and_work() -> None:
    one, two = webhooks.new_secret(), webhooks.new_secret()
    assert one != two
    assert len(base64.b64decode(one.removeprefix("whsec_"))) == 32
    headers = webhooks.headers(one, "dlv_1", b"{}")
    assert webhooks.verify(one, headers, b"{}") == "dlv_1"
    rotated = {**headers, "webhook-signature": f"v1,{'A' * 43}= {headers['webhook-signature']}"}
    assert webhooks.verify(one, rotated, b"{}") == "dlv_1"


async def test_nothing_of_it_is_logged_that_is_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with sending("webhook", url="http://127.0.0.1:9/hook?key=very-hidden-value") as (it, _):
        it.offer(event())
        await until(lambda: it.stats["webhook"].failure != "")
        await asyncio.sleep(0)
    text = caplog.text + json.dumps([stats.failure for stats in it.stats.values()])
    assert "very-hidden-value" not in text
    assert SECRET not in text
