#include "nvfp4_quantize/nvfp4_quantize.h"

#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "binding/checks.h"
#include "binding/registration.h"

namespace sparkwright {
namespace {

std::tuple<Tensor, Tensor> quantize(const Tensor &x, const Tensor &global_scale, bool tiled_scales, bool as_modelopt) {
  const Arguments arguments("nvfp4_quantize", x);
  arguments.expect("x", x, {kAny, kAny}, {ScalarType::BFloat16, ScalarType::Half});
  const int64_t rows = x.size(0);
  const int64_t width = x.size(1);
  arguments.require(width > 0 && width % 16 == 0, "x", "has rows of " + std::to_string(width), "NVFP4 needs a multiple of 16");
  arguments.expect("global_scale", global_scale, {}, {ScalarType::Float});

  arguments.expect_aligned("x", x);

  const OnDevice device(x);
  const int64_t kept_rows = tiled_scales ? (rows + 127) / 128 * 128 : rows;
  const int64_t kept_blocks = tiled_scales ? (width / 16 + 3) / 4 * 4 : width / 16;
  Tensor codes = torch::stable::new_empty(x, {rows, width / 2}, ScalarType::Byte);
  Tensor scales = torch::stable::new_empty(x, {kept_rows, kept_blocks}, ScalarType::Float8_e4m3fn);
  Nvfp4Quantize p{};
  p.rows = rows;
  p.k = width;
  p.x = x.data_ptr();
  p.global_scale = static_cast<const float *>(global_scale.data_ptr());
  p.codes = static_cast<uint8_t *>(codes.data_ptr());
  p.scales = static_cast<uint8_t *>(scales.data_ptr());
  p.activation = activation_of(x);
  p.layout = tiled_scales ? ScaleLayout::tiled_128x4 : ScaleLayout::linear;
  p.rule = as_modelopt ? QuantizeRule::modelopt : QuantizeRule::vllm;
  nvfp4_quantize(p, device.stream());
  return {codes, scales};
}

STABLE_TORCH_LIBRARY_FRAGMENT(gb10_kernels, library) {
  library.def("nvfp4_quantize(Tensor x, Tensor global_scale, bool tiled_scales, bool as_modelopt) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(gb10_kernels, GB10_DISPATCH_KEY, library) {
  library.impl("nvfp4_quantize", TORCH_BOX(&quantize));
}

}  // namespace
}  // namespace sparkwright
