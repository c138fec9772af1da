"""The exporter `prometheus`: what its page says."""

from __future__ import annotations

import asyncio
import urllib.request
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from runra.runtime.exporters import Pipeline, build
from tests.exporters.making import event
from tests.hosting import until


def samples(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(f"{name}={value}" for name, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def page(port: int) -> str:
    def read() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain")
            return answer.read().decode()

    return await asyncio.to_thread(read)


async def test_the_page_shows_what_happened_and_goes_away_at_the_end() -> None:
    routes = build({"provider": "prometheus", "port": 0})
    exporter: Any = routes[0].exporter
    it = Pipeline(routes)
    await it.start()
    await until(lambda: exporter.port is not None)
    port = exporter.port
    for one in (
        event(data={"exitCode": 0, "durationMs": 20}),
        event(data={"exitCode": 1, "durationMs": 2000}),
        event(data={"exitCode": 137, "oom": True}),
        event("exec.timed_out", {"durationMs": 60_000}),
        event("sandbox.terminated", {"reason": "oom"}),
        event("network.egress", {"host": "h", "bytesSent": 60, "bytesReceived": 40, "allowed": True}),
        event("agent.tool_result", {"name": "bash", "isError": True, "durationMs": 5}),
        event(
            "cost.llm",
            {
                "provider": "anthropic",
                "model": "m-1",
                "inputTokens": 1000,
                "outputTokens": 20,
                "cost": 0.5,
                "durationMs": 700,
            },
        ),
    ):
        it.offer(one)
    assert await it.flush()
    told = samples(await page(port))
    assert told["runra_events_total", "level=info", "type=exec.completed"] == 2
    assert told["runra_events_total", "level=warn", "type=exec.completed"] == 1
    assert told["runra_exec_duration_seconds_count", "outcome=ok"] == 1
    assert told["runra_exec_duration_seconds_sum", "outcome=failed"] == 2.0
    assert told["runra_exec_duration_seconds_count", "outcome=oom"] == 1
    assert told["runra_exec_duration_seconds_count", "outcome=timed_out"] == 1
    assert told["runra_sandbox_terminations_total", "reason=oom"] == 1
    assert told["runra_network_egress_bytes_total", "allowed=true"] == 100
    assert told["runra_tool_duration_seconds_count", "gen_ai_tool_name=bash", "outcome=failed"] == 1
    model = ("gen_ai_operation_name=chat", "gen_ai_provider_name=anthropic", "gen_ai_request_model=m-1")
    assert told["gen_ai_client_token_usage_sum", *model, "gen_ai_token_type=input"] == 1000
    assert told["gen_ai_client_token_usage_sum", *model, "gen_ai_token_type=output"] == 20
    assert told["gen_ai_client_operation_duration_seconds_sum", *model] == 0.7
    assert told["runra_llm_cost_total", "currency=USD", "gen_ai_request_model=m-1"] == 0.5
    assert not any("sb_" in label for key in told for label in key)
    assert await it.close(5)
    try:
        await page(port)
    except OSError:
        return
    raise AssertionError("the page is still there")


async def test_labels_are_bounded() -> None:
    registry = CollectorRegistry()
    it = Pipeline(build({"provider": "prometheus", "port": None, "registry": registry, "batchSize": 1000}))
    await it.start()
    for number in range(500):
        it.offer(event("agent.tool_result", {"name": f"tool{number}" + "x" * 1000, "durationMs": 1}))
    assert await it.flush()
    text = generate_latest(registry).decode()
    names = {line for line in text.splitlines() if line.startswith("runra_tool_duration_seconds_count")}
    assert len(names) == 101
    assert any('gen_ai_tool_name="other"' in line for line in names)
    assert max(map(len, names)) < 300
    assert await it.close(5)
    assert generate_latest(registry) == b""  # the program's own registry is left as it was


async def test_numbers_that_are_none_hurt_nothing() -> None:
    it = Pipeline(build({"provider": "prometheus", "port": None}))
    await it.start()
    for data in ({"durationMs": "long"}, {"durationMs": -5}, {"durationMs": None}, {"durationMs": True}):
        it.offer(event("exec.timed_out", data))
        it.offer(event("cost.llm", {**data, "cost": -1, "inputTokens": "many", "model": 7}))
    assert await it.close(5)
    assert it.stats["prometheus"].dropped == 0


async def test_a_port_that_is_taken_is_told_and_tried_again() -> None:
    first = Pipeline(build({"provider": "prometheus", "port": 0}))
    await first.start()
    exporter: Any = first._lanes[0]._route.exporter
    await until(lambda: exporter.port is not None)
    second = Pipeline(build({"provider": "prometheus", "port": exporter.port}))
    await second.start()
    await until(lambda: "in use" in second.stats["prometheus"].failure)
    assert await first.close(5)
    second.offer(event())
    await until(lambda: second.stats["prometheus"].exported == 1)
    assert await second.close(5)
