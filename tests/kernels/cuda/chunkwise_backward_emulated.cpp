// SPDX-License-Identifier: Apache-2.0
//
// The gradients of retention by the chunkwise kernel, every instantiation, run lane by lane on the CPU
// (tests/simt), against their definition in float64.
#include "chunkwise_check.h"

namespace retnet::kernels::cuda {
namespace {

struct Gradients {
  std::vector<double> q, k, v, state;
};

/// Token by token, forward with the state and backward with its adjoint.
Gradients gradients_by_definition(const BackwardCase& c, const BackwardInputs& in) {
  const size_t K = c.keys(), V = c.values(), tokens = c.B * c.T;
  const double scale = chunkwise_scale(c);
  Gradients grads{std::vector<double>(tokens * c.H * K),
                  std::vector<double>(tokens * c.H * K),
                  std::vector<double>(tokens * c.H * V),
                  {}};
  for (size_t n = 0; n < c.sequences(); ++n) {
    const size_t first = c.cu_seqlens.empty() ? n * c.T : c.cu_seqlens[n];
    const size_t end = c.cu_seqlens.empty() ? first + c.T : c.cu_seqlens[n + 1];
    for (size_t h = 0; h < c.H; ++h) {
      const double gamma = std::exp(static_cast<double>(c.decay(h)));
      const size_t at = (n * c.H + h) * K * V;
      std::vector<double> S(K * V), R(K * V);
      const auto decay = [&](std::vector<double>& state) {
        for (double& s : state) s = gamma > 0 ? gamma * s : 0;
      };
      if (c.initial_state) S.assign(&in.initial_state[at], &in.initial_state[at] + K * V);
      if (c.grad_state) R.assign(&in.grad_state[at], &in.grad_state[at] + K * V);
      for (size_t t = first; t < end; ++t) {
        const size_t row = t * c.H + h;
        decay(S);
        for (size_t i = 0; i < K; ++i) {
          for (size_t j = 0; j < V; ++j) {
            S[i * V + j] += in.k.values[row * K + i] * in.v.values[row * V + j];
            if (!c.grad_out) continue;
            grads.q[row * K + i] += scale * S[i * V + j] * in.grad_out.values[row * V + j];
          }
        }
      }
      for (size_t t = end; t-- > first;) {
        const size_t row = t * c.H + h;
        for (size_t i = 0; i < K; ++i) {
          for (size_t j = 0; j < V; ++j) {
            double& r = R[i * V + j];
            if (c.grad_out) {
              r += scale * in.q.values[row * K + i] * in.grad_out.values[row * V + j];
            }
            grads.k[row * K + i] += r * in.v.values[row * V + j];
            grads.v[row * V + j] += r * in.k.values[row * K + i];
          }
        }
        decay(R);
      }
      grads.state.insert(grads.state.end(), R.begin(), R.end());
    }
  }
  return grads;
}

struct BackwardBits {
  std::vector<uint16_t> q, k, v;
  std::vector<float> state;

