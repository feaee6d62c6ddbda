// Runs the threads of a CUDA grid on one thread of the machine: each as a fiber, which gives way at barriers only.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>

#include <vector_types.h>

namespace simt {

// What the program did wrong, or what a GPU would have refused to start.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// A line of the kernel's source.
struct Place {
  const char *file;
  int line;
  bool operator==(const Place &) const = default;
};

// What the lanes of a warp brought to an exchange, and which of them came.
struct Lanes {
  std::array<uint64_t, 32> words;
  uint32_t present;
};

// Runs `thread` once for every thread of the grid, one block after another.
//
// Throws Error where a GPU would refuse the launch, and when the threads that are left wait for each other.
void run(dim3 grid, dim3 block, size_t dynamic_shared_bytes, const std::function<void()> &thread);

// From here on: called by a thread of a running grid.

// The block's dynamic shared memory, of exactly the size asked for; each byte is 0xff when the block starts.
void *dynamic_shared();
// This thread's place in its warp.
int lane();
// Waits until every thread of the block waits here. A thread that has returned never comes.
void block_barrier(Place place);
// Waits until every lane named by `mask` waits here with the same mask. Lanes that have returned are left out.
Lanes warp_exchange(const char *name, uint32_t mask, uint64_t word, Place place);
[[noreturn]] void fail(const std::string &what, Place place);

}  // namespace simt
