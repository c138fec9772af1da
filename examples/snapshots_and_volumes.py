"""Prepare once, start many times, fork to try several ways; and a folder that stays when sandboxes go.

Start a server first: `runra serve`. Then: `python examples/snapshots_and_volumes.py`.
"""

from __future__ import annotations

import uuid

from runra import Runra

tag = uuid.uuid4().hex[:8]

with Runra() as client:
    results = client.volumes.create(f"results-{tag}", size_mb=64, access="many-writers")
    try:
        with client.sandboxes.create(image="host") as sandbox:
            sandbox.exec("echo 'print(6 * 7)' > task.py", check=True)
            snapshot = sandbox.snapshot(f"prepared-{tag}")
            print("kept", snapshot.id, "of", snapshot.size_bytes, "bytes")

            for number, fork in enumerate(sandbox.fork(3)):
                with fork:
                    ended = fork.exec(f"sed -i 's/7/{number}/' task.py && python3 task.py", check=True)
                    print("fork", number, "says", ended.stdout.strip())

        mount = {"name": results.name, "path": "/results"}
        with client.sandboxes.create(image=f"snapshot:{snapshot.id}", volumes=[mount]) as ready:
            ready.exec("python3 task.py > /results/answer", check=True)
        with client.sandboxes.create(image="host", volumes=[{**mount, "readOnly": True}]) as reader:
            print("the volume still holds", reader.exec("cat /results/answer").stdout.strip())
        client.snapshots.delete(snapshot.id)
    finally:
        client.volumes.delete(results.id)
