"""Ctrl-C in the middle of a create, in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from typing import Any

from tests.sdk.wire import SANDBOX_ID, Wire, answer, sandbox

_CODE = """
import sys
from runra import Runra
with Runra(api_key="k" * 20, api_url=sys.argv[1], timeout_ms=5000) as client:
    try:
        client.sandboxes.create(image="host")
    except KeyboardInterrupt:
        print("interrupted")
"""


def test_an_interrupted_create_is_taken_back(wire: Wire) -> None:
    reached = threading.Event()

    def stuck(_: Any, __: Any) -> bool:
        reached.set()
        threading.Event().wait(3)
        return False

    wire.script(stuck, answer(201, sandbox()), answer(200, sandbox(state="terminated")))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    process = subprocess.Popen(
        [sys.executable, "-c", _CODE, wire.url], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert reached.wait(20)
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=20)
    assert out == b"interrupted\n", errors.decode()
    create, again, delete = wire.requests
    assert create.headers["idempotency-key"] == again.headers["idempotency-key"]
    assert (delete.method, delete.path) == ("DELETE", f"/v1/sandboxes/{SANDBOX_ID}")
