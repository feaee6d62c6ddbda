"""What torch is told about the operators: schemas, fakes, torch.compile, and refusals that say what is wrong."""

import json
import re
import runpy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch  # type: ignore[import-not-found]
from gb10_kernels import ops, reference, selftest  # type: ignore[import-not-found]
from gb10_kernels.sparsity import keep_two_of_four  # type: ignore[import-not-found]

OPS = torch.ops.gb10_kernels


def weight(rows: int = 48, width: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    packed = torch.randint(0, 256, (rows, width // 2), dtype=torch.uint8, generator=g)
    return packed, (torch.rand(rows, width // 16, generator=g) + 0.1).to(torch.float8_e4m3fn)


def scale(value: float = 0.25) -> torch.Tensor:
    return torch.tensor(value)


def moe(tokens: int = 2) -> dict[str, Any]:
    g = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(tokens, 64, generator=g).to(torch.bfloat16),
        "w13": torch.randint(0, 256, (3, 64, 32), dtype=torch.uint8, generator=g),
        "s13": torch.ones(3, 64, 4).to(torch.float8_e4m3fn),
        "g13": torch.ones(3, 2),
        "w2": torch.randint(0, 256, (3, 64, 16), dtype=torch.uint8, generator=g),
        "s2": torch.ones(3, 64, 2).to(torch.float8_e4m3fn),
        "g2": torch.ones(3),
        "topk_weights": torch.ones(tokens, 2),
        "topk_ids": torch.tensor([[0, 1]] * tokens),
        "expert_map": None,
    }


def samples() -> dict[str, tuple[Any, ...]]:
    packed, scales = weight()
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(2)).to(torch.bfloat16)
    kept = keep_two_of_four(packed, scales, scale(), most_relative_l2_error=1.0)
    return {
        "nvfp4_gemv": (x, packed, scales, scale(), 48, False, False),
        "nvfp4_quantize": (x, scale(100.0), True, False),
        "nvfp4_gemv_2of4": (x, kept.values, kept.positions, scales, scale()),
        "nvfp4_moe_decode": (
            *moe().values(),
            False,
            False,
            False,
            torch.empty(2 * 2 * 32),
            torch.empty(2, 64).to(x.dtype),
        ),
    }


# Not test_schema: it multiplies every input to see whether it changes, and torch cannot multiply float8 on a CPU.
OPCHECKS = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("name", samples())
def test_opcheck(name: str) -> None:
    torch.library.opcheck(getattr(OPS, name).default, samples()[name], test_utils=OPCHECKS)


@pytest.mark.parametrize("name", samples())
def test_only_what_the_schema_says_is_written(name: str) -> None:
    operator = getattr(OPS, name).default
    arguments = samples()[name]
    before = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    operator(*arguments)
    for declared, old, new in zip(operator._schema.arguments, before, arguments, strict=True):
        written = declared.alias_info is not None and declared.alias_info.is_write
        if isinstance(new, torch.Tensor) and not written:
            assert torch.equal(new.reshape(-1).view(torch.uint8), old.reshape(-1).view(torch.uint8)), declared.name


@pytest.mark.parametrize("name", samples())
def test_fakes_have_the_shapes_dtypes_and_strides_of_the_real(name: str) -> None:
    arguments = samples()[name]
    real = getattr(OPS, name)(*arguments)
    with torch._subclasses.FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        fake = getattr(OPS, name)(*fakes)
    both = zip(real, fake, strict=True) if isinstance(real, tuple) else [(real, fake)] if real is not None else []
    for one, other in both:
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())


def test_torch_compile_without_a_break() -> None:
    packed, scales = weight(64, 64)
    layer = moe()

    def block(x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.silu(ops.gemv(x, packed, scales, scale(0.01))) + 1
        return ops.moe_decode(y, *list(layer.values())[1:-1]) * 2

    # The graph is traced and functionalized as for inductor; what inductor generates is not under test.
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(layer["x"]), block(layer["x"]))


# That the self-test passes here is shown by test_doctor.py.


def test_selftest_notices_a_wrong_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ops.gemv
    monkeypatch.setattr(ops, "gemv", lambda *arguments, **named: right(*arguments, **named) * 1.01)
    monkeypatch.setattr(ops, "moe_decode", lambda x, *_, **__: torch.zeros_like(x))
    failed = {result.name for result in selftest.run("cpu") if not result.passed}
    assert failed == {
        f"nvfp4_{kernel}, {dtype}, {layout} scales"
        for kernel in ("gemv", "moe_decode")
        for dtype in ("bfloat16", "float16")
        for layout in ("linear", "tiled")
    }


@pytest.mark.parametrize("name", ["gemv", "moe_decode"])
def test_selftest_notices_a_graph_that_replays_something_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, with a graph that calls the kernel again, and with one that does nothing."""
    recorded: list[Callable[[], object]] = []
    right = getattr(ops, name)

    def recording(*arguments: object, **named: object) -> torch.Tensor:
        out = right(*arguments, **named)
        recorded.append(lambda: out.copy_(right(*arguments, **named)))
        return out

    def replay() -> None:
        recorded.pop()()

    @contextmanager
    def capture(_: SimpleNamespace) -> Iterator[None]:
        monkeypatch.setattr(ops, name, recording)
        yield
        monkeypatch.setattr(ops, name, right)
        assert len(recorded) == 1

    monkeypatch.setattr(torch.cuda, "graph", capture)
    check = selftest._graph({"gemv": selftest._one_linear, "moe_decode": selftest._two_experts}[name])
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=replay))
    assert check(torch.device("cpu")) == "a replayed graph gives the same bits"
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: SimpleNamespace(replay=lambda: None))
    with pytest.raises(AssertionError, match="a replayed graph gives another result"):
        check(torch.device("cpu"))


def refusals() -> dict[str, tuple[str, dict[str, Any], str]]:
    packed, scales = weight()
    x = torch.zeros(1, 64, dtype=torch.bfloat16)
    good = {"x": x, "weight": packed, "scales": scales, "global_scale": scale()}
    experts = moe()
    e4m3 = torch.float8_e4m3fn
    kept = keep_two_of_four(packed, scales, scale(), most_relative_l2_error=1.0)
    sparse = {"x": x, "values": kept.values, "positions": kept.positions, "scales": scales, "global_scale": scale()}
    views = torch.zeros(1 + 64, dtype=torch.bfloat16)[1:].reshape(1, 64)
    return {
        "dtype of x": (
            "gemv",
            {**good, "x": x.float()},
            "x is [1, 64] of Float; expected [any, any] of BFloat16 or Half",
        ),
        "too many rows": ("gemv", {**good, "x": x.expand(9, 64).contiguous()}, "x has 9 rows; 1 to 8 are taken"),
        "no rows": ("gemv", {**good, "x": x[:0]}, "x has 0 rows; 1 to 8 are taken"),
        "width": ("gemv", {**good, "x": x[:, :24].contiguous()}, "x has rows of 24; NVFP4 needs a multiple of 16"),
        "strides": (
            "gemv",
            {**good, "x": torch.zeros(64, 2, dtype=x.dtype).T},
            "x is not contiguous; call .contiguous()",
        ),
        "alignment": ("gemv", {**good, "x": views}, "x does not start at a multiple of 16 bytes"),
        "weight's dtype": ("gemv", {**good, "weight": packed.to(torch.int8)}, "weight is [48, 32] of Char; expected"),
        "weight too narrow": (
            "gemv",
            {**good, "weight": packed[:, :24].contiguous()},
            "weight has rows of 24 bytes; a multiple",
        ),
        "scales too few": (
            "gemv",
            {**good, "scales": scales[:, :3].contiguous()},
            "scales is [48, 3]; expected [48, 4] or more",
        ),
        "scales not in tiles": (
            "gemv",
            {**good, "tiled_scales": True},
            "scales is [48, 4]; expected [128, 4] or more, in tiles",
        ),
        "global scale": (
            "gemv",
            {**good, "global_scale": torch.ones(2)},
            "global_scale is [2] of Float; expected [] of Float",
        ),
        "rows": ("gemv", {**good, "rows": 49}, "rows is 49; weight has 48"),
        "w13": (
            "moe_decode",
            {**experts, "w13": experts["w13"][:, :32].contiguous()},
            "w13 is [3, 32, 32] of Byte; expected [3, 64, 32]",
        ),
        "s2": (
            "moe_decode",
            {**experts, "s2": experts["s2"].to(torch.float32)},
            "s2 is [3, 64, 2] of Float; expected [3, 64, 2] of Float8",
        ),
        "g13": ("moe_decode", {**experts, "g13": torch.ones(3)}, "g13 is [3] of Float; expected [3, 2]"),
        "topk_ids": (
            "moe_decode",
            {**experts, "topk_ids": experts["topk_ids"].to(torch.int16)},
            "topk_ids is [2, 2] of Short",
        ),
        "topk_weights": (
            "moe_decode",
            {**experts, "topk_weights": torch.ones(2, 3)},
            "topk_weights is [2, 3] of Float; expected [2, 2]",
        ),
        "workspace": (
            "moe_decode",
            {**experts, "workspace": torch.empty(127)},
            "workspace has 127 elements; tokens * choices * inner = 128",
        ),
        "out": (
            "moe_decode",
            {**experts, "out": torch.empty(2, 64)},
            "out is [2, 64] of Float; expected [2, 64] of BFloat16",
        ),
        "scales of experts not aligned": (
            "moe_decode",
            {**experts, "s13": torch.zeros(1 + 3 * 64 * 4, dtype=torch.uint8)[1:].view(e4m3).reshape(3, 64, 4)},
            "s13 does not start at a multiple of 16 bytes",
        ),
        "hidden": (
            "moe_decode",
            {**experts, "x": experts["x"][:, :24].contiguous(), "w2": experts["w2"][:, :24].contiguous()},
            "x has rows of 24; NVFP4 needs a multiple of 16",
        ),
        "inner": (
            "moe_decode",
            {**experts, "w2": experts["w2"][:, :, :12].contiguous()},
            "w2 has rows of 24 weights; NVFP4 needs a multiple of 16",
        ),
        "s13 not in tiles": (
            "moe_decode",
            {**experts, "tiled_scales": True},
            "s13 is [3, 64, 4] of Float8_e4m3fn; expected [3, 128, 4] of Float8_e4m3fn",
        ),
        "g2": ("moe_decode", {**experts, "g2": torch.ones(3, 1)}, "g2 is [3, 1] of Float; expected [3] of Float"),
        "expert_map": (
            "moe_decode",
            {**experts, "expert_map": torch.zeros(4, dtype=torch.int64)},
            "expert_map is [4] of Long; expected [any] of Int",
        ),
        "experts' strides": (
            "moe_decode",
            {**experts, "w13": experts["w13"].transpose(1, 2).contiguous().transpose(1, 2)},
            "w13 is not contiguous; call .contiguous()",
        ),
        "width of kept weights": (
            "gemv_2of4",
            {**sparse, "x": x[:, :24].contiguous()},
            "x has rows of 24; NVFP4 needs a multiple of 16",
        ),
        "kept values": (
            "gemv_2of4",
            {**sparse, "values": sparse["values"][:, :12].contiguous()},
            "values is [48, 12] of Byte; expected [any, 16] of Byte",
        ),
        "kept positions": (
            "gemv_2of4",
            {**sparse, "positions": sparse["positions"].to(torch.int16)},
            "positions is [48, 8] of Short; expected [48, 8] of Byte",
        ),
        "scales of kept weights": (
            "gemv_2of4",
            {**sparse, "scales": scales[:47].contiguous()},
            "scales is [47, 4] of Float8_e4m3fn; expected [48, 4] of Float8_e4m3fn",
        ),
        "dtype to quantize": (
            "quantize",
            {"x": x.float(), "global_scale": scale()},
            "x is [1, 64] of Float; expected [any, any] of BFloat16 or Half",
        ),
        "strides to quantize": (
            "quantize",
            {"x": torch.zeros(64, 2, dtype=x.dtype).T, "global_scale": scale()},
            "x is not contiguous; call .contiguous()",
        ),
        "global scale to quantize with": (
            "quantize",
            {"x": x, "global_scale": torch.ones(2)},
            "global_scale is [2] of Float; expected [] of Float",
        ),
        "quantize": (
            "quantize",
            {"x": x[:, :24].contiguous(), "global_scale": scale()},
            "x has rows of 24; NVFP4 needs",
        ),
    }


@pytest.mark.parametrize("case", refusals())
def test_refusals_say_what_is_wrong(case: str) -> None:
    function, named, message = refusals()[case]
    with pytest.raises((RuntimeError, NotImplementedError), match=re.escape(message)):
        getattr(ops, function)(**named)


def test_padding_of_the_weight_is_not_read() -> None:
    packed, scales = weight(40, 48)
    x = torch.randn(2, 48, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16)
    wide = torch.full((64, 32), 0x7F, dtype=torch.uint8)
    wide[:40, :24] = packed
    tiled = reference.tile_scales(scales)
    padded = ops.gemv(x, wide, tiled, scale(), rows=40, tiled_scales=True)
    assert torch.equal(padded, ops.gemv(x, packed, tiled, scale(), tiled_scales=True))


def test_tiles_come_back_as_they_were() -> None:
    for rows, blocks in [(1, 1), (128, 4), (129, 5), (300, 9)]:
        scales = torch.randint(0, 256, (2, rows, blocks), dtype=torch.uint8).view(torch.float8_e4m3fn)
        tiled = reference.tile_scales(scales)
        assert tiled.shape[1] % 128 == 0
        assert torch.equal(reference.untile_scales(tiled, rows, blocks).view(torch.uint8), scales.view(torch.uint8))


@pytest.fixture
def benchmark_in(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """The benchmark's names, its `main` to be called with these words."""
    script = Path(__file__).parents[3] / "benchmarks/kernels/decode.py"
    monkeypatch.syspath_prepend(str(script.parent))

    def loaded(*words: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [str(script), *words])
        return runpy.run_path(str(script))

    return loaded


def test_the_benchmark_walks_through_everything(
    tmp_path: Path,
    benchmark_in: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    result = tmp_path / "result.json"
    benchmark = benchmark_in("--dry-run", "--tokens", "1", "--output", str(result))
    assert benchmark["main"]() == 0
    rows = json.loads(result.read_text())["rows"]
    assert [row["kernel"] for row in rows] == [
        *("nvfp4_moe_decode, linear scales", "nvfp4_moe_decode, tiled scales", "Marlin"),
        *("nvfp4_gemv, linear scales", "nvfp4_gemv, tiled scales", "Marlin"),
    ]
    assert all((row["microseconds"] is None) == (row["kernel"] == "Marlin") for row in rows)
    assert all(row["note"].startswith("not measured: ") for row in rows if row["kernel"] == "Marlin")
    assert all(row["error"] < 2**-7 for row in rows if row["kernel"] != "Marlin")
    # 4.5 bits a weight at 273 GB/s: two experts of 3 * 32 * 16 weights, and 32 * 64 weights.
    weights = [round(row["gb10_microseconds"] * 273e3 / (4.5 / 8)) for row in rows]
    assert weights == [2 * 3 * 32 * 16] * 3 + [32 * 64] * 3
    shown = capsys.readouterr().out
    assert "a dry run: the times below mean nothing" in shown
    said = r"\d+% \(goal 70%: (met|missed)\) of copy, \? \(goal 1.50: not measured\) times as fast as Marlin"
    assert re.search(rf"^tiny experts +M=1 {said}$", shown, re.MULTILINE)
    right = ops.gemv
    monkeypatch.setattr(ops, "gemv", lambda *arguments, **named: right(*arguments, **named) * 1.1)
    assert benchmark["main"]() == 1
    assert "WRONG: nvfp4_gemv" in capsys.readouterr().err


def test_a_kernel_that_fails_costs_the_benchmark_its_own_row_only(
    tmp_path: Path, benchmark_in: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class OutOfLuckError(Exception):
        """One that nobody thought of."""

    result = tmp_path / "result.json"
    benchmark = benchmark_in("--dry-run", "--tokens", "1", "--output", str(result))
    right, calls, stored = ops.gemv, [], []

    def failing(*arguments: object, tiled_scales: bool, **named: object) -> torch.Tensor:
        calls.append(tiled_scales)
        stored.append(len(json.loads(result.read_text())["rows"]))
        if len(calls) == 2:  # the first that is timed
            raise OutOfLuckError("of a kind of its own")
        return right(*arguments, tiled_scales=tiled_scales, **named)

    monkeypatch.setattr(ops, "gemv", failing)
    assert benchmark["main"]() == 0
    notes = {row["kernel"]: row["note"] for row in json.loads(result.read_text())["rows"]}
    assert notes["nvfp4_gemv, linear scales"] == "not measured: OutOfLuckError: of a kind of its own"
    assert notes["nvfp4_gemv, tiled scales"] == "1 copies"
    # What was measured before is on the disk by then.
    assert stored[:3] == [3, 3, 4]


def test_the_benchmark_asks_marlin_as_it_asks_the_others(
    tmp_path: Path, benchmark_in: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    import marlin

    made: list[object] = []

    def workspace(device: torch.device) -> object:
        del device
        made.append(object())
        return made[-1]

    def linear(packed: Any, scales: Any, scale: Any, given: object) -> Callable[..., Any]:  # noqa: ANN401
        assert given is made[-1]
        return lambda x: reference.gemv(x, packed, scales, scale)

    def experts(*layer: Any) -> Callable[..., Any]:  # noqa: ANN401
        *matrices, given = layer
        assert given is made[-1]
        w13, s13, g13, *second = matrices
        both = torch.stack((g13, g13), dim=1)
        return lambda x, weights, ids: reference.moe_decode(x, w13, s13, both, *second, weights, ids)

    monkeypatch.setattr(marlin, "workspace", workspace)
    monkeypatch.setattr(marlin, "linear", linear)
    monkeypatch.setattr(marlin, "experts", experts)
    result = tmp_path / "result.json"
    benchmark = benchmark_in("--dry-run", "--tokens", "1", "2", "--output", str(result))
    assert benchmark["main"]() == 0
    rows = [row for row in json.loads(result.read_text())["rows"] if row["kernel"] == "Marlin"]
    assert [row["error"] for row in rows] == [0.0] * 4
    assert all(row["microseconds"] > 0 for row in rows)
    assert len(made) == 4, "a workspace for all calls of a row"


@pytest.mark.parametrize(
    ("microseconds", "verdicts"),
    [
        ((1.0, 2.0, 3.0), ("80% (goal 70%: met)", "1.50 (goal 1.50: met)")),
        ((1.0, 2.2, 3.0), ("73% (goal 70%: met)", "1.36 (goal 1.50: missed)")),
        ((1.0, 3.0, None), ("53% (goal 70%: missed)", "? (goal 1.50: not measured)")),
    ],
)
def test_the_benchmark_judges_tiled_scales(
    benchmark_in: Callable[..., dict[str, Any]], microseconds: tuple[float | None, ...], verdicts: tuple[str, str]
) -> None:
    benchmark = benchmark_in()
    names = ("nvfp4_moe_decode, linear scales", "nvfp4_moe_decode, tiled scales", "Marlin")
    rows = [
        benchmark["Row"](
            layer="experts",
            tokens=1,
            kernel=name,
            microseconds=time,
            bytes_read=1.0,
            of_copy=None if time is None else 1.6 / time,
            gb10_microseconds=1.0,
        )
        for name, time in zip(names, microseconds, strict=True)
    ]
    (said,) = benchmark["_against_the_goals"](rows)
    assert said.split("M=1 ")[1] == f"{verdicts[0]} of copy, {verdicts[1]} times as fast as Marlin"


def test_the_benchmark_predicts_without_a_gpu(
    benchmark_in: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark_in("--predict", "--tokens", "1", "8")["main"]() == 0
    rows = {line[:42].strip(): line[42:].split() for line in capsys.readouterr().out.splitlines()[2:]}
    # 10 of 512 experts of 3 * 2048 * 512 weights at 4.5 bits; of 512 experts eight tokens hit 74.7 on average.
    assert rows["Qwen3-Next-80B-A3B experts"] == ["17.695", "64.816", "484.432"]
    assert rows["123B gate_up"][1] == rows["123B gate_up"][2]
