"""nvfp4_moe_decode against the float64 reference: shapes, layouts, routing, and what must not change the result."""

from dataclasses import dataclass, replace

import pytest
import torch  # type: ignore[import-not-found]
from gb10_kernels import ops, reference  # type: ignore[import-not-found]
from hypothesis import given, settings
from hypothesis import strategies as st

ROUNDING = {torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@dataclass(frozen=True, kw_only=True)
class Layer:
    """The arguments of a call."""

    x: torch.Tensor
    w13: torch.Tensor
    s13: torch.Tensor
    g13: torch.Tensor
    w2: torch.Tensor
    s2: torch.Tensor
    g2: torch.Tensor
    topk_weights: torch.Tensor
    topk_ids: torch.dtype

    def arguments(self) -> list[torch.Tensor]:
        """In the order of the operator."""
        return [self.x, self.w13, self.s13, self.g13, self.w2, self.s2, self.g2, self.topk_weights, self.topk_ids]

    def tiled(self) -> "Layer":
        """With the scales in tiles."""
        return replace(self, s13=reference.tile_scales(self.s13), s2=reference.tile_scales(self.s2))


def layer(
    tokens: int, choices: int, experts: int, hidden: int, inner: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0
) -> Layer:
    """Random numbers of these shapes; every id is an expert's."""
    g = torch.Generator().manual_seed(seed)

    def weights(rows: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
        packed = torch.randint(0, 256, (experts, rows, width // 2), dtype=torch.uint8, generator=g)
        return packed, (torch.rand(experts, rows, width // 16, generator=g) + 0.1).to(torch.float8_e4m3fn)

    w13, s13 = weights(2 * inner, hidden)
    w2, s2 = weights(hidden, inner)
    return Layer(
        x=torch.randn(tokens, hidden, generator=g).to(dtype),
        w13=w13,
        s13=s13,
        g13=torch.rand(experts, 2, generator=g) * 0.02 + 0.001,
        w2=w2,
        s2=s2,
        g2=torch.rand(experts, generator=g) * 0.02 + 0.001,
        topk_weights=torch.rand(tokens, choices, generator=g),
        topk_ids=torch.randint(0, experts, (tokens, choices), generator=g),
    )


def check(made: Layer, got: torch.Tensor | None = None, **options: object) -> torch.Tensor:
    """Compare a call, or its result, with the reference."""
    wanted = reference.moe_decode(*made.arguments(), **options)
    got = ops.moe_decode(*made.arguments(), **options) if got is None else got
    # 2^-25: half the distance of float16's smallest numbers.
    bound = ROUNDING[got.dtype] * wanted.abs() + 1e-5 * wanted.abs().max() + 2.0**-25
    assert ((got.double() - wanted).abs() <= bound).all(), (got.double() - wanted).abs().max() / wanted.abs().max()
    return got


# The last two: fewer inner columns than a warp takes, and a row that is wider than a warp's loads.
SHAPES = [
    (1, 1, 1, 16, 16),
    (1, 10, 12, 64, 32),
    (3, 2, 4, 48, 80),
    (8, 3, 5, 112, 16),
    (2, 2, 3, 1040, 48),
    (1, 2, 2, 64, 1088),
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_shapes_and_tails(shape: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    made = layer(*shape, dtype)
    linear = check(made)
    assert torch.equal(ops.moe_decode(*made.tiled().arguments(), tiled_scales=True), linear)


@pytest.mark.parametrize("ids", [torch.int32, torch.int64], ids=str)
def test_a_choice_without_an_expert_here_adds_nothing(ids: torch.dtype) -> None:
    made = layer(3, 4, 5, 64, 32)
    topk_ids = torch.tensor([[0, 9, 2, 7], [3, 3, 11, 1], [-1, 8, 12, 5]]).to(ids)
    expert_map = torch.tensor([4, -1, 2, 0, -1, 1, -1, 3, 99, -5], dtype=torch.int32)
    made = replace(made, topk_ids=topk_ids)
    check(made, expert_map=expert_map)
    check(replace(made, topk_ids=torch.tensor([[5, -1, 6, 0]] * 3).to(ids)))
    nobody = ops.moe_decode(*replace(made, topk_ids=torch.full((3, 4), -1).to(ids)).arguments())
    assert (nobody == 0).all()


def test_an_empty_map_knows_no_expert() -> None:
    nowhere = torch.empty(0, dtype=torch.int32)
    assert (check(layer(2, 2, 3, 32, 16), expert_map=nowhere) == 0).all()


def test_weights_on_the_input() -> None:
    made = layer(4, 1, 3, 64, 48)
    on_input = check(made, weight_on_input=True)
    assert not torch.allclose(on_input, ops.moe_decode(*made.arguments()))


def test_up_before_gate() -> None:
    made = layer(2, 2, 3, 64, 48)
    swapped = replace(
        made, w13=made.w13.roll(48, dims=1), s13=made.s13.view(torch.uint8).roll(48, dims=1).view(made.s13.dtype)
    )
    assert torch.equal(check(swapped, up_first=True), check(made))


def test_gate_and_up_have_global_scales_of_their_own() -> None:
    made = layer(2, 2, 3, 64, 48)
    doubled = made.g13.clone()
    doubled[:, 1] *= 2
    twice = ops.moe_decode(*replace(made, g13=doubled).arguments())
    # Up enters as a factor.
    assert torch.equal(twice, ops.moe_decode(*replace(made, g2=made.g2 * 2).arguments()))


def test_the_order_of_experts_does_not_matter() -> None:
    made = layer(3, 2, 6, 64, 32)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    place = torch.argsort(order)
    names = ("w13", "g13", "w2", "g2")
    moved = replace(made, **{name: getattr(made, name)[order] for name in names}, topk_ids=place[made.topk_ids])
    scales = {name: getattr(made, name).view(torch.uint8)[order].view(torch.float8_e4m3fn) for name in ("s13", "s2")}
    assert torch.equal(ops.moe_decode(*replace(moved, **scales).arguments()), ops.moe_decode(*made.arguments()))


def test_a_token_does_not_see_the_others_and_results_repeat() -> None:
    made = layer(8, 2, 4, 64, 32)
    together = ops.moe_decode(*made.arguments())
    assert torch.equal(together, ops.moe_decode(*made.arguments()))
    for token in (0, 5):
        one = slice(token, token + 1)
        alone = replace(
            made,
            x=made.x[one].clone(),
            topk_weights=made.topk_weights[one].clone(),
            topk_ids=made.topk_ids[one].clone(),
        )
        assert torch.equal(ops.moe_decode(*alone.arguments()), together[one])


def test_the_workspace_and_the_output_are_the_callers() -> None:
    made = layer(2, 3, 4, 64, 32)
    workspace = torch.full((2 * 3 * 32 + 7,), float("nan"))
    out = torch.full((2, 64), float("nan"), dtype=torch.bfloat16)
    got = ops.moe_decode(*made.arguments(), workspace=workspace, out=out)
    assert got is out
    check(made, got)
    assert workspace[-7:].isnan().all(), "it wrote behind what it needs"


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_where_the_reference_has_them(poison: float) -> None:
    made = layer(3, 2, 4, 64, 32)
    made.x[1, 7] = poison
    wanted, got = reference.moe_decode(*made.arguments()), ops.moe_decode(*made.arguments())
    assert torch.equal(got.isnan(), wanted.isnan())
    assert got[1].isnan().any()
    assert got[[0, 2]].isfinite().all()


def test_a_nan_scale_reaches_the_tokens_of_its_expert_only() -> None:
    made = layer(2, 1, 3, 64, 32)
    made = replace(made, topk_ids=torch.tensor([[0], [2]]))
    made.s2.view(torch.uint8)[2, 5, 1] = 0x7F
    got = ops.moe_decode(*made.arguments())
    assert got[1, 5].isnan()
    assert got.isnan().sum() == 1


def test_many_pairs() -> None:
    """More pairs than a GPU runs at once; one expert, so that the sum is known."""
    made = layer(2, 150, 1, 16, 16)
    made = replace(made, topk_weights=torch.full((2, 150), 1 / 150))
    once = replace(made, topk_weights=torch.ones(2, 1), topk_ids=torch.zeros(2, 1, dtype=torch.int64))
    check(once, ops.moe_decode(*made.arguments()))


@pytest.mark.parametrize("tokens", [0, 1])
def test_nothing_to_do(tokens: int) -> None:
    made = layer(tokens, 0, 2, 32, 16)
    assert (ops.moe_decode(*made.arguments()) == 0).all()


@settings(max_examples=15, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_layer(data: st.DataObject) -> None:
    tokens, choices, experts = (data.draw(st.integers(1, most)) for most in (8, 4, 5))
    hidden, inner = (16 * data.draw(st.integers(1, most)) for most in (9, 5))
    made = layer(tokens, choices, experts, hidden, inner, data.draw(st.sampled_from(list(ROUNDING))))
    ids = st.lists(st.integers(-2, experts + 1), min_size=tokens * choices, max_size=tokens * choices)
    made = replace(made, topk_ids=torch.tensor(data.draw(ids)).reshape(tokens, choices))
    if data.draw(st.booleans()):
        made = replace(made, topk_ids=made.topk_ids.int())
    options: dict[str, object] = {name: data.draw(st.booleans()) for name in ("up_first", "weight_on_input")}
    if data.draw(st.booleans()):
        entries = data.draw(st.lists(st.integers(-2, experts), min_size=0, max_size=experts + 2))
        options["expert_map"] = torch.tensor(entries, dtype=torch.int32)
    linear = check(made, **options)
    assert torch.equal(ops.moe_decode(*made.tiled().arguments(), tiled_scales=True, **options), linear)


@pytest.mark.parametrize("order", ["descending", "random:7"])
def test_the_result_does_not_depend_on_the_order_of_threads(monkeypatch: pytest.MonkeyPatch, order: str) -> None:
    made = layer(3, 2, 3, 1040, 48)
    usual = ops.moe_decode(*made.arguments())
    monkeypatch.setenv("SIMT_ORDER", order)
    assert torch.equal(ops.moe_decode(*made.arguments()), usual)


def test_gate_and_up_beyond_65535_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    # 32,784 pairs of 8 warps each, 4 to a block; of these blocks the first and the last are among those that run.
    made = layer(1, 1, 1, 16, 16)
    once = torch.empty(16)
    ops.moe_decode(*made.arguments(), workspace=once)
    pairs = 8 * 4098
    many = replace(
        made,
        x=made.x.expand(8, 16).contiguous(),
        topk_weights=torch.ones(8, pairs // 8),
        topk_ids=torch.zeros(8, pairs // 8, dtype=torch.int32),
    )
    workspace = torch.full((pairs * 16,), float("nan"))
    monkeypatch.setenv("SIMT_SAMPLE", "4")
    ops.moe_decode(*many.arguments(), workspace=workspace)
    states = workspace.reshape(pairs, 16)
    assert torch.equal(states[0, :8], once[:8])
    assert torch.equal(states[-1, -8:], once[-8:])
    assert states.isnan().any()


def test_down_beyond_65535_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = 16 * 8194  # 4 rows to a warp, 4 warps to a block, 8 tokens
    made = layer(8, 1, 1, hidden, 16)
    out = torch.full((8, hidden), float("nan"), dtype=torch.bfloat16)
    monkeypatch.setenv("SIMT_SAMPLE", "16")
    ops.moe_decode(*made.arguments(), out=out)
    wanted = reference.moe_decode(*made.arguments())
    ran = ~out.isnan()
    assert ran[0, :16].all()
    assert ran[-1, -16:].all()
    assert ran.sum() == 16 * 16
    difference = (out.double() - wanted)[ran].abs()
    assert (difference <= ROUNDING[torch.bfloat16] * wanted[ran].abs() + 1e-5 * wanted.abs().max()).all()
