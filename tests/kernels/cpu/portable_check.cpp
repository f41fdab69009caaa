// SPDX-License-Identifier: Apache-2.0
//
// Compares every CPU kernel of the portable instruction set with its definition in float64. It
// needs no torch, so that it can be compiled for another architecture and run there or in qemu.
// It prints what failed and exits with the number of failures.
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "kernels/cpu/isa/registry.h"

namespace {

using namespace retnet::kernels::cpu;
using Doubles = std::vector<double>;

int failures = 0, checks = 0;

// Numbers
// -------------------------------------------------------------------------------------------------

Doubles normal(int64_t size) {
  static std::mt19937_64 generator;
  std::normal_distribution<double> distribution;
  Doubles x(size);
  for (auto& value : x) value = distribution(generator);
  return x;
}

double value_of(float x) { return x; }
double value_of(BFloat16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
double value_of(Float16 x) {
  const int exponent = x.bits >> 10 & 31, fraction = x.bits & 1023;
  const double size =
      exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return x.bits >> 15 ? -size : size;
}

/// Returns numbers in a dtype of the kernels, rounded towards zero. Any rounding would do here.
template <class T>
std::vector<T> stored(const Doubles& from) {
  std::vector<T> x(from.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const auto single = static_cast<float>(from[i]);
    if constexpr (std::is_same_v<T, float>) {
      x[i] = single;
    } else if constexpr (std::is_same_v<T, BFloat16>) {
      x[i].bits = static_cast<uint16_t>(std::bit_cast<uint32_t>(single) >> 16);
    } else {  // the numbers here are far below the largest float16
      int exponent = 0;
      const double fraction = std::frexp(std::fabs(from[i]), &exponent);  // from 0.5 to 1
      const bool is_normal = exponent > -14;
      const double scaled = std::ldexp(fraction, is_normal ? 11 : exponent + 24);
      x[i].bits =
          static_cast<uint16_t>((from[i] < 0 ? 1U << 15 : 0U) +
                                (is_normal ? (exponent + 13) << 10 : 0) + static_cast<int>(scaled));
    }
  }
  return x;
}

template <class T>
Doubles values(const std::vector<T>& x) {
  Doubles result;
  for (const auto& element : x) result.push_back(value_of(element));
  return result;
}

template <class T>
constexpr double tolerance() {
  return std::is_same_v<T, float> ? 2e-6 : std::is_same_v<T, BFloat16> ? 5e-3 : 7e-4;
}

void check(const std::string& what, const Doubles& actual, const Doubles& expected, double limit) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    difference += (actual[i] - expected[i]) * (actual[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  ++checks;
  const double error = difference == 0 ? 0 : std::sqrt(difference / size);
  if (error <= limit) return;
  ++failures;
  std::printf("%s: error %.2e, %.0e is allowed\n", what.c_str(), error, limit);
}

/// A workspace for a kernel, aligned like the memory of torch.
struct AlignedMemory {
  explicit AlignedMemory(size_t bytes) : ptr(std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64)) {}
  ~AlignedMemory() { std::free(ptr); }
  void* ptr;
};

// Retention
// -------------------------------------------------------------------------------------------------

struct Tables {
  explicit Tables(double gamma, double scale) {
    const auto at = [&](int64_t n) { return n == 0 ? 1.0 : std::pow(gamma, n); };
    for (int64_t n = 0; n <= kChunk; ++n) {
      power.push_back(at(n)), power_minus_one.push_back(at(n) - 1);
      power_derivative.push_back(n * at(n));
    }
    for (int64_t x = 0; x < kChunk; ++x) state_weight.push_back(scale * at(x + 1));
    for (int64_t x = 0; x < 2 * kChunk; ++x) {
      const int64_t n = kChunk - 1 - x;
      score_weight.push_back(n < 0 ? 0 : scale * at(n));
      score_weight_derivative.push_back(n < 0 ? 0 : scale * n * at(n));
      score_weight_transposed.push_back(x < kChunk - 1 ? 0 : scale * at(x - kChunk + 1));
    }
  }
  DecayTables get(double gamma) const {
    return {gamma == 0,
            power.data(),
            power_minus_one.data(),
            state_weight.data(),
            score_weight.data(),
            score_weight_transposed.data(),
            power_derivative.data(),
            score_weight_derivative.data()};
  }
  std::vector<float> power, power_minus_one, state_weight, score_weight, score_weight_transposed,
      power_derivative, score_weight_derivative;
};

template <class T>
void check_retention(const KernelTable& kernels, const std::string& dtype, int64_t tokens,
                     int64_t Dk, int64_t Dv, double log_decay) {
  const double gamma = std::exp(log_decay), scale = 0.3;
  const Tables tables(gamma, scale);
  const auto q = stored<T>(normal(tokens * Dk)), k = stored<T>(normal(tokens * Dk));
  const auto v = stored<T>(normal(tokens * Dv)), grad_out = stored<T>(normal(tokens * Dv));
  const auto initial_state = stored<float>(normal(Dk * Dv)),
             grad_final_state = stored<float>(normal(Dk * Dv));
  const auto exact_q = values(q), exact_k = values(k), exact_v = values(v),
             exact_grad_out = values(grad_out);
  const auto name = [&](const char* what) {
    return dtype + " " + what + " T=" + std::to_string(tokens) + " Dk=" + std::to_string(Dk) +
           " Dv=" + std::to_string(Dv) + " log_decay=" + std::to_string(log_decay);
  };

  // Token by token: S <- gamma S + k^T v, out = scale q S, and the same for S' = dS/dlog_decay.
  Doubles S = values(initial_state), derivative(Dk * Dv), expected_out(tokens * Dv);
  double expected_grad_log_decay = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t i = 0; i < Dk; ++i) {
      for (int64_t j = 0; j < Dv; ++j) {
        auto &s = S[i * Dv + j], &d = derivative[i * Dv + j];
        d = gamma * (d + s);
        s = gamma * s + exact_k[t * Dk + i] * exact_v[t * Dv + j];
        expected_out[t * Dv + j] += scale * exact_q[t * Dk + i] * s;
        expected_grad_log_decay += scale * exact_grad_out[t * Dv + j] * exact_q[t * Dk + i] * d;
      }
    }
  }
  for (int64_t i = 0; i < Dk * Dv; ++i) {
    expected_grad_log_decay += derivative[i] * value_of(grad_final_state[i]);
  }
  std::vector<T> out(tokens * Dv);
  std::vector<float> final_state(Dk * Dv);
  double grad_log_decay = 0;
  RetentionForwardParams forward{};
  forward.tokens = tokens, forward.head_dim_qk = Dk, forward.head_dim_v = Dv;
  forward.q = {q.data(), Dk}, forward.k = {k.data(), Dk}, forward.v = {v.data(), Dv};
  forward.out = {out.data(), Dv};
  forward.initial_state = {initial_state.data(), Dv, 1};
  forward.final_state = {final_state.data(), Dv, 1};
  forward.decay = tables.get(gamma);
  forward.grad_log_decay = &grad_log_decay, forward.grad_out = {grad_out.data(), Dv};
  forward.grad_final_state = {grad_final_state.data(), Dv, 1};
  const AlignedMemory forward_memory(kernels.retention_forward_workspace_bytes(forward));
  kernels.retention_forward(forward, forward_memory.ptr);
  check(name("output"), values(out), expected_out, tolerance<T>());
  check(name("state"), values(final_state), S, 2e-6);
  check(name("gradient of log_decay"), {grad_log_decay}, {expected_grad_log_decay}, 5e-5);

