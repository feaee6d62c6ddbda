"""An engine, and the image that the shipped Dockerfile makes there."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.image.engine import STAND_IN, Engine, make_trees, remove_stale, start

from sparkwright.native.build_report import pins_digest
from sparkwright.paths import CHECKOUT, cache

TAG = "sparkwright-test:smoke"
# What differs from a build for a Spark: the base image, nothing linked, one FlashInfer module.
ARGUMENTS = {
    "BASE_IMAGE": STAND_IN,
    "APT_SNAPSHOT": "",
    "UNITS": "smoke",
    "JIT_MODULES": "norm",
    "SPARKWRIGHT_VERSION": "test-1",
    "SPARKWRIGHT_REVISION": "0" * 40,
    "SPARKWRIGHT_SOURCE": "https://example.invalid/sparkwright",
    "IMAGE_CREATED": "2026-01-01T00:00:00Z",
    "PINS_SHA256": pins_digest(),
}


def build_command(context: Path, *, target: str) -> list[str | Path]:
    """`docker ...` for a stage of the Dockerfile in a context; nothing but the last is made an image."""
    words: list[str | Path] = ["buildx", "build", "--network", "host", "--progress", "plain", "--target", target]
    words += ["--load", "--tag", TAG] if target == "runtime" else ["--output", "type=cacheonly"]
    words += [word for name, value in ARGUMENTS.items() for word in ("--build-arg", f"{name}={value}")]
    return [*words, context]


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A Docker engine; SPARKWRIGHT_IMAGE_STATE names a folder that keeps its build cache between runs."""
    if os.geteuid() != 0:
        assert not os.environ.get("CI"), "this needs root"
        pytest.skip("this needs root: mount namespaces and a Docker engine")
    states = cache() / "image-engine"
    remove_stale(states)
    kept = os.environ.get("SPARKWRIGHT_IMAGE_STATE")
    running = start(make_trees(), Path(kept) if kept else states / f"state-{os.getpid()}")
    try:
        yield running
    finally:
        running.stop()
        if not kept:
            shutil.rmtree(running.state, ignore_errors=True)


@pytest.fixture(scope="session")
def image(engine: Engine) -> str:
    """The image, built by the shipped Dockerfile; its tag."""
    engine.docker(*build_command(CHECKOUT, target="runtime"))
    return TAG
