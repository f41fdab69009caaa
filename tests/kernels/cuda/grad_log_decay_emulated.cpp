// SPDX-License-Identifier: Apache-2.0
//
// Runs every instantiation of the log_decay gradient kernel in the SIMT emulator (tests/simt), and compares it
// with the derivative of the recurrence in float64.
#include <algorithm>
#include <cstdio>
#include <fstream>
#include <sstream>

#include "chunkwise_check.h"
#include "kernels/cuda/retention/grad_log_decay/cost_model.h"
#include "kernels/cuda/retention/grad_log_decay/launch.h"

namespace retnet::kernels::cuda {
namespace {

constexpr size_t kSlice = 64;

/// For each column of Dv of each sequence and head [N, H, Dv], its share of the gradient, and the root of the
/// sum of the squares of the terms.
struct Exact {
  std::vector<double> sum, norm;
};

/// Computes token by token, with the state S and its derivative D with respect to log_decay.
Exact gradient_by_definition(const BackwardCase& c, const BackwardInputs& in) {
  const size_t Dk = c.head_dim_qk(), Dv = c.head_dim_v();
  const double scale = chunkwise_scale(c);
  Exact exact;
  for (size_t n = 0; n < c.sequences(); ++n) {
    const size_t first = c.cu_seqlens.empty() ? n * c.T : c.cu_seqlens[n];
    const size_t end = c.cu_seqlens.empty() ? first + c.T : c.cu_seqlens[n + 1];
    for (size_t h = 0; h < c.H; ++h) {
      const double gamma = std::exp(static_cast<double>(c.decay(h)));
      for (size_t column = 0; column < Dv; ++column) {
        std::vector<double> S(Dk), D(Dk);
        double sum = 0, squares = 0;
        const auto add = [&](double term) {
          sum += term;
          squares += term * term;
        };
        const size_t at = (n * c.H + h) * Dk * Dv + column;
        for (size_t i = 0; i < Dk && c.initial_state; ++i) S[i] = in.initial_state[at + i * Dv];
        for (size_t t = first; t < end && gamma > 0; ++t) {
          const size_t row = t * c.H + h;
          double out = 0;
          for (size_t i = 0; i < Dk; ++i) {
            D[i] = gamma * (D[i] + S[i]);
            S[i] = gamma * S[i] + in.k.values[row * Dk + i] * in.v.values[row * Dv + column];
            out += in.q.values[row * Dk + i] * D[i];
          }
          if (c.grad_out) add(scale * out * in.grad_out.values[row * Dv + column]);
        }
        for (size_t i = 0; i < Dk && c.grad_final_state; ++i)
          add(D[i] * in.grad_final_state[at + i * Dv]);
        exact.sum.push_back(sum);
        exact.norm.push_back(std::sqrt(squares));
      }
    }
  }
  return exact;
}

/// Returns the sum over the columns of each slice, [N, H, slices]. For norms it is the root of the sum of
/// squares.
std::vector<double> by_slice(const std::vector<double>& columns, size_t Dv, bool norms) {
  std::vector<double> parts;
  for (size_t row = 0; row < columns.size(); row += Dv) {
    for (size_t first = 0; first < Dv; first += kSlice) {
      double sum = 0;
      for (size_t i = first; i < std::min(Dv, first + kSlice); ++i) {
        const double x = columns[row + i];
        sum += norms ? x * x : x;
      }
      parts.push_back(norms ? std::sqrt(sum) : sum);
    }
  }
  return parts;
}

/// Calls the kernel as csrc/ops/cuda does. Returns the parts [N, H, slices] and what the launch did.
std::vector<double> run(const BackwardCase& c, const BackwardInputs& in, simt::Order order,
                        simt::LaunchCounters* counted = nullptr) {
  simt::Options options;
  options.order = order;
  options.seed = ++totals.cases;
  options.shared_limit = c.shared;
  simt::Simulator simulator(options);
  const ChunkwiseParams p = forward_params(simulator, c, in);
  ChunkwiseGradients grads = incoming_gradients(simulator, c, in);
  const GradLogDecayPlan plan = grad_log_decay_plan(p, {80, 108, c.shared});
  REQUIRE(plan.unsupported_reason == nullptr);
  REQUIRE(plan.tile == c.tile);
  const size_t parts = c.sequences() * c.H * plan.slices;
  grads.grad_log_decay_ptr = simulator.output<double>(parts, "parts");
  REQUIRE(launch_grad_log_decay({p, grads}, plan, nullptr) == cudaSuccess);
  const simt::Report& report = simulator.finish();
  totals.reports += report.findings.size();
  if (counted != nullptr) *counted = report.launches.at(0);
  uint64_t conflicts = report.total().bank_conflicts();
  if (!grad_log_decay_wide(p,
                           grads.grad_out)) {  // copies of 8 bytes touch every other word of a line
    const simt::SharedCount copies = report.total().async_store;
    conflicts -= copies.wavefronts - copies.minimum;
  }
  if (!report.findings.empty() || conflicts != 0) {
    INFO(c.name() << ", order " << static_cast<int>(order));
    CHECK(report.to_string() == "");
    CHECK(conflicts == 0);
  }
  return {grads.grad_log_decay_ptr, grads.grad_log_decay_ptr + parts};
}

/// Checks that each part is within the tolerance of an output, relative to the norm of the terms, because most
/// of them cancel. fp32 ends at 1e-30.
void check_values(const BackwardCase& c, const BackwardInputs& in,
                  const std::vector<double>& parts) {
  const Exact exact = gradient_by_definition(c, in);
  const auto sums = by_slice(exact.sum, c.head_dim_v(), false);
  const auto norms = by_slice(exact.norm, c.head_dim_v(), true);
  REQUIRE(parts.size() == sums.size());
  for (size_t i = 0; i < parts.size(); ++i) {
    const double error = std::abs(parts[i] - sums[i]);
    if (error <= tolerance(c.dtype).whole * norms[i] + 1e-30) continue;
    INFO(c.name() << ", part " << i << ": " << error / norms[i] << " of the norm");
    CHECK(parts[i] == sums[i]);
  }
}

std::vector<double> check(const BackwardCase& c, const BackwardInputs& in) {
  const std::vector<double> parts = run(c, in, simt::Order::kAscending);
  check_values(c, in, parts);
  INFO(c.name());
  CHECK(parts == run(c, in, simt::Order::kDescending));
  CHECK(parts == run(c, in, simt::Order::kRandom));
  return parts;
}

/// Returns every instantiation, with a head that just needs its tile.
template <class F>
void for_each_grad_log_decay_tile(const F& f) {
  struct Head {
    size_t Dk, Dv, shared;
  };
  constexpr Head kHeads[] = {
      {36, 68, kShared80}, {68, 20, kShared86}, {132, 36, kShared80}, {132, 36, kShared86}};
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    for (int tile = 0; tile < kGradLogDecayTileCount; ++tile) {
      BackwardCase c;
      c.dtype = dtype;
      c.tile = tile;
      c.Dk = kHeads[tile].Dk;
      c.Dv = kHeads[tile].Dv;
      c.shared = kHeads[tile].shared;
      f(c);
    }
  }
}

size_t chunk_of(const BackwardCase& c) { return kGradLogDecayTiles[c.tile].chunk; }

/// Uses small integers. With gamma = 1 and a scale of 1/2, every product, sum and weight is exact.
BackwardInputs make_integers(const BackwardCase& c) {
  const auto integers = [](size_t count, unsigned seed) {
    auto values = random_values(count, 0, 1, seed);
    for (double& x : values) x = std::clamp(std::round(x), -2.0, 2.0);
    return values;
  };
  const size_t rows = c.B * c.T * c.H,
               states = c.sequences() * c.H * c.head_dim_qk() * c.head_dim_v();
  BackwardInputs in;
  in.q = encode(integers(rows * c.head_dim_qk(), 1), c.dtype);
  in.k = encode(integers(rows * c.head_dim_qk(), 2), c.dtype);
  in.v = encode(integers(rows * c.head_dim_v(), 3), c.dtype);
  in.grad_out = encode(integers(rows * c.head_dim_v(), 4), c.dtype);
  for (const double x : integers(states, 5)) in.initial_state.push_back(static_cast<float>(x));
  for (const double x : integers(states, 6)) in.grad_final_state.push_back(static_cast<float>(x));
  return in;
}

}  // namespace

