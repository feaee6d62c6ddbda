// What Python calls by ctypes: the launchers, with their struct as one argument each and errors as text.
#include <algorithm>
#include <cstring>
#include <exception>

#include "common/nvfp4.cuh"
#include "nvfp4_gemv/nvfp4_gemv.h"
#include "nvfp4_quantize/nvfp4_quantize.h"

namespace {

// The message of what `call` throws, or an empty one.
template <typename Call>
void guarded(char *message, size_t size, const Call &call) {
  message[0] = '\0';
  try {
    call();
  } catch (const std::exception &error) {
    message[std::min(std::strlen(error.what()), size - 1)] = '\0';
    std::memcpy(message, error.what(), std::min(std::strlen(error.what()), size - 1));
  }
}

template <typename Decoder>
void decode_all(float *values) {
  for (uint32_t word = 0; word < 65536; ++word) {
    float low[8];
    float high[8];
    Decoder::decode(word, low);
    Decoder::decode(word << 16, high);
    for (int i = 0; i < 4; ++i) values[word * 8 + i] = low[i] / Decoder::unit;
    for (int i = 4; i < 8; ++i) values[word * 8 + i] = high[i] / Decoder::unit;
  }
}

}  // namespace

extern "C" {

void gemv(const sparkwright::Nvfp4Gemv *problem, char *message, size_t size) {
  guarded(message, size, [&] { sparkwright::nvfp4_gemv(*problem, nullptr); });
}

void quantize(const sparkwright::Nvfp4Quantize *problem, char *message, size_t size) {
  guarded(message, size, [&] { sparkwright::nvfp4_quantize(*problem, nullptr); });
}

// Of each 16-bit word: its four codes decoded from the low half of a register, then from the high half.
void decode(int decoder, float *values) {
  if (decoder == 0) decode_all<sparkwright::ByBits>(values);
  if (decoder == 1) decode_all<sparkwright::ByE4m3>(values);
  if (decoder == 2) decode_all<sparkwright::ByE2m1>(values);
}

void decode_scales(float *values) {
  for (int byte = 0; byte < 256; ++byte) values[byte] = sparkwright::e4m3_to_float(static_cast<uint8_t>(byte));
}

}  // extern "C"
