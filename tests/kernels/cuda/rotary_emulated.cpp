// SPDX-License-Identifier: Apache-2.0
//
// Runs every instantiation of the rotary kernel in the SIMT emulator (tests/simt). Its result agrees with
// float64, the checker finds nothing, and the bits are the same in every order of blocks, warps and lanes.
#include <array>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "arrays.h"
#include "catch.h"
#include "compare.h"
#include "kernels/cuda/rotary/launch.h"
#include "rotary_oracle.h"
#include "simt/simt.h"

namespace retnet::kernels::cuda {
namespace {

struct Case {
  DType dtype = DType::kFloat32;
  bool narrow = false;  // the start makes 16-bit rows only 8-byte aligned
  bool interleaved = true;
  size_t B = 1, T = 1, H = 1, Dk = 4;
  bool inverse = false;
  bool positions_64 = true;
  bool per_batch_entry = true;  // positions are [B, T], or otherwise [T]
  bool strided = false;  // q and k are inside larger arrays, and positions use every second place
  bool q = true, k = true;

  std::string name() const {
    char text[160];
    const char* dtypes[] = {"fp32", "fp16", "bf16"};
    std::snprintf(
        text, sizeof(text),
        "%s%s %s B=%zu T=%zu H=%zu Dk=%zu inverse=%d positions_64=%d per_batch_entry=%d strided=%d "
        "q=%d k=%d",
        dtypes[static_cast<int>(dtype)], narrow ? " narrow" : "",
        interleaved ? "interleaved" : "half", B, T, H, Dk, inverse, positions_64, per_batch_entry,
        strided, q, k);
    return text;
  }
};

struct Inputs {
  Array q, k;
  std::vector<int64_t> positions;  // [B, T]
  std::vector<float> frequencies;
};

Inputs make_inputs(const Case& c) {
  Inputs in;
  const size_t count = c.B * c.T * c.H * c.Dk;
  in.q = encode(random_values(count, 0.5, 1, 1), c.dtype);
  in.k = encode(random_values(count, 0, 2, 2), c.dtype);
  std::mt19937 generator(3);
  constexpr int64_t kNear = 5000, kFar = std::numeric_limits<int32_t>::max();
  for (size_t i = 0; i < c.B * c.T; ++i) {
    in.positions.push_back(i % 3 == 2 ? kFar - static_cast<int64_t>(generator() % kNear)
                                      : static_cast<int64_t>(generator() % kNear));
    if (!c.per_batch_entry && i >= c.T) in.positions[i] = in.positions[i - c.T];
  }
  for (size_t i = 0; i < c.Dk / 2; ++i) {
    const double share = static_cast<double>(2 * i) / static_cast<double>(c.Dk);
    in.frequencies.push_back(static_cast<float>(std::pow(1e-4, share)));
  }
  return in;
}

struct Outputs {
  std::vector<std::byte> q, k;
  bool operator==(const Outputs&) const = default;
};

class Device {
 public:
  Device(const Case& c, const Inputs& in, const simt::Options& options = {})
      : case_(c), simulator_(options) {
    params_.batch = static_cast<int64_t>(c.B);
    params_.tokens = static_cast<int64_t>(c.T);
    params_.heads = static_cast<int64_t>(c.H);
    params_.head_dim_qk = static_cast<int64_t>(c.Dk);
    params_.dtype = c.dtype;
    params_.interleaved = c.interleaved;
    params_.inverse = c.inverse;
    if (c.q) params_.q = operand(in.q, "q");
    if (c.k) params_.k = operand(in.k, "k");
    params_.positions_64 = c.positions_64;
    c.positions_64 ? positions<int64_t>(in) : positions<int32_t>(in);
    params_.frequencies_ptr = simulator_.input<float>(in.frequencies, "frequencies");
  }

  Outputs run() {
    REQUIRE(launch_rotary(params_, nullptr) == cudaSuccess);
    simulator_.finish();
    return {read(params_.q), read(params_.k)};
  }

  const simt::Report& report() const { return simulator_.report(); }
  RotaryParams& params() { return params_; }

 private:
  size_t bytes() const {
    return case_.B * case_.T * case_.H * case_.Dk * element_size(case_.dtype);
  }

