"""Calibration data becomes samples of equal length, always the same ones."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sparkwright.errors import InputUnreadableError, UnavailableError, UsageError
from sparkwright.quantize import calibration
from sparkwright.quantize.calibration import Text, pack, read_texts, shuffled
from sparkwright.quantize.options import Calibration


def _codes(text: Text) -> list[int]:
    return [ord(letter) for letter in text if isinstance(letter, str)]


def test_samples_are_cut_one_after_another() -> None:
    samples = pack(["abcd", "efgh", "never read"], _codes, Calibration(data="x", samples=2, length=3))
    assert ["".join(map(chr, one)) for one in samples.tokens] == ["abc", "def"]
    assert samples.texts == 2
    assert samples.to_json()["tokens"] == 6


def test_too_little_text_says_how_much_there_is() -> None:
    with pytest.raises(UsageError, match="gives 3 tokens, 2 samples of 2 need 4"):
        pack(["abc"], _codes, Calibration(data="x", samples=2, length=2))


def test_the_seed_decides_the_order() -> None:
    texts = [str(number) for number in range(100)]
    assert list(shuffled(texts, 1)) == list(shuffled(texts, 1)) != list(shuffled(texts, 2))
    assert set(shuffled(texts, 1)) == set(texts)


def test_rows_and_plain_texts_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n\n{"text": "  "}\n{"text": "two"}\n')
    (tmp_path / "b.txt").write_text("three")
    (tmp_path / "c.jsonl").write_text('{"messages": [{"role": "user", "content": "four"}]}\n')
    (tmp_path / "ignored.csv").write_text("no")
    found = list(read_texts(Calibration(data=str(tmp_path))))
    assert found == ["one", "two", "three", [{"role": "user", "content": "four"}]]


def test_the_named_field_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one", "body": "two"}\n')
    assert list(read_texts(Calibration(data=str(path), field="body"))) == ["two"]


@pytest.mark.parametrize(
    ("content", "message"),
    [("[1]\n", "line 1 is no JSON object"), ("{", "cannot be read"), ('{"a": 1}\n', "its fields are a")],
)
def test_damaged_rows(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content)
    with pytest.raises(InputUnreadableError) as caught:
        list(read_texts(Calibration(data=str(path))))
    assert message in str(caught.value)


def test_the_turns_of_sharegpt_get_the_words_of_templates(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"conversations": [{"from": "human", "value": "one"}, {"from": "gpt", "value": "two"}]}\n')
    (chat,) = read_texts(Calibration(data=str(path)))
    assert chat == [{"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ('[{"who": "human", "says": "one"}]', "it needs role and content"),
        ('[{"from": "judge", "value": "one"}]', "it needs role and content"),
        ('["one"]', "it needs role and content"),
        ("7", "neither text nor a chat: 7"),
        ('{"role": "user", "content": "one"}', "neither text nor a chat"),
    ],
)
def test_what_is_neither_text_nor_a_chat_is_not_passed_over(tmp_path: Path, value: str, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"conversations": {value}}}\n')
    with pytest.raises(InputUnreadableError) as caught:
        list(read_texts(Calibration(data=str(path))))
    assert message in str(caught.value)


def test_a_file_that_is_not_there_is_no_hub_data_set(tmp_path: Path) -> None:
    with pytest.raises(InputUnreadableError, match="does not exist"):
        list(read_texts(Calibration(data=str(tmp_path / "gone.jsonl"))))


class Hub:
    """What of huggingface_hub is asked: one data set with the given files."""

    def __init__(self, *files: str) -> None:
        self.files, self.fetched = files, list[str]()

    def HfApi(self) -> "Hub":  # noqa: N802 - the hub's name
        return self

    def list_repo_files(self, name: str, *, repo_type: str, revision: str) -> tuple[str, ...]:
        assert (repo_type, revision) == ("dataset", "refs/convert/parquet")
        if name != "owner/set":
            raise ConnectionError("no such data set")
        return self.files

    def hf_hub_download(self, name: str, file: str, **_: str) -> str:
        self.fetched.append(file)
        return f"/cache/{name}/{file}"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Hub]:
    def make(*files: str) -> Hub:
        made = Hub(*files)
        monkeypatch.setitem(sys.modules, "huggingface_hub", made)
        monkeypatch.setattr(calibration, "_parquet_rows", lambda path: iter([{"text": f"of {path.name}"}]))
        return made

    return make


def test_a_data_set_of_the_hub_is_fetched_file_by_file(hub: Callable[..., Hub]) -> None:
    made = hub("default/test/0.parquet", "default/partial-train/1.parquet", "default/partial-train/0.parquet")
    texts = read_texts(Calibration(data="owner/set"))
    assert next(texts) == "of 0.parquet"
    assert made.fetched == ["default/partial-train/0.parquet"]
    assert list(texts) == ["of 1.parquet"]


@pytest.mark.parametrize(
    ("files", "said"), [(("a/train/0.parquet", "b/train/0.parquet"), "a, b"), (("a/test/0.parquet",), "no split train")]
)
def test_a_data_set_that_leaves_a_choice_is_left_to_hf_download(
    hub: Callable[..., Hub], files: tuple[str, ...], said: str
) -> None:
    hub(*files)
    with pytest.raises(UsageError, match="owner/set has") as refused:
        list(read_texts(Calibration(data="owner/set")))
    assert said in str(refused.value)
    assert "hf download owner/set --repo-type dataset" in str(refused.value)


def test_a_data_set_that_cannot_be_reached_is_named(hub: Callable[..., Hub]) -> None:
    hub()
    with pytest.raises(UnavailableError, match="owner/other cannot be read: no such data set"):
        list(read_texts(Calibration(data="owner/other")))
