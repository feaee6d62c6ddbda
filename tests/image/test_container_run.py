"""The built image, run: what it holds, its modes, signals, health, users, limits, and two of them as Ray's nodes."""

import json
import re
import shutil
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.image.conftest import Built
from tests.image.engine import Engine

from sparkwright.image.arguments import argument_block, series_of
from sparkwright.native.build_report import pins_digest
from sparkwright.paths import CHECKOUT
from sparkwright.pins import default_line, load_line

pytestmark = [pytest.mark.image, pytest.mark.timeout(1800)]

Run = Callable[..., str]
_SERVER = Path(__file__).with_name("stub_vllm.py")
_MAKE_MODEL = CHECKOUT / "tests" / "quantize" / "make_model.py"
LINE = load_line(default_line())


@pytest.fixture
def run(engine: Engine, image: str) -> Run:
    """`run(*options, command=...)`: the output of a container that ends with 0, or with `fails` does not."""

    def go(*options: str, command: tuple[str, ...] = (), fails: bool = False) -> str:
        return engine.docker("run", "--rm", "--network", "none", *options, image, *command, fails=fails)

    return go


@pytest.fixture
def container(engine: Engine, image: str) -> Iterator[Callable[..., str]]:
    """`container(*options, command=...)`: the id of a running container, which goes when the test ends."""
    started: list[str] = []

    def go(*options: str, command: tuple[str, ...] = ()) -> str:
        started.append(engine.docker("run", "--detach", "--network", "none", *options, image, *command))
        return started[-1]

    yield go
    for one in started:
        engine.docker("rm", "--force", "--volumes", one)


@pytest.fixture(scope="module")
def config(engine: Engine, image: str) -> dict[str, Any]:
    (found,) = json.loads(engine.docker("image", "inspect", image))
    chosen: dict[str, Any] = found["Config"]
    return chosen


