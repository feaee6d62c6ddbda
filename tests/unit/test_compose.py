"""compose.yaml and .env.example: valid, by profile, and with nothing of one person's network or home inside."""

import re

import yaml

from sparkwright.entrypoint.variables import TABLE
from sparkwright.paths import CHECKOUT

COMPOSE = (CHECKOUT / "compose.yaml").read_text(encoding="utf-8")
EXAMPLE = (CHECKOUT / ".env.example").read_text(encoding="utf-8")
PERSONAL = re.compile(r"\b\d{1,3}(\.\d{1,3}){3}\b|\b(enp|enP|eth|roce|mlx)\w*\d|/home/|/Users/")


def test_nothing_personal() -> None:
    assert all(map(PERSONAL.search, ("10.10.10.1", "enp1s0f0np0", "/home/me")))
    for text in (COMPOSE, EXAMPLE):
        assert PERSONAL.search(text) is None


def test_every_service_has_a_profile_and_a_mode() -> None:
    services = yaml.safe_load(COMPOSE)["services"]
    modes = {"serve": "serve", "nodes": "serve", "head": "ray-head", "worker": "ray-worker"}
    assert {service["profiles"][0]: service["command"][0] for service in services.values()} == modes
    for name, service in services.items():
        assert service["network_mode"] == "host", name
        assert service["ipc"] == "host", name
        assert service["deploy"]["resources"]["reservations"]["devices"][0]["driver"] == "nvidia", name
        assert ("/dev/infiniband" in service.get("devices", ())) is (name != "serve"), name


def test_the_example_names_only_variables_that_exist() -> None:
    named = set(re.findall(r"^#?([A-Z_]+)=", EXAMPLE, re.MULTILINE))
    assert named
    assert named <= {variable.name for variable in TABLE}


def test_the_manual_is_made_from_the_table() -> None:
    from sparkwright.entrypoint.pages import PAGE, configuration_page

    assert PAGE.read_text(encoding="utf-8") == configuration_page(), "run python -m sparkwright.entrypoint.pages"
