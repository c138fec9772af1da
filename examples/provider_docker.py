"""A sandbox as a container. Needs a Docker engine and `pip install 'runra[docker]'`.

python examples/provider_docker.py [IMAGE]
"""

from __future__ import annotations

import os
import sys

from runra.runtime import SyncRunra

image = sys.argv[1] if len(sys.argv) > 1 else "debian:12-slim"
with SyncRunra(sandbox={"provider": "docker", "config": {"url": os.environ.get("DOCKER_HOST")}}) as runra:
    print(f"{runra.provider.id} can: {', '.join(runra.provider.capabilities)}")
    with runra.create_sandbox(image=image) as sandbox:
        sandbox.files.write("hello.sh", 'echo "hello from $(uname -sr)"\n')
        result = sandbox.exec("sh hello.sh; echo done >&2", on_stdout=lambda line: print("  >", line))
        print(f"exit code {result.exit_code} after {result.duration_ms} ms")
