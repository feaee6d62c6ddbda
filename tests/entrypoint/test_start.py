"""Starting for real, with stubs in the place of vllm and ray: process, environment, secrets, refusals."""

import json
import socket
import sys
from pathlib import Path

import pytest
from tests.entrypoint.conftest import Entrypoint, as_user

from sparkwright.run import run

MODEL = {"MODEL": "owner/name", "GPU_MEMORY_UTIL": "0.1"}


@pytest.mark.parametrize("root", [True, False], ids=["root", "another user"])
def test_the_served_process_replaces_the_entrypoint(entrypoint: Entrypoint, root: bool) -> None:
    ran = entrypoint.run("serve", env=MODEL, prefix=as_user(root))
    assert ran.status == 0, ran.stderr
    assert ran.record["pid"] == ran.pid
    assert (ran.record["uid"] == 0) is root
    assert ran.record["argv"][:3] == ["vllm", "serve", "owner/name"]
    assert ran.stdout == ""


def test_the_status_of_the_command_is_the_containers(entrypoint: Entrypoint) -> None:
    assert entrypoint.run("serve", env={**MODEL, "STUB_VLLM_STATUS": "7"}).status == 7


@pytest.mark.parametrize("words", [(), ("serve",), ("--max-num-seqs", "3")])
def test_no_word_and_options_mean_serve(entrypoint: Entrypoint, words: tuple[str, ...]) -> None:
    assert entrypoint.run(*words, env=MODEL).record["argv"][:2] == ["vllm", "serve"]


def test_any_other_command_runs_as_it_is(entrypoint: Entrypoint) -> None:
    ran = entrypoint.run("printf", "%s|", "a b", "-c", "*")
    assert (ran.status, ran.stdout, ran.stderr) == (0, "a b|-c|*|", "")


def test_the_healthcheck_finds_what_was_started(entrypoint: Entrypoint) -> None:
    entrypoint.run("serve", "--port", "9", env=MODEL)
    for _ in range(2):
        ran = entrypoint.run("health")
        assert ran.status == 1
        assert "unhealthy: http://127.0.0.1:9/health did not answer" in ran.stdout
    assert entrypoint.run("health", env={"SPARKWRIGHT_STATE": str(entrypoint.home)}).status == 0


def test_bash_is_a_shell(entrypoint: Entrypoint) -> None:
    assert entrypoint.run("bash", "-c", "echo $0").stdout == "bash\n"


def test_help_reaches_vllm_without_a_model(entrypoint: Entrypoint) -> None:
    assert entrypoint.run("--help").record["argv"] == ["vllm", "serve", "--help"]


@pytest.mark.parametrize("mode", ["doctor", "about", "recipe", "checkpoint", "quantize", "audit", "patch"])
def test_a_mode_of_the_package_is_its_command_line(entrypoint: Entrypoint, mode: str) -> None:
    planned = entrypoint.dry(mode, "--json", "a b", env=MODEL)
    assert planned["argv"] == [sys.executable, "-m", "sparkwright", mode, "--json", "a b"]
    ran = entrypoint.run(mode, "--help", env=MODEL)
    assert (ran.status, ran.stderr) == (0, "")
    assert f"sparkwright {mode} [OPTIONS]" in ran.stdout


def test_a_wrong_word_for_the_package_is_a_wrong_command_line(entrypoint: Entrypoint) -> None:
    assert entrypoint.run("recipe", "--no-such-option").status == 64


def test_bench_is_vllms_load_generator_against_this_server(entrypoint: Entrypoint) -> None:
    ran = entrypoint.run("bench", "--num-prompts", "4", env={**MODEL, "PORT": "9000", "VLLM_API_KEY": "hush"})
    server = ["vllm", "bench", "serve", "--host", "127.0.0.1", "--port", "9000"]
    assert ran.record["argv"] == [*server, "--model", "owner/name", "--num-prompts", "4"]
    assert ran.record["env"]["OPENAI_API_KEY"] == "hush"
    assert "hush" not in ran.stdout + ran.stderr
    assert entrypoint.run("--dry-run", "bench", env={"VLLM_API_KEY": "hush"}).stdout.count("hush") == 0


