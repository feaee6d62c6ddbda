"""`serve`: one `vllm serve` command line from the recipe, the variables, VLLM_EXTRA_ARGS and the arguments."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, TypeVar

from sparkwright.entrypoint import cluster, memory, model, own_kernels, release, translate, words
from sparkwright.entrypoint.plan import Host, Plan, Wait
from sparkwright.entrypoint.variables import BY_NAME, TABLE, Values
from sparkwright.entrypoint.words import Setting, Source
from sparkwright.errors import ConfigurationError, UsageError

_OURS: Final = tuple(variable for variable in TABLE if variable.option)
_SECRET: Final = {"--api-key": "VLLM_API_KEY", "--hf-token": "HF_TOKEN"}
_SAFETENSORS: Final = ("auto", "hf", "safetensors", "fastsafetensors", "instanttensor", "runai_streamer")
_BACKENDS: Final = ("--linear-backend", "--moe-backend")
_PARALLEL: Final = ("--pipeline-parallel-size", "--data-parallel-size")


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What a recipe gives: the model, options as words, the environment, and how many nodes it needs."""

    name: str = ""
    model: str = ""
    words: tuple[str, ...] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    nodes: int = 1
    notices: tuple[str, ...] = ()
    backend_required: str = ""


def preset(values: Values, version: str) -> Preset:
    """The recipe that RECIPE names, for the installed vLLM."""
    if not values.given("RECIPE"):
        return Preset()
    # Only here: the schema needs pydantic and yaml, whose import takes longer than all the rest.
    from sparkwright.recipes import resolve

    recipe = resolve(values.text("RECIPE"), version)
    return Preset(
        name=recipe.name,
        model=recipe.model,
        words=recipe.words,
        env=recipe.env,
        nodes=recipe.nodes,
        notices=recipe.notices,
        backend_required=recipe.backend_required,
    )


class _Line:
    """The settings of one command line while they are collected."""

    def __init__(self, values: Values, version: str) -> None:
        self.values = values
        self.table = release.options(version)
        self.settings: list[Setting] = []
        self.models: list[tuple[str, str]] = []

    def add(self, given: Sequence[str], source: Source, called: str) -> None:
        """Take over words; the first positional one is a model."""
        positional, settings = words.read(given, self.table, source)
        if len(positional) > 1:
            raise UsageError(
                f"{positional[1]!r} (from {called}) stands where an option was expected",
                cause="a value was split at a space, or belongs to an option that takes none",
                remedy="quote values with spaces; only the model's name stands alone",
            )
        self.models += [(name, called) for name in positional]
        self.settings += settings

    def variable(self, name: str) -> None:
        """Take over a variable that is an option, or its default."""
        source = Source.VARIABLE if self.values.given(name) else Source.DEFAULT
        option = BY_NAME[name].option
        self.settings.append(
            Setting(key=option, words=(option, self.values.checked(name)), source=source, variable=name)
        )

    def has(self, *keys: str) -> bool:
        """Whether one of the options is set by anything but a default."""
        return any(each.key in keys and each.source is not Source.DEFAULT for each in self.settings)

    def put(self, option: str, *value: str, variable: str = "", source: Source = Source.VARIABLE) -> None:
        """Add an option that follows from variables."""
        self.settings.append(Setting(key=option, words=(option, *value), source=source, variable=variable))


def _take_secrets(line: _Line) -> dict[str, str]:
    """Move secrets that stand in the command line into the environment, where no list of processes shows them."""
    taken = {}
    for setting in sorted(line.settings, key=lambda each: each.source):
        if variable := _SECRET.get(setting.key):
            values = setting.words[1:] or (setting.words[0].partition("=")[2],)
            if len(values) != 1:
                raise ConfigurationError(
                    f"{setting.key} has {len(values)} values, and vLLM reads only one from the environment",
                    cause="in the command line every user of the machine could read them",
                    remedy=f"give one as {variable}, or as a file: {variable}_FILE",
                )
            taken[variable] = values[0]
    line.settings = [setting for setting in line.settings if setting.key not in _SECRET]
    return taken


def _model(line: _Line, recipe: Preset) -> tuple[str, list[str]]:
    """The model that wins, and what to tell about the others."""
    named = [(recipe.model, f"the recipe {recipe.name}")] if recipe.model else []
    if line.values.given("MODEL"):
        named.append((line.values.environment["MODEL"], "MODEL"))
    option = [setting for setting in line.settings if setting.key == "--model"]
    line.settings = [setting for setting in line.settings if setting.key != "--model"]
    named += [(setting.value, setting.origin) for setting in option] + line.models
    if not named:
        model.check("")
    winner, origin = named[-1]
    model.check(winner)
    return winner, [
        f"the model {winner} ({origin}) wins over {other} ({source})"
        for other, source in named[:-1]
        if other != winner and not source.startswith("the recipe")
    ]


