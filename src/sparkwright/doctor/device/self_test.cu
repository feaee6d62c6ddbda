// What only a GPU can prove, as one program without libraries of others: that gb10::float8_to_e2m1 gives on the device
// the bits that its rule gives on the host, and how fast memory can be copied. Prints one JSON object.
//
//   self_test            on the first GPU
//   self_test --host     the same sweep on the host, against a rule written in another way: nothing of CUDA is called
//
// The values: all 65,536 bfloat16 patterns, NaN included; 2,048 floats of every sign and exponent, their mantissas from
// a fixed sequence; and every midpoint between two E2M1 values with the floats next to it, of both signs.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>

#include "gb10/e2m1.cuh"

namespace {

constexpr int kPerStratum = 2048;
constexpr float kMidpoints[] = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5.0f};

float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof(x));
  return x;
}

uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}

std::vector<float> bfloat16_values() {
  std::vector<float> values;
  for (uint32_t pattern = 0; pattern < 65536; ++pattern) values.push_back(float_of(pattern << 16));
  return values;
}

std::vector<float> stratified_values() {
  std::vector<float> values;
  uint32_t state = 20251121;
  for (uint32_t stratum = 0; stratum < 512; ++stratum) {
    for (int i = 0; i < kPerStratum; ++i) {
      state = state * 1664525u + 1013904223u;
      values.push_back(float_of(stratum << 23 | state >> 9));
    }
  }
  for (float midpoint : kMidpoints) {
    for (uint32_t sign : {0u, 0x80000000u}) {
      for (uint32_t bits : {bits_of(midpoint) - 1, bits_of(midpoint), bits_of(midpoint) + 1}) {
        values.push_back(float_of(bits | sign));
      }
    }
  }
  while (values.size() % 8 != 0) values.push_back(0.0f);
  return values;
}

// The nearest of the eight values, by their distances in double precision; of two as near the one with the even code.
uint8_t nearest(float x) {
  constexpr double magnitudes[] = {0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0};
  if (std::isnan(x)) return 7;
  const double y = std::fmin(std::fabs(static_cast<double>(x)), 6.0);
  int code = 0;
  for (int i = 1; i < 8; ++i) {
    const double now = std::fabs(magnitudes[i] - y), best = std::fabs(magnitudes[code] - y);
    if (now < best || (now == best && i % 2 == 0)) code = i;
  }
  return static_cast<uint8_t>(code | (std::signbit(x) ? 8 : 0));
}

struct Converted {
  std::vector<uint8_t> alone;    // one byte for each value
  std::vector<uint32_t> packed;  // eight values in each word
};

Converted on_host(const std::vector<float>& values) {
  Converted converted;
  for (size_t i = 0; i < values.size(); i += 8) {
    float x[8];
    std::memcpy(x, &values[i], sizeof(x));
    for (float one : x) converted.alone.push_back(gb10::float_to_e2m1(one));
    converted.packed.push_back(gb10::float8_to_e2m1(x));
  }
  return converted;
}

Converted by_distance(const std::vector<float>& values) {
  Converted converted;
  for (size_t i = 0; i < values.size(); ++i) {
    if (i % 8 == 0) converted.packed.push_back(0);
    converted.alone.push_back(nearest(values[i]));
    converted.packed.back() |= static_cast<uint32_t>(converted.alone.back()) << (4 * (i % 8));
  }
  return converted;
}

struct Comparison {
  size_t values = 0, mismatches = 0;
  uint32_t first = 0;  // bits of the first value that differs
};

Comparison compare(const std::vector<float>& values, const Converted& one, const Converted& other) {
  Comparison result;
  result.values = values.size();
  for (size_t i = 0; i < values.size(); ++i) {
    const unsigned shift = 4 * (i % 8);
    const bool same = one.alone[i] == other.alone[i] &&
                      (one.packed[i / 8] >> shift & 15u) == (other.packed[i / 8] >> shift & 15u);
    if (!same && result.mismatches++ == 0) result.first = bits_of(values[i]);
  }
  return result;
}

void print(const char* name, const Comparison& found) {
  std::printf("\"%s\": {\"values\": %zu, \"mismatches\": %zu, \"first\": \"0x%08x\"}", name, found.values,
              found.mismatches, found.first);
}

