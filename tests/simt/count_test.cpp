// SPDX-License-Identifier: Apache-2.0
//
// Tests the counters by cases whose counts are known by hand, and what the instructions compute.
#include <cmath>
#include <vector>

#include "catch.h"
#include "simt/count_kernels.h"
#include "simt/numeric.h"
#include "simt/simt.h"

using namespace retnet::simt;
using retnet::kernels::cuda::DType;

TEST_CASE("wavefronts of a strided access are the most words in one bank") {
  const struct {
    int stride;
    uint64_t wavefronts;
  } cases[] = {{0, 1}, {1, 1}, {2, 2}, {3, 1}, {4, 4}, {8, 8}, {16, 16}, {31, 1}, {32, 32}};
  for (const auto& [stride, expected] : cases) {
    Simulator simulator;
    float* out = simulator.output<float>(32, "out");
    REQUIRE(launch_shared_stride(stride, out) == cudaSuccess);
    const Report& report = simulator.finish();
    INFO("stride " << stride);
    if (stride > 0) CHECK(report.to_string() == "");
    CHECK(report.has(FindingKind::kSharedWriteAfterWrite) == (stride == 0));
    const Counters counters = report.total();
    CHECK(counters.shared_store.instructions == 1);
    CHECK(counters.shared_load.instructions == 1);
    CHECK(counters.shared_store.wavefronts == expected);
    CHECK(counters.shared_load.wavefronts == expected);
    CHECK(counters.bank_conflicts() == 2 * (expected - 1));
  }
}

TEST_CASE("ldmatrix_x4 takes 4 wavefronts where rows are swizzled, 32 where they are not") {
  for (const bool swizzle : {true, false}) {
    Simulator simulator;
    float* out = simulator.output<float>(32, "out");
    REQUIRE(launch_matrix_rows(swizzle, out) == cudaSuccess);
    const Report& report = simulator.finish();
    CHECK(report.to_string() == "");
    const Counters counters = report.total();
    CHECK(counters.matrix_load.instructions == 1);
    CHECK(counters.matrix_load.minimum == 4);
    CHECK(counters.matrix_load.wavefronts == (swizzle ? 4 : 32));
    CHECK(counters.shared_store.instructions == 2);
    CHECK(counters.shared_store.wavefronts == 8);  // a row at a time: free of conflicts either way
    for (int lane = 0; lane < 32; ++lane) {
      const int row = lane / 4;  // chunks 0 and 3 of it
      CHECK(out[lane] == static_cast<float>(row * 8 + 100 * (row * 8 + 3)));
    }
  }
}

TEST_CASE("global bytes count sectors of an instruction and of the launch") {
  for (const bool async : {false, true}) {
    for (const int stride : {1, 2, 8, 16}) {
      const std::vector<float> values(32 * 16, 1.0f);
      Simulator simulator;
      const float* in = simulator.input<float>(values, "in");
      float* out = simulator.workspace<float>(32 * 16, "out");
      REQUIRE(launch_global_stride(stride, async, in, out) == cudaSuccess);
      const Report& report = simulator.finish();
      CHECK(report.to_string() == "");
      const Counters counters = report.total();
      const uint64_t sectors = stride >= 8 ? 32 : 4 * stride;
      INFO("stride " << stride);
      CHECK(counters.global_load.instructions == 1);
      CHECK(counters.global_load.requested_bytes == 128);
      CHECK(counters.global_load.sector_bytes == 32 * sectors);
      CHECK(counters.global_store.sector_bytes == 32 * sectors);
      CHECK(report.launches[0].unique_read_bytes == 32 * sectors);
      CHECK(report.launches[0].unique_written_bytes == 32 * sectors);
      CHECK(counters.async_store.wavefronts == (async ? 1 : 0));
    }
  }
}

TEST_CASE("ldmatrix and mma multiply, and are counted") {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    const bool bf16 = dtype == DType::kBFloat16;
    const auto encode = bf16 ? float_to_bfloat16 : float_to_float16;
    const auto decode = bf16 ? bfloat16_to_float : float16_to_float;
    for (const bool transposed : {false, true}) {
      std::vector<uint16_t> a(16 * 16), b(16 * 8);
      for (int i = 0; i < 256; ++i) a[i] = encode(std::sin(1.0f + i));
      for (int i = 0; i < 128; ++i) b[i] = encode(std::cos(2.0f + 3 * i));
      Simulator simulator;
      const uint16_t* da = simulator.input<uint16_t>(a, "a");
      const uint16_t* db = simulator.input<uint16_t>(b, "b");
      float* d = simulator.output<float>(16 * 8, "d");
      REQUIRE(launch_multiply(dtype, transposed, 2, da, db, d) == cudaSuccess);
      const Report& report = simulator.finish();
      CHECK(report.to_string() == "");
      CHECK(report.total().mma == 2);
      CHECK(report.total().barriers == 3);
      CHECK(report.total().matrix_load.instructions == 4);
      CHECK(report.launches[0].static_shared_bytes == 512 + 256);
      for (int m = 0; m < 16; ++m) {
        for (int n = 0; n < 8; ++n) {
          double sum = 0;
          for (int k = 0; k < 16; ++k) {
            const uint16_t bits = transposed ? b[n * 16 + k] : b[k * 8 + n];
            sum += static_cast<double>(decode(a[m * 16 + k])) * decode(bits);
          }
          CHECK(d[m * 8 + n] == static_cast<float>(sum));
        }
      }
    }
  }
}

TEST_CASE("threads and blocks have CUDA's coordinates, on one or several OS threads") {
  for (const int os_threads : {1, 3}) {
    for (const Order order : {Order::kAscending, Order::kDescending, Order::kRandom}) {
      Options options;
      options.os_threads = os_threads;
      options.order = order;
      Simulator simulator(options);
      uint32_t* out = simulator.output<uint32_t>(12 * 64, "out");
      REQUIRE(launch_coordinates(out) == cudaSuccess);
      CHECK(simulator.finish().to_string() == "");
      CHECK(simulator.report().launches[0].blocks.size() == 12);
      for (uint32_t i = 0; i < 12 * 64; ++i) {
        const uint32_t block = i / 64;
        REQUIRE(out[i] ==
                (block % 2 | block / 2 % 3 << 4 | block / 6 << 8 | i % 64 << 12 | 3 << 24));
      }
    }
  }
}

TEST_CASE("a launch that no device takes is refused") {
  Options options;
  options.shared_limit = 1000;
  Simulator simulator(options);
  float* out = simulator.workspace<float>(32, "out");
  CHECK(launch_matrix_rows(true, out) == cudaErrorInvalidValue);  // asks for 1,024 bytes
  CHECK(simulator.report().findings.empty());
  CHECK(launch_multiply(DType::kBFloat16, true, 33, nullptr, nullptr, out) ==
        cudaErrorInvalidConfiguration);
  CHECK(simulator.report().has(FindingKind::kBadLaunch));
}
