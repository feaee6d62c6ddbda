// What the operators ask of their arguments, said so that a reader of the message knows what to change.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/types.h"

namespace sparkwright {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Any length of a dimension will do.
constexpr int64_t kAny = -1;
// What the widest loads of the kernels want.
constexpr uintptr_t kAlignment = 16;

inline Activation16 activation_of(const Tensor &x) {
  return x.scalar_type() == ScalarType::BFloat16 ? Activation16::bfloat16 : Activation16::float16;
}

// Checks the arguments of one operator against each other, the first tensor's device being the operator's.
class Arguments {
 public:
  Arguments(const char *op, const Tensor &first) : op_(op), first_(first) {}

  // Refuses the tensor unless it has these sizes and one of these dtypes, is contiguous and on the operator's device.
  void expect(const char *name, const Tensor &tensor, const std::vector<int64_t> &sizes,
              std::initializer_list<ScalarType> dtypes) const {
    bool sized = tensor.dim() == static_cast<int64_t>(sizes.size());
    for (size_t i = 0; sized && i < sizes.size(); ++i) sized = sizes[i] == kAny || sizes[i] == tensor.size(static_cast<int64_t>(i));
    bool typed = false;
    for (const ScalarType dtype : dtypes) typed = typed || tensor.scalar_type() == dtype;
    if (!sized || !typed) fail(name, "is " + describe(tensor), "expected " + describe(sizes, dtypes));
    if (!tensor.is_contiguous()) fail(name, "is not contiguous", "call .contiguous() on it once, when the model is loaded");
    const bool here = tensor.is_cpu() == first_.is_cpu() && tensor.get_device_index() == first_.get_device_index();
    if (!here) fail(name, "is on another device than the first argument", "move it there");
  }

  // Refuses a tensor that vector loads could not read.
  void expect_aligned(const char *name, const Tensor &tensor) const {
    if (tensor.numel() > 0 && reinterpret_cast<uintptr_t>(tensor.data_ptr()) % kAlignment != 0) {
      fail(name, "does not start at a multiple of 16 bytes", "it is a view into another tensor; clone it");
    }
  }

  // Refuses the arguments unless the condition holds.
  void require(bool holds, const char *name, const std::string &what, const std::string &remedy) const {
    if (!holds) fail(name, what, remedy);
  }

 private:
  static std::string describe(const std::vector<int64_t> &sizes) {
    std::string text = "[";
    for (const int64_t size : sizes) text += (text.size() > 1 ? ", " : "") + (size == kAny ? "any" : std::to_string(size));
    return text + "]";
  }
  static std::string describe(const Tensor &tensor) {
    std::vector<int64_t> sizes;
    for (int64_t i = 0; i < tensor.dim(); ++i) sizes.push_back(tensor.size(i));
    return describe(sizes) + " of " + torch::headeronly::toString(tensor.scalar_type());
  }
  static std::string describe(const std::vector<int64_t> &sizes, std::initializer_list<ScalarType> dtypes) {
    std::string text = describe(sizes) + " of ";
    bool first = true;
    for (const ScalarType dtype : dtypes) {
      text += std::string(first ? "" : " or ") + torch::headeronly::toString(dtype);
      first = false;
    }
    return text;
  }
  [[noreturn]] void fail(const char *name, const std::string &what, const std::string &remedy) const {
    throw std::runtime_error(std::string("gb10_kernels.") + op_ + ": " + name + " " + what + "; " + remedy);
  }

  const char *op_;
  const Tensor &first_;
};

}  // namespace sparkwright
