// Compare the candidate with the reference: sweep edges|packs|all. Prints how many values differ and one of them.
//
//   edges  every float whose low half is zero, and both its neighbours: all ties, limits, infinities, and NaNs
//   packs  2^25 packs of eight unrelated values: does a value spill over into its neighbours?
//   all    all 2^32 floats, in order
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "converters.h"

namespace {

using Generator = uint32_t (*)(uint64_t index);

uint32_t edge(uint64_t index) { return static_cast<uint32_t>(((index / 3) << 16) + index % 3 - 1); }

uint32_t in_order(uint64_t index) { return static_cast<uint32_t>(index); }

// Half of the values lie where E2M1 has something to decide, from 2^-3 to 2^4; the others are edges or any float.
uint32_t random(uint64_t index) {
  uint64_t bits = (index + 1) * 0x9e3779b97f4a7c15u;
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
  bits ^= bits >> 31;
  const uint32_t any = static_cast<uint32_t>(bits);
  switch (bits >> 62) {
    case 0:
      return any;
    case 1:
      return edge((bits >> 32) % (3u << 16));
    default:
      return (any & 0x807fffffu) | static_cast<uint32_t>(124 + (bits >> 32) % 7) << 23;
  }
}

class Sweep {
 public:
  void run(Generator generate, uint64_t values) {
    const unsigned workers = std::max(1u, std::thread::hardware_concurrency());
    std::vector<std::thread> threads;
    for (unsigned worker = 0; worker < workers; ++worker) {
      threads.emplace_back([=, this] {
        for (uint64_t block = worker * kBlock; block < values; block += workers * kBlock) check(generate, block);
      });
    }
    for (std::thread& thread : threads) thread.join();
    std::printf("%llu %08x\n", static_cast<unsigned long long>(differences_), example_.load());
  }

 private:
  static constexpr uint64_t kBlock = 4096;  // divides the number of values of each sweep

  void check(Generator generate, uint64_t start) {
    float values[kBlock];
    for (uint64_t i = 0; i < kBlock; ++i) {
      const uint32_t bits = generate(start + i);
      std::memcpy(&values[i], &bits, sizeof(bits));
    }
    uint8_t alone[kBlock], nearest[kBlock], negative[kBlock];
    uint32_t packed[kBlock / 8], signs[kBlock / 2];
    candidate(values, kBlock, alone, packed, signs);
    reference(values, kBlock, nearest, negative);
    for (uint64_t i = 0; i < kBlock; ++i) {
      const uint32_t in_pack = (packed[i / 8] >> (4 * (i % 8))) & 15u;
      const uint32_t sign = (signs[i / 2] >> (i % 2 == 0 ? 15 : 31)) & 1u;
      if (alone[i] != nearest[i] || in_pack != nearest[i] || sign != negative[i]) {
        ++differences_;
        example_ = generate(start + i);
      }
    }
  }

  std::atomic<uint64_t> differences_{0};
  std::atomic<uint32_t> example_{0};
};

}  // namespace

int main(int argc, char** argv) {
  const std::string what = argc == 2 ? argv[1] : "";
  if (what == "edges") {
    Sweep().run(edge, 3u << 16);
  } else if (what == "packs") {
    Sweep().run(random, 8ull << 25);
  } else if (what == "all") {
    Sweep().run(in_order, 1ull << 32);
  } else {
    std::fprintf(stderr, "usage: sweep edges|packs|all\n");
    return 64;
  }
  return 0;
}
