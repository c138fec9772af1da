"""Make the runtime's blocking form (`runtime/blocking.py`) from the signatures of its asynchronous classes.

    python scripts/generate_blocking.py          write it when it changed
    python scripts/generate_blocking.py --check  exit with 1 when it is stale

The SDK's sync half is a translation of its source; the runtime's providers stand on libraries that only exist
asynchronously, so here each call goes to an event loop in a thread (`runtime/portal.py`) instead. What is generated are
the typed methods that do so, so that both forms have one surface.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNTIME = ROOT / "src" / "runra" / "runtime"
TARGET = RUNTIME / "blocking.py"

#: Modules and their classes; each becomes `Sync` + its name.
CLASSES = {
    "process": ["Process"],
    "files": ["SandboxFiles"],
    "terminal": ["Terminal"],
    "sandbox": ["Sandbox"],
    "stream": ["RunStream"],
    "runtime": ["Runra"],
}
NAMES = [name for names in CLASSES.values() for name in names]
RENAMED = {"__aenter__": "__enter__", "__aexit__": "__exit__", "__aiter__": "__iter__"}
GENERATORS = {"AsyncGenerator", "AsyncIterator"}

HEADER = '''"""The runtime for programs without an event loop: the same calls, each waiting for its end.

Made by scripts/generate_blocking.py from the asynchronous classes: never edit it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from runra.contract import ExecutionResult, FileEntry, SandboxState, SnapshotInfo
from runra.contract import SandboxConfig as Config
from runra.runtime.bus import Handler
from runra.runtime.config import Resolved
from runra.runtime.files import SandboxFiles
from runra.runtime.portal import Portal
from runra.runtime.process import Process
from runra.runtime.runtime import DISPOSE_MS, Runra
from runra.runtime.sandbox import Sandbox
from runra.runtime.stream import RunStream
from runra.runtime.terminal import Terminal
from runra.runtime.types import AgentResult, PortInfo, SandboxHandle, StartParams
from runra.sdk.output import OutputChunk
from runra.sdk.types import ExecOptions, ListOptions, SandboxConfig, TerminalExit

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from runra.contract.network import Network
    from runra.events import Event
    from runra.runtime.options import RunraOptions
    from runra.runtime.providers import AgentAdapter, Exporter, LLMProvider, SandboxProvider
    from runra.runtime.sandboxes.base import BaseProvider
    from runra.sdk.types import SandboxOptions