def test_secrets_from_files_reach_the_environment_and_nothing_else(entrypoint: Entrypoint) -> None:
    for name in ("VLLM_API_KEY", "HF_TOKEN"):
        (entrypoint.home / name).write_text(f"secret-{name}\n", encoding="utf-8")
    files = {f"{name}_FILE": str(entrypoint.home / name) for name in ("VLLM_API_KEY", "HF_TOKEN")}
    ran = entrypoint.run("serve", env={**MODEL, **files})
    record = ran.record
    assert {name: record["env"][name] for name in ("VLLM_API_KEY", "HF_TOKEN")} == {
        "VLLM_API_KEY": "secret-VLLM_API_KEY",
        "HF_TOKEN": "secret-HF_TOKEN",
    }
    assert not any(name.endswith("_FILE") for name in record["env"])
    assert "secret" not in ran.stdout + ran.stderr + json.dumps(record["argv"])
    dry = entrypoint.run("--dry-run", "serve", env={**MODEL, **files})
    assert "secret" not in dry.stdout + dry.stderr


def test_a_key_in_the_arguments_is_moved_out_of_them(entrypoint: Entrypoint) -> None:
    ran = entrypoint.run("serve", "--api-key", "hush", env={**MODEL, "VLLM_API_KEY": "other"})
    assert ran.record["env"]["VLLM_API_KEY"] == "hush"
    assert "hush" not in ran.stderr + json.dumps(ran.record["argv"])


def test_old_variables_do_not_reach_the_new_vllm(entrypoint: Entrypoint) -> None:
    record = entrypoint.run("serve", env={**MODEL, "VLLM_NVFP4_GEMM_BACKEND": "marlin"}).record
    assert "VLLM_NVFP4_GEMM_BACKEND" not in record["env"]
    assert record["argv"][-2:] == ["--linear-backend", "marlin"]


def test_a_read_only_home_works_with_a_cache_elsewhere(entrypoint: Entrypoint) -> None:
    entrypoint.home.chmod(0o555)
    cache = entrypoint.folder / "cache"
    cache.mkdir()
    cache.chmod(0o777)
    ran = entrypoint.run("serve", env={**MODEL, "XDG_CACHE_HOME": str(cache)}, prefix=as_user(False))
    assert ran.status == 0, ran.stderr
    assert ran.record["env"]["FLASHINFER_WORKSPACE_BASE"] == str(cache)
    assert ran.record["env"]["USER"] == "user12345" or as_user(False) == []


def test_ray_head_alone_is_ray(entrypoint: Entrypoint) -> None:
    ran = entrypoint.run("ray-head", env={"HEAD_IP": "127.0.0.1"})
    assert ran.record["pid"] == ran.pid
    assert ran.record["argv"][-1] == "--block"


def test_ray_head_with_a_model_waits_for_its_nodes_then_serves(entrypoint: Entrypoint) -> None:
    nodes = [{"Alive": True, "NodeManagerAddress": f"10.0.0.{number}"} for number in (1, 2)]
    entrypoint.nodes.write_text(json.dumps(nodes), encoding="utf-8")
    ran = entrypoint.run("ray-head", env={**MODEL, "HEAD_IP": "127.0.0.1", "NNODES": "2"})
    assert ran.status == 0, ran.stderr
    assert [record["argv"][:2] for record in ran.records] == [["ray", "start"], ["vllm", "serve"]]
    assert ran.records[1]["pid"] == ran.pid
    assert "--block" not in ran.records[0]["argv"]
    assert "2 of 2 nodes are there: 10.0.0.1, 10.0.0.2" in ran.stderr


