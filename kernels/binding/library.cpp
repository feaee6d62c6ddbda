#include <torch/csrc/stable/library.h>

// Names the library; each kernel's binding adds its operators to it.
STABLE_TORCH_LIBRARY(gb10_kernels, library) { (void)library; }
