// SPDX-License-Identifier: Apache-2.0
//
// ldmatrix and mma, by the fragment layouts of the PTX ISA.
#include <cstring>

#include "simt/device.h"
#include "simt/numeric.h"
#include "simt/runtime/block.h"

namespace retnet::simt {
namespace {

struct LoadArgument {
  uint32_t* registers;
  uint32_t address;
};

// Row i of matrix m is at the address that lane 8 m + i gives. Lane l receives the element 2 (l % 4)
// and the next one of row l / 4, or of column l / 4 if transposed.
template <int kCount, bool kTransposed>
void load(Block& block, std::span<Lane> warp, Pc pc) {
  const auto argument = [&](int lane) -> const LoadArgument& {
    return *static_cast<const LoadArgument*>(warp[lane].argument);
  };
  SharedMemory& shared = block.shared();
  SharedCount& count = block.counters().matrix_load;
  ++count.instructions;
  for (int m = 0; m < kCount; ++m) {
    uint16_t matrix[8][8];
    uint64_t addresses[32];
    for (int i = 0; i < 8; ++i) {
      Lane& lane = warp[m * 8 + i];
      const uint32_t address = argument(lane.lane).address;
      addresses[i] = address;
      std::memset(matrix[i], 0xff, sizeof(matrix[i]));
      if (address % 16 != 0) {
        block.launch().findings.add(FindingKind::kMisaligned, place_of(lane), pc, 0, [&] {
          return format("ldmatrix row at shared address %u, not a multiple of 16", address);
        });
      } else if (shared.check_bounds(lane, address, 16, pc, "ldmatrix row")) {
        shared.read(lane, address, 16, pc, true);
        std::memcpy(matrix[i], shared.at(address), 16);
      }
    }
    int minimum = 0;
    count.wavefronts += wavefronts(addresses, 0xff, 16, minimum);
    count.minimum += minimum;
    for (int l = 0; l < 32; ++l) {
      const int i = l / 4, j = l % 4 * 2;
      const uint32_t lower = kTransposed ? matrix[j][i] : matrix[i][j];
      const uint32_t upper = kTransposed ? matrix[j + 1][i] : matrix[i][j + 1];
      argument(l).registers[m] = lower | upper << 16;
    }
  }
}

struct MultiplyArgument {
  float* d;
  const uint32_t* a;
  const uint32_t* b;
};

// Computes D += A B with A 16 x 16, B 16 x 8, D 16 x 8. The products are exact, and their sum is
// rounded once. The hardware truncates, so a kernel agrees with it only to tolerance.
template <Half kType>
void multiply(Block& block, std::span<Lane> warp, Pc) {
  ++block.counters().mma;
  const auto lower = [](uint32_t word) -> double {
    const auto bits = static_cast<uint16_t>(word);
    return kType == Half::kBFloat16 ? bfloat16_to_float(bits) : float16_to_float(bits);
  };
  const auto upper = [&](uint32_t word) { return lower(word >> 16); };
  double a[16][16], b[16][8], d[16][8];
  for (int l = 0; l < 32; ++l) {
    const auto& argument = *static_cast<const MultiplyArgument*>(warp[l].argument);
    const int row = l / 4, column = l % 4 * 2;
    for (int i = 0; i < 4; ++i) {
      const int r = row + i % 2 * 8, c = column + i / 2 * 8;
      a[r][c] = lower(argument.a[i]);
      a[r][c + 1] = upper(argument.a[i]);
      d[row + i / 2 * 8][column + i % 2] = argument.d[i];
    }
    for (int i = 0; i < 2; ++i) {
      b[column + i * 8][row] = lower(argument.b[i]);
      b[column + i * 8 + 1][row] = upper(argument.b[i]);
    }
  }
  for (int r = 0; r < 16; ++r) {
    for (int k = 0; k < 16; ++k) {
      for (int c = 0; c < 8; ++c) d[r][c] += a[r][k] * b[k][c];
    }
  }
  for (int l = 0; l < 32; ++l) {
    const auto& argument = *static_cast<const MultiplyArgument*>(warp[l].argument);
    for (int i = 0; i < 4; ++i) {
      argument.d[i] = static_cast<float>(d[l / 4 + i / 2 * 8][l % 4 * 2 + i % 2]);
    }
  }
}

}  // namespace

void load_matrices(uint32_t* registers, uint32_t address, int count, bool transposed) {
  const Pc pc = to_pc(__builtin_return_address(0));
  const Runtime runtime;
  const LoadArgument argument{registers, address};
  const auto run = [&](const char* name, Block::Action act) {
    runtime.block.collective(runtime.lane, name, &argument, pc, act);
  };
  if (count == 1)
    transposed ? run("ldmatrix_x1_t", &load<1, true>) : run("ldmatrix_x1", &load<1, false>);
  if (count == 2)
    transposed ? run("ldmatrix_x2_t", &load<2, true>) : run("ldmatrix_x2", &load<2, false>);
  if (count == 4)
    transposed ? run("ldmatrix_x4_t", &load<4, true>) : run("ldmatrix_x4", &load<4, false>);
}

void multiply_accumulate(float* d, const uint32_t* a, const uint32_t* b, Half type) {
  const Pc pc = to_pc(__builtin_return_address(0));
  const Runtime runtime;
  const MultiplyArgument argument{d, a, b};
  if (type == Half::kBFloat16) {
    runtime.block.collective(runtime.lane, "mma_bf16", &argument, pc, &multiply<Half::kBFloat16>);
  } else {
    runtime.block.collective(runtime.lane, "mma_fp16", &argument, pc, &multiply<Half::kFloat16>);
  }
}

}  // namespace retnet::simt
