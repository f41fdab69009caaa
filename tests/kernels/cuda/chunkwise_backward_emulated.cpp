// SPDX-License-Identifier: Apache-2.0
//
// Runs every instantiation of the chunkwise kernel that computes gradients in the SIMT emulator (tests/simt),
// and compares the gradients with their definition in float64.
#include "chunkwise_check.h"

namespace retnet::kernels::cuda {
namespace {

struct Gradients {
  std::vector<double> grad_q, grad_k, grad_v, grad_initial_state;
};

/// Computes token by token, forward with the state S and backward with its gradient R.
Gradients gradients_by_definition(const BackwardCase& c, const BackwardInputs& in) {
  const size_t Dk = c.head_dim_qk(), Dv = c.head_dim_v(), tokens = c.B * c.T;
  const double scale = chunkwise_scale(c);
  Gradients grads{std::vector<double>(tokens * c.H * Dk),
                  std::vector<double>(tokens * c.H * Dk),
                  std::vector<double>(tokens * c.H * Dv),
                  {}};
  for (size_t n = 0; n < c.sequences(); ++n) {
    const size_t first = c.cu_seqlens.empty() ? n * c.T : c.cu_seqlens[n];
    const size_t end = c.cu_seqlens.empty() ? first + c.T : c.cu_seqlens[n + 1];
    for (size_t h = 0; h < c.H; ++h) {
      const double gamma = std::exp(static_cast<double>(c.decay(h)));
      const size_t at = (n * c.H + h) * Dk * Dv;
      std::vector<double> S(Dk * Dv), R(Dk * Dv);
      const auto decay = [&](std::vector<double>& state) {
        for (double& s : state) s = gamma > 0 ? gamma * s : 0;
      };
      if (c.initial_state) S.assign(&in.initial_state[at], &in.initial_state[at] + Dk * Dv);
      if (c.grad_final_state)
        R.assign(&in.grad_final_state[at], &in.grad_final_state[at] + Dk * Dv);
      for (size_t t = first; t < end; ++t) {
        const size_t row = t * c.H + h;
        decay(S);
        for (size_t i = 0; i < Dk; ++i) {
          for (size_t j = 0; j < Dv; ++j) {
            S[i * Dv + j] += in.k.values[row * Dk + i] * in.v.values[row * Dv + j];
            if (!c.grad_out) continue;
            grads.grad_q[row * Dk + i] += scale * S[i * Dv + j] * in.grad_out.values[row * Dv + j];
          }
        }
      }
      for (size_t t = end; t-- > first;) {
        const size_t row = t * c.H + h;
        for (size_t i = 0; i < Dk; ++i) {
          for (size_t j = 0; j < Dv; ++j) {
            double& r = R[i * Dv + j];
            if (c.grad_out) {
              r += scale * in.q.values[row * Dk + i] * in.grad_out.values[row * Dv + j];
            }
            grads.grad_k[row * Dk + i] += r * in.v.values[row * Dv + j];
            grads.grad_v[row * Dv + j] += r * in.k.values[row * Dk + i];
          }
        }
        decay(R);
      }
      grads.grad_initial_state.insert(grads.grad_initial_state.end(), R.begin(), R.end());
    }
  }
  return grads;
}

struct BackwardBits {
  std::vector<uint16_t> grad_q, grad_k, grad_v;
  std::vector<float> grad_initial_state;

