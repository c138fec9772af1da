"""Names of images: what Docker's rules make of them, and what is none."""

from __future__ import annotations

import pytest

from runra.contract import Reference, same_image

DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("text", "full", "short"),
    [
        ("node:22", "docker.io/library/node:22", "node:22"),
        ("ubuntu", "docker.io/library/ubuntu:latest", "ubuntu:latest"),
        ("team/app", "docker.io/team/app:latest", "team/app:latest"),
        ("docker.io/node:22", "docker.io/library/node:22", "node:22"),
        ("index.docker.io/library/node", "docker.io/library/node:latest", "node:latest"),
        ("registry:5000/team/app:tag", "registry:5000/team/app:tag", "registry:5000/team/app:tag"),
        ("localhost/app", "localhost/app:latest", "localhost/app:latest"),
        ("Registry.Example/app:V1", "registry.example/app:V1", "registry.example/app:V1"),
        (f"node@{DIGEST}", f"docker.io/library/node@{DIGEST}", f"node@{DIGEST}"),
        (f"node:22@{DIGEST}", f"docker.io/library/node@{DIGEST}", f"node@{DIGEST}"),
        (
            "a" * 63 + ".example:65535/app",
            "a" * 63 + ".example:65535/app:latest",
            "a" * 63 + ".example:65535/app:latest",
        ),
        ("a.b/c__d/e-f.g:x_Y-1.2", "a.b/c__d/e-f.g:x_Y-1.2", "a.b/c__d/e-f.g:x_Y-1.2"),
    ],
)
def test_names_are_read_as_docker_reads_them(text: str, full: str, short: str) -> None:
    parsed = Reference.parse(text)
    assert (str(parsed), parsed.short) == (full, short)
    assert Reference.parse(str(parsed)) == parsed
    assert Reference.parse(parsed.short) == parsed


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "Node:22",
            "a//b",
            "a/../b",
            "../x",
            "node:",
            "node:a b",
            "node@sha256:12",
            "node@md5:" + "0" * 32,
            "-x",
            "a_-b",
        ),
        *(
            "node:" + "t" * 129,
            "a/" * 120 + "b",
            "host.example/",
            "ho st.x/app",
            "x.y:port/app",
            "x.y:99999/app",
            "x.y:0/app",
            "x..y/app",
            "x.-y/app",
            "a" * 64 + ".example/app",
            "a." * 127 + "example/app",
            "a@b",
            "a:b:c",
            "\0",
            "é",
        ),
    ],
)
def test_what_is_no_name_is_said(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Reference.parse(text)


def test_one_image_has_many_names_and_ours_have_one() -> None:
    assert same_image("python:3.12", "docker.io/library/python:3.12")
    assert same_image("registry.example/a", "REGISTRY.example/a:latest")
    assert not same_image("python:3.12", "python:3.11")
    assert same_image("host", "host")
    assert not same_image("host", "docker.io/library/host:latest")
    assert not same_image("snapshot:a", "docker.io/library/snapshot:a")
    assert not same_image("no name", "no  name")
