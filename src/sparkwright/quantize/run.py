"""One run from the unquantized folder to the verified result."""

import hashlib
import importlib.metadata
import json
import os
import shutil
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Final

import torch  # type: ignore[import-not-found]
from transformers import AutoTokenizer  # type: ignore[import-not-found]

from sparkwright import __version__
from sparkwright.checkpoint.findings import Severity
from sparkwright.checkpoint.headers import Tensor
from sparkwright.checkpoint.verify import SAMPLE, Verification, verify
from sparkwright.errors import BuildFailedError, InputUnreadableError, UsageError
from sparkwright.files import exclusive_lock, explain_write_errors, write_json
from sparkwright.quantize.architecture import Architecture, resolve_device
from sparkwright.quantize.calibration import Samples, read_samples
from sparkwright.quantize.display import Display
from sparkwright.quantize.heap import peak_memory
from sparkwright.quantize.inputs import Inputs
from sparkwright.quantize.options import Options
from sparkwright.quantize.output import (
    copy_companions,
    copy_rest,
    move_settings,
    shard_name,
    write_index,
)
from sparkwright.quantize.plan import Plan
from sparkwright.quantize.rate import measured
from sparkwright.quantize.source import Source
from sparkwright.quantize.stage import quant_config, quiet, write_settings
from sparkwright.quantize.state import begin, end
from sparkwright.quantize.worker import Worker
from sparkwright.report import note

_PACKAGES: Final = ("nvidia-modelopt", "transformers", "torch", "safetensors", "ray")
_SAMPLE_TENSORS: Final = 2000  # with more Linears than this, fewer weights of each are compared
_WRITTEN_AS: Final = {"torch.bfloat16": "BF16", "torch.float16": "F16", "torch.float32": "F32"}


def report_path(output: Path) -> Path:
    """The report lies beside the result, so that the result depends on nothing but the inputs."""
    return output.with_name(f"{output.name}.report.json")


def quantize(source: Source, options: Options, plan: Plan) -> dict[str, Any]:
    """Quantize a model; the report.

    Raises:
        SparkwrightError: whatever made it impossible; the state on the disk lets --resume go on.
    """
    torch.set_num_threads(options.threads)
    output = options.output.absolute()
    with explain_write_errors(output):
        output.mkdir(parents=True, exist_ok=True)
    display = Display()
    with exclusive_lock(output, doing="quantizing"), display.running(), quiet():
        return _Run(source, options, plan, output, display).go()


