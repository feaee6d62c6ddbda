"""Print the token ids of calibration texts by a tokenizer that puts <s> before them, as its chat template does."""

import json
import sys
from pathlib import Path

from tokenizers.processors import TemplateProcessing  # type: ignore[import-not-found]
from transformers import AutoTokenizer  # type: ignore[import-not-found]

from sparkwright.quantize.calibration import encoder, read_texts
from sparkwright.quantize.options import Calibration

_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role not in ('user', 'assistant') %}"
    "{{ raise_exception('no ' ~ message.role ~ ' here') }}{% endif %}"
    "<|{{ message.role }}|>{{ message.content }}{% endfor %}"
)


def main() -> None:
    """Read a file with the tokenizer of a model, and print one JSON list of ids a text."""
    model, data = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(Path(model))
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.chat_template = _TEMPLATE
    encode = encoder(tokenizer)
    for text in read_texts(Calibration(data=data)):
        ids = encode(text)
        print(json.dumps({"ids": ids, "text": tokenizer.decode(ids)}))


if __name__ == "__main__":
    main()