  // Backward in time, with the gradient of the state.
  Doubles grad_S = values(grad_final_state), expected_grad_k(tokens * Dk),
          expected_grad_v(tokens * Dv);
  for (int64_t t = tokens - 1; t >= 0; --t) {
    for (int64_t i = 0; i < Dk; ++i) {
      for (int64_t j = 0; j < Dv; ++j) {
        auto& s = grad_S[i * Dv + j];
        s += scale * exact_q[t * Dk + i] * exact_grad_out[t * Dv + j];
        expected_grad_k[t * Dk + i] += s * exact_v[t * Dv + j];
        expected_grad_v[t * Dv + j] += s * exact_k[t * Dk + i];
        s *= gamma;
      }
    }
  }
  std::vector<T> grad_k(tokens * Dk), grad_v(tokens * Dv);
  std::vector<float> grad_initial_state(Dk * Dv);
  RetentionBackwardParams backward{};
  backward.tokens = tokens, backward.head_dim_qk = Dk, backward.head_dim_v = Dv;
  backward.q = {q.data(), Dk}, backward.k = {k.data(), Dk};
  backward.v = {v.data(), Dv}, backward.grad_out = {grad_out.data(), Dv};
  backward.grad_k = {grad_k.data(), Dk}, backward.grad_v = {grad_v.data(), Dv};
  backward.grad_final_state = {grad_final_state.data(), Dv, 1};
  backward.grad_initial_state = {grad_initial_state.data(), Dv, 1};
  backward.decay = tables.get(gamma);
  const AlignedMemory backward_memory(kernels.retention_backward_workspace_bytes(backward));
  kernels.retention_backward(backward, backward_memory.ptr);
  check(name("gradient of k"), values(grad_k), expected_grad_k, 2 * tolerance<T>());
  check(name("gradient of v"), values(grad_v), expected_grad_v, 2 * tolerance<T>());
  check(name("gradient of the initial state"), values(grad_initial_state), grad_S, 4e-6);
}

// The other kernels for a dtype
// -------------------------------------------------------------------------------------------------

