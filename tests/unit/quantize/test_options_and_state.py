"""What decides the bytes of a result, and what a run leaves behind to go on."""

import json
from pathlib import Path

import pytest

from sparkwright.errors import InputUnreadableError, UsageError
from sparkwright.quantize.options import KvCache, Recipe
from sparkwright.quantize.state import (
    FOLDER,
    begin,
    end,
    read_position,
    without_gap,
    write_position,
)

IDENTITY = {"model": "a", "recipe": Recipe(exclude=("*.self_attn.*",), kv_cache=KvCache.FP8).to_json()}


def test_a_recipe_reads_back_from_json_as_it_was() -> None:
    assert json.loads(json.dumps(IDENTITY)) == IDENTITY


def test_a_run_is_resumed_only_when_asked_for(tmp_path: Path) -> None:
    state = begin(tmp_path / "out", IDENTITY, resume=False)
    write_position(state / "position.json", 1)
    with pytest.raises(UsageError, match="did not come to its end"):
        begin(tmp_path / "out", IDENTITY, resume=False)
    assert begin(tmp_path / "out", IDENTITY, resume=True) == state


def test_a_run_that_did_nothing_is_in_nobodys_way(tmp_path: Path) -> None:
    state = begin(tmp_path, IDENTITY, resume=False)
    (state / "activations").mkdir()
    begin(tmp_path, {**IDENTITY, "model": "b"}, resume=False)
    assert begin(tmp_path, {**IDENTITY, "model": "b"}, resume=True) == state


def test_other_inputs_are_named(tmp_path: Path) -> None:
    begin(tmp_path, IDENTITY, resume=False)
    with pytest.raises(UsageError, match="other inputs: model changed"):
        begin(tmp_path, {**IDENTITY, "model": "b"}, resume=True)


def test_resuming_what_never_began_begins_it(tmp_path: Path) -> None:
    assert begin(tmp_path / "out", IDENTITY, resume=True).is_dir()


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UsageError, match="not empty"):
        begin(tmp_path, IDENTITY, resume=False)
    assert not (tmp_path / FOLDER).exists()


def test_the_end_leaves_only_the_result(tmp_path: Path) -> None:
    begin(tmp_path, IDENTITY, resume=False)
    (tmp_path / "config.json").touch()
    end(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["config.json"]


def test_positions(tmp_path: Path) -> None:
    path = tmp_path / "position.json"
    assert read_position(path) is None
    write_position(path, 7)
    assert read_position(path) == 7
    path.write_text("{}")
    with pytest.raises(InputUnreadableError, match="is damaged"):
        read_position(path)


def test_a_layer_that_is_done_before_its_turn_waits() -> None:
    assert list(without_gap({3}, 2)) == []
    assert list(without_gap({2, 3, 5}, 2)) == [2, 3]
    assert list(without_gap({0, 1, 2, 3}, 4)) == []
