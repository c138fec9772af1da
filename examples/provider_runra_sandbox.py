"""A sandbox of a Runra server. Needs one: `runra serve`.

python examples/provider_runra_sandbox.py [IMAGE]
"""

from __future__ import annotations

import sys

from runra.runtime import SyncRunra

image = sys.argv[1] if len(sys.argv) > 1 else "host"
with SyncRunra() as runra:
    print(f"{runra.provider.id} can: {', '.join(runra.provider.capabilities)}")
    with runra.create_sandbox(image=image) as sandbox:
        sandbox.files.write("hello.sh", 'echo "hello from $(uname -sr)"\n')
        result = sandbox.exec("sh hello.sh; echo done >&2", on_stdout=lambda line: print("  >", line))
        print(f"exit code {result.exit_code} after {result.duration_ms} ms")