template <class T>
void check_norm(const KernelTable& kernels, const std::string& dtype, int64_t head_dim_v,
                Norm norm) {
  const auto x = stored<T>(normal(head_dim_v)), gate = stored<T>(normal(head_dim_v));
  const auto grad = stored<T>(normal(head_dim_v));
  const auto weight = stored<float>(normal(head_dim_v)), bias = stored<float>(normal(head_dim_v));
  const auto X = values(x), G = values(gate), W = values(weight), N = values(bias),
             D = values(grad);
  const double eps = 1e-5, n = static_cast<double>(head_dim_v);
  double mean = 0, square = 0;
  for (const auto value : X) mean += norm == Norm::kLayer ? value / n : 0;
  for (const auto value : X) square += (value - mean) * (value - mean) / n;
  const double root = 1 / std::sqrt(square + eps);
  Doubles y(head_dim_v), dx(head_dim_v), dgate(head_dim_v), dweight(head_dim_v), dbias(head_dim_v);
  double of_mean = 0, of_root = 0;
  for (int64_t i = 0; i < head_dim_v; ++i) {
    const double normed = (X[i] - mean) * root, sigmoid = 1 / (1 + std::exp(-G[i]));
    const double inner = normed * W[i] + N[i];
    y[i] = inner * G[i] * sigmoid;
    dgate[i] = D[i] * inner * sigmoid * (1 + G[i] * (1 - sigmoid));
    dbias[i] = D[i] * G[i] * sigmoid, dweight[i] = dbias[i] * normed;
    of_mean += norm == Norm::kLayer ? dbias[i] * W[i] / n : 0,
        of_root += dbias[i] * W[i] * normed / n;
  }
  for (int64_t i = 0; i < head_dim_v; ++i) {
    dx[i] = root * (dbias[i] * W[i] - of_mean - (X[i] - mean) * root * of_root);
  }
  std::vector<T> out(head_dim_v), grad_x(head_dim_v), grad_gate(head_dim_v);
  std::vector<float> grad_weight(head_dim_v), grad_bias(head_dim_v), workspace(head_dim_v);
  const GatedGroupNormParams forward{head_dim_v,  norm,        static_cast<float>(eps),
                                     x.data(),    gate.data(), weight.data(),
                                     bias.data(), out.data()};
  kernels.gated_group_norm(forward);
  kernels.gated_group_norm_backward({forward, grad.data(), grad_x.data(), grad_gate.data(),
                                     grad_weight.data(), grad_bias.data(), workspace.data()});
  const auto name =
      dtype + (norm == Norm::kLayer ? " layer norm " : " rms norm ") + std::to_string(head_dim_v);
  check(name, values(out), y, tolerance<T>());
  check(name + " gradient of x", values(grad_x), dx, 2 * tolerance<T>());
  check(name + " gradient of gate", values(grad_gate), dgate, 2 * tolerance<T>());
  check(name + " gradient of weight", values(grad_weight), dweight, 2 * tolerance<T>());
  check(name + " gradient of bias", values(grad_bias), dbias, 2 * tolerance<T>());
}

template <class T>
void check_rotary(const InstructionSet& set, const KernelTable& kernels, const std::string& dtype,
                  int64_t pairs, bool interleaved, double position) {
  std::vector<float> frequencies(pairs), cos(pairs), sin(pairs);
  for (int64_t i = 0; i < pairs; ++i)
    frequencies[i] = static_cast<float>(std::pow(1e-4, 1. * i / pairs));
  set.cos_sin({pairs, position, frequencies.data(), cos.data(), sin.data()});
  const auto x = stored<T>(normal(2 * pairs));
  const auto X = values(x);
  Doubles y(2 * pairs);
  for (int64_t i = 0; i < pairs; ++i) {
    const double angle = position * frequencies[i];
    const int64_t p = interleaved ? 2 * i : i, q = interleaved ? 2 * i + 1 : i + pairs;
    y[p] = X[p] * std::cos(angle) - X[q] * std::sin(angle);
    y[q] = X[p] * std::sin(angle) + X[q] * std::cos(angle);
  }
  std::vector<T> out(2 * pairs);
  kernels.rotary({pairs, interleaved, cos.data(), sin.data(), x.data(), out.data()});
  check(dtype + " rotary at " + std::to_string(position), values(out), y, tolerance<T>());
}

template <class T>
void check_cross_entropy(const KernelTable& kernels, const std::string& dtype, int64_t classes) {
  auto x = stored<T>(normal(classes));
  const auto X = values(x);
  const int64_t target = classes / 2;
  double sum = 0;
  for (const auto value : X) sum += std::exp(value);
  Doubles gradient(classes);
  for (int64_t i = 0; i < classes; ++i) gradient[i] = std::exp(X[i]) / sum - (i == target);
  std::vector<float> exponentials(classes);
  const double loss = kernels.cross_entropy({classes, target, x.data(), exponentials.data()});
  const auto name = dtype + " cross-entropy of " + std::to_string(classes);
  check(name, {loss}, {std::log(sum) - X[target]}, 2e-6);
  check(name + " gradient", values(x), gradient, 2 * tolerance<T>());
}