def _context(line: _Line, name: str) -> list[str]:
    """Shorten the default context to the model's own limit."""
    default = int(BY_NAME["MAX_MODEL_LEN"].default)
    if line.has("--max-model-len"):
        return []
    own = model.limit(name, line.values.environment)
    if own is None or own >= default:
        return []
    line.settings = [each for each in line.settings if each.key != "--max-model-len"]
    line.put("--max-model-len", str(own), source=Source.DEFAULT)
    return [f"the context is {own} tokens, the model's own limit; the default of {default} is more"]


def plan(
    values: Values, arguments: Sequence[str], host: Host, secrets: Mapping[str, str], *, ray: bool = False
) -> Plan:
    """Plan `vllm serve`; with `ray`, in a cluster whose head this container has started."""
    environment = values.environment
    version = release.installed(environment)
    own_kernels.require_of(version, values)
    smoke = values.switch("SMOKE") or "--smoke" in arguments
    arguments = [word for word in arguments if word != "--smoke"]
    if {"-h", "--help"} & set(arguments) or any(word.startswith("--help=") for word in arguments):
        return Plan(argv=("vllm", "serve", *arguments))
    recipe = preset(values, version)
    old = translate.translate({**recipe.env, **environment}, version, release.variables())
    line = _Line(values, version)
    for variable in _OURS:
        line.variable(variable.name)
    line.add(recipe.words, Source.RECIPE, f"the recipe {recipe.name}")
    line.settings += old.settings
    line.add(words.split(environment.get("VLLM_EXTRA_ARGS", "")), Source.EXTRA, "VLLM_EXTRA_ARGS")
    line.add(arguments, Source.ARGUMENT, "the arguments")
    secrets = {**secrets, **_take_secrets(line)}
    name, notices = _model(line, recipe)
    line.settings, room = own_kernels.make_room(line.settings, values, recipe.backend_required)
    notices = [*recipe.notices, *old.notices, *notices, *room, *_context(line, name)]
    nodes = _nodes(line, recipe, host, secrets, notices, ray=ray)
    settings, won = words.merge(line.settings)
    chosen = {setting.key: setting for setting in settings}
    _enough_gpus(chosen, values, nodes)
    share = _figure(chosen["--gpu-memory-utilization"], float)
    if "--kv-cache-memory-bytes" not in chosen and (low := memory.warning(share, host)):
        notices.append(low)
    env = {key: value for key, value in recipe.env.items() if not environment.get(key) and key not in old.unset}
    env |= {**nodes.env, **own_kernels.switched(values)}
    if not environment.get("MAX_JOBS"):
        env.setdefault("MAX_JOBS", str(memory.jobs(host)))
    headless = "--headless" in chosen
    listen = (chosen["--host"].value, _figure(chosen["--port"], int))
    return Plan(
        argv=("vllm", "serve", name, *(word for setting in settings for word in setting.words)),
        env=env,
        unset=tuple(each for each in (*old.unset, "VLLM_EXTRA_ARGS") if each in environment),
        secrets=secrets,
        notices=(*notices, *won),
        wait=nodes.wait,
        listen=None if headless else listen,
        state={
            "mode": "headless" if headless else "serve",
            "host": listen[0],
            "port": listen[1],
            "tls": "--ssl-certfile" in chosen,
            "stall_seconds": values.number("HEALTH_STALL_SECONDS"),
            "smoke_seconds": values.number("SMOKE_SECONDS"),
        },
        needs_cache=True,
        check=name if values.switch("CHECK") and _is_safetensors(name, chosen) else "",
        marlin=tuple(each for each in _BACKENDS if each in chosen and chosen[each].value == "marlin"),
        smoke=smoke and not headless,
    )


def _is_safetensors(name: str, chosen: Mapping[str, Setting]) -> bool:
    """Whether the model is a folder that vLLM would load from safetensors files."""
    kind = chosen["--load-format"].value if "--load-format" in chosen else "auto"
    return kind in _SAFETENSORS and Path(name).is_dir()


@dataclass(frozen=True, kw_only=True)
class _Nodes:
    count: int = 1
    env: Mapping[str, str] = field(default_factory=dict)
    wait: Wait | None = None