  bool operator==(const BackwardBits& other) const {
    const auto& state = grad_initial_state;
    return grad_q == other.grad_q && grad_k == other.grad_k && grad_v == other.grad_v &&
           state.size() == other.grad_initial_state.size() &&
           std::memcmp(state.data(), other.grad_initial_state.data(), 4 * state.size()) == 0;
  }
};

/// Calls it as csrc/ops/cuda does: a plan, a workspace and a launch for each pass.
BackwardBits run(const BackwardCase& c, const BackwardInputs& in, simt::Order order) {
  simt::Options options;
  options.order = order;
  options.seed = ++totals.cases;
  options.shared_limit = c.shared;
  simt::Simulator simulator(options);
  const ChunkwiseParams p = forward_params(simulator, c, in);
  ChunkwiseGradients grads = incoming_gradients(simulator, c, in);
  const size_t rows = c.B * c.T * c.H,
               states = c.sequences() * c.H * c.head_dim_qk() * c.head_dim_v();
  auto* q = simulator.output<uint16_t>(rows * c.head_dim_qk(), "grad_q");
  auto* k = simulator.output<uint16_t>(rows * c.head_dim_qk(), "grad_k");
  auto* v = simulator.output<uint16_t>(rows * c.head_dim_v(), "grad_v");
  grads.grad_q_ptr = q;
  grads.grad_k_ptr = k;
  grads.grad_v_ptr = v;
  grads.grad_initial_state_ptr = simulator.output<float>(states, "grad_initial_state");

  bool wide = true;
  for (const auto pass : {ChunkwisePass::kGradQ, ChunkwisePass::kGradK, ChunkwisePass::kGradV}) {
    ChunkwiseParams params = chunkwise_gradient(pass, p, grads);
    const DeviceLimits device{80, c.segment != 0 ? 1024 : 1, c.shared};
    ChunkwisePlan plan = chunkwise_plan(params, device, 0, false);
    REQUIRE(plan.unsupported_reason == nullptr);
    if (pass != ChunkwisePass::kGradV) REQUIRE(plan.tile == c.tile);
    if (c.segment != 0) {
      plan.segment_length = c.segment;
      const int64_t whole = (p.tokens + c.segment - 1) / c.segment;
      plan.segments = c.cu_seqlens.empty() ? p.batch * whole : p.tokens / c.segment + p.sequences;
      params.workspace_ptr = simulator.workspace<float>(
          plan.segments * p.heads * p.head_dim_qk * p.head_dim_v, "states");
    }
    wide = wide && chunkwise_wide(params);
    REQUIRE(launch_chunkwise(params, plan, nullptr) == cudaSuccess);
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
  return {{q, q + rows * c.head_dim_qk()},
          {k, k + rows * c.head_dim_qk()},
          {v, v + rows * c.head_dim_v()},
          {grads.grad_initial_state_ptr, grads.grad_initial_state_ptr + states}};
}

/// Returns what is wrong with the gradient of an operand, or an empty string. The tolerance of gradients is
/// twice that of outputs. The composite rounds once.
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
  const std::vector<double> state(bits.grad_initial_state.begin(), bits.grad_initial_state.end());
  const std::string wrong =
      check_gradient("grad_q", c, bits.grad_q, exact.grad_q, c.head_dim_qk()) +
      check_gradient("grad_k", c, bits.grad_k, exact.grad_k, c.head_dim_qk()) +
      check_gradient("grad_v", c, bits.grad_v, exact.grad_v, c.head_dim_v());
  INFO(c.name());
  CHECK(wrong == "");
  CHECK(mismatch(state, exact.grad_initial_state, c.head_dim_qk() * c.head_dim_v(), c.dtype, 2) ==
        "");
}

/// Runs a case in three orders of blocks, warps and lanes. Checks and returns its values.
BackwardBits check(const BackwardCase& c, const BackwardInputs& in) {
  const BackwardBits bits = run(c, in, simt::Order::kAscending);
  check_values(c, in, bits);
  INFO(c.name());
  CHECK(bits == run(c, in, simt::Order::kDescending));
  CHECK(bits == run(c, in, simt::Order::kRandom));
  return bits;
}
BackwardBits check(const BackwardCase& c) { return check(c, make_backward_inputs(c)); }

/// Returns every tile for the passes of grad_q and grad_k, with heads that just need it. (The pass of grad_v
/// takes tiles 0, 2, 3 and 4 again, and tile 1 with the second head here.)
template <class F>
void for_each_backward(const F& f) {
  struct Head {
    int tile;
    size_t Dk, Dv, shared;
  };
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    for (const Head& head : {Head{0, 36, 20, kShared80}, Head{2, 36, 68, kShared80},
                             Head{1, 68, 64, kShared80}, Head{3, 132, 132, kShared80},
                             Head{4, 132, 132, kShared86}, Head{5, 132, 260, kShared80}}) {
      BackwardCase c;
      c.dtype = dtype;
      c.tile = head.tile;
      c.Dk = head.Dk;
      c.Dv = head.Dv;
      c.shared = head.shared;
      f(c);
    }
  }
}

/// Returns each tile once, in either dtype. This suffices for tests of the walk over tokens.
template <class F>
void for_each_tile(const F& f) {
  for_each_backward([&](const BackwardCase& c) {
    if ((c.dtype == DType::kFloat16) == (c.tile % 2 == 0)) f(c);
  });
}

/// Returns tile 0 and the tile with halves.
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
      c.grad_final_state = turn != 3;
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
    // If gamma is 0, the initial state is ignored, and grad_final_state reaches only the last chunk. NaN in
    // them changes nothing else.
    const size_t size = c.head_dim_qk() * c.head_dim_v();
    BackwardInputs poisoned = in;
    std::fill_n(poisoned.initial_state.begin() + size, size, NAN);
    std::fill_n(poisoned.grad_final_state.begin() + size, size, NAN);
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
    CHECK(bits.grad_q == beside_nan.grad_q);
    CHECK(same(bits.grad_k, beside_nan.grad_k, c.head_dim_qk(), kBefore));
    CHECK(same(bits.grad_v, beside_nan.grad_v, c.head_dim_v(), kBefore));
    CHECK(std::memcmp(bits.grad_initial_state.data(), beside_nan.grad_initial_state.data(),
                      4 * bits.grad_initial_state.size()) == 0);
    // A positive or NaN decay gives NaN in its own head only.
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
    count(bits.grad_q, bad.grad_q, c.head_dim_qk());
    count(bits.grad_k, bad.grad_k, c.head_dim_qk());
    count(bits.grad_v, bad.grad_v, c.head_dim_v());
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
      // The values of the neighbours do not matter.
      BackwardInputs poisoned = in;
      const auto poison = [&](Array& array, size_t size) {
        std::fill(array.bytes.begin() + 2 * 34 * size, array.bytes.begin() + 2 * 104 * size,
                  std::byte{0xff});
      };
      poison(poisoned.q, c.head_dim_qk());
      poison(poisoned.k, c.head_dim_qk());
      poison(poisoned.v, c.head_dim_v());
      poison(poisoned.grad_out, c.head_dim_v());
      BackwardBits beside_nan = run(c, poisoned, simt::Order::kDescending);
      const auto restore = [&](auto& bits, const auto& from, size_t size, size_t first,
                               size_t end) {
        std::copy(from.begin() + first * size, from.begin() + end * size,
                  bits.begin() + first * size);
      };
      restore(beside_nan.grad_q, packed.grad_q, c.head_dim_qk(), 34, 104);
      restore(beside_nan.grad_k, packed.grad_k, c.head_dim_qk(), 34, 104);
      restore(beside_nan.grad_v, packed.grad_v, c.head_dim_v(), 34, 104);
      restore(beside_nan.grad_initial_state, packed.grad_initial_state,
              c.head_dim_qk() * c.head_dim_v(), 3, 4);
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
    c.Dk = 256;
    c.Dv = 512;
    c.scale = -0.5;
    check(c);
  }
}

TEST_CASE("chunkwise backward: totals") { print_totals("chunkwise backward"); }

}  // namespace retnet::kernels::cuda
