"""The set of containers."""

import re

import yaml

from picture.stack import ROOT


def test_all_that_runpod_and_comfyui_are_set_up_with_is_handed_on():
    read = (ROOT / "picture" / "settings.py").read_text()
    names = set(re.findall(r'"((?:RUNPOD|COMFYUI)_[A-Z_]+)"', read))
    assert {"RUNPOD_API_KEY", "RUNPOD_BASE_URL", "COMFYUI_URL"} <= names
    handed_on = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["x-environment"]
    assert {name: handed_on.get(name) for name in names} == {
        name: f"${{{name}:-}}" for name in names
    }
