"""A sandbox of E2B. Needs `pip install 'runra[e2b]'` and a key in E2B_API_KEY (for what speaks its API:
E2B_API_URL, E2B_SANDBOX_URL).

python examples/provider_e2b.py [TEMPLATE]
"""

from __future__ import annotations

import os
import sys

from runra.runtime import SyncRunra

image = sys.argv[1] if len(sys.argv) > 1 else "base"
with SyncRunra(sandbox={"provider": "e2b", "apiKey": os.environ.get("E2B_API_KEY")}) as runra:
    print(f"{runra.provider.id} can: {', '.join(runra.provider.capabilities)}")
    with runra.create_sandbox(image=image) as sandbox:
        sandbox.files.write("hello.sh", 'echo "hello from $(uname -sr)"\n')
        result = sandbox.exec("sh hello.sh; echo done >&2", on_stdout=lambda line: print("  >", line))
        print(f"exit code {result.exit_code} after {result.duration_ms} ms")
