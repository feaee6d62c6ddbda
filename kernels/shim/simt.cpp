#include "simt.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <random>
#include <sstream>
#include <vector>

#include "cuda_runtime.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {
namespace {

// The limits of compute capability 12.1, and of 8.0 and 9.0 but for the memory.
constexpr unsigned kMostThreads = 1024;
constexpr unsigned kMostBlocksX = 0x7fffffff;
constexpr unsigned kMostBlocksYZ = 65535;
constexpr size_t kMostShared = 99 * 1024;

#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStack = 256 * 1024;
#else
constexpr size_t kStack = 64 * 1024;
#endif
constexpr size_t kGuard = 4096;

enum class State { ready, at_block_barrier, at_warp_exchange, returned };

struct Fiber {
  ucontext_t context{};
  std::byte *stack = nullptr;
  State state = State::returned;
  uint3 index{};
  Place place{};
  // Of a warp exchange.
  const char *name = nullptr;
  uint32_t mask = 0;
  uint64_t word = 0;
  Lanes lanes{};
#if defined(__SANITIZE_ADDRESS__)
  void *fake_stack = nullptr;
#endif
};

// The stacks of as many fibers as the widest block so far, kept for the next launch.
class Stacks {
 public:
  ~Stacks() {
    for (std::byte *stack : stacks_) munmap(stack, kGuard + kStack);
  }
  std::byte *at(size_t number) {
    while (stacks_.size() <= number) {
      void *memory = mmap(nullptr, kGuard + kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (memory == MAP_FAILED || mprotect(memory, kGuard, PROT_NONE) != 0) throw Error("no memory for the stack of a thread");
      stacks_.push_back(static_cast<std::byte *>(memory));
    }
    return stacks_[number] + kGuard;
  }

 private:
  std::vector<std::byte *> stacks_;
};

thread_local Stacks stacks;

// In which order threads and blocks take their turns. A kernel's result must not depend on it; one that lacks a
// barrier gives different results under different orders.
class Order {
 public:
  Order() {
    const char *set = std::getenv("SIMT_ORDER");
    const std::string name = set == nullptr ? "ascending" : set;
    if (name == "ascending") return;
    if (name == "descending") {
      descending_ = true;
    } else if (name.rfind("random:", 0) == 0) {
      random_ = true;
      generator_.seed(static_cast<unsigned>(std::strtoul(name.c_str() + 7, nullptr, 10)));
    } else {
      throw Error("SIMT_ORDER is '" + name + "'; it must be ascending, descending or random:NUMBER");
    }
  }
  bool descending() const { return descending_; }
  void arrange(std::vector<unsigned> &order) {
    std::iota(order.begin(), order.end(), 0u);
    if (descending_) std::reverse(order.begin(), order.end());
    if (random_) std::shuffle(order.begin(), order.end(), generator_);
  }

 private:
  bool descending_ = false;
  bool random_ = false;
  std::mt19937 generator_;
};

// How many blocks of a grid run: all, or at most SIMT_SAMPLE of them, spread evenly, the first and the last among them.
// It lets a test reach the far end of a grid that would take hours.
uint64_t blocks_to_run(uint64_t blocks) {
  const char *set = std::getenv("SIMT_SAMPLE");
  const uint64_t sample = set == nullptr ? 0 : std::strtoull(set, nullptr, 10);
  if (set != nullptr && sample < 2) throw Error(std::string("SIMT_SAMPLE is '") + set + "'; it must be a number from 2 on");
  return set == nullptr ? blocks : std::min(blocks, sample);
}

class Block {
 public:
  Block(dim3 block, size_t shared_bytes, const std::function<void()> &thread)
      : block_(block), fibers_(block.x * block.y * block.z), order_(fibers_.size()), shared_bytes_(shared_bytes), thread_(thread) {
    // Exactly as many bytes as were asked for, so that AddressSanitizer sees the first one beyond.
    shared_.reset(static_cast<std::byte *>(std::aligned_alloc(128, (shared_bytes + 127) / 128 * 128)));
    if (shared_bytes > 0 && shared_ == nullptr) throw Error("no memory for the shared memory of a block");
#if defined(__SANITIZE_ADDRESS__)
    __asan_poison_memory_region(shared_.get() + shared_bytes, (128 - shared_bytes % 128) % 128);
#endif
  }
#if defined(__SANITIZE_ADDRESS__)
  ~Block() { __asan_unpoison_memory_region(shared_.get(), (shared_bytes_ + 127) / 128 * 128); }
#endif