  // If strided, heads are outside tokens, rows of a head 8 elements apart, and NaN in between.
  RotaryOperand operand(const Array& array, const char* name) {
    const size_t size = element_size(case_.dtype), gap = case_.strided ? 8 : 0;
    const size_t row = case_.Dk + gap;
    RotaryOperand x;
    x.stride_t = static_cast<int64_t>(case_.strided ? row : row * case_.H);
    x.stride_h = static_cast<int64_t>(case_.strided ? row * case_.T : row);
    x.stride_b = static_cast<int64_t>(row * case_.H * case_.T);
    std::vector<std::byte> spread(case_.B * x.stride_b * size, std::byte{0xff});
    const std::byte* src = array.bytes.data();
    for (size_t b = 0; b < case_.B; ++b) {
      for (size_t t = 0; t < case_.T; ++t) {
        for (size_t h = 0; h < case_.H; ++h, src += case_.Dk * size) {
          std::memcpy(spread.data() + (b * x.stride_b + t * x.stride_t + h * x.stride_h) * size,
                      src, case_.Dk * size);
        }
      }
    }
    const size_t offset = case_.narrow ? 8 : 0;
    x.in_ptr = simulator_.input<std::byte>(spread, name, offset);
    x.out_ptr = simulator_.output<std::byte>(bytes(), (std::string("rotated ") + name), offset);
    return x;
  }

  template <class Index>
  void positions(const Inputs& in) {
    const size_t every = case_.strided ? 2 : 1, rows = case_.per_batch_entry ? case_.B : 1;
    std::vector<Index> spread(rows * case_.T * every, -1);
    for (size_t i = 0; i < rows * case_.T; ++i) {
      spread[i * every] = static_cast<Index>(in.positions[i]);
    }
    params_.positions_ptr = simulator_.input<Index>(spread, "positions");
    params_.positions_stride_t = static_cast<int64_t>(every);
    params_.positions_stride_b = case_.per_batch_entry ? static_cast<int64_t>(case_.T * every) : 0;
  }

  std::vector<std::byte> read(const RotaryOperand& x) const {
    if (x.out_ptr == nullptr) return {};
    const auto* begin = static_cast<const std::byte*>(x.out_ptr);
    return {begin, begin + bytes()};
  }

  const Case& case_;
  simt::Simulator simulator_;
  RotaryParams params_;
};

double norm_of_difference(const std::vector<double>& x, const std::vector<double>& y) {
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += (x[i] - y[i]) * (x[i] - y[i]);
  return std::sqrt(sum);
}

/// Returns what is wrong with one output, or an empty string. The limits are those of the table and twice the
/// error of the composite.
std::string check_values(const Case& c, const Inputs& in, const Array& x,
                         const std::vector<std::byte>& bytes) {
  if (bytes.empty()) return "";
  const double sign = c.inverse ? -1 : 1;
  const auto exact =
      rotary_by_definition(x.values, c.H, c.Dk, in.positions, in.frequencies, c.interleaved, sign);
  const auto actual = to_doubles(bytes.data(), exact.size(), c.dtype);
  const std::string wrong = mismatch(actual, exact, c.Dk, c.dtype, 1);
  if (!wrong.empty()) return wrong;
  const Array composite = encode(
      rotary_in_float(x.values, c.H, c.Dk, in.positions, in.frequencies, c.interleaved, sign),
      c.dtype);
  const double mine = norm_of_difference(actual, exact);
  const double yardstick = norm_of_difference(composite.values, exact);
  char text[120];
  std::snprintf(text, sizeof(text), "error %.2e, the composite's is %.2e", mine, yardstick);
  return mine <= 2 * yardstick ? "" : text;
}

struct Totals {
  size_t cases = 0;
  size_t reports = 0;
};

void check(const Case& c, Totals& totals) {
  const Inputs in = make_inputs(c);
  Outputs first;
  for (const simt::Order order :
       {simt::Order::kAscending, simt::Order::kDescending, simt::Order::kRandom}) {
    simt::Options options;
    options.order = order;
    options.seed = ++totals.cases;
    Device device(c, in, options);
    const Outputs outputs = device.run();
    totals.reports += device.report().findings.size();
    if (order == simt::Order::kAscending) first = outputs;
    INFO(c.name() << ", order " << static_cast<int>(order));
    CHECK(device.report().to_string() == "");
    CHECK(device.report().launches.size() == 1);
    CHECK(outputs == first);
    if (order == simt::Order::kAscending) {
      CHECK(check_values(c, in, in.q, outputs.q) == "");
      CHECK(check_values(c, in, in.k, outputs.k) == "");
    }
  }
}

/// Calls f(case) with the element type, access width and style of each instantiation.
template <class F>
void for_each_instantiation(const F& f) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const bool narrow : {false, true}) {
      if (narrow && dtype == DType::kFloat32) continue;
      for (const bool interleaved : {true, false}) {
        Case c;
        c.dtype = dtype;
        c.narrow = narrow;
        c.interleaved = interleaved;
        f(c);
      }
    }
  }
}

}  // namespace

