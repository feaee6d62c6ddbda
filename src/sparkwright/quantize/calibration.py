"""Calibration data: texts from a file, a folder or the hub, cut into samples of equal length."""

import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from sparkwright.errors import ConfigurationError, InputUnreadableError, UnavailableError, UsageError
from sparkwright.files import sha256_bytes
from sparkwright.quantize.options import Calibration

FIELDS: Final = ("text", "messages", "conversations", "content", "article")
_ROLES: Final = {"system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant"}
_TEXT_FILES: Final = (".txt", ".md")
_ROW_FILES: Final = (".jsonl", ".parquet")
_CONVERTED: Final = "refs/convert/parquet"
_WINDOW: Final = 10_000  # texts shuffled among each other; the rest of a larger collection is not held in memory

Text = str | Sequence[Mapping[str, Any]]
"""A text, or the turns of a chat with the role and content of each."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Token ids by sample; all samples have the same length, so none needs padding."""

    tokens: tuple[tuple[int, ...], ...]
    texts: int

    @property
    def sha256(self) -> str:
        """Of the token ids."""
        return sha256_bytes(json.dumps(self.tokens).encode())

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        return {
            "samples": len(self.tokens),
            "tokens": sum(map(len, self.tokens)),
            "texts": self.texts,
            "sha256": self.sha256,
        }


def read_samples(chosen: Calibration, tokenizer: Any) -> Samples:  # noqa: ANN401
    """Take texts in the order that the seed gives, join their tokens, and cut them into samples.

    Raises:
        UsageError: there is too little text.
        InputUnreadableError: a file is missing or not of its kind, or a chat is none for the tokenizer's template.
        ConfigurationError: there are chats, and the tokenizer has no template for them.
        UnavailableError: the hub cannot be reached.
    """
    return pack(shuffled(read_texts(chosen), chosen.seed), encoder(tokenizer), chosen)


def encoder(tokenizer: Any) -> Callable[[Text], list[int]]:  # noqa: ANN401
    """A function that turns a text, or a chat by the tokenizer's own template, into token ids."""
    end = tokenizer.eos_token_id

    def encode(text: Text) -> list[int]:
        if not isinstance(text, str):
            return _encode_chat(tokenizer, text)
        ids: list[int] = list(tokenizer(text).input_ids)
        return ids if end is None or (ids and ids[-1] == end) else [*ids, end]

    return encode


def _encode_chat(tokenizer: Any, chat: Sequence[Mapping[str, Any]]) -> list[int]:  # noqa: ANN401
    from jinja2 import TemplateError  # type: ignore[import-not-found]

    if not tokenizer.chat_template:
        raise ConfigurationError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template",
            cause="the calibration data holds chats",
            remedy="copy chat_template.jinja from the model's page, or give plain text: --field names another field",
        )
    try:
        # Here, and not as text in between: what the template begins with is not put before it once more.
        ids: list[int] = list(tokenizer.apply_chat_template(chat, tokenize=True, return_dict=False))
    except TemplateError as error:
        raise InputUnreadableError(
            f"the model's chat template refuses a chat: {error}",
            cause=f"the chat is {json.dumps(chat, ensure_ascii=False, default=str)[:300]}",
            remedy="take it out of the calibration data, or give plain text: --field names another field",
        ) from error
    return ids


def pack(texts: Iterable[Text], encode: Callable[[Text], list[int]], chosen: Calibration) -> Samples:
    """Join the tokens of texts and cut them into samples until there are enough."""
    tokens: list[int] = []
    wanted, used = chosen.samples * chosen.length, 0
    for text in texts:
        tokens += encode(text)
        used += 1
        if len(tokens) >= wanted:
            break
    if len(tokens) < wanted:
        raise UsageError(
            f"{chosen.data} gives {len(tokens):,} tokens, {chosen.samples} samples of {chosen.length} need {wanted:,}",
            remedy="give more text, or lower --samples or --length",
        )
    starts = range(0, wanted, chosen.length)
    return Samples(tokens=tuple(tuple(tokens[at : at + chosen.length]) for at in starts), texts=used)


def shuffled(texts: Iterable[Text], seed: int) -> Iterator[Text]:
    """Shuffle window by window, always in the same way for the same seed."""
    source, chance = iter(texts), random.Random(seed)  # noqa: S311 - a repeatable order, not a secret
    while window := list(itertools.islice(source, _WINDOW)):
        chance.shuffle(window)
        yield from window