  void run(Order &order);
  std::byte *shared() { return shared_.get(); }
  Fiber &current() { return fibers_[current_]; }
  int lane() const { return static_cast<int>(current_ % 32); }
  void barrier(Place place);
  Lanes exchange(const char *name, uint32_t mask, uint64_t word, Place place);

 private:
  struct Free {
    void operator()(std::byte *memory) const { std::free(memory); }
  };

  static void enter();
  void prepare(unsigned number);
  void resume(unsigned number);
  void give_way();
  void report_deadlock() const;

  dim3 block_;
  std::vector<Fiber> fibers_;
  std::vector<unsigned> order_;
  size_t shared_bytes_;
  std::unique_ptr<std::byte, Free> shared_;
  const std::function<void()> &thread_;
  unsigned current_ = 0;
  unsigned at_barrier_ = 0;
  std::exception_ptr error_;
  ucontext_t scheduler_{};
#if defined(__SANITIZE_ADDRESS__)
  const void *scheduler_stack_ = nullptr;
  size_t scheduler_stack_size_ = 0;
  void *scheduler_fake_stack_ = nullptr;
#endif
};

thread_local Block *running = nullptr;

void Block::enter() {
  Block &block = *running;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &block.scheduler_stack_, &block.scheduler_stack_size_);
#endif
  try {
    block.thread_();
  } catch (...) {
    block.error_ = std::current_exception();
  }
  block.current().state = State::returned;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(nullptr, block.scheduler_stack_, block.scheduler_stack_size_);
#endif
  setcontext(&block.scheduler_);
}

void Block::prepare(unsigned number) {
  Fiber &fiber = fibers_[number];
  fiber.stack = stacks.at(number);
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(fiber.stack, kStack);  // a launch that failed left its frames there
#endif
  fiber.index = {number % block_.x, number / block_.x % block_.y, number / block_.x / block_.y};
  fiber.state = State::ready;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack;
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = nullptr;
  makecontext(&fiber.context, &Block::enter, 0);
}

void Block::resume(unsigned number) {
  current_ = number;
  threadIdx = fibers_[number].index;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&scheduler_fake_stack_, fibers_[number].stack, kStack);
#endif
  swapcontext(&scheduler_, &fibers_[number].context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(scheduler_fake_stack_, nullptr, nullptr);
#endif
}

void Block::give_way() {
  Fiber &fiber = current();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&fiber.fake_stack, scheduler_stack_, scheduler_stack_size_);
#endif
  swapcontext(&fiber.context, &scheduler_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fiber.fake_stack, &scheduler_stack_, &scheduler_stack_size_);
#endif
}

void Block::run(Order &order) {
  if (shared_bytes_ > 0) std::memset(shared_.get(), 0xff, shared_bytes_);
  at_barrier_ = 0;
  error_ = nullptr;
  for (unsigned number = 0; number < fibers_.size(); ++number) prepare(number);
  size_t returned = 0;
  while (returned < fibers_.size()) {
    order.arrange(order_);
    bool progress = false;
    for (const unsigned number : order_) {
      if (fibers_[number].state != State::ready) continue;
      progress = true;
      resume(number);
      if (error_ != nullptr) std::rethrow_exception(error_);
      returned += fibers_[number].state == State::returned;
    }
    if (!progress) report_deadlock();
  }
}

void Block::barrier(Place place) {
  Fiber &fiber = current();
  fiber.place = place;
  fiber.state = State::at_block_barrier;
  for (const Fiber &other : fibers_) {
    if (other.state == State::at_block_barrier && !(other.place == place)) {
      fail("threads of a block wait at different barriers: also at line " + std::to_string(other.place.line), place);
    }
  }
  if (++at_barrier_ < fibers_.size()) return give_way();
  at_barrier_ = 0;
  for (Fiber &other : fibers_) other.state = State::ready;
}