def test_ray_head_says_who_is_there_when_nodes_are_missing(entrypoint: Entrypoint) -> None:
    nodes = [{"Alive": True, "NodeManagerAddress": "10.0.0.1"}, {"Alive": False, "NodeManagerAddress": "10.0.0.9"}]
    entrypoint.nodes.write_text(json.dumps(nodes), encoding="utf-8")
    env = {**MODEL, "HEAD_IP": "127.0.0.1", "NNODES": "2", "RAY_WAIT_SECONDS": "1"}
    ran = entrypoint.run("ray-head", env=env)
    assert ran.status == 69
    assert "1 of NNODES=2 nodes joined within 1 s: 10.0.0.1" in ran.stderr
    assert [record["argv"][0] for record in ran.records] == ["ray"]


def test_a_ray_that_does_not_start_ends_the_head(entrypoint: Entrypoint) -> None:
    ran = entrypoint.run("ray-head", env={**MODEL, "HEAD_IP": "127.0.0.1", "STUB_RAY_STATUS": "1"})
    assert ran.status == 2
    assert [record["argv"][0] for record in ran.records] == ["ray"]


def test_a_worker_waits_for_its_head_then_gives_up(entrypoint: Entrypoint) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {"HEAD_IP": "127.0.0.1", "RAY_PORT": port, "RAY_WAIT_SECONDS": "1"}
    ran = entrypoint.run("ray-worker", env=env)
    assert (ran.status, ran.records) == (69, [])
    assert f"the head at 127.0.0.1:{port} did not answer within 1 s" in ran.stderr


def test_a_worker_joins_a_head_that_listens(entrypoint: Entrypoint) -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        port = str(head.getsockname()[1])
        ran = entrypoint.run("ray-worker", env={"HEAD_IP": "127.0.0.1", "RAY_PORT": port})
    assert ran.record["argv"][:3] == ["ray", "start", f"--address=127.0.0.1:{port}"]