def until(what: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not (reached := what()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return reached


def test_it_says_how_it_is_run(config: dict[str, Any]) -> None:
    assert config["Entrypoint"] == ["/opt/sparkwright/entrypoint.sh"]
    assert config["Cmd"] == ["serve"]
    assert config["StopSignal"] == "SIGTERM"
    assert config["Healthcheck"]["Test"] == ["CMD", "/opt/sparkwright/entrypoint.sh", "health"]
    assert list(config["Volumes"]) == ["/cache"]
    assert not config.get("User")


def test_its_labels_say_what_it_is(config: dict[str, Any]) -> None:
    labels = config["Labels"]
    for name in ("title", "version", "revision", "source", "created", "licenses"):
        assert labels[f"org.opencontainers.image.{name}"], name
    assert labels["sparkwright.line"] == labels["sparkwright.vllm.version"] == LINE.name
    assert labels["sparkwright.vllm.commit"] == LINE.vllm_commit
    assert labels["sparkwright.pins.sha256"] == pins_digest()
    assert labels["sparkwright.patches"].split() == list(series_of(LINE))
    assert labels["sparkwright.units"] == "smoke"
    assert labels["sparkwright.externals"] == "wheel"


def test_what_only_building_needs_stays_there(engine: Engine, image: str, config: dict[str, Any]) -> None:
    names = {entry.partition("=")[0] for entry in config["Env"]}
    assert {"CUDA_HOME", "FLASHINFER_CUDA_ARCH_LIST", "XDG_CACHE_HOME"} <= names
    assert not [name for name in names if re.search("CCACHE|NVCC|MAX_JOBS|CMAKE|TORCH_CUDA|TOKEN|PASSWORD", name)]
    history = engine.docker("history", "--no-trunc", "--format", "{{.CreatedBy}}", image)
    assert not re.search(r"(?i)password|secret|token=|//[^/]*@", history)


def test_the_file_system_holds_what_it_must(run: Run) -> None:
    script = """
    none() { if "$@" | grep .; then return 1; fi; }  # bash goes on when a command with ! succeeds
    packages=$(echo /opt/venv/lib/python3*/site-packages)
    test "$(readlink -f /usr/local/cuda/lib64)" = "$(readlink -f /usr/local/cuda/lib)"
    test -e /usr/local/cuda/lib64/libcudart.so -a -e /usr/local/cuda/lib/stubs/libcuda.so
    none find / -xdev -name libcuda.so.1
    none ls -d /root/.cache /opt/tool /opt/cache /opt/sparkwright/build /opt/sparkwright/src /var/lib/apt/lists/*
    nvcc --version | grep -q 'release 13.0'
    ninja --version; ray --version; ldconfig -p | grep -q libibverbs.so.1
    test "$(stat -c %a /cache)" = 1777
    ls "$packages"/flashinfer/data/aot/norm/norm.so "$packages"/gb10_kernels/_C.so
    # What would differ with each build: bytecode holds times, other files the names of nvcc's temporary files.
    none find /opt/venv -name "*.$(python3 -c 'import sys; print(sys.implementation.cache_tag)').pyc"
    none find /var/cache/apt -name '*.bin'
    none grep -l tmpxft "$packages"/flashinfer/data/aot/norm/norm.so "$packages"/gb10_kernels/_C.so
    """
    run(command=("bash", "-Eeuo", "pipefail", "-c", script))


def test_a_build_without_arguments_has_the_same_labels(
    engine: Engine, config: dict[str, Any], image: str, tmp_path: Path
) -> None:
    """But for the commit, which only ./build.sh knows. Here the last lines of the Dockerfile, above the built image."""
    text = (CHECKOUT / "Dockerfile").read_text(encoding="utf-8")
    tail = text[text.index("\nARG SPARKWRIGHT_VERSION=") :]
    stage = f"FROM {image}\nARG LINE\nARG UNITS\nARG EXTERNALS\nARG SPARKWRIGHT_REVISION=\n"
    (tmp_path / "Dockerfile").write_text(
        argument_block() + "ARG UNITS=smoke\nARG EXTERNALS=wheel\n" + stage + tail, encoding="utf-8"
    )
    tag = "sparkwright-test:bare"
    engine.docker("buildx", "build", "--load", "--tag", tag, tmp_path)
    try:
        labels = json.loads(engine.docker("image", "inspect", tag))[0]["Config"]["Labels"]
    finally:
        engine.docker("image", "rm", tag)
    differing = {name for name in config["Labels"] | labels if labels.get(name) != config["Labels"].get(name)}
    assert differing == {f"org.opencontainers.image.{name}" for name in ("version", "revision", "created", "source")}


def test_about_tells_what_it_holds(run: Run, built: Built) -> None:
    about = json.loads(run(command=("about", "--json")))["image"]
    assert about["versions"]["vllm"] == "0.33.0+gb10.official"
    assert about["revision"] == built.record["revision"]
    assert about["vllm_commit"] == LINE.vllm_commit
    assert about["pins"] == pins_digest()
    assert [one["name"] for one in about["jit_modules"]] == ["norm"]
    states = {(one["component"], one["name"]): one["status"] for one in about["patches"]}
    assert states["vllm", "uma-graph-memory"] == "applied"
    assert {status for (component, _), status in states.items() if component == "flashinfer"} >= {"applied"}
    patched = "/opt/venv/lib/python3*/site-packages/vllm/v1/worker/gpu/cudagraph_utils.py"
    run(command=("bash", "-c", f"grep -q 'MemorySnapshot().free_memory' {patched}"))


def test_the_doctor_checks_what_it_can_without_a_gpu(run: Run) -> None:
    """It imports vLLM, compiles for sm_121a, compares releases and patches; and says why of what it leaves out."""
    report = json.loads(run(command=("doctor", "--json")))
    assert report["ok"], [one for one in report["checks"] if one["verdict"] == "fail"]
    found = {one["name"]: one for one in report["checks"]}
    good = {"releases", "patches", "compiler", "nvcc variables", "NVFP4 backend"}
    assert good <= {name for name, one in found.items() if one["verdict"] == "pass"}
    assert "9 import, with the linker's stub" in found["libraries"]["found"]
    assert "only as PTX: _vllm_fa2_C" in found["machine code"]["found"]
    assert found["FlashInfer modules"]["found"].startswith("1 ready")
    assert all(one["reason"] for one in report["checks"] if one["verdict"] in ("warn", "skipped"))
    assert "--gpus all" in found["GPU"]["reason"]


def test_it_quantizes(engine: Engine, run: Run) -> None:
    """With the packages that the image holds and what was taken out of them: a model comes out that has no fault."""
    models = engine.state / "models"
    models.mkdir(exist_ok=True)
    shutil.copyfile(_MAKE_MODEL, models / "make_model.py")
    texts = [
        json.dumps({"text": f"The spark number {number} is small, bright and soon gone. " * 20}) for number in range(8)
    ]
    (models / "texts.jsonl").write_text("\n".join(texts), encoding="utf-8")
    mounted = ("--volume", "/state/models:/models")
    run(*mounted, command=("python", "/models/make_model.py", "/models/in", "--layers", "2"))
    words = (
        "quantize",
        "/models/in",
        "/models/out",
        "--data",
        "/models/texts.jsonl",
        "--samples",
        "4",
        "--length",
        "64",
    )
    report = json.loads(run(*mounted, command=(*words, "--device", "cpu", "--json")))
    assert report["versions"]["nvidia-modelopt"].startswith("0.47")
    run(*mounted, command=("checkpoint", "verify", "/models/out", "--against", "/models/in"))


def test_the_licence_texts_of_its_packages_are_there(run: Run) -> None:
    script = """
    from importlib.metadata import distributions
    named, missing = 0, []
    for one in distributions():
        for name in one.metadata.get_all("License-File") or ():
            named += 1
            paths = [one._path / folder / name for folder in ("licenses", "license_files", "")]
            if not any(path.is_file() for path in paths):
                missing.append(f"{one.name}: {name}")
    print(named, missing)
    """
    named, _, missing = run(command=("python", "-c", textwrap.dedent(script))).partition(" ")
    assert missing == "[]"
    assert int(named) > 100


def test_a_module_that_is_not_there_is_compiled_at_run_time_by_anyone(run: Run) -> None:
    script = "from flashinfer.page import get_page_module as g; g(); print('loaded')"
    said = run("--user", "1234:1234", "--read-only", "--tmpfs", "/tmp", command=("python", "-c", script))
    assert said.endswith("loaded")


def test_the_modes_plan_what_they_would_start(run: Run) -> None:
    def plan(*options: str, command: tuple[str, ...]) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(run(*options, command=("--dry-run", *command)))
        return found

    served = plan("--env", "MODEL=a/b", command=("serve", "--max-num-seqs", "8"))
    assert served["argv"][:3] == ["vllm", "serve", "a/b"]
    assert served["argv"][served["argv"].index("--max-num-seqs") + 1] == "8"
    assert plan(command=("serve", "--model", "x"))["argv"][:2] == ["vllm", "serve"]
    assert plan("--env", "RECIPE=qwen3-8b-nvfp4", command=())["argv"][:2] == ["vllm", "serve"]
    secret = plan("--env", "MODEL=a/b", "--env", "VLLM_API_KEY=hidden-word", command=("serve",))
    assert "hidden-word" not in json.dumps(secret)


def test_configuration_errors_end_with_their_code(engine: Engine, image: str) -> None:
    def status(*words: str) -> int:
        name = engine.docker("create", "--network", "none", *words)
        try:
            engine.docker("start", "--attach", name, fails=True)
            return int(engine.docker("inspect", "--format", "{{.State.ExitCode}}", name))
        finally:
            engine.docker("rm", name)

    assert status(image, "ray-worker") == 78
    assert status("--env", "PORT=many", image, "serve") in {64, 78}


def test_any_other_command_runs_as_it_is(run: Run) -> None:
    assert run(command=("bash", "-c", "echo $$ $0 'a b'")) == "1 bash a b"
    assert run(command=("python", "-c", "print(6 * 7)")) == "42"


@pytest.fixture
def serving(engine: Engine, container: Callable[..., str]) -> Callable[..., str]:
    """A container that serves, with a stand-in for vLLM that needs no GPU: everything around it is the image's."""
    stub = engine.state / "stub" / "vllm"
    stub.parent.mkdir(exist_ok=True)
    shutil.copyfile(_SERVER, stub)
    stub.chmod(0o755)

    def go(*options: str) -> str:
        return container(
            # The engine sees its own tree, and of this machine its state alone.
            *("--volume", "/state/stub:/stub:ro", "--env", "PATH=/stub:/opt/venv/bin:/usr/bin:/bin"),
            *("--env", "MODEL=a/b", "--env", "HEALTH_STALL_SECONDS=2", "--health-interval", "1s"),
            *("--health-start-period", "0s", "--health-retries", "2", *options),
            command=("serve",),
        )

    return go


def test_sigterm_reaches_what_is_served(engine: Engine, serving: Callable[..., str]) -> None:
    name = serving()
    assert until(lambda: "listening" in engine.docker("logs", name), 60)
    assert engine.docker("exec", name, "cat", "/proc/1/comm") == "python3"
    started = time.monotonic()
    engine.docker("stop", "--time", "30", name)
    assert time.monotonic() - started < 10
    assert "ended by SIGTERM" in engine.docker("logs", name)
    assert engine.docker("inspect", "--format", "{{.State.ExitCode}}", name) == "0"


def test_the_healthcheck_sees_a_server_that_hangs(engine: Engine, serving: Callable[..., str]) -> None:
    name = serving()

    def health() -> str:
        return engine.docker("inspect", "--format", "{{.State.Health.Status}}", name)

    assert until(lambda: health() == "healthy", 60), engine.docker("logs", name)
    engine.docker("exec", name, "touch", "/tmp/hang")
    assert until(lambda: health() == "unhealthy", 60)
    log = engine.docker("inspect", "--format", "{{json .State.Health.Log}}", name)
    assert "the engine hangs" in log


@pytest.mark.parametrize("options", [(), ("--user", "1234:1234"), ("--read-only", "--tmpfs", "/tmp")])
def test_it_serves_as_anyone(engine: Engine, serving: Callable[..., str], options: tuple[str, ...]) -> None:
    name = serving("--cap-drop", "ALL", "--security-opt", "no-new-privileges", *options)
    assert until(lambda: "listening" in engine.docker("logs", name), 60)
    engine.docker("exec", name, "bash", "-c", "touch /cache/mine")
    if "--read-only" in options:
        assert "Read-only" in engine.docker("exec", name, "touch", "/opt/mine", fails=True)


def test_a_memory_limit_ends_the_container_and_not_the_machine(engine: Engine, container: Callable[..., str]) -> None:
    name = container("--memory", "256m", command=("python", "-c", "x = bytearray(10**9); x[::4096] = x[::4096]"))
    assert until(lambda: engine.docker("inspect", "--format", "{{.State.Running}}", name) == "false", 60)
    state = engine.docker("inspect", "--format", "{{.State.OOMKilled}} {{.State.ExitCode}}", name)
    assert state == "true 137"


def test_two_of_them_are_head_and_worker_of_one_ray(engine: Engine, container: Callable[..., str]) -> None:
    """Each has a network of its own; a pair of virtual interfaces is the cable between them."""
    token = ("--env", "RAY_AUTH_TOKEN=" + "a1" * 32, "--env", "HEAD_IP=10.99.0.1", "--shm-size", "1g")
    wait = "until ip -4 address show dev eth1 2>/dev/null | grep -q inet; do sleep 0.2; done; "
    names = []
    for number, mode in ((1, "ray-head"), (2, "ray-worker")):
        command = ("bash", "-c", f"{wait} exec /opt/sparkwright/entrypoint.sh {mode}")
        own = ("--env", f"WORKER_IP=10.99.0.{number}")
        names.append(container("--memory", "4g", *token, *own, command=command))
    pids = [engine.docker("inspect", "--format", "{{.State.Pid}}", name) for name in names]
    engine.inside("ip", "link", "add", "cable1", "type", "veth", "peer", "name", "cable2")
    for number, pid in enumerate(pids, start=1):
        engine.inside("ip", "link", "set", f"cable{number}", "netns", pid, "name", "eth1")
        enter = ("nsenter", "--target", pid, "--net", "--")
        engine.inside(*enter, "ip", "link", "set", "eth1", "up")
        engine.inside(*enter, "ip", "address", "add", f"10.99.0.{number}/24", "dev", "eth1")
    script = (
        "import ray; ray.init(address='10.99.0.1:6379', log_to_driver=False);"
        "print('ALIVE', sorted(n['NodeManagerAddress'] for n in ray.nodes() if n['Alive']))"
    )

    def nodes() -> str:
        try:
            return engine.docker("exec", "--env", "RAY_AUTH_MODE=token", names[0], "python", "-c", script)
        except AssertionError as error:
            return str(error)

    assert until(lambda: "ALIVE ['10.99.0.1', '10.99.0.2']" in nodes(), 120), (
        f"{nodes()}\n{engine.docker('logs', names[0])}\n{engine.docker('logs', names[1])}"
    )
    assert "answers" in engine.docker("exec", names[1], "/opt/sparkwright/entrypoint.sh", "health")