TEST_CASE("grad_log_decay: lengths, tiles, dtypes, gradients that are not there") {
  for_each_grad_log_decay_tile([&](BackwardCase c) {
    const size_t C = chunk_of(c);
    size_t turn = 0;
    for (const size_t T : {size_t{0}, size_t{1}, C - 1, C, C + 1, size_t{200}}) {
      c.T = T;
      c.initial_state = turn % 2 == 0;
      c.grad_out = turn != 2;
      c.grad_final_state = turn != 3;
      c.layout = static_cast<Layout>(turn++ % 3);
      const BackwardInputs in = make_backward_inputs(c);
      check_values(c, in, run(c, in, simt::Order::kRandom));
    }
  });
}

TEST_CASE("grad_log_decay: exact where every number is an integer") {
  for_each_grad_log_decay_tile([&](BackwardCase c) {
    c.log_decay = {0};
    c.scale = 0.5;
    for (const size_t T : {chunk_of(c) + 1, size_t{200}}) {
      c.T = T;
      const BackwardInputs in = make_integers(c);
      const auto sums = by_slice(gradient_by_definition(c, in).sum, c.head_dim_v(), false);
      INFO(c.name());
      CHECK(run(c, in, simt::Order::kDescending) == sums);
    }
  });
}

TEST_CASE("grad_log_decay: heads of many slices, of full tiles, far apart") {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    BackwardCase c;
    c.dtype = dtype;
    c.H = 1;
    c.T = 70;
    c.Dk = 24;
    for (const size_t Dv : {428, 432}) {
      c.Dv = Dv;
      const BackwardInputs in = make_backward_inputs(c);
      check_values(c, in, run(c, in, simt::Order::kRandom));
    }
    c.tile = 2;
    c.Dk = 256;
    c.Dv = 64;
    check(c, make_backward_inputs(c));
  }
  for (const auto layout : {Layout::kFarBatch, Layout::kFarTokens, Layout::kFarHeads}) {
    BackwardCase c;
    c.B = c.H = 2;
    c.T = layout == Layout::kFarTokens ? 2 : 70;
    c.Dk = c.Dv = 16;
    c.layout = layout;
    const BackwardInputs in = make_backward_inputs(c);
    check_values(c, in, run(c, in, simt::Order::kRandom));
  }
}

