"""Planning, in process: what variables, recipes and arguments become."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sparkwright.entrypoint.__main__ import plan
from sparkwright.entrypoint.plan import GIB, Host, Plan
from sparkwright.entrypoint.release import options, parse_release, variables
from sparkwright.entrypoint.translate import TRANSLATIONS
from sparkwright.entrypoint.variables import BY_NAME, TABLE, Variable
from sparkwright.entrypoint.words import Source, merge, read, split
from sparkwright.errors import ConfigurationError

SPARK = {"memory_total": 119 * GIB, "memory_available": 112 * GIB, "cores": 20}
TEXT = st.text(st.characters(exclude_categories=["Cs"]))  # no lone surrogates: they cannot stand in an environment
BASE = {"SPARKWRIGHT_VLLM_VERSION": "0.33.0", "MODEL": "owner/name", "HOME": "/nowhere"}


def planned(*words: str, **environment: str) -> Plan:
    """The plan on an idle Spark; ROOT is the folder that stands for its root."""
    root = Path(environment.pop("ROOT", "/nowhere"))
    merged = {name: value for name, value in {**BASE, **environment}.items() if value != "UNSET"}
    return plan(words, merged, Host(root=root, **SPARK))


def value(made: Plan, option: str) -> str:
    """The value of an option that stands exactly once."""
    assert made.argv.count(option) == 1, made.argv
    return made.argv[made.argv.index(option) + 1]


def test_defaults() -> None:
    made = planned("serve")
    assert shlex.join(made.argv) == (
        "vllm serve owner/name --port 8888 --host 0.0.0.0 --gpu-memory-utilization 0.75 --max-model-len 131072 "
        "--max-num-seqs 128 --tensor-parallel-size 1"
    )
    assert made.env == {"MAX_JOBS": "13"}
    assert made.notices == ()


@pytest.mark.parametrize("variable", [each for each in TABLE if each.option], ids=lambda each: each.name)
def test_every_variable_becomes_its_option(variable: Variable) -> None:
    chosen = variable.example.partition("=")[2]
    extra = {"NUM_GPUS": "2"} if variable.name == "TENSOR_PARALLEL_SIZE" else {}
    assert value(planned("serve", **{variable.name: chosen}, **extra), variable.option) == chosen
    assert value(planned("serve", **{variable.name: ""}), variable.option) == variable.default


def test_precedence_from_defaults_to_arguments(tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(
        json.dumps(
            {
                "name": "mine",
                "description": "d",
                "model": "recipe/model",
                "memory": {"weights_gb": 1, "source": "s"},
                "backend": {"why": "w", "source": "s"},
                "flags": {"port": 1, "max-num-seqs": 1, "max-model-len": 1, "kv-cache-dtype": "fp8"},
                "env": {"NCCL_DEBUG": "WARN", "OMP_NUM_THREADS": "2"},
                "lines": {"0.33.0": {}},
                "sources": ["s"],
            }
        ),
        encoding="utf-8",
    )
    environment = {
        "RECIPE": str(recipe),
        "MODEL": "UNSET",
        "MAX_NUM_SEQS": "2",
        "PORT": "2",
        "MAX_MODEL_LEN": "2",
        "VLLM_EXTRA_ARGS": "--port 3 --max-model-len 3",
        "OMP_NUM_THREADS": "8",
    }
    made = planned("serve", "--max-model-len", "4", **environment)
    assert made.argv[2] == "recipe/model"
    chosen = {"--port": "3", "--max-num-seqs": "2", "--max-model-len": "4", "--kv-cache-dtype": "fp8"}
    assert {option: value(made, option) for option in chosen} == chosen
    assert value(made, "--host") == "0.0.0.0"
    assert made.env["NCCL_DEBUG"] == "WARN"
    assert "OMP_NUM_THREADS" not in made.env, "the user's environment wins over the recipe's"
    assert "--max-model-len 4 (the arguments) wins over --max-model-len 3 (VLLM_EXTRA_ARGS)" in made.notices
    assert "--port 3 (VLLM_EXTRA_ARGS) wins over --port 2 (PORT)" in made.notices


def test_json_in_the_extra_arguments_arrives_whole() -> None:
    text = """--speculative-config '{"method":"mtp", "num_speculative_tokens":2}'"""
    made = planned("serve", VLLM_EXTRA_ARGS=text)
    assert value(made, "--speculative-config") == '{"method":"mtp", "num_speculative_tokens":2}'
    assert made.unset == ("VLLM_EXTRA_ARGS",)


@given(st.lists(TEXT))
def test_quoted_words_come_back_as_they_were(words: list[str]) -> None:
    assert split(shlex.join(words)) == words


@given(st.lists(TEXT.filter(bool).filter(lambda word: word[0] != "-")))
def test_values_survive_reading_and_merging(values: list[str]) -> None:
    table = options("0.33.0")
    given_words = split(shlex.join(["--served-model-name", *values]))
    json_like = any(word.startswith("{") and word[1:2] not in ("%", "{", "#") for word in values)
    if json_like:
        return
    _, settings = read(given_words, table, Source.EXTRA)
    merged, notices = merge(settings)
    assert merged[0].words == ("--served-model-name", *values)
    assert notices == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--max_num_seqs", "3"], ("--max-num-seqs", "3")),
        (["--max-num-seqs=3"], ("--max-num-seqs", "3")),
        (["-tp", "3"], ("--tensor-parallel-size", "3")),
        (["--seed", "-1"], ("--seed", "-1")),
        (["--no-enable-prefix-caching"], ("--no-enable-prefix-caching",)),
        (["--speculative-config.method", "mtp"], ("--speculative-config.method", "mtp")),
        (["-O3"], ("-O3",)),
        (["--max-num-se", "3"], ("--max-num-seqs", "3")),
        (["--served-model-name", "a", "b"], ("--served-model-name", "a", "b")),
    ],
)
def test_options_are_read_as_vllm_reads_them(words: list[str], expected: tuple[str, ...]) -> None:
    positional, settings = read(words, options("0.33.0"), Source.ARGUMENT)
    assert (positional, [setting.words for setting in settings]) == ([], [expected])


def test_the_two_forms_of_a_switch_are_one_option() -> None:
    made = planned(
        "serve", "--no-enable-prefix-caching", VLLM_EXTRA_ARGS="--enable-prefix-caching --enable-prefix-caching"
    )
    assert "--no-enable-prefix-caching" in made.argv
    assert "--enable-prefix-caching" not in made.argv
    assert len(made.notices) == 1


def test_an_option_that_may_repeat_keeps_all_its_values() -> None:
    made = planned("serve", "--middleware", "a", "--middleware", "b")
    assert [made.argv[index + 1] for index, word in enumerate(made.argv) if word == "--middleware"] == ["a", "b"]


def test_a_model_in_the_arguments_wins() -> None:
    made = planned("serve", "other/model")
    assert made.argv[2] == "other/model"
    assert made.notices == ("the model other/model (the arguments) wins over owner/name (MODEL)",)


MARLIN = {
    "VLLM_USE_FLASHINFER_MOE_FP4": "0",
    "VLLM_NVFP4_GEMM_BACKEND": "marlin",
    "VLLM_TEST_FORCE_FP8_MARLIN": "1",
    "VLLM_MARLIN_USE_ATOMIC_ADD": "1",
}


def test_the_predecessors_command_line_on_the_new_line() -> None:
    extra = "--attention-backend flashinfer --kv-cache-dtype fp8"
    made = planned("serve", GPU_MEMORY_UTIL="0.90", MAX_MODEL_LEN="65536", VLLM_EXTRA_ARGS=extra, **MARLIN)
    assert shlex.join(made.argv) == (
        "vllm serve owner/name --port 8888 --host 0.0.0.0 --gpu-memory-utilization 0.90 --max-model-len 65536 "
        "--max-num-seqs 128 --tensor-parallel-size 1 --linear-backend marlin --moe-backend marlin "
        "--attention-backend flashinfer --kv-cache-dtype fp8"
    )
    assert set(made.unset) == {*MARLIN, "VLLM_EXTRA_ARGS"} - {"VLLM_MARLIN_USE_ATOMIC_ADD"}
    assert sum("is passed on as" in notice for notice in made.notices) == 3


def test_the_predecessors_command_line_on_the_old_line() -> None:
    made = planned("serve", SPARKWRIGHT_VLLM_VERSION="0.16.0", GPU_MEMORY_UTIL="0.7", **MARLIN)
    assert shlex.join(made.argv) == (
        "vllm serve owner/name --port 8888 --host 0.0.0.0 --gpu-memory-utilization 0.7 --max-model-len 131072 "
        "--max-num-seqs 128 --tensor-parallel-size 1"
    )
    assert made.unset == ()
    assert made.notices == ()


@pytest.mark.parametrize(
    ("version", "environment", "backends"),
    [
        ("0.33.0", {"VLLM_NVFP4_GEMM_BACKEND": "flashinfer-cutlass"}, {"--linear-backend": "flashinfer_cutlass"}),
        ("0.22.0", {"VLLM_NVFP4_GEMM_BACKEND": "cutlass"}, {"--linear-backend": "cutlass"}),
        ("0.21.0", {"VLLM_NVFP4_GEMM_BACKEND": "cutlass"}, {}),
        ("0.23.0", {"VLLM_NVFP4_GEMM_BACKEND": "flashinfer-b12x"}, {}),
        ("0.33.0", {"VLLM_USE_FLASHINFER_MOE_FP4": "1"}, {"--moe-backend": "flashinfer_cutlass"}),
        ("0.33.0", {"VLLM_USE_FLASHINFER_MOE_FP4": "0"}, {"--moe-backend": "marlin"}),
        ("0.17.0", {"VLLM_TEST_FORCE_FP8_MARLIN": "1"}, {}),
        ("0.33.0", {"VLLM_TEST_FORCE_FP8_MARLIN": "0"}, {}),
        ("0.33.0", {"VLLM_MXFP4_USE_MARLIN": "1"}, {"--moe-backend": "marlin", "--linear-backend": "marlin"}),
        (
            "0.33.0",
            {"VLLM_USE_FLASHINFER_MOE_FP4": "1", "VLLM_TEST_FORCE_FP8_MARLIN": "1"},
            {"--moe-backend": "flashinfer_cutlass", "--linear-backend": "marlin"},
        ),
        (
            "0.33.0",
            {**MARLIN, "VLLM_EXTRA_ARGS": "--moe-backend auto"},
            {"--moe-backend": "auto", "--linear-backend": "marlin"},
        ),
    ],
)
def test_translation_by_release(version: str, environment: dict[str, str], backends: Mapping[str, str]) -> None:
    made = planned("serve", SPARKWRIGHT_VLLM_VERSION=version, **environment)
    given_words = [word for word in made.argv if word.endswith("-backend")]
    assert {option: value(made, option) for option in given_words} == backends


def test_every_translation_names_a_variable_that_is_gone_and_options_that_are_there() -> None:
    known, table, newest = variables(), options("0.33.0"), parse_release("0.33.0")
    for row in TRANSLATIONS:
        assert known.knows(row.variable, parse_release("0.16.0")), row.variable
        assert not known.knows(row.variable, newest), row.variable
        for text in ("marlin", "flashinfer-cutlass", "1", "0"):
            if row.when(text) and (row.variable == "VLLM_NVFP4_GEMM_BACKEND") == (text not in ("1", "0")):
                for option, chosen in row.options(text).items():
                    assert chosen in table.by_name[option].choices, (row.variable, text)


def test_a_variable_that_vllm_does_not_read_is_named() -> None:
    made = planned("serve", VLLM_MARLIN_USE_ATOMIC_AD="1", VLLM_USE_NVFP4_CT_EMULATIONS="1")
    assert made.notices == (
        (
            "VLLM_MARLIN_USE_ATOMIC_AD has no effect: vLLM 0.33.0 does not read it; "
            "did you mean VLLM_MARLIN_USE_ATOMIC_ADD?"
        ),
        "VLLM_USE_NVFP4_CT_EMULATIONS has no effect: vLLM 0.33.0 does not read it (removed in 0.24.0)",
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"max_position_embeddings": 40960}, "40960"),
        ({"text_config": {"max_position_embeddings": 8192}}, "8192"),
        ({"max_position_embeddings": 262144}, "131072"),
        ({"max_position_embeddings": 32768, "rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "65536"),
        ({"max_position_embeddings": 32768, "rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "32768"),
        ({}, "131072"),
        ([], "131072"),
    ],
)
def test_the_default_context_gives_way_to_the_models_own(tmp_path: Path, config: object, expected: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    made = planned("serve", MODEL=str(tmp_path))
    assert value(made, "--max-model-len") == expected
    assert any("the model's own limit" in notice for notice in made.notices) is (expected != "131072")
    assert value(planned("serve", MODEL=str(tmp_path), MAX_MODEL_LEN="100000"), "--max-model-len") == "100000"


def test_the_limit_is_read_from_the_hubs_cache(tmp_path: Path) -> None:
    folder = tmp_path / "hub" / "models--owner--name"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc", encoding="utf-8")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    (folder / "snapshots" / "abc" / "config.json").write_text('{"max_position_embeddings": 4096}', encoding="utf-8")
    assert value(planned("serve", HF_HOME=str(tmp_path)), "--max-model-len") == "4096"


def test_little_memory_is_told_with_numbers() -> None:
    environment = {**BASE, "GPU_MEMORY_UTIL": "0.9"}
    made = plan(["serve"], environment, Host(memory_total=119 * GIB, memory_available=110 * GIB, cores=20))
    assert made.notices == (
        (
            "GPU_MEMORY_UTIL=0.9 of 119.0 GiB is 107.1 GiB, and only 110.0 GiB are available: 2.9 GiB would be left "
            "for the system, which needs about 8; a Spark that runs out of memory freezes. Stop other programs, or "
            "set GPU_MEMORY_UTIL=0.85"
        ),
    )


@pytest.mark.parametrize(("available", "cores", "jobs"), [(100, 20, "11"), (5, 20, "1"), (500, 20, "20")])
def test_compilers_at_run_time_follow_the_memory(available: int, cores: int, jobs: str) -> None:
    host = Host(memory_total=600 * GIB, memory_available=available * GIB, cores=cores)
    assert plan(["serve"], BASE, host).env["MAX_JOBS"] == jobs
    assert "MAX_JOBS" not in plan(["serve"], {**BASE, "MAX_JOBS": "3"}, host).env


def test_nodes_without_ray() -> None:
    nodes = {"NNODES": "2", "HEAD_IP": "127.0.0.1"}
    head, second = planned("serve", **nodes), planned("serve", NODE_RANK="1", MASTER_PORT="29555", **nodes)
    tail = "--tensor-parallel-size 2 --nnodes 2 --node-rank 0 --master-addr 127.0.0.1"
    assert shlex.join(head.argv).endswith(tail)
    assert second.argv[-3:] == ("--master-port", "29555", "--headless")
    assert value(second, "--node-rank") == "1"
    assert head.env["VLLM_HOST_IP"] == "127.0.0.1"
    assert second.listen is None
    assert second.state["mode"] == "headless"
    assert head.notices == ("TENSOR_PARALLEL_SIZE is 2: 2 nodes with NUM_GPUS=1 each",)


def test_other_parallelism_leaves_the_tensors_alone() -> None:
    made = planned("serve", "--pipeline-parallel-size", "2", NNODES="2", HEAD_IP="127.0.0.1")
    assert value(made, "--tensor-parallel-size") == "1"


def test_nodes_in_the_arguments_count() -> None:
    made = planned("serve", "-tp", "2", "--nnodes", "2", "--node-rank", "0", "--master-addr", "192.0.2.7")
    assert value(made, "--tensor-parallel-size") == "2"
    with pytest.raises(ConfigurationError, match="needs 4 GPUs, and there are 2"):
        planned("serve", "-tp", "4", "-n", "2")


def test_serve_beside_a_ray_cluster_uses_it() -> None:
    made = planned("serve", TENSOR_PARALLEL_SIZE="2", HEAD_IP="192.0.2.7")
    assert value(made, "--distributed-executor-backend") == "ray"
    assert made.env["RAY_ADDRESS"] == "192.0.2.7:6379"


def test_ray_head() -> None:
    made = planned("ray-head", MODEL="UNSET", HEAD_IP="192.0.2.7", RAY_AUTH_TOKEN="t")
    assert shlex.join(made.argv) == (
        "ray start --head --port=6379 --node-ip-address=192.0.2.7 --num-gpus=1 --object-store-memory=1073741824 "
        "--disable-usage-stats --dashboard-host=127.0.0.1 --block"
    )
    assert made.env["RAY_AUTH_MODE"] == "token"
    assert made.env["RAY_memory_monitor_refresh_ms"] == "0"
    assert "RAY_AUTH_TOKEN" not in made.env


def test_the_users_options_of_ray_win() -> None:
    made = planned("ray-head", "--num-gpus=2", "--num-cpus=4", MODEL="UNSET", HEAD_IP="127.0.0.1")
    assert [word for word in made.argv if word.startswith("--num")] == ["--num-gpus=2", "--num-cpus=4"]
    assert made.env["RAY_AUTH_MODE"] == "disabled"
    assert made.notices[0].startswith("Ray listens on every interface")


def test_the_healthcheck_of_a_ray_node_has_its_token(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("t", encoding="utf-8")
    made = planned("health", RAY_AUTH_TOKEN_FILE=str(tmp_path / "token"))
    assert made.env["RAY_AUTH_MODE"] == "token"
    assert made.secrets == {"RAY_AUTH_TOKEN": "t"}


def test_ray_worker(tmp_path: Path) -> None:
    made = planned("ray-worker", HEAD_IP="192.0.2.7", WORKER_IP="192.0.2.8", RAY_AUTH_TOKEN="t", ROOT=str(tmp_path))
    assert shlex.join(made.argv) == (
        "ray start --address=192.0.2.7:6379 --node-ip-address=192.0.2.8 --num-gpus=1 "
        "--object-store-memory=1073741824 --disable-usage-stats --block"
    )
    assert made.env["VLLM_HOST_IP"] == "192.0.2.8"
    assert made.wait is not None
    assert made.wait.until == "head"


def _route(interface: str, network: str, mask: str, metric: int = 100) -> str:
    def little(address: str) -> str:
        return "".join(f"{int(part):02X}" for part in reversed(address.split(".")))

    gateway = "0" * 8
    return f"{interface}\t{little(network)}\t{gateway}\t0001\t0\t0\t{metric}\t{little(mask)}\t0\t0\t0"


@pytest.fixture
def spark(tmp_path: Path) -> Path:
    """A root folder with the routes and RDMA devices of a Spark whose second port is cabled."""
    lines = [
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT",
        _route("wlP9s9", "0.0.0.0", "0.0.0.0", 600),
        _route("enP7s7", "192.168.1.0", "255.255.255.0"),
        _route("enp1s0f1np1", "192.168.100.0", "255.255.255.0"),
        _route("enP2p1s0f1np1", "192.168.101.0", "255.255.255.0"),
    ]
    (tmp_path / "proc/net").mkdir(parents=True)
    (tmp_path / "proc/net/route").write_text("\n".join(lines), encoding="utf-8")
    for name, address, netdev, state in (
        ("rocep1s0f0", "0000:01:00.0", "enp1s0f0np0", "1: DOWN"),
        ("rocep1s0f1", "0000:01:00.1", "enp1s0f1np1", "4: ACTIVE"),
        ("roceP2p1s0f0", "0002:01:00.0", "enP2p1s0f0np0", "1: DOWN"),
        ("roceP2p1s0f1", "0002:01:00.1", "enP2p1s0f1np1", "4: ACTIVE"),
    ):
        device = tmp_path / "sys/devices" / address
        (device / "net" / netdev).mkdir(parents=True)
        port = tmp_path / "sys/class/infiniband" / name / "ports/1"
        port.mkdir(parents=True)
        (port / "state").write_text(f"{state}\n", encoding="utf-8")
        (port.parents[1] / "device").symlink_to(device)
    return tmp_path


def _worker(root: Path, **environment: str) -> Mapping[str, str]:
    arguments = {"HEAD_IP": "192.168.100.1", "WORKER_IP": "192.168.100.2", "RAY_AUTH_TOKEN": "t", **environment}
    return planned("ray-worker", ROOT=str(root), **arguments).env


def test_interface_and_devices_follow_the_route_to_the_head(spark: Path) -> None:
    chosen = _worker(spark)
    assert chosen["NCCL_SOCKET_IFNAME"] == chosen["GLOO_SOCKET_IFNAME"] == "enp1s0f1np1"
    assert chosen["NCCL_IB_HCA"] == "=rocep1s0f1,roceP2p1s0f1"
    assert not [name for name in chosen if "GID" in name]


def test_a_twin_without_an_address_is_left_out(spark: Path) -> None:
    table = spark / "proc/net/route"
    table.write_text("\n".join(table.read_text(encoding="utf-8").splitlines()[:-1]), encoding="utf-8")
    assert _worker(spark)["NCCL_IB_HCA"] == "=rocep1s0f1"


def test_over_the_office_network_there_is_no_rdma(spark: Path) -> None:
    chosen = _worker(spark, HEAD_IP="192.168.1.7")
    assert chosen["NCCL_SOCKET_IFNAME"] == "enP7s7"
    assert "NCCL_IB_HCA" not in chosen


def test_what_the_user_has_set_stays(spark: Path) -> None:
    own = {
        "NCCL_SOCKET_IFNAME": "eth9",
        "GLOO_SOCKET_IFNAME": "eth9",
        "NCCL_IB_HCA": "mlx5_0",
        "VLLM_HOST_IP": "1.2.3.4",
    }
    assert not set(own) & set(_worker(spark, **own))


def test_one_node_gets_no_network_settings(spark: Path) -> None:
    assert set(planned("serve", ROOT=str(spark)).env) == {"MAX_JOBS"}


def test_a_release_between_two_tables_is_read_with_the_older_one() -> None:
    made = planned("serve", "--moe-backend", "marlin", "--no-such-option", "1", SPARKWRIGHT_VLLM_VERSION="0.20.2")
    assert made.argv[-4:] == ("--moe-backend", "marlin", "--no-such-option", "1")


def test_versions() -> None:
    assert parse_release("0.33.0+gb10.1") == (0, 33, 0)
    assert parse_release("0.16.0rc2.dev236") == (0, 16, 0)
    with pytest.raises(ConfigurationError):
        parse_release("main")


def test_the_variable_table_is_complete() -> None:
    for variable in TABLE:
        assert variable.example.partition("=")[0] in (variable.name, f"{variable.name}_FILE"), variable.name
        assert variable.purpose.endswith("."), variable.name
    assert len(BY_NAME) == len(TABLE)
