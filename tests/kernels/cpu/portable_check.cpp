// SPDX-License-Identifier: Apache-2.0
//
// Every portable kernel of the CPU against its definition in float64, without torch: so that it can
// be compiled for another architecture and run there or in an emulator. Prints what failed; exits
// with the number of failures.
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

/// Numbers as the kernels have them; rounded towards zero, which is as good as any way here.
template <class T>
std::vector<T> stored(const Doubles& from) {
  std::vector<T> x(from.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const auto single = static_cast<float>(from[i]);
    if constexpr (std::is_same_v<T, float>) {
      x[i] = single;
    } else if constexpr (std::is_same_v<T, BFloat16>) {
      x[i].bits = static_cast<uint16_t>(std::bit_cast<uint32_t>(single) >> 16);
    } else {  // the numbers here are far from float16's largest
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

/// Memory for a kernel, as aligned as torch's.
struct Scratch {
  explicit Scratch(size_t bytes) : ptr(std::aligned_alloc(64, (bytes + 63) / 64 * 64 + 64)) {}
  ~Scratch() { std::free(ptr); }
  void* ptr;
};

// Retention
// -------------------------------------------------------------------------------------------------

struct Tables {
  explicit Tables(double gamma, double scale) {
    const auto at = [&](int64_t n) { return n == 0 ? 1.0 : std::pow(gamma, n); };
    for (int64_t n = 0; n <= kChunk; ++n) {
      power.push_back(at(n)), change.push_back(at(n) - 1), slope.push_back(n * at(n));
    }
    for (int64_t x = 0; x < kChunk; ++x) readout.push_back(scale * at(x + 1));
    for (int64_t x = 0; x < 2 * kChunk; ++x) {
      const int64_t n = kChunk - 1 - x;
      row.push_back(n < 0 ? 0 : scale * at(n));
      row_slope.push_back(n < 0 ? 0 : scale * n * at(n));
      column.push_back(x < kChunk - 1 ? 0 : scale * at(x - kChunk + 1));
    }
  }
  DecayTables get(double gamma) const {
    return {gamma == 0, power.data(),  change.data(), readout.data(),
            row.data(), column.data(), slope.data(),  row_slope.data()};
  }
  std::vector<float> power, change, readout, row, column, slope, row_slope;
};

template <class T>
void check_retention(const Kernels& kernels, const std::string& dtype, int64_t tokens, int64_t K,
                     int64_t V, double log_decay) {
  const double gamma = std::exp(log_decay), scale = 0.3;
  const Tables tables(gamma, scale);
  const auto a = stored<T>(normal(tokens * K)), b = stored<T>(normal(tokens * K));
  const auto c = stored<T>(normal(tokens * V)), d = stored<T>(normal(tokens * V));
  const auto first = stored<float>(normal(K * V)), last = stored<float>(normal(K * V));
  const auto A = values(a), B = values(b), C = values(c), D = values(d);
  const auto name = [&](const char* what) {
    return dtype + " " + what + " T=" + std::to_string(tokens) + " K=" + std::to_string(K) +
           " V=" + std::to_string(V) + " log_decay=" + std::to_string(log_decay);
  };

  // Token by token: S <- gamma S + b^T c, y = scale a S; and the same of dS/dlog_decay.
  Doubles S = values(first), R(K * V), y(tokens * V);
  double slope = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t k = 0; k < K; ++k) {
      for (int64_t v = 0; v < V; ++v) {
        auto &s = S[k * V + v], &r = R[k * V + v];
        r = gamma * (r + s);
        s = gamma * s + B[t * K + k] * C[t * V + v];
        y[t * V + v] += scale * A[t * K + k] * s;
        slope += scale * D[t * V + v] * A[t * K + k] * r;
      }
    }
  }
  for (int64_t i = 0; i < K * V; ++i) slope += R[i] * value_of(last[i]);
  std::vector<T> out(tokens * V);
  std::vector<float> state(K * V);
  double found = 0;
  ReadoutParams readout{};
  readout.tokens = tokens, readout.inner = K, readout.outer = V;
  readout.a = {a.data(), K}, readout.b = {b.data(), K}, readout.c = {c.data(), V};
  readout.y = out.data(), readout.y_stride = V;
  readout.initial = first.data(), readout.initial_inner = V, readout.initial_outer = 1;
  readout.final_state = state.data(), readout.final_inner = V, readout.final_outer = 1;
  readout.decay = tables.get(gamma);
  readout.slope = &found, readout.q = {d.data(), V};
  readout.grad_state = last.data(), readout.grad_state_inner = V, readout.grad_state_outer = 1;
  kernels.readout(readout, Scratch(kernels.readout_scratch(readout)).ptr);
  check(name("output"), values(out), y, tolerance<T>());
  check(name("state"), values(state), S, 2e-6);
  check(name("gradient of log_decay"), {found}, {slope}, 5e-5);

  // Backward in time, with the adjoint X of the state: q = a, k = b, v = c, grad_out = d.
  Doubles X = values(last), dk(tokens * K), dv(tokens * V);
  for (int64_t t = tokens - 1; t >= 0; --t) {
    for (int64_t k = 0; k < K; ++k) {
      for (int64_t v = 0; v < V; ++v) {
        auto& x = X[k * V + v];
        x += scale * A[t * K + k] * D[t * V + v];
        dk[t * K + k] += x * C[t * V + v];
        dv[t * V + v] += x * B[t * K + k];
        x *= gamma;
      }
    }
  }
  std::vector<T> grad_k(tokens * K), grad_v(tokens * V);
  std::vector<float> grad_initial(K * V);
  UpdateParams update{};
  update.tokens = tokens, update.inner = K, update.outer = V;
  update.q = {a.data(), K}, update.k = {b.data(), K};
  update.v = {c.data(), V}, update.grad_out = {d.data(), V};
  update.grad_k = grad_k.data(), update.grad_k_stride = K;
  update.grad_v = grad_v.data(), update.grad_v_stride = V;
  update.grad_state = last.data(), update.grad_state_inner = V, update.grad_state_outer = 1;
  update.grad_initial = grad_initial.data(), update.grad_initial_inner = V;
  update.decay = tables.get(gamma);
  kernels.update(update, Scratch(kernels.update_scratch(update)).ptr);
  check(name("gradient of k"), values(grad_k), dk, 2 * tolerance<T>());
  check(name("gradient of v"), values(grad_v), dv, 2 * tolerance<T>());
  check(name("gradient of the first state"), values(grad_initial), X, 4e-6);
}

// The others of a dtype
// -------------------------------------------------------------------------------------------------

template <class T>
void check_norm(const Kernels& kernels, const std::string& dtype, int64_t channels, bool centred) {
  const auto x = stored<T>(normal(channels)), gate = stored<T>(normal(channels));
  const auto grad = stored<T>(normal(channels));
  const auto weight = stored<float>(normal(channels)), bias = stored<float>(normal(channels));
  const auto X = values(x), G = values(gate), W = values(weight), N = values(bias),
             D = values(grad);
  const double eps = 1e-5, n = static_cast<double>(channels);
  double mean = 0, square = 0;
  for (const auto value : X) mean += centred ? value / n : 0;
  for (const auto value : X) square += (value - mean) * (value - mean) / n;
  const double root = 1 / std::sqrt(square + eps);
  Doubles y(channels), dx(channels), dgate(channels), dweight(channels), dbias(channels);
  double of_mean = 0, of_root = 0;
  for (int64_t i = 0; i < channels; ++i) {
    const double normed = (X[i] - mean) * root, sigmoid = 1 / (1 + std::exp(-G[i]));
    const double inner = normed * W[i] + N[i];
    y[i] = inner * G[i] * sigmoid;
    dgate[i] = D[i] * inner * sigmoid * (1 + G[i] * (1 - sigmoid));
    dbias[i] = D[i] * G[i] * sigmoid, dweight[i] = dbias[i] * normed;
    of_mean += centred ? dbias[i] * W[i] / n : 0, of_root += dbias[i] * W[i] * normed / n;
  }
  for (int64_t i = 0; i < channels; ++i) {
    dx[i] = root * (dbias[i] * W[i] - of_mean - (X[i] - mean) * root * of_root);
  }
  std::vector<T> out(channels), grad_x(channels), grad_gate(channels);
  std::vector<float> grad_weight(channels), grad_bias(channels), scratch(channels);
  const GatedNormParams forward{channels,    static_cast<float>(eps), centred,     x.data(),
                                gate.data(), weight.data(),           bias.data(), out.data()};
  kernels.gated_norm(forward);
  kernels.gated_norm_grad({forward, grad.data(), grad_x.data(), grad_gate.data(),
                           grad_weight.data(), grad_bias.data(), scratch.data()});
  const auto name = dtype + (centred ? " layer norm " : " rms norm ") + std::to_string(channels);
  check(name, values(out), y, tolerance<T>());
  check(name + " gradient of x", values(grad_x), dx, 2 * tolerance<T>());
  check(name + " gradient of gate", values(grad_gate), dgate, 2 * tolerance<T>());
  check(name + " gradient of weight", values(grad_weight), dweight, 2 * tolerance<T>());
  check(name + " gradient of bias", values(grad_bias), dbias, 2 * tolerance<T>());
}

template <class T>
void check_rotary(const InstructionSet& set, const Kernels& kernels, const std::string& dtype,
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
void check_cross_entropy(const Kernels& kernels, const std::string& dtype, int64_t classes) {
  auto x = stored<T>(normal(classes));
  const auto X = values(x);
  const int64_t target = classes / 2;
  double sum = 0;
  for (const auto value : X) sum += std::exp(value);
  Doubles gradient(classes);
  for (int64_t i = 0; i < classes; ++i) gradient[i] = std::exp(X[i]) / sum - (i == target);
  std::vector<float> scratch(classes);
  const double loss = kernels.cross_entropy({classes, target, x.data(), scratch.data()});
  const auto name = dtype + " cross-entropy of " + std::to_string(classes);
  check(name, {loss}, {std::log(sum) - X[target]}, 2e-6);
  check(name + " gradient", values(x), gradient, 2 * tolerance<T>());
}

template <class T>
void check_conversions(const Kernels& kernels, const std::string& dtype, int64_t channels) {
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
void check_dtype(const InstructionSet& set, const Kernels& kernels, const std::string& dtype) {
  for (const double log_decay : {-0.0317, -1.5, 0.0, -std::numeric_limits<double>::infinity()}) {
    check_retention<T>(kernels, dtype, 130, 24, 40, log_decay);
  }
  check_retention<T>(kernels, dtype, 1, 1, 1, -0.1);
  check_retention<T>(kernels, dtype, 65, 7, 13, -0.1);
  check_retention<T>(kernels, dtype, 200, 64, 129, -0.01);
  for (const int64_t channels : {5, 64, 131}) {
    for (const bool yes : {true, false}) {
      check_norm<T>(kernels, dtype, channels, yes);
      check_rotary<T>(set, kernels, dtype, channels, yes, 1234567);
    }
    check_cross_entropy<T>(kernels, dtype, channels);
    check_conversions<T>(kernels, dtype, channels);
  }
}

// Decoding
// -------------------------------------------------------------------------------------------------

/// Rows of the state have three floats between them, which stay as they are.
void check_step(const InstructionSet& set, int64_t K, int64_t V, double gamma) {
  const int64_t stride = V + 3;
  const auto q = stored<float>(normal(K)), k = stored<float>(normal(K)),
             v = stored<float>(normal(V));
  auto state = stored<float>(normal(K * stride));
  Doubles S = values(state), y(V);
  for (int64_t i = 0; i < K; ++i) {
    for (int64_t j = 0; j < V; ++j) {
      auto& s = S[i * stride + j];
      s = gamma * s + value_of(k[i]) * v[j];
      y[j] += 0.3 * q[i] * s;
    }
  }
  std::vector<float> out(V);
  set.step({K, V, q.data(), k.data(), v.data(), state.data(), stride, gamma == 0,
            static_cast<float>(gamma - 1), 0.3F, out.data()});
  check("step's output", values(out), y, 2e-6);
  check("step's state", values(state), S, 2e-6);
}

void check_linear(const InstructionSet& set, int64_t tokens, int64_t in, int64_t out) {
  const auto x = stored<BFloat16>(normal(tokens * in)), weight = stored<BFloat16>(normal(out * in));
  const auto bias = stored<BFloat16>(normal(out));
  Doubles y(tokens * out);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t o = 0; o < out; ++o) {
      y[t * out + o] = value_of(bias[o]);
      for (int64_t i = 0; i < in; ++i) {
        y[t * out + o] += value_of(x[t * in + i]) * value_of(weight[o * in + i]);
      }
    }
  }
  const auto size = linear_token_size(in);
  std::vector<float> floats(tokens * size);
  for (int64_t t = 0; t < tokens; ++t) {
    set.linear_token({in, x.data() + t * in, floats.data() + t * size});
  }
  std::vector<BFloat16> result(tokens * out);
  set.linear({tokens, in, out, floats.data(), weight.data(), in, bias.data(), result.data(), out});
  check("linear of " + std::to_string(tokens), values(result), y, 5e-3);
}

}  // namespace

int main() {
  const auto& set = kPortable;
  check_dtype<float>(set, set.float32, "float32");
  check_dtype<BFloat16>(set, set.bfloat16, "bfloat16");
  check_dtype<Float16>(set, set.float16, "float16");
  for (const double gamma : {0.97, 1.0, 0.0}) check_step(set, 23, 141, gamma);
  for (const int64_t tokens : {1, 2, 3, 4}) check_linear(set, tokens, 77, 53);
  std::printf("%d checks, %d failures\n", checks, failures);
  return std::min(failures, 100);
}