REFUSED: list[tuple[str, dict[str, str], tuple[str, ...], int, str]] = [
    ("no model", {"MODEL": ""}, ("serve",), 78, "MODEL is not set"),
    ("a model with spaces", {"MODEL": "owner/my model"}, ("serve",), 78, "neither a hub id nor a folder"),
    ("a model that is not mounted", {"MODEL": "/models/none"}, ("serve",), 78, "does not exist in this container"),
    ("an open quote", {"VLLM_EXTRA_ARGS": "--served-model-name 'x"}, ("serve",), 78, "cannot be split into words"),
    ("JSON without its quotes", {"VLLM_EXTRA_ARGS": '--speculative-config {"method":"mtp"}'}, (), 78, "is not JSON"),
    ("a port that is none", {"PORT": "http"}, ("serve",), 78, "PORT='http' is not what PORT may be"),
    ("a port out of range", {"PORT": "65536"}, ("serve",), 78, "PORT='65536'"),
    ("no memory", {"GPU_MEMORY_UTIL": "0"}, ("serve",), 78, "GPU_MEMORY_UTIL='0'"),
    ("too much memory", {"GPU_MEMORY_UTIL": "1.01"}, ("serve",), 78, "GPU_MEMORY_UTIL='1.01'"),
    ("memory that is no number", {"GPU_MEMORY_UTIL": "nan"}, ("serve",), 78, "GPU_MEMORY_UTIL='nan'"),
    ("no integer", {"MAX_NUM_SEQS": "1.5"}, ("serve",), 78, "MAX_NUM_SEQS='1.5'"),
    ("an empty context", {"MAX_MODEL_LEN": "0"}, ("serve",), 78, "MAX_MODEL_LEN='0'"),
    ("a negative size", {"TENSOR_PARALLEL_SIZE": "-1"}, ("serve",), 78, "TENSOR_PARALLEL_SIZE='-1'"),
    ("more GPUs than there are", {"TENSOR_PARALLEL_SIZE": "2"}, ("serve",), 78, "needs 2 GPUs, and there are 1"),
    ("an unknown recipe", {"RECIPE": "qwen9"}, ("serve",), 78, "there is no recipe 'qwen9'"),
    ("an option that is gone", {}, ("serve", "--swap-space", "4"), 78, "vLLM 0.33.0 has no option --swap-space"),
    ("a value that is no choice", {}, ("serve", "--moe-backend", "fast"), 78, "is not a choice of vLLM 0.33.0"),
    ("an option without its value", {}, ("serve", "--port"), 78, "--port (from the arguments) needs a value"),
    (
        "a port in the arguments",
        {},
        ("serve", "--port", "http"),
        78,
        "--port http (from the arguments) is not a number",
    ),
    ("a stray word", {}, ("serve", "--enforce-eager", "true", "more"), 64, "'more' (from the arguments)"),
    ("two keys", {}, ("serve", "--api-key", "a", "b"), 78, "vLLM reads only one"),
    ("a secret given twice", {"HF_TOKEN": "a", "HF_TOKEN_FILE": "/b"}, ("serve",), 78, "are both set"),
    ("a secret that is not there", {"HF_TOKEN_FILE": "/none"}, ("serve",), 78, "HF_TOKEN_FILE=/none cannot be read"),
    ("a rank too high", {"NNODES": "2", "NODE_RANK": "2"}, ("serve",), 78, "NODE_RANK=2 is not below NNODES=2"),
    ("a rank that is none", {"NODE_RANK": "first"}, ("serve",), 78, "NODE_RANK='first'"),
    ("nodes without a head", {"NNODES": "2"}, ("serve",), 78, "HEAD_IP is not set"),
    ("a head nobody knows", {"NNODES": "2", "HEAD_IP": "head.invalid"}, ("serve",), 78, "does not resolve"),
    ("a worker without a head", {}, ("ray-worker",), 78, "HEAD_IP is not set"),
    ("a worker without a token", {"HEAD_IP": "192.0.2.7"}, ("ray-worker",), 78, "RAY_AUTH_TOKEN is not set"),
    ("a head without a token", {"HEAD_IP": "192.0.2.7"}, ("ray-head",), 78, "RAY_AUTH_TOKEN is not set"),
    ("a head anywhere without a token", {}, ("ray-head",), 78, "RAY_AUTH_TOKEN is not set"),
    ("a serving head without a token", {"MODEL": "a/b", "HEAD_IP": "192.0.2.7"}, ("ray-head",), 78, "RAY_AUTH_TOKEN"),
    ("a switch that is none", {"SMOKE": "maybe"}, ("serve",), 78, "SMOKE='maybe'"),
    ("a version that is none", {"SPARKWRIGHT_VLLM_VERSION": "new"}, ("serve",), 78, "'new' is not a vLLM version"),
    ("a command that is not there", {}, ("no-such-program",), 69, "no-such-program is not on PATH"),
    ("an address of another machine", {"HOST": "192.0.2.7"}, ("serve",), 78, "cannot be used on 192.0.2.7"),
]


@pytest.mark.parametrize(
    ("env", "words", "status", "sentence"), [case[1:] for case in REFUSED], ids=[c[0] for c in REFUSED]
)
def test_bad_input_is_one_message_and_starts_nothing(
    entrypoint: Entrypoint, env: dict[str, str], words: tuple[str, ...], status: int, sentence: str
) -> None:
    model = {} if words[:1] in (("ray-worker",), ("ray-head",)) and "MODEL" not in env else MODEL
    ran = entrypoint.run(*words, env={**model, **env})
    assert (ran.status, ran.stdout, ran.records) == (status, "", [])
    assert sentence in ran.stderr
    assert ran.stderr.count("sparkwright: ") == 1
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("program", ["vllm", "ray"])
def test_a_missing_program_is_named(entrypoint: Entrypoint, program: str) -> None:
    (entrypoint.bin / program).unlink()
    mode = {"vllm": "serve", "ray": "ray-head"}[program]
    ran = entrypoint.run(mode, env={"HEAD_IP": "127.0.0.1", **(MODEL if mode == "serve" else {})})
    assert (ran.status, ran.records) == (69, [])
    assert f"{program} is not on PATH" in ran.stderr