'''


class _Sync(ast.NodeTransformer):
    """Annotations in their sync form."""

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name(f"Sync{node.id}") if node.id in NAMES else node

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.value, ast.Name) and node.value.id in GENERATORS:
            inner = node.slice.elts[0] if isinstance(node.slice, ast.Tuple) else node.slice
            return ast.Subscript(ast.Name("Iterator"), inner)
        return node


def _annotation(node: ast.expr | None) -> str:
    return ast.unparse(_Sync().visit(ast.parse(ast.unparse(node), mode="eval").body)) if node is not None else "Any"


def _signature(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    arguments = ast.parse(f"def f({ast.unparse(function.args)}): ...").body[0]
    assert isinstance(arguments, ast.FunctionDef)
    for argument in [*arguments.args.args, *arguments.args.kwonlyargs, arguments.args.vararg, arguments.args.kwarg]:
        if argument is not None and argument.annotation is not None:
            argument.annotation = ast.parse(_annotation(argument.annotation), mode="eval").body
    return ast.unparse(arguments.args)


def _passed(function: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    args = function.args
    words = []
    for argument in args.args[1:]:
        plain = argument.annotation is not None and ast.unparse(argument.annotation) in NAMES
        words.append(f"{argument.arg}._inner" if plain else argument.arg)
    words += [f"{argument.arg}={argument.arg}" for argument in args.kwonlyargs]
    if args.kwarg is not None:
        words.append(f"**{args.kwarg.arg}")
    return ", ".join(words)


def _wrapped(value: str, annotation: str) -> str:
    """The expression that gives a result its sync form."""
    named = [name for name in NAMES if f"Sync{name}" in annotation]
    if annotation == "None":
        return value
    if annotation == "Self":
        return f"{value}\nreturn self"
    return f"return self._portal.wrap({value})" if named else f"return {value}"


def _method(function: ast.FunctionDef | ast.AsyncFunctionDef, owner: str) -> list[str]:
    decorators = [ast.unparse(one) for one in function.decorator_list]
    name = RENAMED.get(function.name, function.name)
    returns = _annotation(function.returns)
    lines = [f"@{one}" for one in decorators]
    lines.append(f"def {name}({_signature(function)}) -> {returns}:")
    body: list[str] = []
    if "overload" in decorators:
        return [*lines[:-1], lines[-1] + " ..."]
    doc = ast.get_docstring(function, clean=False)
    if doc is not None:
        body.append(f'"""{doc}"""')
    call = f"self._inner.{function.name}({_passed(function)})"
    if "property" in decorators:
        body.append(f"return self._inner.{function.name}")
    elif "staticmethod" in decorators:
        passed = ", ".join(argument.arg for argument in function.args.args)
        body.append(f"{owner}.{function.name}({passed})")
    elif returns.startswith("Iterator") and name == "__iter__":
        body.append("return self._portal.iterate(self._inner.__aiter__())")
    elif returns.startswith("Iterator"):
        body.append(f"return self._portal.iterate({call})")
    elif isinstance(function, ast.AsyncFunctionDef):
        wrapped = _wrapped(f"self._portal.call(lambda: {call})", returns)
        body += wrapped.split("\n")
        if name == "__exit__" and owner == "Runra":
            body = ["self.dispose()"]
    else:
        wrapped = _wrapped(f"self._portal.do(lambda: {call})", returns)
        body += wrapped.split("\n")
    if name == "dispose":
        body = [*body[:-1], "if self._portal.open:", "    try:", f"        {body[-1]}", "    finally:"]
        body.append("        self._portal.close()")
    return [*lines, *(f"    {line}" for line in body)]


def _class(node: ast.ClassDef) -> list[str]:
    doc = ast.get_docstring(node, clean=False) or ""
    lines = [f"class Sync{node.name}:", f'    """{doc}"""', ""]
    functions = [one for one in node.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
    init = next(one for one in functions if one.name == "__init__")
    if node.name == "Runra":
        signature, passed = _signature(init), _passed(init)
        lines += [f"    def __init__({signature}) -> None:", f"        inner = Runra({passed})"]
        lines += ["        self._portal = Portal(WRAPPERS)", "        self._inner: Any = inner", ""]
    else:
        lines += [f"    def __init__(self, portal: Portal, inner: {node.name}) -> None:"]
        lines += ["        self._portal = portal", "        self._inner: Any = inner"]
        if node.name == "Sandbox":
            lines += ["        self.files = SyncSandboxFiles(portal, inner.files)"]
        lines.append("")
    public = [one for one in functions if not one.name.startswith("_") or one.name in RENAMED or one.name == "__repr__"]
    for function in public:
        if function.name == "__repr__":
            lines += ["    def __repr__(self) -> str:", "        return repr(self._inner)", ""]
            continue
        lines += [f"    {line}" if line else "" for line in _method(function, node.name)]
        lines.append("")
    attributes = _attributes(init) if node.name != "Runra" else []
    for attribute, annotation in attributes:
        lines += ["    @property", f"    def {attribute}(self) -> {annotation}:"]
        lines += [f"        return self._inner.{attribute}", ""]
    return lines


def _attributes(init: ast.FunctionDef | ast.AsyncFunctionDef) -> list[tuple[str, str]]:
    """Public attributes set in `__init__` with a type to be seen; `files` has a form of its own."""
    types = {argument.arg: _annotation(argument.annotation) for argument in init.args.args}
    found = []
    for one in ast.walk(init):
        if isinstance(one, ast.Assign):
            target = one.targets[0]
        elif isinstance(one, ast.AnnAssign):
            target = one.target
        else:
            continue
        if not isinstance(target, ast.Attribute) or target.attr.startswith("_") or target.attr == "files":
            continue
        if isinstance(one, ast.AnnAssign):
            found.append((target.attr, _annotation(one.annotation)))
        elif isinstance(one, ast.Assign):
            value = one.value.id if isinstance(one.value, ast.Name) else ""
            found.append((target.attr, types.get(value, "str")))
    return found


def generated() -> str:
    parts = [HEADER]
    for module, names in CLASSES.items():
        tree = ast.parse((RUNTIME / f"{module}.py").read_text())
        for name in names:
            node = next(one for one in tree.body if isinstance(one, ast.ClassDef) and one.name == name)
            parts.append("\n".join(_class(node)))
    pairs = ", ".join(f"{name}: Sync{name}" for name in NAMES if name != "Runra")
    parts.append(f"#: The sync form of each class.\nWRAPPERS: dict[type[Any], Callable[..., Any]] = {{{pairs}}}\n")
    text = "\n\n".join(parts)
    for arguments in (["check", "--select", "I,F401", "--fix", "--quiet"], ["format", "--quiet"]):
        command = [sys.executable, "-m", "ruff", *arguments, "--stdin-filename", str(TARGET), "-"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=ROOT, timeout=60)  # noqa: S603
        if done.returncode != 0:
            raise SystemExit(f"ruff: {done.stderr}{done.stdout[:2000]}")
        text = done.stdout
    return text


def main(arguments: list[str]) -> int:
    check = arguments == ["--check"]
    if arguments and not check:
        print(__doc__, file=sys.stderr)
        return 2
    text = generated()
    stale = not TARGET.exists() or TARGET.read_text() != text
    if stale and not check:
        TARGET.write_text(text)
    if stale:
        print(f"{'stale' if check else 'wrote'}: {TARGET.relative_to(ROOT)}")
        if check:
            print("run: python scripts/generate_blocking.py", file=sys.stderr)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
