"""The page `make attacks` writes says of every test what came of it, and hides no failure."""

from __future__ import annotations

from xml.etree import ElementTree

from scripts.run_attacks import page, row

REPORT = """<testsuites><testsuite>
<testcase classname="tests.attacks.test_walls" name="test_a" />
<testcase classname="tests.attacks.test_walls" name="test_a[gvisor]"><failure message="x" /></testcase>
<testcase classname="tests.attacks.test_gvisor" name="test_b"><skipped message="apt-get install runsc" /></testcase>
<testcase classname="tests.attacks.test_layers" name="test_c[|]"><error message="y" /></testcase>
</testsuite></testsuites>"""


def test_every_result_is_written() -> None:
    written = page([row(case) for case in ElementTree.fromstring(REPORT).iter("testcase")])
    assert written.splitlines()[-4:] == [
        "| bubblewrap | `test_walls::test_a` | held |",
        "| gVisor | `test_gvisor::test_b` | not run: apt-get install runsc |",
        "| gVisor | `test_walls::test_a[gvisor]` | **failed** |",
        "| server | `test_layers::test_c[\\|]` | **failed** |",
    ]
    assert "| 2 failed, 1 held, 1 not run |" in written