class _Run:
    def __init__(self, source: Source, options: Options, plan: Plan, output: Path, display: Display) -> None:
        self._source, self._options, self._plan = source, options, plan
        self._output, self._display = output, display
        self._started = time.time()

    def go(self) -> dict[str, Any]:
        options, display = self._options, self._display
        # What is wrong with the model, the recipe or the data ends the run here, before its folder is taken.
        architecture = Architecture(self._source, resolve_device(options.device))
        quant_config(architecture, options.recipe)
        rest = architecture.rest()
        with display.phase("reading calibration data"):
            samples = read_samples(options.calibration, _tokenizer(self._source.root))
        identity = self._identity(samples)
        finished = self._finished(identity)
        if finished is not None:
            end(self._output)
            return finished
        state = begin(self._output, identity, resume=options.resume)
        nodes = self._layers(architecture, samples, state)
        with display.phase("copying the rest"):
            self._finish(architecture, rest, state)
        with display.phase("verifying"):
            verification = self._verify()
        report = self._report(architecture, samples, verification, nodes)
        report["identity"] = identity
        write_json(report_path(self._output), report)
        end(self._output)
        if options.scratch is not None:
            shutil.rmtree(_scratch(options, state), ignore_errors=True)
        return report

    def _finished(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        path = report_path(self._output)
        if not self._options.resume or not path.exists() or not (self._output / "config.json").exists():
            return None
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return report if report.get("identity") == identity else None

    def _identity(self, samples: Samples) -> dict[str, Any]:
        options = self._options
        return {
            "model": self._source.digest,
            "calibration data": samples.sha256,
            "recipe": options.recipe.to_json(),
            "device": resolve_device(options.device).partition(":")[0],
            "threads": options.threads,
            "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        }

    def _shard(self, layer: int) -> Path:
        return self._output / shard_name(layer, self._source.layers)

    def _layers(self, architecture: Architecture, samples: Samples, state: Path) -> list[dict[str, Any]]:
        options, layers = self._options, range(len(architecture))
        if all(self._shard(layer).exists() for layer in layers):
            note(f"all {len(layers)} layers are there")
            return []
        scratch, length = _scratch(options, state), options.calibration.length
        inputs = Inputs(architecture, samples=len(samples.tokens), length=length, state=state, scratch=scratch)
        start = inputs.position or 0
        if inputs.lost is not None:
            raise UsageError(
                f"the inputs of layer {inputs.lost + 1}, with which the run would go on, are not in {scratch}",
                cause="--scratch was another folder before, or this one was emptied since",
                remedy=f"give the --scratch of before, or remove {self._output} to start anew",
            )
        if options.resume:
            where = "going on" if start else f"no layer's inputs are kept in {scratch}: beginning again"
            note(f"{where} at layer {start + 1} of {len(layers)}")
        if options.nodes is not None:
            from sparkwright.quantize.cluster import on_nodes

            return on_nodes(
                self._source,
                options,
                options.nodes,
                self._plan,
                samples,
                start=start,
                inputs=inputs,
                shard=self._shard,
                display=self._display,
            )
        worker = Worker(architecture, options.recipe, inputs, shard=self._shard)
        self._display.expect("quantizing", len(layers) - start)
        if start == 0:
            inputs.store(0, architecture.first_inputs(map(torch.tensor, samples.tokens)))
        for layer in layers[start:]:
            worker.layer(layer)
            if self._plan.saves(layer + 1):
                inputs.save(layer + 1)
            inputs.done(layer)
            self._display.advance("quantizing", detail=" layers")
        return []

    def _finish(self, architecture: Architecture, rest: dict[str, Tensor], state: Path) -> None:
        layers = len(architecture)
        path = self._output / shard_name(layers, layers)
        types = architecture.types_of(rest)
        convert = {
            name: (_WRITTEN_AS[str(dtype)], lambda tensor, dtype=dtype: _converted(tensor, dtype))
            for name, dtype in types.items()
            if _WRITTEN_AS.get(str(dtype), rest[name].dtype) != rest[name].dtype
        }
        as_they_are = {name: self._source.tensors[name] for name in architecture.prediction}
        copy_rest(path, rest | as_they_are, convert)
        write_index(self._output, [shard_name(number, layers) for number in range(layers + 1)])
        copy_companions(self._source.root, self._output)
        prepared = state / "settings"
        with explain_write_errors(prepared):
            shutil.rmtree(prepared, ignore_errors=True)
            prepared.mkdir(parents=True)
            write_settings(architecture, self._options.recipe, prepared)
        move_settings(prepared, self._output)

    def _verify(self) -> Verification:
        linears = sum(name.endswith(".weight") for name in self._source.tensors)
        sample = SAMPLE if linears <= _SAMPLE_TENSORS else SAMPLE // 16
        found = verify(self._output, against=self._source.root, sample=sample)
        wrong = [one for one in found.findings if one.rule.severity is Severity.ERROR]
        if wrong:
            raise BuildFailedError(
                f"the result would not serve: {', '.join(sorted({one.rule.code for one in wrong}))}",
                remedy=f"sparkwright checkpoint verify {self._output} --against {self._source.root} says more",
            )
        return found

    def _report(
        self,
        architecture: Architecture,
        samples: Samples,
        verification: Verification,
        nodes: list[dict[str, Any]],
    ) -> dict[str, Any]:
        errors: dict[int, list[float]] = defaultdict(list)
        prefix = f"{architecture.prefix}."
        for one in verification.differences:
            number = one.module.removeprefix(prefix).partition(".")[0]
            if one.module.startswith(prefix) and number.isdecimal() and one.error > 0:
                errors[int(number)].append(one.error)
        return {
            "source": {"directory": str(self._source.root), "index_sha256": self._source.index_sha256},
            "output": str(self._output),
            "architecture": architecture.class_name,
            "layers": len(architecture),
            "quantized_linears": sum(name.endswith(".weight_scale") for name in verification.checkpoint.tensors),
            "bytes": verification.checkpoint.size,
            "recipe": self._options.recipe.to_json(),
            "calibration": {**self._options.calibration.to_json(), **samples.to_json()},
            "multi_token_prediction": list(architecture.prediction),
            "left_out": architecture.left_out(),
            "device": resolve_device(self._options.device),
            "versions": {"sparkwright": __version__} | {name: importlib.metadata.version(name) for name in _PACKAGES},
            "error_by_layer": {
                str(number): {"mean": sum(all_) / len(all_), "worst": max(all_)}
                for number, all_ in sorted(errors.items())
            },
            "findings": [one.to_json() for one in verification.findings],
            **peak_memory(),
            "nodes": nodes,
            "rate": measured(
                self._plan.flop,
                len(architecture),
                self._display.done.get("quantizing", 0),
                self._display.seconds.get("quantizing", 0),
            ),
            "seconds": self._display.seconds | {"all": time.time() - self._started},
        }


def _tokenizer(root: Path) -> Any:  # noqa: ANN401
    try:
        return AutoTokenizer.from_pretrained(root)
    except (ValueError, OSError, KeyError, ImportError, TypeError) as error:
        raise InputUnreadableError(
            f"{root} has no tokenizer that transformers can read: {str(error).splitlines()[0]}",
            cause="tokenizer.json and tokenizer_config.json were not downloaded, or it needs code of its own",
            remedy="download the whole model: hf download OWNER/NAME --local-dir FOLDER",
        ) from error


def _scratch(options: Options, state: Path) -> Path:
    if options.scratch is None:
        return state / "activations"
    # Two runs may share one scratch folder.
    of_this_run = hashlib.sha256(os.fsencode(options.output.absolute())).hexdigest()[:12]
    return options.scratch.absolute() / f"quantize-{of_this_run}"


def _converted(tensor: Tensor, dtype: Any) -> bytes:  # noqa: ANN401
    with tensor.path.open("rb") as stream:
        stream.seek(tensor.offset)
        content = bytearray(stream.read(tensor.nbytes))
    stored = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[tensor.dtype]
    return bytes(torch.frombuffer(content, dtype=stored).to(dtype).view(torch.uint8).numpy())
