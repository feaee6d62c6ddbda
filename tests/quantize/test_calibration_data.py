"""Texts and chats become tokens as the model's own tokenizer and template say."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.quantize.conftest import Quantize, command, contents

from sparkwright.errors import ConfigurationError

if TYPE_CHECKING:
    from tests.quantize.conftest import Models, Warm

pytestmark = pytest.mark.quantizes


def test_a_text_begins_once_and_ends_once_and_a_chat_is_what_the_template_makes(
    models: "Models", quantizing: "Warm", tmp_path: Path
) -> None:
    chats = [
        {"conversations": [{"from": "human", "value": "Paris?"}, {"from": "gpt", "value": "France."}]},
        {"conversations": "Paris."},
    ]
    file = tmp_path / "texts.jsonl"
    file.write_text("".join(f"{json.dumps(one)}\n" for one in chats))
    chat, text = map(json.loads, quantizing.run("encode.py", models("llama"), file).splitlines())
    assert chat["text"] == "<s><|user|>Paris?<|assistant|>France."
    assert chat["ids"].count(0) == 1
    assert text["text"] == "<s>Paris.</s>"


def test_a_chat_that_the_template_refuses_is_shown(models: "Models", quantizing: "Warm", tmp_path: Path) -> None:
    file = tmp_path / "texts.jsonl"
    file.write_text('{"messages": [{"role": "tool", "content": "seven"}]}\n')
    job = quantizing.start("encode.py", models("llama"), file)
    assert job.wait() != 0
    assert "the model's chat template refuses a chat: no tool here" in job.output
    assert "seven" in job.output


def test_chats_need_a_template(models: "Models", quantizing: "Warm", tmp_path: Path) -> None:
    model, file = tmp_path / "model", tmp_path / "texts.jsonl"
    shutil.copytree(models("llama"), model)
    for one in model.glob("chat_template*"):
        one.unlink()
    file.write_text('{"messages": [{"role": "user", "content": "seven"}]}\n')
    job = quantizing.start("sparkwright", *command(model, tmp_path / "made", file))
    assert job.wait() == ConfigurationError.exit_code, job.output
    assert "has no chat template" in job.output


def test_parquet_gives_what_the_same_texts_in_lines_give(
    quantizing: "Warm", models: "Models", quantize: Quantize, data: Path, tmp_path: Path
) -> None:
    source, rows = models("llama", "--layers", "2"), tmp_path / "texts.parquet"
    convert = (
        "import sys, pyarrow.json as j, pyarrow.parquet as p; p.write_table(j.read_json(sys.argv[1]), sys.argv[2])"
    )
    quantizing.tool("-c", convert, data, rows)
    quantize(source, tmp_path / "lines")
    quantizing.run("sparkwright", *command(source, tmp_path / "columns", rows))
    assert contents(tmp_path / "columns") == contents(tmp_path / "lines")