TEST_CASE("grad_log_decay: every gamma; with 0 the states are ignored") {
  for_each_grad_log_decay_tile([&](BackwardCase c) {
    if ((c.dtype == DType::kFloat16) == (c.tile % 2 == 0)) return;
    c.H = 6;
    c.T = chunk_of(c) + 9;
    c.log_decay = {0, kMinusInfinity, std::log1p(-1.0 / 4096), -0.7, -200, std::log1p(-1.0 / 32)};
    const BackwardInputs in = make_backward_inputs(c);
    const std::vector<double> parts = check(c, in);
    const size_t slices = parts.size() / c.H, size = c.head_dim_qk() * c.head_dim_v();
    for (size_t s = 0; s < slices; ++s) CHECK(parts[slices + s] == 0);
    BackwardInputs poisoned = in;
    std::fill_n(poisoned.initial_state.begin() + size, size, NAN);
    std::fill_n(poisoned.grad_final_state.begin() + size, size, NAN);
    CHECK(run(c, poisoned, simt::Order::kRandom) == parts);
    // A positive or NaN decay gives NaN in its own head only.
    c.log_decay[3] = 1e-3;
    c.log_decay[4] = NAN;
    const std::vector<double> bad = run(c, in, simt::Order::kRandom);
    for (size_t i = 0; i < parts.size(); ++i) {
      const bool wrong = i / slices == 3 || i / slices == 4;
      CHECK((wrong ? std::isnan(bad[i]) : bad[i] == parts[i]));
    }
  });
}

