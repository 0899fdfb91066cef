"""The page that walks through everything: each block runs, and prints what stands under it."""

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "walkthrough.md"
# A block of commands, and what it prints when that is told.
BLOCK = re.compile(r"```sh\n(?P<commands>.*?)```\n(?:\n```text\n(?P<printed>.*?)```\n)?", re.DOTALL)
END = "----- end of block"


@pytest.mark.timeout(300)
def test_the_walk_through_everything_prints_what_it_says(stack, client, simulator):
    blocks = list(BLOCK.finditer(PAGE.read_text()))
    assert len(blocks) >= 15
    # One shell for all of them, as the reader has it.
    script = "".join(f"{block['commands']}echo '{END}'\n" for block in blocks)
    token = client.http.headers["Authorization"].removeprefix("Bearer ")
    api = f"{stack.url}/api/v1"
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=ROOT,
        env={**os.environ, "API": api, "TOKEN": token, "no_proxy": "127.0.0.1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    printed = ran.stdout.split(f"{END}\n")
    for block, output in zip(blocks, printed, strict=False):
        assert output == (block["printed"] or ""), block["commands"]
    assert ran.returncode == 0
    assert len(printed) == len(blocks) + 1
