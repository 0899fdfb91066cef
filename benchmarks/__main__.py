"""Run the benchmarks, all or those that are named, each alone on this machine."""

import argparse
import importlib
import os
import sys
import tempfile
import time
import traceback

import django

from benchmarks.harness import HEADINGS, Row, line
from picture.stack import interrupt_on_signals

MODULES = {
    "api-post": "api",
    "post-to-submit": "submission",
    "slot-refill": "refill",
    "makespan": "makespan",
    "engine": "engine",
    "admission": "admission",
    "memory": "memory",
    "fairness": "fairness",
    "images": "images",
    "eta": "eta",
    "live": "live",
    "gallery": "gallery",
    "export": "export",
}
# What is measured is the product as it comes, with the servers and the provider it brings along.
KEPT = {"PATH", "HOME", "LANG", "LC_ALL", "TMPDIR"}


def main() -> int:
    parser = argparse.ArgumentParser("python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="*", help=f"of: {', '.join(MODULES)}")
    names = parser.parse_args().name or list(MODULES)
    if unknown := set(names) - set(MODULES):
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    interrupt_on_signals()
    for name in set(os.environ) - KEPT:
        del os.environ[name]
    with tempfile.TemporaryDirectory(prefix="picture-bench-") as folder:
        os.environ["PICTURE_DATA_DIR"] = f"{folder}/data"
        os.environ["DJANGO_SETTINGS_MODULE"] = "benchmarks.settings"
        django.setup()
        began_s = time.monotonic()
        print(line(*HEADINGS))
        missed = []
        for name in names:
            module = importlib.import_module(f"benchmarks.{MODULES[name]}")
            try:
                rows: list[Row] = module.run()
            except Exception:  # of any kind: the others can still be measured
                traceback.print_exc()
                missed.append(name)
                continue
            for row in rows:
                print(*row.lines(), sep="\n", flush=True)
            missed += [row.name for row in rows if not row.ok]
    print(f"{time.monotonic() - began_s:.0f} s; missed: {', '.join(missed) or 'none'}")
    return 1 if missed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("benchmarks: interrupted")