TEST_CASE("grad_log_decay: packed sequences, each as if it were alone") {
  for_each_grad_log_decay_tile([&](BackwardCase c) {
    if ((c.dtype == DType::kFloat16) == (c.tile % 2 == 0)) return;
    c.H = 1;
    c.cu_seqlens = {0, 0, 1, 34, 104, 104, 170};
    c.T = 170;
    const BackwardInputs in = make_backward_inputs(c);
    const std::vector<double> packed = check(c, in);
    // The values of the neighbours do not matter.
    BackwardInputs poisoned = in;
    const auto poison = [&](Array& array, size_t size) {
      std::fill(array.bytes.begin() + 2 * 34 * c.H * size,
                array.bytes.begin() + 2 * 104 * c.H * size, std::byte{0xff});
    };
    poison(poisoned.q, c.head_dim_qk());
    poison(poisoned.k, c.head_dim_qk());
    poison(poisoned.v, c.head_dim_v());
    poison(poisoned.grad_out, c.head_dim_v());
    const std::vector<double> beside_nan = run(c, poisoned, simt::Order::kDescending);
    const size_t row = packed.size() / c.sequences();
    for (size_t i = 0; i < packed.size(); ++i) {
      CHECK((i / row == 3 ? std::isnan(beside_nan[i]) : beside_nan[i] == packed[i]));
    }
    // These are the bits of the sequence alone.
    BackwardCase alone = c;
    alone.cu_seqlens = {};
    alone.T = 66;
    BackwardInputs last;
    static_cast<ChunkwiseInputs&>(last) = tokens_alone(c, in, 104, 170, 5);
    const size_t values = c.H * c.head_dim_v(), state = c.H * c.head_dim_qk() * c.head_dim_v();
    last.grad_out = {{in.grad_out.bytes.begin() + 2 * 104 * values, in.grad_out.bytes.end()},
                     {in.grad_out.values.begin() + 104 * values, in.grad_out.values.end()}};
    last.grad_final_state.assign(in.grad_final_state.begin() + 5 * state,
                                 in.grad_final_state.end());
    const std::vector<double> parts = run(alone, last, simt::Order::kRandom);
    CHECK(std::equal(parts.begin(), parts.end(), packed.begin() + 5 * row, packed.end()));
  });
}

TEST_CASE("grad_log_decay: fp16 stays finite where state and derivative do not fit") {
  // S and S' reach 8,192 and 3 10^7 here. 65,504 is the largest fp16 number.
  BackwardCase c;
  c.dtype = DType::kFloat16;
  c.Dk = c.Dv = 4;
  c.T = 8192;
  c.log_decay = {0, std::log1p(-1.0 / 4096)};
  BackwardInputs in = make_backward_inputs(c);
  static_cast<ChunkwiseInputs&>(in) = make_inputs(c, 1);
  in.grad_out = encode(random_values(c.T * c.H * c.Dv, 1, 1, 5), c.dtype);
  check_values(c, in, run(c, in, simt::Order::kRandom));
}

namespace {

constexpr size_t kSeeds = 8;

/// Returns the root mean square error over seeds, relative to that of the gradient.
double relative_error(DType dtype, int exponent, size_t tokens) {
  BackwardCase c;
  c.dtype = dtype;
  c.H = kSeeds;  // each head has its own seed
  c.T = tokens;
  c.Dk = c.Dv = 8;
  c.log_decay = {std::log1p(-std::ldexp(1.0, -exponent))};
  c.initial_state = false;
  const BackwardInputs in = make_backward_inputs(c);
  const std::vector<double> parts = run(c, in, simt::Order::kRandom);
  const auto sums = by_slice(gradient_by_definition(c, in).sum, c.Dv, false);
  double error = 0, norm = 0;
  for (size_t h = 0; h < kSeeds; ++h) {
    error += std::pow(parts[h] - sums[h], 2);
    norm += sums[h] * sums[h];
  }
  return std::sqrt(error / norm);
}

/// These are the limits of docs/numerics.md.
double limit(DType dtype) { return dtype == DType::kBFloat16 ? 2e-2 : 3e-3; }

}  // namespace

TEST_CASE("grad_log_decay: rms error over seeds") {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat16}) {
    for (const int exponent : {5, 9}) {
      INFO("gamma = 1 - 2^-" << exponent);
      CHECK(relative_error(dtype, exponent, 2048) <= limit(dtype));
    }
  }
}

