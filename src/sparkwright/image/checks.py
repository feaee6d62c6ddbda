"""Test a finished image: what its configuration says, and what it does when it is run."""

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from sparkwright.errors import CommandFailedError
from sparkwright.image.docker import Docker
from sparkwright.image.record import RELEASED_UNITS, Check
from sparkwright.native.wheel import Externals
from sparkwright.report import note

LABELS: Final = {
    "org.opencontainers.image.revision": "SPARKWRIGHT_REVISION",
    "org.opencontainers.image.version": "SPARKWRIGHT_VERSION",
    "org.opencontainers.image.created": "IMAGE_CREATED",
    "sparkwright.line": "LINE",
    "sparkwright.patches": "PATCHES",
    "sparkwright.pins.sha256": "PINS_SHA256",
    "sparkwright.vllm.commit": "VLLM_COMMIT",
    "sparkwright.vllm.version": "LINE",
}
"""Labels that repeat a build argument."""
FURTHER_LABELS: Final = (
    "org.opencontainers.image.licenses",
    "org.opencontainers.image.title",
)
_SECRET: Final = re.compile(r"(?i)\b(?:\w*(?:token|password|secret|api_?key))=(?!\s|$|['\"]{2})\S+")
_MODEL: Final = "org/model"


def check_image(docker: Docker, found: Mapping[str, Any], *, expected: Mapping[str, str]) -> tuple[Check, ...]:
    """All tests of an image, `found` being what docker says of it; a test that cannot be run has failed."""
    configuration: dict[str, Any] = found.get("Config") or {}
    image = str(found["Id"])
    history = docker.run("history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
    tests: dict[str, Callable[[], str]] = {
        "labels": lambda: _labels(configuration.get("Labels") or {}, expected),
        "configuration": lambda: _configuration(configuration),
        "no secret in it": lambda: _secrets([*(configuration.get("Env") or []), *history.splitlines()]),
        "about": lambda: _about(docker, image, expected),
        "serve is planned": lambda: _serve(docker, image),
        "a worker without a head is refused": lambda: _worker(docker, image),
        "any command runs": lambda: _command(docker, image),
        "runs as any user, read-only": lambda: _as_nobody(docker, image),
    }
    labels = configuration.get("Labels") or {}
    if labels.get("sparkwright.units") == RELEASED_UNITS:
        tests["audit of the installed vLLM"] = lambda: _audit(docker, image, labels)
    else:
        note("only a part of vLLM was compiled for it: its machine code is not audited, and push.sh will refuse it")
    if "b12x" in expected.get("REQUIREMENTS", ""):
        tests["b12x is that of its own package"] = lambda: _b12x(docker, image)
    if has_gpu(docker):
        tests["doctor"] = lambda: _doctor(docker, image)
    else:
        note("no GPU for containers here: doctor is left to the machine that serves")
    results: list[Check] = []
    for name, test in tests.items():
        try:
            fault = test()
        except CommandFailedError as error:
            fault = error.what[-600:]
        except (ValueError, KeyError, TypeError) as error:
            fault = f"its answer was not understood: {error}"
        note(f"test: {name}: {fault or 'passed'}")
        results.append(Check(name=name, passed=not fault, detail=fault))
    return tuple(results)


def has_gpu(docker: Docker) -> bool:
    """Whether the engine can hand a GPU to a container."""
    info = docker.ask("info", "--format", "{{json .}}")
    devices = [str(device.get("ID", "")) for device in info.get("DiscoveredDevices") or []]
    return "nvidia" in (info.get("Runtimes") or {}) or any(device.startswith("nvidia.com/gpu") for device in devices)


def _labels(labels: Mapping[str, str], expected: Mapping[str, str]) -> str:
    faults = [f"{name} is missing" for name in (*LABELS, *FURTHER_LABELS) if not labels.get(name)]
    faults += [
        f"{name} is {labels[name]}, not {expected[argument]}"
        for name, argument in LABELS.items()
        if labels.get(name) and labels[name] != expected[argument]
    ]
    return "; ".join(faults)


def _configuration(configuration: Mapping[str, Any]) -> str:
    faults = []
    if not any("entrypoint.sh" in word for word in configuration.get("Entrypoint") or []):
        faults.append("its entrypoint is not entrypoint.sh")
    if not (configuration.get("Healthcheck") or {}).get("Test"):
        faults.append("it has no HEALTHCHECK")
    if not configuration.get("StopSignal"):
        faults.append("it has no STOPSIGNAL")
    environment = dict(entry.partition("=")[::2] for entry in configuration.get("Env") or [])
    faults += [
        f"{name} is set in it: a build's own setting reaches every compiler at run time"
        for name in ("NVCC_PREPEND_FLAGS", "NVCC_APPEND_FLAGS", "TORCH_CUDA_ARCH_LIST")
        if environment.get(name)
    ]
    return "; ".join(faults)


def _secrets(texts: list[str]) -> str:
    for text in texts:
        if match := _SECRET.search(text):
            return f"{match.group(0).partition('=')[0]} has a value in its configuration or history"
    return ""


def _run(docker: Docker, image: str, *words: str, options: tuple[str, ...] = ()) -> str:
    return docker.run_container(*options, image, *words)


def _about(docker: Docker, image: str, expected: Mapping[str, str]) -> str:
    about = json.loads(_run(docker, image, "about", "--json"))
    held = about.get("image", about)
    faults = [
        f"{key} is {held.get(key)}, not {expected[argument]}"
        for key, argument in (
            ("line", "LINE"),
            ("revision", "SPARKWRIGHT_REVISION"),
            ("pins", "PINS_SHA256"),
            ("vllm_commit", "VLLM_COMMIT"),
        )
        if held.get(key) != expected[argument]
    ]
    faults += [
        f"{patch['name']} is {patch['status']}"
        for patch in held.get("patches", [])
        if patch["status"] not in ("applied", "upstream", "not-applicable")
    ]
    return "; ".join(faults)


def _audit(docker: Docker, image: str, labels: Mapping[str, str]) -> str:
    # What was compiled here: as it is, the official wheel's attention library holds only PTX for GB10.
    files = ["vllm/_C_stable_libtorch.*so", "vllm/_moe_C_stable_libtorch.*so", "flashinfer/data/aot/*/*.so"]
    if labels.get("sparkwright.externals") == Externals.COMPILED:
        files.append("vllm/vllm_flash_attn/_vllm_fa2_C.*so")
    script = (
        "packages=$(python -c \"import sysconfig; print(sysconfig.get_path('purelib'))\");"
        f' cd "$packages"; exec sparkwright audit {" ".join(files)} --require sm121'
    )
    _run(docker, image, "bash", "-c", script)
    return ""


def _serve(docker: Docker, image: str) -> str:
    planned = json.loads(_run(docker, image, "--dry-run", "serve", _MODEL))
    words = planned["argv"]
    return "" if "serve" in words and _MODEL in words else f"it would run {words}"


def _worker(docker: Docker, image: str) -> str:
    try:
        _run(docker, image, "ray-worker")
    except CommandFailedError as error:
        return "" if "status 78" in error.what else f"it ended otherwise: {error.what[-300:]}"
    return "it was not refused"


def _command(docker: Docker, image: str) -> str:
    answer = _run(docker, image, "printf", "%s", "as it is").strip()
    return "" if answer == "as it is" else f"it answered {answer!r}"


def _b12x(docker: Docker, image: str) -> str:
    # FlashInfer brings a b12x/__init__.py as well, which leads to a copy of its own.
    script = (
        "import base64, hashlib, importlib.metadata as m;"
        "f = next(f for f in m.files('b12x') if str(f) == 'b12x/__init__.py');"
        "d = base64.urlsafe_b64encode(hashlib.sha256(f.locate().read_bytes()).digest()).decode().rstrip('=');"
        "print(d == f.hash.value)"
    )
    answer = _run(docker, image, "python", "-c", script).strip()
    return "" if answer == "True" else "b12x/__init__.py is FlashInfer's"


def _as_nobody(docker: Docker, image: str) -> str:
    options = ("--user", "65534:65534", "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
    json.loads(_run(docker, image, "--dry-run", "serve", _MODEL, options=options))
    json.loads(_run(docker, image, "about", "--json", options=options))
    return ""


def _doctor(docker: Docker, image: str) -> str:
    docker.run("run", "--rm", "--gpus", "all", image, "doctor")
    return ""