  bool operator==(const BackwardBits& other) const {
    return q == other.q && k == other.k && v == other.v && state.size() == other.state.size() &&
           std::memcmp(state.data(), other.state.data(), 4 * state.size()) == 0;
  }
};

/// As csrc/ops/cuda calls it: a plan, a workspace and a launch for each of the passes.
BackwardBits run(const BackwardCase& c, const BackwardInputs& in, simt::Order order) {
  simt::Options options;
  options.order = order;
  options.seed = ++totals.cases;
  options.shared_limit = c.shared;
  simt::Simulator simulator(options);
  const ChunkwiseParams p = forward_params(simulator, c, in);
  ChunkwiseGradients grads = incoming_gradients(simulator, c, in);
  const size_t rows = c.B * c.T * c.H, states = c.sequences() * c.H * c.keys() * c.values();
  auto* q = simulator.output<uint16_t>(rows * c.keys(), "grad_q");
  auto* k = simulator.output<uint16_t>(rows * c.keys(), "grad_k");
  auto* v = simulator.output<uint16_t>(rows * c.values(), "grad_v");
  grads.q_ptr = q;
  grads.k_ptr = k;
  grads.v_ptr = v;
  grads.initial_state_ptr = simulator.output<float>(states, "grad_initial_state");

  bool wide = true;
  for (const auto pass : {ChunkwisePass::kQ, ChunkwisePass::kK, ChunkwisePass::kV}) {
    ChunkwiseParams call = chunkwise_gradient(pass, p, grads);
    const DeviceLimits device{80, c.segment != 0 ? 1024 : 1, c.shared};
    ChunkwisePlan plan = chunkwise_plan(call, device, 0, false);
    REQUIRE(plan.refusal == nullptr);
    if (pass != ChunkwisePass::kV) REQUIRE(plan.tile == c.tile);
    if (c.segment != 0) {
      plan.segment_length = c.segment;
      const int64_t whole = (p.tokens + c.segment - 1) / c.segment;
      plan.rows = c.cu_seqlens.empty() ? p.batch * whole : p.tokens / c.segment + p.sequences;
      call.workspace_ptr =
          simulator.workspace<float>(plan.rows * p.heads * p.inner * p.outer, "states");
    }
    wide = wide && chunkwise_wide(call);
    REQUIRE(launch_chunkwise(call, plan, nullptr) == cudaSuccess);
  }
  const simt::Report& report = simulator.finish();
  totals.reports += report.findings.size();
  uint64_t conflicts = report.total().bank_conflicts();
  if (!wide) {  // copies of 8 bytes touch every other word of a line
    const simt::SharedCount copies = report.total().async_store;
    conflicts -= copies.wavefronts - copies.minimum;
  }
  if (!report.findings.empty() || conflicts != 0) {
    INFO(c.name() << ", order " << static_cast<int>(order));
    CHECK(report.to_string() == "");
    CHECK(conflicts == 0);
  }
  return {{q, q + rows * c.keys()},
          {k, k + rows * c.keys()},
          {v, v + rows * c.values()},
          {grads.initial_state_ptr, grads.initial_state_ptr + states}};
}

/// What is wrong with the gradient of an operand, or empty: the tolerance of gradients is twice that of
/// outputs; the composite rounds once.
std::string check_gradient(const char* name, const BackwardCase& c,
                           const std::vector<uint16_t>& bits, const std::vector<double>& exact,
                           size_t size) {
  const auto actual = to_doubles(bits.data(), bits.size(), c.dtype);
  std::string wrong = mismatch(actual, exact, size, c.dtype, 2);
  const double ours = norm_error(actual, exact);
  const double its = norm_error(encode(exact, c.dtype).values, exact);
  if (wrong.empty() && !(ours <= 2 * its)) {
    wrong = std::to_string(ours / its) + " times the error of one rounding";
  }
  return wrong.empty() ? "" : std::string(" ") + name + ": " + wrong;
}

void check_values(const BackwardCase& c, const BackwardInputs& in, const BackwardBits& bits) {
  const Gradients exact = gradients_by_definition(c, in);
  const std::vector<double> state(bits.state.begin(), bits.state.end());
  const std::string wrong = check_gradient("q", c, bits.q, exact.q, c.keys()) +
                            check_gradient("k", c, bits.k, exact.k, c.keys()) +
                            check_gradient("v", c, bits.v, exact.v, c.values());
  INFO(c.name());
  CHECK(wrong == "");
  CHECK(mismatch(state, exact.state, c.keys() * c.values(), c.dtype, 2) == "");
}

/// A case in three orders of blocks, warps and lanes, its values checked and returned.
BackwardBits check(const BackwardCase& c, const BackwardInputs& in) {
  const BackwardBits bits = run(c, in, simt::Order::kAscending);
  check_values(c, in, bits);
  INFO(c.name());
  CHECK(bits == run(c, in, simt::Order::kDescending));
  CHECK(bits == run(c, in, simt::Order::kRandom));
  return bits;
}
BackwardBits check(const BackwardCase& c) { return check(c, make_backward_inputs(c)); }

/// Every tile as that of the gradients of q and k (of v's: tiles 0, 2, 3, 4 again and tile 1 with the
/// second head here), in heads that just need it.
template <class F>
void for_each_backward(const F& f) {
  struct Head {
    int tile;
    size_t K, V, shared;
  };
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    for (const Head& head : {Head{0, 36, 20, kShared80}, Head{2, 36, 68, kShared80},
                             Head{1, 68, 64, kShared80}, Head{3, 132, 132, kShared80},
                             Head{4, 132, 132, kShared86}, Head{5, 132, 260, kShared80}}) {
      BackwardCase c;
      c.dtype = dtype;
      c.tile = head.tile;
      c.K = head.K;
      c.V = head.V;
      c.shared = head.shared;
      f(c);
    }
  }
}

/// Each tile once, in either dtype: where only the walk over tokens is in question.
template <class F>
void for_each_tile(const F& f) {
  for_each_backward([&](const BackwardCase& c) {
    if ((c.dtype == DType::kFloat16) == (c.tile % 2 == 0)) f(c);
  });
}

/// Tile 0, and the tile with halves.
template <class F>
void for_two_tiles(const F& f) {
  for_each_tile([&](const BackwardCase& c) {
    if (c.tile == 0 || c.tile == 5) f(c);
  });
}

}  // namespace

TEST_CASE("chunkwise backward: lengths, tiles, dtypes, gradients that are not there") {
  for_each_backward([&](BackwardCase c) {
    const size_t C = c.shape().chunk;
    size_t turn = 0;
    for (const size_t T : {size_t{0}, size_t{1}, C - 1, C, C + 1}) {
      c.T = T;
      c.initial_state = turn % 2 == 0;
      c.grad_out = turn != 2;
      c.grad_state = turn != 3;
      c.layout = static_cast<Layout>(turn++ % 3);
      const BackwardInputs in = make_backward_inputs(c);
      check_values(c, in, run(c, in, simt::Order::kRandom));
    }
  });
}