def _nodes(
    line: _Line, recipe: Preset, host: Host, secrets: Mapping[str, str], notices: list[str], *, ray: bool
) -> _Nodes:
    """The part of the command line that spans nodes: vLLM's own way, Ray's, or none."""
    values = line.values
    count = values.number("NNODES") if values.given("NNODES") else recipe.nodes
    if recipe.nodes > 1 and not values.given("NNODES"):
        raise ConfigurationError(
            f"the recipe {recipe.name} needs {recipe.nodes} nodes",
            remedy=f"set NNODES={recipe.nodes}, HEAD_IP and, on each node, NODE_RANK; see docs/multi-node.md",
        )
    if count > 1 and not line.has("--tensor-parallel-size", *_PARALLEL):
        size = count * values.number("NUM_GPUS")
        line.put("--tensor-parallel-size", str(size), source=Source.DEFAULT)
        notices.append(f"TENSOR_PARALLEL_SIZE is {size}: {count} nodes with NUM_GPUS={values.number('NUM_GPUS')} each")
    if ray:
        return _in_cluster(line, count, host, secrets)
    rank = values.number("NODE_RANK")
    if rank >= count:
        raise ConfigurationError(
            f"NODE_RANK={rank} is not below NNODES={count}",
            remedy="the nodes count from 0: with NNODES=2 they are 0 and 1, the same NNODES on both",
        )
    if count > 1:
        return _without_ray(line, count, rank, host)
    joins = values.given("HEAD_IP") and values.number("TENSOR_PARALLEL_SIZE") > values.number("NUM_GPUS")
    if joins:
        notices.append(
            "serve joins the Ray cluster at HEAD_IP, which needs a Ray node in this container; simpler is ray-head "
            "with MODEL, or NNODES and NODE_RANK without Ray (docs/multi-node.md)"
        )
        return _in_cluster(line, count, host, secrets, wait=False)
    return _Nodes()


def _without_ray(line: _Line, count: int, rank: int, host: Host) -> _Nodes:
    values = line.values
    if not values.given("HEAD_IP"):
        raise ConfigurationError(
            f"HEAD_IP is not set, and NNODES={count} nodes must find each other",
            remedy="-e HEAD_IP=ADDRESS on every node: the address of the node with NODE_RANK=0",
        )
    head = cluster.resolved(values, host, "HEAD_IP")
    address = head if rank == 0 else cluster.own_address(values, host, head)
    line.put("--nnodes", str(count), variable="NNODES")
    line.put("--node-rank", str(rank), variable="NODE_RANK")
    line.put("--master-addr", head, variable="HEAD_IP")
    if values.given("MASTER_PORT"):
        line.put("--master-port", str(values.number("MASTER_PORT")), variable="MASTER_PORT")
    if rank:
        line.put("--headless", variable="NODE_RANK")
    return _Nodes(count=count, env=cluster.node_environment(address, head, values.environment, host))


def _in_cluster(line: _Line, count: int, host: Host, secrets: Mapping[str, str], *, wait: bool = True) -> _Nodes:
    values, environment = line.values, line.values.environment
    head = cluster.head_address(values, host)
    token = bool(environment.get("RAY_AUTH_TOKEN") or secrets.get("RAY_AUTH_TOKEN"))
    address = f"{head}:{values.number('RAY_PORT')}"
    line.put("--distributed-executor-backend", "ray", variable="ray-head" if wait else "HEAD_IP")
    env = cluster.node_environment(head, head, environment, host) | cluster.ray_environment(environment, token)
    env["RAY_ADDRESS"] = address
    waiting = Wait(until="nodes", address=address, nodes=count, seconds=values.number("RAY_WAIT_SECONDS"))
    # In a cluster that others have started, its size is theirs to know.
    return _Nodes(count=count if wait else 0, env=env, wait=waiting if wait else None)


Number = TypeVar("Number", int, float)


def _figure(setting: Setting, kind: Callable[[str], Number]) -> Number:
    """The value of an option that must be a number, wherever it came from."""
    try:
        return kind(setting.value)
    except ValueError as error:
        raise ConfigurationError(
            f"{setting.key} {setting.value} (from {setting.origin}) is not a number",
            remedy=f"write {setting.key} followed by a number",
        ) from error


def _enough_gpus(chosen: Mapping[str, Setting], values: Values, nodes: _Nodes) -> None:
    size = _figure(chosen["--tensor-parallel-size"], int)
    count = nodes.count
    if "--nnodes" in chosen:
        count = _figure(chosen["--nnodes"], int)
    elif count == 1 and "--distributed-executor-backend" in chosen:
        return  # a cluster of the user's own making, whose size is not known here
    gpus = count * values.number("NUM_GPUS")
    if gpus and size > gpus:
        raise ConfigurationError(
            f"TENSOR_PARALLEL_SIZE={size} needs {size} GPUs, and there are {gpus}: NNODES={count} with "
            f"NUM_GPUS={values.number('NUM_GPUS')}",
            cause="a Spark has one GPU; more need more nodes",
            remedy="set NNODES, NODE_RANK and HEAD_IP on every node (docs/multi-node.md), or NUM_GPUS elsewhere",
        )


def plan_ray_head(values: Values, arguments: Sequence[str], host: Host, secrets: Mapping[str, str]) -> Plan:
    """A Ray head; with MODEL or RECIPE it serves in the same container once its nodes have joined."""
    if not values.given("MODEL") and not values.given("RECIPE"):
        return cluster.plan_head(values, arguments, host, secrets, block=True)
    head = cluster.plan_head(values, (), host, secrets, block=False)
    served = plan(values, arguments, host, secrets, ray=True)
    return dataclasses.replace(
        served,
        before=head.argv,
        env={**head.env, **served.env},
        notices=(*head.notices, *served.notices),
        state={**served.state, **head.state, "mode": "ray-serve"},
    )
