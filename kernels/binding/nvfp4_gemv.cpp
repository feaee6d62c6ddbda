#include "nvfp4_gemv/nvfp4_gemv.h"

#include <torch/csrc/stable/ops.h>

#include "binding/checks.h"
#include "binding/registration.h"

namespace sparkwright {
namespace {

// `rows` of the weight are multiplied; it may have more, and wider ones than x, as padding that a prefill kernel wants.
Tensor gemv(const Tensor &x, const Tensor &weight, const Tensor &scales, const Tensor &global_scale, int64_t rows,
            bool tiled_scales, bool global_scale_divides) {
  const Arguments arguments("nvfp4_gemv", x);
  arguments.expect("x", x, {kAny, kAny}, {ScalarType::BFloat16, ScalarType::Half});
  const int64_t width = x.size(1);
  arguments.require(x.size(0) >= 1 && x.size(0) <= 8, "x", "has " + std::to_string(x.size(0)) + " rows", "1 to 8 are taken");
  arguments.require(width > 0 && width % 16 == 0, "x", "has rows of " + std::to_string(width), "NVFP4 needs a multiple of 16");
  arguments.expect("weight", weight, {kAny, kAny}, {ScalarType::Byte});
  const int64_t pitch = weight.size(1);
  arguments.require(pitch >= width / 2 && pitch % 8 == 0, "weight", "has rows of " + std::to_string(pitch) + " bytes",
                    "a multiple of 8 and at least " + std::to_string(width / 2) + " are needed");
  arguments.require(rows >= 0 && rows <= weight.size(0), "rows", "is " + std::to_string(rows),
                    "weight has " + std::to_string(weight.size(0)));
  arguments.expect("scales", scales, {kAny, kAny}, {ScalarType::Float8_e4m3fn});
  const int64_t kept_rows = tiled_scales ? (rows + 127) / 128 * 128 : rows;
  const int64_t kept_blocks = tiled_scales ? (width / 16 + 3) / 4 * 4 : width / 16;
  const bool sized = scales.size(0) >= kept_rows && scales.size(1) >= kept_blocks &&
                     (!tiled_scales || (scales.size(0) % 128 == 0 && scales.size(1) % 4 == 0));
  arguments.require(sized, "scales", "is [" + std::to_string(scales.size(0)) + ", " + std::to_string(scales.size(1)) + "]",
                    "expected [" + std::to_string(kept_rows) + ", " + std::to_string(kept_blocks) + "] or more, " +
                        (tiled_scales ? "in tiles of 128 by 4" : "linear"));
  arguments.expect("global_scale", global_scale, {}, {ScalarType::Float});

  arguments.expect_aligned("x", x);
  arguments.expect_aligned("weight", weight);
  arguments.expect_aligned("scales", scales);

  const OnDevice device(x);
  Tensor out = torch::stable::new_empty(x, {x.size(0), rows});
  if (rows == 0) return out;
  Nvfp4Gemv p{};
  p.rows = x.size(0);
  p.n = rows;
  p.k = width;
  p.x = x.data_ptr();
  p.weight = static_cast<const uint8_t *>(weight.data_ptr());
  p.scale = static_cast<const uint8_t *>(scales.data_ptr());
  p.global_scale = static_cast<const float *>(global_scale.data_ptr());
  p.y = out.data_ptr();
  p.weight_pitch = pitch;
  p.scale_blocks = scales.size(1);
  p.activation = activation_of(x);
  p.layout = tiled_scales ? ScaleLayout::tiled_128x4 : ScaleLayout::linear;
  p.global = global_scale_divides ? GlobalScale::divides : GlobalScale::multiplies;
  nvfp4_gemv(p, device.stream());
  return out;
}

STABLE_TORCH_LIBRARY_FRAGMENT(gb10_kernels, library) {
  library.def(
      "nvfp4_gemv(Tensor x, Tensor weight, Tensor scales, Tensor global_scale, int rows, bool tiled_scales, "
      "bool global_scale_divides) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gb10_kernels, GB10_DISPATCH_KEY, library) { library.impl("nvfp4_gemv", TORCH_BOX(&gemv)); }

}  // namespace
}  // namespace sparkwright