TEST_CASE("chunkwise backward: the same bits in every order, with every gamma") {
  for_two_tiles([&](BackwardCase c) {
    constexpr size_t kBefore = 9;  // tokens before the last chunk, of 64 at most
    c.T = 64 + kBefore;
    c.H = 5;
    c.log_decay = {0, kMinusInfinity, -1e-9, -0.7, -200};
    const BackwardInputs in = make_backward_inputs(c);
    const BackwardBits bits = run(c, in, simt::Order::kAscending);
    check_values(c, in, bits);
    INFO(c.name());
    CHECK(bits == run(c, in, simt::Order::kDescending));
    // With gamma = 0 the initial state is ignored, and the gradient of the final one reaches the last
    // chunk alone: where they hold NaN, nothing else changes.
    const size_t size = c.keys() * c.values();
    BackwardInputs poisoned = in;
    std::fill_n(poisoned.initial_state.begin() + size, size, NAN);
    std::fill_n(poisoned.grad_state.begin() + size, size, NAN);
    const BackwardBits beside_nan = run(c, poisoned, simt::Order::kRandom);
    const auto same = [&](const std::vector<uint16_t>& a, const std::vector<uint16_t>& b,
                          size_t columns, size_t tokens) {
      size_t different = 0;
      for (size_t i = 0; i < a.size(); ++i) {
        const size_t h = i / columns % c.H, t = i / columns / c.H;
        different += (h != 1 || t < tokens) && a[i] != b[i];
      }
      return different == 0;
    };
    CHECK(bits.q == beside_nan.q);
    CHECK(same(bits.k, beside_nan.k, c.keys(), kBefore));
    CHECK(same(bits.v, beside_nan.v, c.values(), kBefore));
    CHECK(std::memcmp(bits.state.data(), beside_nan.state.data(), 4 * bits.state.size()) == 0);
    // A positive or NaN decay is NaN in its own head alone.
    c.log_decay = {1e-3, kMinusInfinity, -1e-9, NAN, -200};
    const BackwardBits bad = run(c, in, simt::Order::kRandom);
    size_t wrong = 0;
    const auto count = [&](const std::vector<uint16_t>& a, const std::vector<uint16_t>& b,
                           size_t columns) {
      for (size_t i = 0; i < a.size(); ++i) {
        const size_t h = i / columns % c.H;
        wrong += h == 0 || h == 3 ? !std::isnan(to_doubles(&b[i], 1, c.dtype)[0]) : a[i] != b[i];
      }
    };
    count(bits.q, bad.q, c.keys());
    count(bits.k, bad.k, c.keys());
    count(bits.v, bad.v, c.values());
    CHECK(wrong == 0);
  });
}

TEST_CASE("chunkwise backward: packed sequences, whole and in segments") {
  for_each_tile([&](BackwardCase c) {
    c.H = 1;
    c.cu_seqlens = {0, 0, 1, 34, 104, 104, 170};
    c.T = 170;
    c.log_decay = {std::log1p(-1.0 / 32)};
    for (const int64_t segment : {0, 64}) {
      c.segment = segment;
      const BackwardInputs in = make_backward_inputs(c);
      const BackwardBits packed = run(c, in, simt::Order::kRandom);
      check_values(c, in, packed);
      if (segment != 0) continue;
      // Whatever the neighbours hold.
      BackwardInputs poisoned = in;
      const auto poison = [&](Array& array, size_t size) {
        std::fill(array.bytes.begin() + 2 * 34 * size, array.bytes.begin() + 2 * 104 * size,
                  std::byte{0xff});
      };
      poison(poisoned.q, c.keys());
      poison(poisoned.k, c.keys());
      poison(poisoned.v, c.values());
      poison(poisoned.grad_out, c.values());
      BackwardBits beside_nan = run(c, poisoned, simt::Order::kDescending);
      const auto restore = [&](auto& bits, const auto& from, size_t size, size_t first,
                               size_t end) {
        std::copy(from.begin() + first * size, from.begin() + end * size,
                  bits.begin() + first * size);
      };
      restore(beside_nan.q, packed.q, c.keys(), 34, 104);
      restore(beside_nan.k, packed.k, c.keys(), 34, 104);
      restore(beside_nan.v, packed.v, c.values(), 34, 104);
      restore(beside_nan.state, packed.state, c.keys() * c.values(), 3, 4);
      INFO(c.name());
      CHECK(beside_nan == packed);
    }
  });
}

TEST_CASE("chunkwise backward: segments, batches, gamma = 0") {
  for_two_tiles([&](BackwardCase c) {
    c.segment = 64;
    c.B = 2;
    c.T = 150;
    c.log_decay = {std::log1p(-1.0 / 32), kMinusInfinity};
    const BackwardInputs in = make_backward_inputs(c);
    check_values(c, in, run(c, in, simt::Order::kRandom));
  });
}

TEST_CASE("chunkwise backward: heads that fill their tiles, scales") {
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    BackwardCase c;
    c.dtype = dtype;
    c.tile = 5;
    c.H = 1;
    c.T = 75;
    c.K = 256;
    c.V = 512;
    c.scale = -0.5;
    check(c);
  }
}

TEST_CASE("chunkwise backward: totals") { print_totals("chunkwise backward"); }

}  // namespace retnet::kernels::cuda
