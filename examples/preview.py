"""A web server in a sandbox, seen from outside: by everyone, by a link for a while, and no more."""

import urllib.error
import urllib.request

from runra import Runra

SERVER = "mkdir -p site && echo '<h1>Hello from inside</h1>' > site/index.html && python3 -m http.server -d site"

with Runra() as client, client.sandboxes.create(image="host") as sandbox:
    sandbox.exec(f"{SERVER} 8000 --bind 127.0.0.1", background=True)  # loopback is enough
    sandbox.exec("until (exec 3<>/dev/tcp/127.0.0.1/8000) 2>/dev/null; do sleep 0.1; done")

    port = sandbox.expose_port(8000)
    print("open in a browser:", port.url)
    # Browsers and curl know that *.localhost is this machine; here the name goes along by hand.
    name = port.url.partition("://")[2]
    here = f"{client.api_url}/"
    with urllib.request.urlopen(urllib.request.Request(here, headers={"Host": name})) as answer:
        print("the page:", answer.read().decode().strip())
    sandbox.close_port(8000)

    private = sandbox.expose_port(8000, private=True)
    print("a link for ten minutes:", sandbox.sign_url(8000, expires_in_ms=600_000).url)
    for headers in ({}, {"X-Runra-Preview-Token": private.token}):
        try:
            with urllib.request.urlopen(urllib.request.Request(here, headers={"Host": name, **headers})) as answer:
                print("with its token:", answer.status)
        except urllib.error.HTTPError as error:
            print("without its token:", error.code)
    print("exposed now:", [(one.port, one.private) for one in sandbox.get_ports()])