def test_a_missing_vllm_is_named_before_anything_is_planned(entrypoint: Entrypoint) -> None:
    ran = entrypoint.run("--dry-run", "serve", env={**MODEL, "SPARKWRIGHT_VLLM_VERSION": "UNSET"})
    assert ran.status == 69
    assert "vLLM is not installed here" in ran.stderr


def test_the_installed_version_is_found_without_importing_it(entrypoint: Entrypoint) -> None:
    modules = Path(entrypoint.environment["PYTHONPATH"].partition(":")[0])
    (modules / "vllm-0.16.0+gb10.dist-info").mkdir()
    env = {**MODEL, "SPARKWRIGHT_VLLM_VERSION": "UNSET", "VLLM_NVFP4_GEMM_BACKEND": "marlin"}
    assert "--linear-backend" not in entrypoint.dry("serve", env=env)["argv"]


def test_a_port_in_use_is_refused(entrypoint: Entrypoint) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        ran = entrypoint.run("serve", env={**MODEL, "HOST": "127.0.0.1", "PORT": port})
    assert (ran.status, ran.records) == (78, [])
    assert f"PORT={port} cannot be used on 127.0.0.1: Address already in use" in ran.stderr


def test_a_read_only_home_is_refused(entrypoint: Entrypoint) -> None:
    entrypoint.home.chmod(0o555)
    ran = entrypoint.run("serve", env=MODEL, prefix=as_user(False))
    assert (ran.status, ran.records) == (78, [])
    assert f"HOME={entrypoint.home} cannot be written by user" in ran.stderr


def test_a_folder_without_a_configuration_is_refused(entrypoint: Entrypoint) -> None:
    ran = entrypoint.run("serve", env={"MODEL": str(entrypoint.home)})
    assert (ran.status, ran.records) == (78, [])
    assert "is a folder without config.json" in ran.stderr


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: x\nspeed: 9\n", "speed: Extra inputs are not permitted"),
        ("- a list\n", "it holds no mapping"),
        ("a: b: c\n", "is not YAML"),
    ],
)
def test_a_wrong_recipe_file_is_refused(entrypoint: Entrypoint, text: str, sentence: str) -> None:
    file = entrypoint.home / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    ran = entrypoint.run("serve", env={"RECIPE": str(file)})
    assert (ran.status, ran.records) == (78, [])
    assert sentence in ran.stderr


def test_a_recipe_for_another_line_is_refused(entrypoint: Entrypoint) -> None:
    env = {"RECIPE": "qwen3.6-35b-a3b-nvfp4", "SPARKWRIGHT_VLLM_VERSION": "0.16.0"}
    ran = entrypoint.run("serve", env=env)
    assert (ran.status, ran.records) == (78, [])
    assert "is for vLLM 0.33.0, and this is 0.16.0" in ran.stderr


def test_the_way_to_serve_imports_nothing_heavy(entrypoint: Entrypoint) -> None:
    program = (
        "import os, sys; from sparkwright.entrypoint.__main__ import plan; import sparkwright.entrypoint.launch;"
        "from sparkwright.entrypoint.plan import Host; plan(['serve'], {**os.environ, 'MODEL': 'a/b'}, Host());"
        "print(*sorted({'pydantic', 'typer', 'rich', 'yaml', 'packaging', 'importlib.metadata'} & set(sys.modules)))"
    )
    assert run([sys.executable, "-S", "-c", program], env=_with_site(entrypoint)).strip() == ""
    recipe = program.replace("'MODEL': 'a/b'", "'RECIPE': 'qwen3-8b-nvfp4'")
    assert "pydantic" in run([sys.executable, "-c", recipe], env=_with_site(entrypoint)), "the test must see something"


def _with_site(entrypoint: Entrypoint) -> dict[str, str]:
    """Without `site`, whose start-up files import what they like, psutil must still be found."""
    packages = [path for path in sys.path if path.endswith("site-packages")]
    return {**entrypoint.environment, "PYTHONPATH": ":".join([entrypoint.environment["PYTHONPATH"], *packages])}
