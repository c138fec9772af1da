"""Tools of the caller's own: Python functions, or objects that say what they are, as tools a model may call."""

from __future__ import annotations

import asyncio
import functools
import inspect
import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Final

from pydantic import ConfigDict, TypeAdapter, ValidationError, validate_call
from pydantic.errors import PydanticUserError

from runra.errors import RunraError
from runra.runtime.agents.hands.tool import Tool, ToolFailed, ToolOutput, cut
from runra.runtime.agents.options import TOOLS
from runra.sdk.types import refused

if TYPE_CHECKING:
    from runra.runtime.run import AgentRun

#: What every provider takes as a tool's name.
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")


def own_tools(given: Iterable[Any], run: AgentRun | None = None) -> list[Tool]:
    """The tools for one run. A function's name, docstring and annotated parameters are the tool's; one whose first
    parameter is called `run` is given the AgentRun there, and the model does not see it. An object has `name`,
    `description`, `input_schema` and `call(input)`. Both may be async; what is not works in a thread. What they return
    is told as text, anything but text as JSON; what they raise is the model's to read.

    Raises INVALID_CONFIG for what is no tool, and for two of one name.
    """
    tools = [_from(one, run) for one in given]
    names = [*TOOLS, *(tool.name for tool in tools)]
    for tool in tools:
        if not _NAME.fullmatch(tool.name):
            raise _wrong(f"{tool.name[:80]!r} is no name of a tool: letters, digits, '_' and '-', at most 64")
        if names.count(tool.name) > 1:
            raise _wrong(f"there are two tools {tool.name!r}; rename yours")
    return tools


def _from(given: Any, run: AgentRun | None) -> Tool:
    if isinstance(given, Tool):
        return given
    if inspect.isroutine(given):
        return _function(given, run)
    fields = given if isinstance(given, Mapping) else None
    name, told, schema, call = (
        fields.get(key) if fields is not None else getattr(given, key, None)
        for key in ("name", "description", "input_schema", "call")
    )
    if not isinstance(name, str) or not isinstance(schema, Mapping) or not callable(call):
        raise _wrong(f"{given!r:.100} is neither a function nor has it name, description, input_schema and call")

    async def called(value: Any) -> ToolOutput:
        return await _done(functools.partial(call, value), name)

    return Tool(name, str(told or ""), dict(schema), called)


def _function(function: Any, run: AgentRun | None) -> Tool:
    name = function.__name__
    parameters = list(inspect.signature(function).parameters)
    work = function
    if parameters and parameters[0] == "run":
        work = _given(function, run)
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(work, config=ConfigDict(extra="forbid"))
        schema = adapter.json_schema()
        checked = validate_call(work)
    except (PydanticUserError, NameError, TypeError) as error:
        raise _wrong(f"the parameters of {name} cannot be told to a model: {error}") from None
    if schema.get("type") != "object":
        raise _wrong(f"{name} takes parameters by position; a model gives them by name")

    async def called(value: Any) -> ToolOutput:
        if not isinstance(value, dict) or "_raw" in value:
            raise ToolFailed("The input is no valid JSON object; send it again, whole.")
        unknown = set(value) - set(schema.get("properties", {}))
        if unknown and schema.get("additionalProperties") is not True:
            raise ToolFailed(f"There are no such parameters: {', '.join(sorted(unknown))[:200]}.")
        return await _done(functools.partial(checked, **value), name)

    return Tool(name, inspect.cleandoc(function.__doc__ or ""), schema, called)


def _given(function: Any, run: AgentRun | None) -> Any:
    """The function with its first parameter filled in, and to be looked at as if it had none such."""
    signature = inspect.signature(function, eval_str=False)
    rest = list(signature.parameters.values())[1:]
    if inspect.iscoroutinefunction(function):

        async def work(**values: Any) -> Any:
            return await function(run, **values)

    else:

        def work(**values: Any) -> Any:  # type: ignore[misc]
            return function(run, **values)

    functools.update_wrapper(work, function)
    del work.__wrapped__  # type: ignore[attr-defined]
    work.__signature__ = signature.replace(parameters=rest)  # type: ignore[attr-defined]
    work.__annotations__ = {name: kind for name, kind in function.__annotations__.items() if name != "run"}
    return work


async def _done(work: Any, name: str) -> ToolOutput:
    """Do it, on the loop or in a thread, and put what came of it in words."""
    try:
        inner = work.func
        target = getattr(inner, "raw_function", inner)
        if inspect.iscoroutinefunction(target) or inspect.iscoroutinefunction(getattr(target, "__call__", None)):  # noqa: B004
            result = await work()
        else:
            result = await asyncio.to_thread(work)
            if inspect.isawaitable(result):
                result = await result
    except ToolFailed:
        raise
    except ValidationError as error:
        raise ToolFailed(f"The input does not fit: {refused(error).message}") from None
    except Exception as error:  # a tool's failure is for the model to read
        raise ToolFailed(f"{name} failed: {type(error).__name__}: {error}"[:4000]) from error
    if isinstance(result, ToolOutput):
        return result
    if not isinstance(result, str):
        result = "" if result is None else json.dumps(result, ensure_ascii=False, default=str)
    return ToolOutput(cut(result) or "(done)")


def _wrong(message: str) -> RunraError:
    return RunraError("INVALID_CONFIG", f"agent.config.tools: {message}", details={"field": "agent.config.tools"})
