"""A process that runs on in the background: talk to it, pause it with its sandbox, see its output, end it."""

import time

from runra import Runra

with Runra() as client, client.sandboxes.create(image="host") as sandbox:
    sandbox.on("paused", lambda event: print(f"paused after {event.runtime_duration_ms} ms"))
    sandbox.on("resumed", lambda event: print(f"resumed after {event.paused_duration_ms} ms"))

    counter = sandbox.exec("for i in $(seq 5); do echo tick $i; sleep 0.2; done; cat", background=True)
    print("started process", counter.pid)
    time.sleep(0.5)
    sandbox.pause()  # the counter stands still with everything else
    time.sleep(0.5)
    sandbox.resume()
    counter.send_stdin("and a word from outside\n")
    counter.close_stdin()
    for chunk in counter.logs():  # from the beginning, as it comes, until it ends
        print(chunk.text, end="")
    print("exit code", counter.wait(timeout_ms=10_000).exit_code)

    server = sandbox.exec(["sleep", "1000"], background=True)
    server.kill()
    print("killed by", server.wait(timeout_ms=10_000).signal)
