"""An interrupted run goes on where it was, and its result has the bytes of an undisturbed one."""

import itertools
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.quantize.conftest import command, contents

from sparkwright.checkpoint.checkpoint import read_checkpoint
from sparkwright.errors import ConfigurationError, OutputError, UsageError

if TYPE_CHECKING:
    from tests.quantize.conftest import Models, Warm

pytestmark = pytest.mark.quantizes

SEEDS = 10


@pytest.fixture(scope="module")
def source(models: "Models") -> Path:
    return models("llama", "--layers", "2")


@pytest.fixture(scope="module")
def undisturbed(
    source: Path, quantizing: "Warm", data: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, str], float]:
    """The files of a run without faults, and the seconds that it took."""
    output = tmp_path_factory.mktemp("undisturbed") / "made"
    start = time.monotonic()
    quantizing.run("sparkwright", *command(source, output, data))
    return contents(output), time.monotonic() - start


@pytest.mark.parametrize("first", [1, pytest.param(2, marks=pytest.mark.long), pytest.param(3, marks=pytest.mark.long)])
def test_killed_wherever_something_is_made_final(
    source: Path,
    quantizing: "Warm",
    data: Path,
    undisturbed: tuple[dict[str, str], float],
    tmp_path: Path,
    first: int,
) -> None:
    """Every step ends with a rename, or with removing what it needed: runs die before every third of them."""
    deaths = 0
    for change in itertools.count(first, 3):
        output = tmp_path / f"made-{change}"
        words = command(source, output, data)
        job = quantizing.start("sparkwright", *words, die=(change, output))
        if job.wait() == 0:
            break
        assert job.status == -signal.SIGKILL, job.output
        deaths += 1
        quantizing.run("sparkwright", *words, "--resume")
        assert contents(output) == undisturbed[0], f"killed before change {change}"
        shutil.rmtree(output)
    assert deaths > 5


@pytest.mark.parametrize("seed", range(SEEDS))
def test_killed_at_any_time(
    source: Path, quantizing: "Warm", data: Path, undisturbed: tuple[dict[str, str], float], tmp_path: Path, seed: int
) -> None:
    expected, seconds = undisturbed
    chance = random.Random(seed)
    words = command(source, tmp_path / "made", data)
    for _ in range(2):
        job = quantizing.start("sparkwright", *words, "--resume")
        job.ended.wait(chance.uniform(0, seconds))
        job.kill()
    quantizing.run("sparkwright", *words, "--resume")
    assert contents(tmp_path / "made") == expected


def test_a_run_is_not_begun_over_another_one(source: Path, quantizing: "Warm", data: Path, tmp_path: Path) -> None:
    words = command(source, tmp_path / "made", data)
    job = quantizing.start("sparkwright", *words, die=(4, tmp_path / "made"))
    assert job.wait() == -signal.SIGKILL
    again = quantizing.start("sparkwright", *words)
    assert again.wait() == UsageError.exit_code
    assert "--resume" in again.output
    changed = quantizing.start("sparkwright", *words, "--resume", "--exclude", "*.o_proj")
    assert changed.wait() == UsageError.exit_code
    assert "recipe changed" in changed.output


def test_a_full_disk_is_named_and_more_room_is_enough(
    source: Path,
    quantizing: "Warm",
    data: Path,
    undisturbed: tuple[dict[str, str], float],
    small_disk: Path,
) -> None:
    output = small_disk / "made"
    # The plan would refuse: it is told of another disk, as when something else fills this one meanwhile.
    words = command(source, output, data)
    refused = quantizing.start("sparkwright", *words)
    assert refused.wait() != 0
    assert not output.exists()
    job = quantizing.start("sparkwright", *words, "--resume")
    assert job.wait() == OutputError.exit_code, job.output
    assert "disk is full" in job.output
    assert "--resume goes on where it was" in job.output
    assert "Traceback" not in job.output
    assert not (output / "config.json").exists()
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    quantizing.run("sparkwright", *words, "--resume")
    assert contents(output) == undisturbed[0]


@pytest.mark.parametrize(
    ("filling", "message"),
    [(b"\0", "have no finite, positive range: model.layers.0."), (b"\xff", "cannot measure model.layers.0: ")],
    ids=["zeros", "NaN"],
)
def test_activations_without_a_range_stop_the_run(
    quantizing: "Warm", data: Path, tmp_path: Path, filling: bytes, message: str
) -> None:
    """No scale is made up for what could not be measured."""
    source = tmp_path / "model"
    quantizing.run("make_model.py", source, "--layers", "2")
    embedding = read_checkpoint(source).tensors["model.embed_tokens.weight"]
    with embedding.path.open("r+b") as stream:
        stream.seek(embedding.offset)
        stream.write(filling * embedding.nbytes)
    job = quantizing.start("sparkwright", *command(source, tmp_path / "made", data))
    assert job.wait() == ConfigurationError.exit_code, job.output
    assert message in job.output
    assert "Traceback" not in job.output
    assert not (tmp_path / "made/config.json").exists()
