"""Log-probabilities that real vLLM gives the tokens of one prompt, by checkpoint; run by the serving Python.

Prints a JSON object of lists. vLLM offers no NVFP4 kernel for CPUs, but has one that emulates it in plain torch. For
FP8 it has a kernel, but not the function that gives fused weights one scale.
"""

import json
import os
import sys

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # the engine in this process, where the kernel is registered

import torch  # type: ignore[import-not-found]
import vllm.model_executor.kernels.linear as linear  # type: ignore[import-not-found]
from vllm import LLM, SamplingParams, _custom_ops
from vllm.platforms.interface import PlatformEnum  # type: ignore[import-not-found]

PROMPT = [(7 * at + at * at) % 500 + 4 for at in range(96)]


def to_fp8(values: torch.Tensor, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `_C::static_scaled_fp8_quant` does, which vLLM does not compile for CPUs."""
    most = torch.finfo(torch.float8_e4m3fn).max
    return (values.float() / scale.float()).clamp(-most, most).to(torch.float8_e4m3fn), scale


def main() -> None:
    """Load each model in turn."""
    _custom_ops.scaled_fp8_quant = to_fp8
    linear._POSSIBLE_NVFP4_KERNELS.setdefault(PlatformEnum.CPU, [linear.EmulationNvFp4LinearKernel])
    found = {}
    for folder in sys.argv[1:]:
        model = LLM(folder, enforce_eager=True, max_model_len=128, max_num_seqs=1, disable_log_stats=True)
        sampling = SamplingParams(max_tokens=1, prompt_logprobs=0)
        output = model.generate({"prompt_token_ids": PROMPT}, sampling, use_tqdm=False)[0]
        steps = output.prompt_logprobs[1:]
        found[folder] = [step[token].logprob for step, token in zip(steps, PROMPT[1:], strict=True)]
        del model
    print(json.dumps(found))


if __name__ == "__main__":
    main()
