"""A microVM of a CubeSandbox installation: its API in CUBE_URL, its key in CUBE_TOKEN, and in CUBE_PROXY_URL a node to
dial where the names of its sandboxes lead nowhere.

python examples/provider_cubesandbox.py TEMPLATE
"""

from __future__ import annotations

import os
import sys

from runra.runtime import SyncRunra

image = sys.argv[1] if len(sys.argv) > 1 else ""
with SyncRunra(
    sandbox={
        "provider": "cubesandbox",
        "config": {
            "masterUrl": os.environ.get("CUBE_URL"),
            "masterToken": os.environ.get("CUBE_TOKEN"),
            "proxyUrl": os.environ.get("CUBE_PROXY_URL"),
        },
    }
) as runra:
    print(f"{runra.provider.id} can: {', '.join(runra.provider.capabilities)}")
    with runra.create_sandbox(image=image) as sandbox:
        sandbox.files.write("hello.sh", 'echo "hello from $(uname -sr)"\n')
        result = sandbox.exec("sh hello.sh; echo done >&2", on_stdout=lambda line: print("  >", line))
        print(f"exit code {result.exit_code} after {result.duration_ms} ms")
