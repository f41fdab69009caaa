// SPDX-License-Identifier: Apache-2.0
#include "simt/numeric.h"

#include <bit>
#include <cmath>
#include <cstdint>

#include "catch.h"

using namespace retnet::simt;

namespace {

// The value of a float with `exponent_bits` and `fraction_bits`, from its definition.
double value_of(uint32_t bits, int exponent_bits, int fraction_bits) {
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const int exponent = static_cast<int>(bits >> fraction_bits) & ((1 << exponent_bits) - 1);
  const double fraction = bits & ((1u << fraction_bits) - 1);
  const double sign = (bits >> 15 & 1u) != 0 ? -1 : 1;
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - bias - fraction_bits);
  return sign * std::ldexp(1 + std::ldexp(fraction, -fraction_bits), exponent - bias);
}

// All finite values, and floats at and beside each midpoint of two neighbours.
void check_format(int exponent_bits, int fraction_bits, float (*decode)(uint16_t),
                  uint16_t (*encode)(float)) {
  const uint32_t infinity = ((1u << exponent_bits) - 1) << fraction_bits;
  size_t wrong = 0;
  for (uint32_t sign = 0; sign <= 0x8000u; sign += 0x8000u) {
    for (uint32_t bits = 0; bits < infinity; ++bits) {
      const auto here = static_cast<uint16_t>(sign | bits);
      const auto next = static_cast<uint16_t>(sign | (bits + 1));
      const auto even = static_cast<uint16_t>(sign | (bits + (bits & 1u)));
      wrong += decode(here) != value_of(here, exponent_bits, fraction_bits);
      wrong += encode(decode(here)) != here;
      // Past the largest value: the neighbour is the value that infinity's bits would have.
      const double middle = (value_of(here, exponent_bits, fraction_bits) +
                             value_of(next, exponent_bits, fraction_bits)) /
                            2;
      const auto exact = static_cast<float>(middle);
      const float toward = sign != 0 ? -INFINITY : INFINITY;
      wrong += encode(exact) != even;
      wrong += encode(std::nextafter(exact, 0.0f)) != here;
      wrong += encode(std::nextafter(exact, toward)) != next;
    }
    wrong += encode(sign != 0 ? -INFINITY : INFINITY) != (sign | infinity);
    wrong += !std::isinf(decode(static_cast<uint16_t>(sign | infinity)));
  }
  for (uint32_t bits = infinity + 1; bits < 0x8000u; ++bits) {
    wrong += !std::isnan(decode(static_cast<uint16_t>(bits)));
  }
  wrong += encode(NAN) != 0x7fff;
  CHECK(wrong == 0);
}

}  // namespace

TEST_CASE("bfloat16 conversions round to nearest even") {
  // The midpoint below the smallest subnormal of bfloat16 is a float; beside it, too.
  check_format(8, 7, bfloat16_to_float, float_to_bfloat16);
}

TEST_CASE("float16 conversions round to nearest even") {
  check_format(5, 10, float16_to_float, float_to_float16);
}