template <class T>
void check_conversions(const KernelTable& kernels, const std::string& dtype, int64_t channels) {
  const auto x = stored<T>(normal(channels));
  std::vector<float> floats(channels);
  kernels.to_floats(x.data(), channels, floats.data());
  check(dtype + " to floats", values(floats), values(x), 0);
  for (auto& value : floats) value *= 0.7F;
  std::vector<T> back(channels);
  kernels.from_floats(floats.data(), channels, back.data());
  check(dtype + " from floats", values(back), values(floats), tolerance<T>());
}

template <class T>
void check_dtype(const InstructionSet& set, const KernelTable& kernels, const std::string& dtype) {
  for (const double log_decay : {-0.0317, -1.5, 0.0, -std::numeric_limits<double>::infinity()}) {
    check_retention<T>(kernels, dtype, 130, 24, 40, log_decay);
  }
  check_retention<T>(kernels, dtype, 1, 1, 1, -0.1);
  check_retention<T>(kernels, dtype, 65, 7, 13, -0.1);
  check_retention<T>(kernels, dtype, 200, 64, 129, -0.01);
  for (const int64_t channels : {5, 64, 131}) {
    for (const bool yes : {true, false}) {
      check_norm<T>(kernels, dtype, channels, yes ? Norm::kLayer : Norm::kRms);
      check_rotary<T>(set, kernels, dtype, channels, yes, 1234567);
    }
    check_cross_entropy<T>(kernels, dtype, channels);
    check_conversions<T>(kernels, dtype, channels);
  }
}

// Decode steps
// -------------------------------------------------------------------------------------------------

/// Rows of the state have three floats between them, which must not change.
void check_decode_step(const InstructionSet& set, int64_t Dk, int64_t Dv, double gamma) {
  const int64_t stride = Dv + 3;
  const auto q = stored<float>(normal(Dk)), k = stored<float>(normal(Dk)),
             v = stored<float>(normal(Dv));
  auto state = stored<float>(normal(Dk * stride));
  Doubles S = values(state), expected_out(Dv);
  for (int64_t i = 0; i < Dk; ++i) {
    for (int64_t j = 0; j < Dv; ++j) {
      auto& s = S[i * stride + j];
      s = gamma * s + value_of(k[i]) * v[j];
      expected_out[j] += 0.3 * q[i] * s;
    }
  }
  std::vector<float> out(Dv);
  set.decode_step({Dk, Dv, q.data(), k.data(), v.data(), state.data(), stride, gamma == 0,
                   static_cast<float>(gamma - 1), 0.3F, out.data()});
  check("output of a decode step", values(out), expected_out, 2e-6);
  check("state of a decode step", values(state), S, 2e-6);
}

void check_linear(const InstructionSet& set, int64_t tokens, int64_t in_features,
                  int64_t out_features) {
  const auto x = stored<BFloat16>(normal(tokens * in_features)),
             weight = stored<BFloat16>(normal(out_features * in_features));
  const auto bias = stored<BFloat16>(normal(out_features));
  Doubles expected(tokens * out_features);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t o = 0; o < out_features; ++o) {
      auto& sum = expected[t * out_features + o];
      sum = value_of(bias[o]);
      for (int64_t i = 0; i < in_features; ++i) {
        sum += value_of(x[t * in_features + i]) * value_of(weight[o * in_features + i]);
      }
    }
  }
  const auto size = linear_token_size(in_features);
  std::vector<float> packed_x(tokens * size);
  for (int64_t t = 0; t < tokens; ++t) {
    set.pack_linear_token({in_features, x.data() + t * in_features, packed_x.data() + t * size});
  }
  std::vector<BFloat16> out(tokens * out_features);
  set.linear({tokens, in_features, out_features, packed_x.data(), weight.data(), in_features,
              bias.data(), out.data(), out_features});
  check("linear of " + std::to_string(tokens), values(out), expected, 5e-3);
}

}  // namespace

int main() {
  const auto& set = kPortable;
  check_dtype<float>(set, set.float32, "float32");
  check_dtype<BFloat16>(set, set.bfloat16, "bfloat16");
  check_dtype<Float16>(set, set.float16, "float16");
  for (const double gamma : {0.97, 1.0, 0.0}) check_decode_step(set, 23, 141, gamma);
  for (const int64_t tokens : {1, 2, 3, 4}) check_linear(set, tokens, 77, 53);
  std::printf("%d checks, %d failures\n", checks, failures);
  return std::min(failures, 100);
}