TEST_CASE("rotary emulated") {
  Totals totals;
  unsigned turn = 0;
  for_each_instantiation([&](Case c) {
    // Widths from one access up, some of which are not powers of two, and heads in and past a group.
    for (const size_t Dk : {16, 24, 64, 256}) {
      for (const auto& [B, T, H] :
           {std::array<size_t, 3>{1, 1, 1}, {2, 3, 3}, {3, 1, 8}, {1, 7, 9}, {2, 5, 17}}) {
        c.Dk = Dk;
        c.B = B;
        c.T = T;
        c.H = H;
        c.inverse = turn % 2 == 1;
        c.positions_64 = turn % 3 != 0;
        c.per_batch_entry = turn % 5 < 3;
        c.strided = turn % 7 < 3;
        c.q = turn % 11 != 4;
        c.k = turn % 11 != 7;
        ++turn;
        check(c, totals);
      }
    }
    // These are the narrowest rows.
    c.Dk = (c.interleaved ? 1 : 2) * 4;
    check(c, totals);
  });
  std::printf("rotary: %zu cases, %zu reports\n", totals.cases, totals.reports);
  CHECK(totals.reports == 0);
}

TEST_CASE("cosine and sine are those of float64 rounded to float32, wherever the token stands") {
  Case c;
  c.T = 300;
  c.Dk = 256;
  Inputs in = make_inputs(c);
  std::mt19937_64 generator(5);
  for (size_t t = 0; t < c.T; ++t) {
    in.positions[t] = static_cast<int64_t>(generator() >> (12 + t % 52));  // up to 2^52
  }
  in.positions[0] = 0;
  std::vector<double> ones(c.T * c.Dk);
  for (size_t i = 0; i < ones.size(); i += 2) ones[i] = 1;  // pairs (1, 0) become (cos, sin)
  in.q = encode(ones, c.dtype);
  Device device(c, in);
  const auto actual = to_doubles(device.run().q.data(), ones.size(), c.dtype);
  double worst = 0;
  for (size_t i = 0; i < ones.size(); ++i) {
    const double angle = static_cast<double>(in.positions[i / c.Dk]) * in.frequencies[i % c.Dk / 2];
    const double exact = i % 2 == 0 ? std::cos(angle) : std::sin(angle);
    const auto near = std::fabs(static_cast<float>(exact));
    const double ulp = std::nextafter(near, 2.0f) - near;
    worst = std::max(worst, std::fabs(actual[i] - exact) / ulp);
  }
  INFO("in units of the last place: " << worst);
  CHECK(worst <= 0.505);
  CHECK(actual[0] == 1);
  CHECK(actual[1] == 0);
}

TEST_CASE("a pair's bits do not depend on what is beside it") {
  for_each_instantiation([&](Case c) {
    c.B = 2;
    c.T = 3;
    c.H = 9;
    c.Dk = 32;
    const Inputs all = make_inputs(c);
    const Outputs together = Device(c, all).run();
    Case one = c;
    one.B = one.T = one.H = 1;
    const size_t bytes = c.Dk * element_size(c.dtype);
    for (const size_t row : {0, 8, 30, 53}) {
      Inputs alone = all;
      alone.positions = {all.positions[row / c.H]};
      for (Array* array : {&alone.q, &alone.k}) {
        array->bytes.assign(array->bytes.begin() + row * bytes,
                            array->bytes.begin() + (row + 1) * bytes);
      }
      const Outputs outputs = Device(one, alone).run();
      INFO(c.name() << " row " << row);
      CHECK(std::equal(outputs.q.begin(), outputs.q.end(), together.q.begin() + row * bytes));
      CHECK(std::equal(outputs.k.begin(), outputs.k.end(), together.k.begin() + row * bytes));
    }
  });
}

TEST_CASE("q and k may be one array, and nothing is launched for nothing") {
  Case c;
  c.T = 4;
  c.Dk = 64;
  {
    Inputs in = make_inputs(c);
    in.k = in.q;
    Device device(c, in);
    device.params().k.in_ptr = device.params().q.in_ptr;
    const Outputs outputs = device.run();
    CHECK(device.report().to_string() == "");
    CHECK(outputs.q == outputs.k);
  }
  Case empty = c, absent = c;
  empty.T = 0;
  absent.q = absent.k = false;
  for (const Case& nothing : {empty, absent}) {
    Device device(nothing, make_inputs(nothing));
    device.run();
    CHECK(device.report().launches.empty());
  }
}

TEST_CASE("bytes are those of the kernel's header") {
  for_each_instantiation([&](Case c) {
    c.T = 4;
    c.H = 8;
    c.Dk = 64;
    Device device(c, make_inputs(c));
    device.run();
    const simt::Counters& counted = device.report().launches[0].total;
    const size_t array = c.T * c.H * c.Dk * element_size(c.dtype);
    INFO(c.name());
    CHECK(counted.global_store.requested_bytes == 2 * array);
    // Besides q and k, each thread reads positions and frequencies from the cache.
    CHECK(counted.global_load.requested_bytes >= 2 * array);
    CHECK(counted.shared_wavefronts() == 0);
    CHECK(device.report().launches[0].static_shared_bytes == 0);
  });
}

}  // namespace retnet::kernels::cuda
