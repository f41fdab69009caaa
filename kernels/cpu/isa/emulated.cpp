// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/isa/instance.h"
#include "kernels/cpu/isa/registry.h"

namespace retnet::kernels::cpu {
namespace {

struct Emulated {
  static constexpr int kLanes = 16;
  static constexpr int kTileRows = 8;
  static F<16> dot(F<16> sum, U<16> a, U<16> b) {
    const auto low = [](U<16> x) { return bits<F<16>>(x << 16); };
    const auto high = [](U<16> x) { return bits<F<16>>(x & 0xffff0000u); };
    return sum + low(a) * low(b) + high(a) * high(b);
  }
  static H<32> round(F<16> x, F<16> y) {
    H<32> values;
    const H<16> halves[] = {narrow<16>(x, BFloat16{}), narrow<16>(y, BFloat16{})};
    __builtin_memcpy(&values, halves, sizeof values);
    return values;
  }
};

}  // namespace

// The kernels of the other dtypes are those of kPortable.
extern const InstructionSet kEmulated{"emulated",
                                      [] { return true; },
                                      kPortable.float32,
                                      make_kernel_table<BFloat16PairOperand<Emulated>, BFloat16>(),
                                      kPortable.float16,
                                      cos_sin<16>,
                                      decode_step<16>,
                                      pack_linear_token<BFloat16PairOperand<Emulated>>,
                                      linear<BFloat16PairOperand<Emulated>>,
                                      kPortable.peak_float32,
                                      kPortable.peak_bfloat16};

}  // namespace retnet::kernels::cpu