Lanes Block::exchange(const char *name, uint32_t mask, uint64_t word, Place place) {
  if (!(mask >> lane() & 1u)) fail(std::string("a lane calls ") + name + " with a mask that leaves it out", place);
  Fiber &fiber = current();
  fiber.place = place;
  fiber.name = name;
  fiber.mask = mask;
  fiber.word = word;
  fiber.state = State::at_warp_exchange;
  const size_t first = current_ / 32 * 32;
  const size_t count = std::min<size_t>(32, fibers_.size() - first);
  Lanes lanes{};
  for (size_t i = 0; i < count; ++i) {
    const Fiber &other = fibers_[first + i];
    if (!(mask >> i & 1u) || other.state == State::returned) continue;
    if (other.state != State::at_warp_exchange || other.mask != mask || !(other.place == place)) {
      give_way();
      return fiber.lanes;
    }
    lanes.present |= 1u << i;
    lanes.words[i] = other.word;
  }
  for (size_t i = 0; i < count; ++i) {
    if (!(lanes.present >> i & 1u)) continue;
    fibers_[first + i].lanes = lanes;
    fibers_[first + i].state = State::ready;
  }
  return lanes;
}

void Block::report_deadlock() const {
  std::ostringstream text;
  text << "the threads of a block wait for each other, block (" << blockIdx.x << ", " << blockIdx.y << ", " << blockIdx.z << "):";
  const auto describe = [](const Fiber &fiber) {
    std::ostringstream what;
    if (fiber.state == State::returned) return std::string("returned");
    what << (fiber.state == State::at_block_barrier ? "__syncthreads" : fiber.name) << " at line " << fiber.place.line;
    if (fiber.state == State::at_warp_exchange) what << " with mask 0x" << std::hex << fiber.mask;
    return what.str();
  };
  for (size_t i = 0; i < fibers_.size();) {
    size_t end = i + 1;
    while (end < fibers_.size() && describe(fibers_[end]) == describe(fibers_[i])) ++end;
    text << " threads " << i << " to " << end - 1 << ": " << describe(fibers_[i]) << ";";
    i = end;
  }
  throw Error(text.str());
}

Block &of_this_thread() {
  if (running == nullptr) throw Error("device code was called outside of a kernel");
  return *running;
}

}  // namespace

void run(dim3 grid, dim3 block, size_t dynamic_shared_bytes, const std::function<void()> &thread) {
  const auto refuse = [](const std::string &what) { throw Error("the launch would be refused: " + what); };
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMostThreads || block.z > 64) refuse("a block of " + std::to_string(threads) + " threads");
  if (grid.x == 0 || grid.y == 0 || grid.z == 0) refuse("a grid of no blocks");
  if (grid.x > kMostBlocksX || grid.y > kMostBlocksYZ || grid.z > kMostBlocksYZ) {
    refuse("a grid of " + std::to_string(grid.x) + " x " + std::to_string(grid.y) + " x " + std::to_string(grid.z) + " blocks");
  }
  if (dynamic_shared_bytes > kMostShared) refuse(std::to_string(dynamic_shared_bytes) + " bytes of shared memory");
  if (running != nullptr) throw Error("a kernel was launched from within a kernel");
  Order order;
  Block state(block, dynamic_shared_bytes, thread);
  running = &state;
  struct Stop {
    ~Stop() { running = nullptr; }
  } stop;
  gridDim = grid;
  blockDim = block;
  const uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
  const uint64_t turns = blocks_to_run(blocks);
  for (uint64_t turn = 0; turn < turns; ++turn) {
    const uint64_t place = order.descending() ? turns - 1 - turn : turn;
    const uint64_t number = turns == blocks ? place : place * (blocks - 1) / (turns - 1);
    blockIdx = {static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
                static_cast<unsigned>(number / grid.x / grid.y)};
    state.run(order);
  }
}

void *dynamic_shared() { return of_this_thread().shared(); }
int lane() { return of_this_thread().lane(); }
void block_barrier(Place place) { of_this_thread().barrier(place); }
Lanes warp_exchange(const char *name, uint32_t mask, uint64_t word, Place place) {
  return of_this_thread().exchange(name, mask, word, place);
}
void fail(const std::string &what, Place place) {
  throw Error(what + " (" + place.file + ", line " + std::to_string(place.line) + ")");
}

}  // namespace simt
