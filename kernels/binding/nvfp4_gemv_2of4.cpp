#include "nvfp4_gemv_2of4/nvfp4_gemv_2of4.h"

#include <torch/csrc/stable/ops.h>

#include "binding/checks.h"
#include "binding/registration.h"

namespace sparkwright {
namespace {

Tensor gemv_2of4(const Tensor &x, const Tensor &values, const Tensor &positions, const Tensor &scales,
                 const Tensor &global_scale) {
  const Arguments arguments("nvfp4_gemv_2of4", x);
  arguments.expect("x", x, {kAny, kAny}, {ScalarType::BFloat16, ScalarType::Half});
  const int64_t width = x.size(1);
  arguments.require(width > 0 && width % 16 == 0, "x", "has rows of " + std::to_string(width), "NVFP4 needs a multiple of 16");
  arguments.expect("values", values, {kAny, width / 4}, {ScalarType::Byte});
  const int64_t rows = values.size(0);
  arguments.expect("positions", positions, {rows, width / 8}, {ScalarType::Byte});
  arguments.expect("scales", scales, {rows, width / 16}, {ScalarType::Float8_e4m3fn});
  arguments.expect("global_scale", global_scale, {}, {ScalarType::Float});

  arguments.expect_aligned("x", x);
  arguments.expect_aligned("values", values);
  arguments.expect_aligned("positions", positions);
  arguments.expect_aligned("scales", scales);

  const OnDevice device(x);
  Tensor out = torch::stable::new_empty(x, {x.size(0), rows});
  Gemv2of4 p{};
  p.tokens = x.size(0);
  p.rows = rows;
  p.width = width;
  p.x = x.data_ptr();
  p.values = static_cast<const uint8_t *>(values.data_ptr());
  p.positions = static_cast<const uint8_t *>(positions.data_ptr());
  p.scales = static_cast<const uint8_t *>(scales.data_ptr());
  p.global_scale = static_cast<const float *>(global_scale.data_ptr());
  p.out = out.data_ptr();
  p.activation = activation_of(x);
  nvfp4_gemv_2of4(p, device.stream());
  return out;
}

STABLE_TORCH_LIBRARY_FRAGMENT(gb10_kernels, library) {
  library.def("nvfp4_gemv_2of4(Tensor x, Tensor values, Tensor positions, Tensor scales, Tensor global_scale) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(gb10_kernels, GB10_DISPATCH_KEY, library) {
  library.impl("nvfp4_gemv_2of4", TORCH_BOX(&gemv_2of4));
}

}  // namespace
}  // namespace sparkwright