def read_texts(chosen: Calibration) -> Iterator[Text]:
    """The texts and chats of a file, a folder or a data set of the hub, in their own order."""
    path = local_data(chosen)
    if path is None:
        yield from _texts(_hub_rows(chosen), chosen)
        return
    files = [path]
    if path.is_dir():
        files = sorted(one for one in path.rglob("*") if one.suffix in (*_TEXT_FILES, *_ROW_FILES))
        if not files:
            raise InputUnreadableError(f"{path} has no .jsonl, .parquet, .txt or .md file")
    for file in files:
        if file.suffix in _ROW_FILES:
            rows = _parquet_rows(file) if file.suffix == ".parquet" else _json_rows(file)
            yield from _texts(rows, chosen)
        else:
            yield _read(file)


def local_data(chosen: Calibration) -> Path | None:
    """The file or folder with the data; None for a data set of the hub.

    Raises:
        InputUnreadableError: it is the name of a file, and there is none.
    """
    path = Path(chosen.data)
    if path.exists():
        return path
    if path.suffix in (*_TEXT_FILES, *_ROW_FILES) or chosen.data.startswith((".", "/", "~")):
        raise InputUnreadableError(f"{path} does not exist", remedy="check the spelling of --data")
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputUnreadableError(f"{path} cannot be read as text: {error}") from error


def _json_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    try:
        with path.open(encoding="utf-8") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise InputUnreadableError(f"{path}, line {number} is no JSON object")
                yield row
    except (OSError, ValueError) as error:
        raise InputUnreadableError(f"{path} cannot be read as JSON lines: {error}") from error


def _parquet_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow as pa  # type: ignore[import-not-found]
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as table:
            for batch in table.iter_batches(batch_size=256):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise InputUnreadableError(f"{path} cannot be read as parquet: {error}") from error


def _hub_rows(chosen: Calibration) -> Iterator[Mapping[str, Any]]:
    """The rows of the hub's own parquet copy, whose files are called PART/SPLIT/NUMBER.parquet for every data set."""
    import huggingface_hub as hub  # type: ignore[import-not-found]

    where = {"repo_type": "dataset", "revision": _CONVERTED}
    files = _from_hub(chosen, lambda: sorted(hub.HfApi().list_repo_files(chosen.data, **where)))
    parts: dict[str, list[str]] = {}
    for file in files:
        part, _, rest = file.partition("/")
        if rest.startswith((f"{chosen.split}/", f"partial-{chosen.split}/")):
            parts.setdefault(part, []).append(file)
    if len(parts) != 1:
        raise UsageError(
            f"the data set {chosen.data} has {'several parts' if parts else f'no split {chosen.split}'}",
            cause=f"there are {', '.join(parts or files[:9])}",
            remedy=f"download what you want and name the folder: hf download {chosen.data} --repo-type dataset "
            f"--revision {_CONVERTED} --include 'PART/SPLIT/*' --local-dir FOLDER",
        )
    for file in next(iter(parts.values())):
        yield from _parquet_rows(Path(_from_hub(chosen, partial(hub.hf_hub_download, chosen.data, file, **where))))


def _from_hub(chosen: Calibration, ask: Callable[[], Any]) -> Any:  # noqa: ANN401
    try:
        return ask()
    except Exception as error:  # the errors of its HTTP client have no base of the hub's own
        raise UnavailableError(
            f"the data set {chosen.data} cannot be read: {error}",
            cause="there is no file of that name either",
            remedy="name a local .jsonl, .parquet or text file, or a data set of the hub that can be reached",
        ) from error


def _texts(rows: Iterable[Mapping[str, Any]], chosen: Calibration) -> Iterator[Text]:
    field = chosen.field
    for row in rows:
        field = field or next((name for name in FIELDS if name in row), None)
        if field is None or field not in row:
            raise InputUnreadableError(
                f"{chosen.data}: a row has no field {field or ' or '.join(FIELDS)}",
                cause=f"its fields are {', '.join(sorted(row)) or 'none'}",
                remedy="name the field with --field",
            )
        value = row[field]
        if isinstance(value, list):
            yield [_turn(one, chosen.data) for one in value]
        elif isinstance(value, str) and value.strip():
            yield value
        elif value is not None and not isinstance(value, str):
            raise InputUnreadableError(
                f"{chosen.data}: the field {field} of a row is neither text nor a chat: {value!r}",
                remedy="name the field with --field",
            )


def _turn(turn: Any, data: str) -> Mapping[str, Any]:  # noqa: ANN401
    """A turn of a chat as templates want it; many data sets have ShareGPT's words."""
    if isinstance(turn, dict):
        if {"role", "content"} <= turn.keys():
            return turn
        if "value" in turn and (role := _ROLES.get(str(turn.get("from")))):
            return {"role": role, "content": turn["value"]}
    raise InputUnreadableError(
        f"{data}: a turn of a chat is none: {json.dumps(turn, ensure_ascii=False, default=str)[:300]}",
        cause=f"it needs role and content, or from ({', '.join(_ROLES)}) and value",
        remedy="name another field with --field, or write the chats so",
    )
