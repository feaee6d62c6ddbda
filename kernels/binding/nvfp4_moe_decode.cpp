#include "nvfp4_moe_decode/nvfp4_moe_decode.h"

#include <optional>

#include "binding/checks.h"
#include "binding/registration.h"

namespace sparkwright {
namespace {

// Block scales of [experts, rows, width]: linear, or in tiles with both padded. The bytes from expert to expert.
int64_t check_scales(const Arguments &arguments, const char *name, const Tensor &scales, int64_t experts, int64_t rows,
                     int64_t width, bool tiled) {
  const int64_t blocks = width / 16;
  const int64_t kept_rows = tiled ? (rows + 127) / 128 * 128 : rows;
  const int64_t kept_blocks = tiled ? (blocks + 3) / 4 * 4 : blocks;
  arguments.expect(name, scales, {experts, kept_rows, kept_blocks}, {ScalarType::Float8_e4m3fn});
  return kept_rows * kept_blocks;
}

void moe_decode(const Tensor &x, const Tensor &w13, const Tensor &s13, const Tensor &g13, const Tensor &w2, const Tensor &s2,
                const Tensor &g2, const Tensor &topk_weights, const Tensor &topk_ids, const std::optional<Tensor> &expert_map,
                bool tiled_scales, bool up_first, bool weight_on_input, Tensor workspace, Tensor out) {
  const Arguments arguments("nvfp4_moe_decode", x);
  arguments.expect("x", x, {kAny, kAny}, {ScalarType::BFloat16, ScalarType::Half});
  arguments.expect("topk_ids", topk_ids, {x.size(0), kAny}, {ScalarType::Int, ScalarType::Long});
  arguments.expect("w2", w2, {kAny, x.size(1), kAny}, {ScalarType::Byte});

  MoeDecode p{};
  p.tokens = x.size(0);
  p.hidden = x.size(1);
  p.choices = topk_ids.size(1);
  p.experts = w2.size(0);
  p.inner = 2 * w2.size(2);
  arguments.require(p.hidden > 0 && p.hidden % 16 == 0, "x", "has rows of " + std::to_string(p.hidden), "NVFP4 needs a multiple of 16");
  arguments.require(p.inner > 0 && p.inner % 16 == 0, "w2", "has rows of " + std::to_string(p.inner) + " weights",
                    "NVFP4 needs a multiple of 16");
  arguments.expect("w13", w13, {p.experts, 2 * p.inner, p.hidden / 2}, {ScalarType::Byte});
  p.s13_stride = check_scales(arguments, "s13", s13, p.experts, 2 * p.inner, p.hidden, tiled_scales);
  p.s2_stride = check_scales(arguments, "s2", s2, p.experts, p.hidden, p.inner, tiled_scales);
  arguments.expect("g13", g13, {p.experts, 2}, {ScalarType::Float});
  arguments.expect("g2", g2, {p.experts}, {ScalarType::Float});
  arguments.expect("topk_weights", topk_weights, {p.tokens, p.choices}, {ScalarType::Float});
  arguments.expect("workspace", workspace, {kAny}, {ScalarType::Float});
  arguments.require(workspace.numel() >= p.tokens * p.choices * p.inner, "workspace",
                    "has " + std::to_string(workspace.numel()) + " elements",
                    "tokens * choices * inner = " + std::to_string(p.tokens * p.choices * p.inner) + " are needed");
  arguments.expect("out", out, {p.tokens, p.hidden}, {x.scalar_type()});
  p.mapped_experts = -1;
  if (expert_map.has_value()) {
    arguments.expect("expert_map", *expert_map, {kAny}, {ScalarType::Int});
    p.expert_map = static_cast<const int32_t *>(expert_map->data_ptr());
    p.mapped_experts = expert_map->numel();
  }

  arguments.expect_aligned("x", x);
  arguments.expect_aligned("w13", w13);
  arguments.expect_aligned("s13", s13);
  arguments.expect_aligned("w2", w2);
  arguments.expect_aligned("s2", s2);
  arguments.expect_aligned("workspace", workspace);

  p.x = x.data_ptr();
  p.w13 = static_cast<const uint8_t *>(w13.data_ptr());
  p.s13 = static_cast<const uint8_t *>(s13.data_ptr());
  p.g13 = static_cast<const float *>(g13.data_ptr());
  p.w2 = static_cast<const uint8_t *>(w2.data_ptr());
  p.s2 = static_cast<const uint8_t *>(s2.data_ptr());
  p.g2 = static_cast<const float *>(g2.data_ptr());
  p.topk_weights = static_cast<const float *>(topk_weights.data_ptr());
  p.topk_ids = topk_ids.data_ptr();
  p.workspace = static_cast<float *>(workspace.data_ptr());
  p.out = out.data_ptr();
  p.activation = activation_of(x);
  p.layout = tiled_scales ? ScaleLayout::tiled_128x4 : ScaleLayout::linear;
  p.ids_are_64_bits = topk_ids.scalar_type() == ScalarType::Long;
  p.up_first = up_first;
  p.weight_on_input = weight_on_input;

  const OnDevice device(x);
  nvfp4_moe_decode(p, device.stream());
}

STABLE_TORCH_LIBRARY_FRAGMENT(gb10_kernels, library) {
  library.def(
      "nvfp4_moe_decode(Tensor x, Tensor w13, Tensor s13, Tensor g13, Tensor w2, Tensor s2, Tensor g2, Tensor topk_weights, "
      "Tensor topk_ids, Tensor? expert_map, bool tiled_scales, bool up_first, bool weight_on_input, Tensor(a!) workspace, "
      "Tensor(b!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(gb10_kernels, GB10_DISPATCH_KEY, library) {
  library.impl("nvfp4_moe_decode", TORCH_BOX(&moe_decode));
}

}  // namespace
}  // namespace sparkwright
