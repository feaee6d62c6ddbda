"""Ask a model through real vLLM, once for each variant of its kernels, and write the log-probabilities.

Each variant is a copy of this process, made after the slow imports.
"""

import argparse
import importlib
import json
import os
import sys
from pathlib import Path

VARIANTS = {
    "emulated": {"GB10_KERNELS": "0", "W4A4": "1"},
    "dequantized": {"GB10_KERNELS": "0", "W4A4": "0"},
    "kernels": {"GB10_KERNELS": "1", "W4A4": "1"},
}
PROMPTS = [[1, 17, 200, 33, 64, 5, 90, 411], [7, 7, 300, 12], [500, 499, 3], [*range(11, 211, 10)]]


def _ask(model: str, variant: str, output: Path) -> None:
    os.environ.update(VARIANTS[variant])
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]

    calls: dict[str, int] = {}
    if os.environ["GB10_KERNELS"] == "1":
        from gb10_kernels import ops  # type: ignore[import-not-found]

        for name in ("gemv", "moe_decode"):
            _count(ops, name, calls)
    llm = LLM(model=model, enforce_eager=True, max_model_len=64, max_num_seqs=4, dtype="bfloat16", seed=0)
    sampling = SamplingParams(temperature=0, max_tokens=4, logprobs=5, prompt_logprobs=5, ignore_eos=True)
    answers = []
    for prompt in PROMPTS:
        # One at a time: a batch has as many tokens as the prompt, and then one.
        answer = llm.generate({"prompt_token_ids": prompt}, sampling, use_tqdm=False)[0]
        places = [*answer.prompt_logprobs[1:], *answer.outputs[0].logprobs]
        answers.append([{str(token): entry.logprob for token, entry in place.items()} for place in places])
    output.write_text(json.dumps({"answers": answers, "calls": calls}), encoding="utf-8")


def _count(module: object, name: str, calls: dict[str, int]) -> None:
    function = getattr(module, name)

    def counted(*arguments: object, **named: object) -> object:
        calls[name] = calls.get(name, 0) + 1
        return function(*arguments, **named)

    setattr(module, name, counted)


def main() -> int:
    """Fork, ask, wait."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("--variant", action="append", choices=VARIANTS)
    options = parser.parse_args()
    for module in ("entrypoints.llm", "model_executor.models.qwen3_moe", "v1.worker.cpu_worker"):
        importlib.import_module(f"vllm.{module}")

    failed = []
    for variant in options.variant or VARIANTS:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                _ask(options.model, variant, options.output / f"{variant}.json")
                status = 0
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                if status:
                    import traceback

                    traceback.print_exc()
                os._exit(status)
        if os.waitpid(child, 0)[1] != 0:
            failed.append(variant)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