int host() {
  const auto bfloat16 = bfloat16_values(), floats = stratified_values();
  std::printf("{\"where\": \"host\", \"hardware_convert\": false, ");
  print("bfloat16", compare(bfloat16, on_host(bfloat16), by_distance(bfloat16)));
  std::printf(", ");
  print("floats", compare(floats, on_host(floats), by_distance(floats)));
  std::printf("}\n");
  return 0;
}

__global__ void convert(const float* from, uint8_t* alone, uint32_t* packed, size_t words, int* hardware) {
#if defined(GB10_E2M1_HARDWARE)
  *hardware = 1;
#else
  *hardware = 0;
#endif
  const size_t word = static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (word >= words) return;
  float x[8];
  for (int i = 0; i < 8; ++i) {
    x[i] = from[8 * word + i];
    alone[8 * word + i] = gb10::float_to_e2m1(x[i]);
  }
  packed[word] = gb10::float8_to_e2m1(x);
}

bool report(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return true;
  std::printf("{\"where\": \"device\", \"error\": \"%s: %s\"}\n", what, cudaGetErrorString(status));
  return false;
}

template <typename T>
T* allocate(size_t count) {
  void* memory = nullptr;
  return cudaMalloc(&memory, count * sizeof(T)) == cudaSuccess ? static_cast<T*>(memory) : nullptr;
}

bool on_device(const std::vector<float>& values, Converted& converted, int& hardware) {
  const size_t words = values.size() / 8;
  converted.alone.resize(values.size());
  converted.packed.resize(words);
  float* from = allocate<float>(values.size());
  uint8_t* alone = allocate<uint8_t>(values.size());
  uint32_t* packed = allocate<uint32_t>(words);
  int* flag = allocate<int>(1);
  if (!report(cudaGetLastError(), "allocating memory")) return false;
  cudaMemcpy(from, values.data(), values.size() * sizeof(float), cudaMemcpyHostToDevice);
  convert<<<static_cast<unsigned>((words + 255) / 256), 256>>>(from, alone, packed, words, flag);
  if (!report(cudaGetLastError(), "starting the kernel")) return false;
  if (!report(cudaDeviceSynchronize(), "running the kernel")) return false;
  cudaMemcpy(converted.alone.data(), alone, values.size(), cudaMemcpyDeviceToHost);
  cudaMemcpy(converted.packed.data(), packed, words * sizeof(uint32_t), cudaMemcpyDeviceToHost);
  cudaMemcpy(&hardware, flag, sizeof(int), cudaMemcpyDeviceToHost);
  cudaFree(from), cudaFree(alone), cudaFree(packed), cudaFree(flag);
  return report(cudaGetLastError(), "copying the results");
}

// Bytes read and written in a second by a copy within the GPU's memory: the best of ten, of a size that no cache holds.
double copied_per_second() {
  const size_t size = size_t{1} << 30;
  char *from = allocate<char>(size), *to = allocate<char>(size);
  cudaEvent_t start, stop;
  cudaEventCreate(&start), cudaEventCreate(&stop);
  float best = 0;
  for (int round = 0; round < 11 && from && to; ++round) {
    cudaEventRecord(start);
    cudaMemcpyAsync(to, from, size, cudaMemcpyDeviceToDevice);
    cudaEventRecord(stop);
    if (cudaEventSynchronize(stop) != cudaSuccess) return 0;
    float milliseconds = 0;
    cudaEventElapsedTime(&milliseconds, start, stop);
    if (round > 0 && (best == 0 || milliseconds < best)) best = milliseconds;  // the first one warms up
  }
  cudaFree(from), cudaFree(to);
  return best > 0 ? 2.0 * static_cast<double>(size) / (best / 1000.0) : 0;
}

int device() {
  const auto bfloat16 = bfloat16_values(), floats = stratified_values();
  Converted of_bfloat16, of_floats;
  int hardware = 0;
  if (!on_device(bfloat16, of_bfloat16, hardware) || !on_device(floats, of_floats, hardware)) return 1;
  const auto found_bfloat16 = compare(bfloat16, of_bfloat16, on_host(bfloat16));
  const auto found_floats = compare(floats, of_floats, on_host(floats));
  const double copied = copied_per_second();
  std::printf("{\"where\": \"device\", \"hardware_convert\": %s, ", hardware ? "true" : "false");
  print("bfloat16", found_bfloat16);
  std::printf(", ");
  print("floats", found_floats);
  std::printf(", \"copied_per_second\": %.0f}\n", copied);
  return 0;
}

}  // namespace

int main(int count, char** words) {
  return count > 1 && std::strcmp(words[1], "--host") == 0 ? host() : device();
}
