"""The variables that a user may set, as data: the entrypoint reads them by this table, the manual is made from it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from sparkwright.errors import ConfigurationError


@dataclass(frozen=True, kw_only=True)
class Variable:
    """One variable: what it is for, what it may be, and the option of `vllm serve` that it becomes, if any."""

    name: str
    modes: tuple[str, ...]
    purpose: str
    values: str
    default: str = ""
    explanation: str
    example: str
    option: str = ""
    kind: str = "text"
    secret: bool = False


SERVE: Final = ("serve",)
RAY: Final = ("ray-head", "ray-worker", "quantize")
SERVING: Final = ("serve", "ray-head")
NODES: Final = ("serve", "ray-head", "ray-worker")

TABLE: Final[tuple[Variable, ...]] = (
    Variable(
        name="MODEL",
        modes=SERVING,
        purpose="The model to serve.",
        values="a hub id, or a folder with a config.json",
        explanation="Needed by `serve` unless RECIPE names one or it is the first word after the mode. With `ray-head` "
        "it makes the head serve in the same container as soon as NNODES nodes have joined.",
        example="MODEL=nvidia/Qwen3-Next-80B-A3B-Instruct-NVFP4",
    ),
    Variable(
        name="RECIPE",
        modes=SERVING,
        purpose="A tested set of options for one model.",
        values="a name from `sparkwright recipe list`, or the path of a recipe file",
        explanation="Fills what you did not set yourself: the model, its options, its environment. Every variable, "
        "VLLM_EXTRA_ARGS and every argument wins over it.",
        example="RECIPE=qwen3.6-35b-a3b-nvfp4",
    ),
    Variable(
        name="PORT",
        modes=SERVING,
        purpose="The port of the API.",
        values="1 to 65535",
        default="8888",
        explanation="Must be free when the container starts. The image's healthcheck follows it.",
        example="PORT=8000",
        option="--port",
        kind="port",
    ),
    Variable(
        name="HOST",
        modes=SERVING,
        purpose="The address on which the API listens.",
        values="an address or a name of this machine",
        default="0.0.0.0",  # noqa: S104  what the image has always done; documented
        explanation="0.0.0.0 is every interface. Without VLLM_API_KEY anyone who reaches it may use it.",
        example="HOST=127.0.0.1",
        option="--host",
        kind="word",
    ),
    Variable(
        name="GPU_MEMORY_UTIL",
        modes=SERVING,
        purpose="The share of the memory that vLLM may use.",
        values="above 0, up to 1",
        default="0.75",
        explanation="On a Spark the CPU and the GPU share one memory, so what is left is all that the system has. vLLM "
        "fills the share with KV cache whatever the model's size.",
        example="GPU_MEMORY_UTIL=0.8",
        option="--gpu-memory-utilization",
        kind="share",
    ),
    Variable(
        name="MAX_MODEL_LEN",
        modes=SERVING,
        purpose="The longest context, in tokens.",
        values="a whole number; vLLM also takes 32k and auto",
        default="131072",
        explanation="The default gives way to the model's own limit where its config.json can be read and says less. A "
        "value that you set never does: vLLM refuses it if the model cannot hold it.",
        example="MAX_MODEL_LEN=65536",
        option="--max-model-len",
        kind="length",
    ),
    Variable(
        name="MAX_NUM_SEQS",
        modes=SERVING,
        purpose="How many requests run at the same time.",
        values="a whole number above 0",
        default="128",
        explanation="More wait in a queue. A small number keeps the memory for long contexts.",
        example="MAX_NUM_SEQS=8",
        option="--max-num-seqs",
        kind="count",
    ),
    Variable(
        name="TENSOR_PARALLEL_SIZE",
        modes=SERVING,
        purpose="Over how many GPUs each layer is split.",
        values="a whole number above 0",
        default="1",
        explanation="A Spark has one GPU, so more than one needs more nodes. With NNODES above 1, and no other kind of "
        "parallelism asked for, the default is NNODES x NUM_GPUS.",
        example="TENSOR_PARALLEL_SIZE=2",
        option="--tensor-parallel-size",
        kind="count",
    ),
    Variable(
        name="VLLM_EXTRA_ARGS",
        modes=SERVING,
        purpose="Further options of `vllm serve`.",
        values="shell words",
        explanation="Split as a shell would split it, without expanding anything, so JSON in single quotes arrives "
        "whole. It wins over the variables; arguments after the mode win over it.",
        example="VLLM_EXTRA_ARGS=--kv-cache-dtype fp8 --speculative-config "
        """'{"method": "mtp", "num_speculative_tokens": 2}'""",
        kind="words",
    ),
    Variable(
        name="CHECK",
        modes=SERVING,
        purpose="Check a local checkpoint's headers before it is served.",
        values="1 or 0",
        default="1",
        explanation="When the model is a folder: what `sparkwright checkpoint verify` finds without reading a tensor. "
        "An error ends the start with 78 and its remedy, a warning is a notice. Missing input scales are none where "
        "Marlin, which reads none, computes the layers concerned. It takes at most two seconds, and what was found "
        "by then counts. A folder without safetensors files, and one with another --load-format, is served unchecked.",
        example="CHECK=0",
        kind="switch",
    ),
    Variable(
        name="SMOKE",
        modes=SERVING,
        purpose="Ask one completion after start, and stop serving when it is not sane.",
        values="1 or 0",
        default="0",
        explanation="A checkpoint without `input_scale` serves garbage under a green /health. With SMOKE=1, or the "
        "argument --smoke, the first answer must have finite log-probabilities; else the server is stopped and the "
        "container ends with 1. For that a small process stays the container's first and hands on every signal: vLLM "
        "itself ends with 0 when it is told to end.",
        example="SMOKE=1",
        kind="switch",
    ),
    Variable(
        name="SMOKE_SECONDS",
        modes=SERVING,
        purpose="How long the smoke test waits for the server.",
        values="a whole number of seconds above 0",
        default="1800",
        explanation="Loading and compiling come first, and take many minutes the first time.",
        example="SMOKE_SECONDS=3600",
        kind="count",
    ),
    Variable(
        name="HEALTH_STALL_SECONDS",
        modes=SERVING,
        purpose="How long requests may run without a single token before the healthcheck calls it a deadlock.",
        values="a whole number of seconds above 0",
        default="600",
        explanation="/health stays green through a deadlock between GPUs. The healthcheck turns unhealthy when "
        "requests run while the generated-token and the prompt-token counters both stand still for longer than this. "
        "The prompt counter moves when a prefill ends, so the value must be above your longest prefill.",
        example="HEALTH_STALL_SECONDS=900",
        kind="count",
    ),
    Variable(
        name="HEAD_IP",
        modes=(*NODES, "quantize"),
        purpose="The address of the first node.",
        values="an address or a name that resolves",
        explanation="Needed by `ray-worker` and by NNODES above 1. Use the address on the fast network: the interface "
        "and the RDMA devices are chosen from the route to it. On the head it is the head's own address.",
        example="HEAD_IP=192.168.100.1",
        kind="word",
    ),
    Variable(
        name="WORKER_IP",
        modes=NODES,
        purpose="This node's own address, where it is not the first node.",
        values="an address of this machine",
        default="the one from which HEAD_IP is reached",
        explanation="Set it when the machine has several addresses on the network of HEAD_IP.",
        example="WORKER_IP=192.168.100.2",
        kind="word",
    ),
    Variable(
        name="NNODES",
        modes=(*SERVING, "quantize"),
        purpose="How many nodes work together.",
        values="a whole number above 0",
        default="1",
        explanation="With `serve`, above 1: vLLM's own multi-node mode, without Ray; start the same image with the "
        "same variables on each node. With `ray-head` and `quantize`: how many nodes must have joined before it "
        "begins; `quantize` then starts the head itself.",
        example="NNODES=2",
        kind="count",
    ),
    Variable(
        name="NODE_RANK",
        modes=SERVE,
        purpose="Which of the NNODES nodes this is.",
        values="0 to NNODES - 1",
        default="0",
        explanation="0 serves the API, on HEAD_IP. All others run headless.",
        example="NODE_RANK=1",
        kind="rank",
    ),
    Variable(
        name="MASTER_PORT",
        modes=SERVE,
        purpose="The port on which the nodes find each other, without Ray.",
        values="1 to 65535",
        default="vLLM's own, 29501",
        explanation="The same on all nodes.",
        example="MASTER_PORT=29555",
        kind="port",
    ),
    Variable(
        name="NUM_GPUS",
        modes=(*NODES, "quantize"),
        purpose="How many GPUs this node gives.",
        values="a whole number above 0",
        default="1",
        explanation="A Spark has one.",
        example="NUM_GPUS=1",
        kind="count",
    ),
    Variable(
        name="RAY_PORT",
        modes=(*NODES, "quantize"),
        purpose="The port of Ray's head.",
        values="1 to 65535",
        default="6379",
        explanation="The same on all nodes.",
        example="RAY_PORT=6380",
        kind="port",
    ),
    Variable(
        name="RAY_DASHBOARD_HOST",
        modes=("ray-head",),
        purpose="The address of Ray's dashboard.",
        values="an address of this machine",
        default="127.0.0.1",
        explanation="The dashboard can start programs, so it is not shown to the network unless you ask.",
        example="RAY_DASHBOARD_HOST=192.168.100.1",
        kind="word",
    ),
    Variable(
        name="RAY_WAIT_SECONDS",
        modes=RAY,
        purpose="How long to wait: a worker for its head, a head with MODEL, or `quantize`, for its nodes.",
        values="a whole number of seconds above 0",
        default="600",
        explanation="When it has passed, the container ends with 69 and says who was there.",
        example="RAY_WAIT_SECONDS=120",
        kind="count",
    ),
    Variable(
        name="RAY_AUTH_TOKEN",
        modes=RAY,
        purpose="The shared secret of a Ray cluster.",
        values="the same text on all nodes; or RAY_AUTH_TOKEN_FILE, a file that holds it",
        explanation="Needed unless HEAD_IP is a loopback address: without it anyone on the network can run programs on "
        "the cluster.",
        example="RAY_AUTH_TOKEN_FILE=/run/secrets/ray_token",
        secret=True,
    ),
    Variable(
        name="VLLM_API_KEY",
        modes=SERVING,
        purpose="The key that clients must send.",
        values="any text; or VLLM_API_KEY_FILE, a file that holds it",
        explanation="vLLM reads it from the environment, so it stands in no list of processes.",
        example="VLLM_API_KEY_FILE=/run/secrets/api_key",
        secret=True,
    ),
    Variable(
        name="HF_TOKEN",
        modes=(*SERVING, "quantize"),
        purpose="The hub's token, for gated models.",
        values="the token; or HF_TOKEN_FILE, a file that holds it",
        explanation="Needed only while the model is downloaded.",
        example="HF_TOKEN_FILE=/run/secrets/hf_token",
        secret=True,
    ),
    Variable(
        name="MAX_JOBS",
        modes=NODES,
        purpose="How many compilers run at once when kernels are compiled at run time.",
        values="a whole number above 0",
        default="one for each 9 GB of available memory, at most one per processor",
        explanation="FlashInfer compiles kernels at the first start; a compiler of its large kernels takes up to about "
        "9 GB, and on a Spark that is the GPU's memory too.",
        example="MAX_JOBS=4",
        kind="count",
    ),
    Variable(
        name="GB10_KERNELS",
        modes=NODES,
        purpose="Let this project's own kernels decode one to eight tokens of NVFP4 layers.",
        values="1 or 0",
        default="0",
        explanation="A plugin of vLLM then reads the weights of the kernels that vLLM chose, and leaves them every "
        "larger batch; in linear layers without vLLM's fusions of the FP4 quantization, so prefill may take longer. "
        "vLLM's log names each layer that stays with vLLM alone, and why. A --linear-backend takes the plugin out of "
        "linear layers, and most values of --moe-backend out of experts: a recipe's are left out then, with a notice, "
        "unless its answers need them; those that you name stay. Nothing of it was measured on a GB10 yet: "
        "kernels/README.md says what was checked, and `doctor` compares each kernel with its reference on your GPU. "
        "Set it on every node; it needs vLLM 0.32 or later.",
        example="GB10_KERNELS=1",
        kind="switch",
    ),
    Variable(
        name="SPARKWRIGHT_VLLM_VERSION",
        modes=NODES,
        purpose="The vLLM version to plan for, instead of the installed one.",
        values="a version, such as 0.33.0",
        explanation="For --dry-run where no vLLM is installed, and for tests.",
        example="SPARKWRIGHT_VLLM_VERSION=0.16.0",
    ),
)

SECRETS: Final = tuple(variable.name for variable in TABLE if variable.secret)
BY_NAME: Final = {variable.name: variable for variable in TABLE}


def _whole(name: str, text: str, lowest: int, highest: int | None = None) -> int:
    if re.fullmatch(r"\d{1,18}", text) and lowest <= int(text) <= (highest or int(text)):
        return int(text)
    raise _wrong(name, text)


def _wrong(name: str, text: str) -> ConfigurationError:
    variable = BY_NAME[name]
    default = f"; without it, {variable.default}" if variable.default else ""
    return ConfigurationError(
        f"{name}={text!r} is not what {name} may be: {variable.values}",
        remedy=f"for instance {variable.example}{default}",
    )


class Values:
    """The variables of one start, checked by the table as they are asked for."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment

    def given(self, name: str) -> bool:
        """Whether the user has set it to something."""
        return bool(self.environment.get(name, "").strip())

    def text(self, name: str) -> str:
        """The value as it is, or the default."""
        value = self.environment.get(name, "") if self.given(name) else BY_NAME[name].default
        kind = BY_NAME[name].kind
        if kind == "word" and value.split() != [value] and value:
            raise _wrong(name, value)
        return value

    def number(self, name: str) -> int:
        """The value as a whole number within the bounds of its kind."""
        value = self.text(name)
        kind = BY_NAME[name].kind
        if kind == "port":
            return _whole(name, value, 1, 65535)
        return _whole(name, value, 0 if kind == "rank" else 1)

    def switch(self, name: str) -> bool:
        """Whether it is on."""
        value = self.text(name).lower()
        if value in ("1", "true", "yes", "on"):
            return True
        if value in ("", "0", "false", "no", "off"):
            return False
        raise _wrong(name, self.text(name))

    def checked(self, name: str) -> str:
        """The value as vLLM will get it, after the check of its kind."""
        kind, value = BY_NAME[name].kind, self.text(name)
        if kind in ("port", "count", "rank"):
            return str(self.number(name))
        if kind == "length" and re.fullmatch(r"\d+(\.\d+)?[kKmMgG]|auto|-1", value) is None:
            return str(_whole(name, value, 1))
        if kind == "share":
            try:
                share = float(value)
            except ValueError:
                share = 0.0
            if not 0 < share <= 1:
                raise _wrong(name, value)
        return value


def read_secrets(environment: Mapping[str, str]) -> dict[str, str]:
    """The secrets that stand in files named by NAME_FILE.

    Raises:
        ConfigurationError: a secret is given twice, or its file cannot be read or is empty.
    """
    found = {}
    for name in SECRETS:
        named = environment.get(f"{name}_FILE", "")
        if not named:
            continue
        if environment.get(name):
            raise ConfigurationError(
                f"{name} and {name}_FILE are both set", remedy=f"keep one; {name}_FILE is the safer of the two"
            )
        try:
            value = Path(named).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "it is not text"
            raise ConfigurationError(
                f"{name}_FILE={named} cannot be read: {reason}",
                remedy="mount the file into the container, readable for its user",
            ) from error
        if not value:
            raise ConfigurationError(f"{name}_FILE={named} is empty", remedy="write the secret into it")
        found[name] = value
    return found