namespace {

/// Returns the cell of the table in docs/kernels/backward.md as text.
std::string stated_error(DType dtype, int exponent) {
  std::ifstream page(RETNET_SOURCE_DIR "/docs/kernels/backward.md");
  const std::string gamma = "| 1 - 2^-" + std::to_string(exponent) + " | ";
  for (std::string line; std::getline(page, line);) {
    if (line.rfind(gamma, 0) != 0) continue;
    std::istringstream cells(line.substr(gamma.size()));
    std::string bf16, bar, fp16;
    cells >> bf16 >> bar >> fp16;
    return dtype == DType::kBFloat16 ? bf16 : fp16;
  }
  return "not in the table";
}

void check_stated_error(DType dtype, int exponent) {
  const double error = relative_error(dtype, exponent, 8192);
  char text[16];
  std::snprintf(text, sizeof(text), "%.1e", error);
  INFO((dtype == DType::kBFloat16 ? "bf16" : "fp16") << ", gamma = 1 - 2^-" << exponent);
  CHECK(error <= limit(dtype));
  CHECK(text == stated_error(dtype, exponent));
}

}  // namespace

TEST_CASE("grad_log_decay: the documented rms error over seeds at T = 8192") {
  check_stated_error(DType::kBFloat16, 5);
  check_stated_error(DType::kBFloat16, 12);
}

// This takes a minute, so it runs only if its tag is given.
TEST_CASE("grad_log_decay: all documented rms errors over seeds at T = 8192", "[.table]") {
  for (const int exponent : {5, 7, 9, 12}) {
    for (const DType dtype : {DType::kBFloat16, DType::kFloat16})
      check_stated_error(dtype, exponent);
  }
}

TEST_CASE(
    "grad_log_decay: costs what its header says, and reads nothing for gradients that are not "
    "there") {
  for_each_grad_log_decay_tile([&](BackwardCase c) {
    const GradLogDecayTile& tile = kGradLogDecayTiles[c.tile];
    c.Dk = tile.head_dim_qk;
    c.Dv = 2 * kSlice;
    c.initial_state = c.grad_final_state = false;
    simt::LaunchCounters counted[2];
    for (const int i : {0, 1}) {
      c.T = (3 + 2 * i) * tile.chunk;
      run(c, make_backward_inputs(c), simt::Order::kAscending, &counted[i]);
    }
    const simt::Counters &a = counted[0].total, &b = counted[1].total;
    const uint64_t chunks = 2 * counted[0].blocks.size(), tokens = 2 * tile.chunk * c.H;
    const GradLogDecayWavefronts wavefronts = grad_log_decay_wavefronts(tile);
    const auto Dk = static_cast<int64_t>(c.Dk), Dv = static_cast<int64_t>(c.Dv);
    INFO(c.name());
    CHECK((b.mma - a.mma) == chunks * grad_log_decay_mma(tile).total());
    CHECK((b.barriers - a.barriers) == chunks * kGradLogDecayBarriers);
    CHECK((b.matrix_load.wavefronts - a.matrix_load.wavefronts) == chunks * wavefronts.ldmatrix());
    CHECK((b.async_store.wavefronts - a.async_store.wavefronts) == chunks * wavefronts.copies);
    CHECK((b.shared_load.wavefronts - a.shared_load.wavefronts) == chunks * wavefronts.weights);
    CHECK(b.shared_store.wavefronts == a.shared_store.wavefronts);
    // The decay, 32 bytes, is read again in each chunk.
    CHECK((b.global_load.sector_bytes - a.global_load.sector_bytes) ==
          tokens * grad_log_decay_l2_bytes(tile, Dk, Dv) + chunks * 32 * tile.threads() / 32);
    CHECK((counted[1].unique_read_bytes - counted[0].unique_read_bytes) ==
          tokens * grad_log_decay_memory_bytes(Dk, Dv));
    CHECK(b.global_store.requested_bytes == 8 * counted[1].blocks.size());

    c.grad_out = false;
    c.grad_final_state = true;
    run(c, make_backward_inputs(c), simt::Order::kAscending, &counted[0]);
    CHECK(counted[0].total.mma == 5 * counted[0].blocks.size() * grad_log_decay_mma(tile).update);
  });
}

TEST_CASE("grad_log_decay: totals") { print_totals("grad_log_decay"); }

}  // namespace retnet::kernels::cuda
