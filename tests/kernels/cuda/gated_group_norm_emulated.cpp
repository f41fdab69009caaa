// SPDX-License-Identifier: Apache-2.0
//
// Runs every instantiation of the gated group norm kernels in the SIMT emulator (tests/simt). The results agree
// with float64, the checker finds nothing, and there is no bank conflict. The bits are the same in every order
// of blocks, warps and lanes.
#include <cstdio>
#include <cstring>
#include <vector>

#include "arrays.h"
#include "catch.h"
#include "column_sum_emulated.h"
#include "compare.h"
#include "gated_group_norm_oracle.h"
#include "kernels/cuda/norm/launch.h"
#include "simt/simt.h"

namespace retnet::kernels::cuda {
namespace {

enum class Affine { kNone, kShared, kPerHead };  // absent, [Dv], [H, Dv]

struct Case {
  DType dtype = DType::kFloat32;
  bool narrow = false;  // the start makes 16-bit rows only 8-byte aligned
  size_t N = 1, H = 1, Dv = 4;
  Norm norm = Norm::kLayer;
  bool gate = true;
  Affine weight = Affine::kPerHead;
  Affine bias = Affine::kPerHead;
  bool affine_fp32 = true;  // if false, weight and bias have `dtype`
  bool strided = false;     // x, gate and grad_out are inside a larger array
  unsigned gradients = 15;  // grad_x 1, grad_gate 2, grad_weight 4, grad_bias 8

  std::string name() const {
    char text[160];
    const char* dtypes[] = {"fp32", "fp16", "bf16"};
    const char* affines[] = {"-", "[Dv]", "[H, Dv]"};
    std::snprintf(text, sizeof(text),
                  "%s%s N=%zu H=%zu Dv=%zu %s gate=%d weight=%s bias=%s affine_fp32=%d strided=%d "
                  "gradients=%u",
                  dtypes[static_cast<int>(dtype)], narrow ? " narrow" : "", N, H, Dv,
                  norm == Norm::kLayer ? "layer" : "rms", gate, affines[static_cast<int>(weight)],
                  affines[static_cast<int>(bias)], affine_fp32, strided, gradients);
    return text;
  }
};

struct Inputs {
  Array x, gate, grad_out, weight, bias;
  GatedGroupNormProblem problem;
};

constexpr float kEps = 1e-5f;

Inputs make_inputs(const Case& c) {
  Inputs in;
  const size_t count = c.N * c.H * c.Dv;
  const DType affine_dtype = c.affine_fp32 ? DType::kFloat32 : c.dtype;
  in.x = encode(random_values(count, 0.5, 2, 1), c.dtype);
  in.grad_out = encode(random_values(count, 0, 1, 2), c.dtype);
  if (c.gate) in.gate = encode(random_values(count, 0, 1, 3), c.dtype);
  GatedGroupNormProblem& p = in.problem;
  p = {c.N, c.H, c.Dv, c.norm == Norm::kLayer, kEps, in.x.values, in.gate.values, {}, {}, {}};
  p.grad_out = in.grad_out.values;
  const auto affine = [&](Affine kind, double mean, Array& array, std::vector<double>& expanded) {
    expanded.assign(c.H * c.Dv, mean);
    if (kind == Affine::kNone) return;
    const size_t size = kind == Affine::kShared ? c.Dv : c.H * c.Dv;
    array = encode(random_values(size, mean, 0.5, 4), affine_dtype);
    for (size_t i = 0; i < expanded.size(); ++i) expanded[i] = array.values[i % size];
  };
  affine(c.weight, 1, in.weight, p.weight);
  affine(c.bias, 0, in.bias, p.bias);
  return in;
}

/// The results on the device. Those that are not required are empty.
struct Outputs {
  std::vector<std::byte> out, grad_x, grad_gate, grad_weight, grad_bias;
  bool operator==(const Outputs&) const = default;
};

struct Run {
  Outputs outputs;
  simt::Report report;
};

class Device {
 public:
  Device(const Case& c, const Inputs& in, const simt::Options& options)
      : case_(c), in_(in), simulator_(options), offset_(c.narrow ? 8 : 0) {}

  Run run() {
    GatedGroupNormParams forward;
    static_cast<GatedGroupNormInputs&>(forward) = inputs();
    forward.out_ptr = output(elements() * element_size(case_.dtype), "out", offset_);
    REQUIRE(launch_gated_group_norm(forward, nullptr) == cudaSuccess);

    GatedGroupNormBackwardParams backward;
    static_cast<GatedGroupNormInputs&>(backward) = forward;
    backward.grad_out_ptr =
        rows(in_.grad_out, "grad_out", backward.grad_out_stride_n, backward.grad_out_stride_h);
    const auto asks = [&](unsigned bit) { return (case_.gradients & bit) != 0; };
    const size_t bytes = elements() * element_size(case_.dtype);
    if (asks(1)) backward.grad_x_ptr = output(bytes, "grad_x", offset_);
    if (asks(2) && case_.gate) backward.grad_gate_ptr = output(bytes, "grad_gate", offset_);
    backward.grad_weight_per_head = case_.weight == Affine::kPerHead;
    backward.grad_bias_per_head = case_.bias == Affine::kPerHead;
    if (asks(4)) backward.grad_weight_ptr = gradient(case_.weight, "grad_weight");
    if (asks(8)) backward.grad_bias_ptr = gradient(case_.bias, "grad_bias");
    backward.workspace_ptr =
        simulator_.workspace<std::byte>(gated_group_norm_workspace_bytes(backward), "workspace");
    REQUIRE(launch_gated_group_norm_backward(backward, nullptr) == cudaSuccess);

    Run run{{}, simulator_.finish()};
    read(run.outputs.out, forward.out_ptr, bytes);
    read(run.outputs.grad_x, backward.grad_x_ptr, bytes);
    read(run.outputs.grad_gate, backward.grad_gate_ptr, bytes);
    read(run.outputs.grad_weight, backward.grad_weight_ptr, gradient_bytes(case_.weight));
    read(run.outputs.grad_bias, backward.grad_bias_ptr, gradient_bytes(case_.bias));
    return run;
  }

 private:
  size_t elements() const { return case_.N * case_.H * case_.Dv; }
  size_t gradient_bytes(Affine kind) const {
    return 4 * case_.Dv * (kind == Affine::kPerHead ? case_.H : 1);
  }
  void* output(size_t bytes, const char* name, size_t offset) {
    return simulator_.output<std::byte>(bytes, name, offset);
  }
  float* gradient(Affine kind, const char* name) {
    return static_cast<float*>(output(gradient_bytes(kind), name, 0));
  }
  static void read(std::vector<std::byte>& dst, const void* src, size_t bytes) {
    if (src == nullptr) return;
    const auto* begin = static_cast<const std::byte*>(src);
    dst.assign(begin, begin + bytes);
  }

  // If strided, every second token, with the rows of a head 8 elements apart and NaN in between.
  const void* rows(const Array& array, const char* name, int64_t& stride_n, int64_t& stride_h) {
    const size_t size = element_size(case_.dtype);
    const size_t gap = case_.strided ? 8 : 0, every = case_.strided ? 2 : 1;
    stride_h = static_cast<int64_t>(case_.Dv + gap);
    stride_n = stride_h * static_cast<int64_t>(case_.H * every);
    std::vector<std::byte> spread(case_.N * stride_n * size, std::byte{0xff});
    for (size_t n = 0; n < case_.N; ++n) {
      for (size_t h = 0; h < case_.H; ++h) {
        std::memcpy(spread.data() + (n * stride_n + h * stride_h) * size,
                    array.bytes.data() + (n * case_.H + h) * case_.Dv * size, case_.Dv * size);
      }
    }
    return simulator_.input<std::byte>(spread, name, offset_);
  }

  GatedGroupNormInputs inputs() {
    GatedGroupNormInputs p;
    p.tokens = static_cast<int64_t>(case_.N);
    p.heads = static_cast<int64_t>(case_.H);
    p.head_dim_v = static_cast<int64_t>(case_.Dv);
    p.dtype = case_.dtype;
    p.norm = case_.norm;
    p.eps = kEps;
    p.x_ptr = rows(in_.x, "x", p.x_stride_n, p.x_stride_h);
    if (case_.gate) p.gate_ptr = rows(in_.gate, "gate", p.gate_stride_n, p.gate_stride_h);
    const DType affine_dtype = case_.affine_fp32 ? DType::kFloat32 : case_.dtype;
    p.weight_dtype = p.bias_dtype = affine_dtype;
    if (case_.weight != Affine::kNone) {
      p.weight_ptr = simulator_.input<std::byte>(in_.weight.bytes, "weight");
      p.weight_stride_h = case_.weight == Affine::kPerHead ? p.head_dim_v : 0;
    }
    if (case_.bias != Affine::kNone) {
      p.bias_ptr = simulator_.input<std::byte>(in_.bias.bytes, "bias");
      p.bias_stride_h = case_.bias == Affine::kPerHead ? p.head_dim_v : 0;
    }
    return p;
  }

  const Case& case_;
  const Inputs& in_;
  simt::Simulator simulator_;
  size_t offset_;
};

std::vector<double> sum_over_heads(const std::vector<double>& values, size_t H, size_t Dv) {
  std::vector<double> sum(Dv);
  for (size_t i = 0; i < H * Dv; ++i) sum[i % Dv] += values[i];
  return sum;
}

/// Returns what is wrong with the values, or an empty string.
std::string check_values(const Case& c, const Outputs& outputs, const GatedGroupNormResult& exact) {
  std::string wrong;
  const auto compare = [&](const char* name, const std::vector<std::byte>& bytes,
                           const std::vector<double>& reference, DType stored, double factor) {
    if (bytes.empty()) return;
    const auto actual = to_doubles(bytes.data(), bytes.size() / element_size(stored), stored);
    const std::string text = mismatch(actual, reference, c.Dv, c.dtype, factor);
    if (!text.empty()) wrong += std::string(name) + ": " + text + "\n";
  };
  const auto affine = [&](Affine kind, const std::vector<double>& gradient) {
    return kind == Affine::kPerHead ? gradient : sum_over_heads(gradient, c.H, c.Dv);
  };
  compare("out", outputs.out, exact.out, c.dtype, 1);
  compare("grad_x", outputs.grad_x, exact.grad_x, c.dtype, 2);
  compare("grad_gate", outputs.grad_gate, exact.grad_gate, c.dtype, 2);
  compare("grad_weight", outputs.grad_weight, affine(c.weight, exact.grad_weight), DType::kFloat32,
          2);
  compare("grad_bias", outputs.grad_bias, affine(c.bias, exact.grad_bias), DType::kFloat32, 2);
  return wrong;
}

struct Totals {
  size_t cases = 0;
  size_t reports = 0;
};

/// Makes all assertions about one case, in the three orders.
void check(const Case& c, Totals& totals) {
  const Inputs in = make_inputs(c);
  const GatedGroupNormResult exact = gated_group_norm_by_definition(in.problem);
  Outputs first;
  for (const simt::Order order :
       {simt::Order::kAscending, simt::Order::kDescending, simt::Order::kRandom}) {
    simt::Options options;
    options.order = order;
    options.seed = totals.cases + 1;
    const Run run = Device(c, in, options).run();
    ++totals.cases;
    totals.reports += run.report.findings.size();
    const bool same = order == simt::Order::kAscending || run.outputs == first;
    if (order == simt::Order::kAscending) first = run.outputs;
    const std::string wrong = check_values(c, run.outputs, exact);
    const uint64_t conflicts = run.report.total().bank_conflicts();
    if (run.report.findings.empty() && same && wrong.empty() && conflicts == 0) continue;
    INFO(c.name() << ", order " << static_cast<int>(order));
    CHECK(run.report.to_string() == "");
    CHECK(wrong == "");
    CHECK(conflicts == 0);
    CHECK(same);
  }
}

/// Calls f(case) with the element type, access width and tile of each instantiation.
template <class F>
void for_each_instantiation(const F& f) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const bool narrow : {false, true}) {
      if (narrow && dtype == DType::kFloat32) continue;
      for (const size_t Dv : {4, 128, 256, 428, 432, 512, 1024}) {
        if (narrow && Dv % 8 != 0) continue;  // it is narrow anyway
        Case c;
        c.dtype = dtype;
        c.narrow = narrow;
        c.Dv = Dv;
        f(c);
      }
    }
  }
}

constexpr std::pair<Affine, Affine> kAffines[] = {
    {Affine::kNone, Affine::kNone},      {Affine::kShared, Affine::kNone},
    {Affine::kPerHead, Affine::kNone},   {Affine::kNone, Affine::kPerHead},
    {Affine::kShared, Affine::kShared},  {Affine::kPerHead, Affine::kShared},
    {Affine::kShared, Affine::kPerHead}, {Affine::kPerHead, Affine::kPerHead},
};

}  // namespace

TEST_CASE("the oracle's gradients are the differences of its values") {
  for (const bool centre : {true, false}) {
    GatedGroupNormProblem p{2, 2, 5, centre, 0.1, {}, {}, {}, {}, {}};
    p.x = random_values(20, 0.5, 1, 1);
    p.gate = random_values(20, 0, 1, 2);
    p.weight = random_values(10, 1, 1, 3);
    p.bias = random_values(10, 0, 1, 4);
    p.grad_out = random_values(20, 0, 1, 5);
    const GatedGroupNormResult exact = gated_group_norm_by_definition(p);
    const auto objective = [&] {
      const auto out = gated_group_norm_by_definition(p).out;
      double sum = 0;
      for (size_t i = 0; i < out.size(); ++i) sum += out[i] * p.grad_out[i];
      return sum;
    };
    const auto check_gradient = [&](std::vector<double>& input, const std::vector<double>& grad) {
      for (size_t i = 0; i < input.size(); ++i) {
        const double value = input[i], step = 1e-5;
        input[i] = value + step;
        const double above = objective();
        input[i] = value - step;
        const double below = objective();
        input[i] = value;
        CHECK(std::fabs((above - below) / (2 * step) - grad[i]) < 1e-7);
      }
    };
    check_gradient(p.x, exact.grad_x);
    check_gradient(p.gate, exact.grad_gate);
    check_gradient(p.weight, exact.grad_weight);
    check_gradient(p.bias, exact.grad_bias);
  }
}

TEST_CASE("gated_group_norm emulated") {
  Totals totals;
  // Each instantiation runs with each option. The dtypes of weight and bias and the strides take turns.
  unsigned turn = 0;
  for_each_instantiation([&](Case c) {
    c.N = 3;
    c.H = 2;
    for (const auto& [weight, bias] : kAffines) {
      for (const Norm norm : {Norm::kLayer, Norm::kRms}) {
        for (const bool gate : {true, false}) {
          c.weight = weight;
          c.bias = bias;
          c.norm = norm;
          c.gate = gate;
          c.affine_fp32 = turn % 3 != 0;
          c.strided = turn % 5 == 0;
          c.gradients =
              gate == (norm == Norm::kLayer) ? 15 : 3;  // column_sum takes most of the time
          ++turn;
          check(c, totals);
        }
      }
    }
  });
  // Other numbers of tokens: one, and more rows than a block has but not a multiple of them.
  for_each_instantiation([&](Case c) {
    for (const auto& [N, H] : {std::pair<size_t, size_t>{1, 1}, {1, 5}, {17, 1}, {37, 3}}) {
      c.N = c.Dv > 128 && N > 17 ? 9 : N;
      c.H = H;
      c.norm = turn++ % 2 == 0 ? Norm::kLayer : Norm::kRms;
      check(c, totals);
    }
  });
  // Every set of gradients runs.
  for (const size_t Dv : {64, 432, 1024}) {
    for (unsigned gradients = 1; gradients < 15; ++gradients) {
      Case c;
      c.dtype = DType::kBFloat16;
      c.N = 5;
      c.H = 2;
      c.Dv = Dv;
      c.gradients = gradients;
      check(c, totals);
    }
  }
  // There are so many heads that a block of the backward takes several turns.
  for (const auto& [N, Dv] : {std::pair<size_t, size_t>{35, 4}, {9, 132}, {3, 516}}) {
    Case c;
    c.dtype = DType::kBFloat16;
    c.N = N;
    c.H = 520;
    c.Dv = Dv;
    c.weight = Affine::kShared;
    check(c, totals);
  }
  std::printf("gated_group_norm: %zu cases, %zu reports\n", totals.cases, totals.reports);
  CHECK(totals.reports == 0);
}

TEST_CASE("column_sum emulated, blocks with several groups of columns") {
  size_t cases = 0, reports = 0;
  for (const simt::Order order :
       {simt::Order::kAscending, simt::Order::kDescending, simt::Order::kRandom}) {
    for (const unsigned blocks : {1u, 2u, 7u}) {
      for (const size_t rows : {0, 1, 15, 16, 67}) {
        constexpr size_t kColumns = 4 * 32 + 5;
        const Array in = encode(random_values(rows * kColumns, 0, 1, 1), DType::kFloat32);
        simt::Options options;
        options.order = order;
        simt::Simulator simulator(options);
        ColumnSumParams params;
        params.in_ptr = reinterpret_cast<const float*>(simulator.input<std::byte>(in.bytes, "in"));
        params.out_ptr = simulator.output<float>(kColumns, "out");
        params.rows = static_cast<int64_t>(rows);
        params.columns = kColumns;
        REQUIRE(launch_column_sum_on(blocks, params) == cudaSuccess);
        std::vector<double> exact(kColumns);
        for (size_t i = 0; i < rows * kColumns; ++i) exact[i % kColumns] += in.values[i];
        const auto actual = to_doubles(params.out_ptr, kColumns, DType::kFloat32);
        INFO("blocks " << blocks << ", rows " << rows << ", order " << static_cast<int>(order));
        CHECK(simulator.finish().to_string() == "");
        CHECK(mismatch(actual, exact, kColumns, DType::kFloat32, 1) == "");
        reports += simulator.report().findings.size();
        ++cases;
      }
    }
  }
  std::printf("column_sum: %zu cases, %zu reports\n", cases, reports);
}

TEST_CASE("a row's bits do not depend on the rows beside it") {
  for_each_instantiation([&](Case c) {
    c.N = 6;
    c.H = 1;
    const Inputs all = make_inputs(c);
    const Outputs together = Device(c, all, {}).run().outputs;
    Case one = c;
    one.N = 1;
    const size_t bytes = c.Dv * element_size(c.dtype);
    for (const size_t n : {0, 3, 5}) {
      Inputs alone = all;
      for (Array* array : {&alone.x, &alone.gate, &alone.grad_out}) {
        array->bytes.assign(array->bytes.begin() + n * bytes,
                            array->bytes.begin() + (n + 1) * bytes);
      }
      const Outputs outputs = Device(one, alone, {}).run().outputs;
      INFO(c.name() << " row " << n);
      CHECK(std::equal(outputs.out.begin(), outputs.out.end(), together.out.begin() + n * bytes));
      CHECK(std::equal(outputs.grad_x.begin(), outputs.grad_x.end(),
                       together.grad_x.begin() + n * bytes));
      CHECK(std::equal(outputs.grad_gate.begin(), outputs.grad_gate.end(),
                       together.grad_gate.begin() + n * bytes));
    }
  });
}

TEST_CASE("bytes are those of the kernels' headers") {
  for_each_instantiation([&](Case c) {
    c.N = 4;
    c.H = 2;
    c.weight = c.bias = Affine::kNone;
    const simt::Report report = Device(c, make_inputs(c), {}).run().report;
    const size_t array = c.N * c.H * c.Dv * element_size(c.dtype);
    const simt::Counters& forward = report.launches[0].total;
    const simt::Counters& backward = report.launches[1].total;
    INFO(c.name());
    CHECK(forward.global_load.requested_bytes == 2 * array);
    CHECK(forward.global_store.requested_bytes == array);
    CHECK(backward.global_load.requested_bytes == 3 * array);
    const size_t partial_sums = report.launches[1].blocks.size() * c.Dv * 8;
    CHECK(backward.global_store.requested_bytes == 2 * array + partial_sums);
    CHECK(report.launches[0].static_shared_bytes == 64);
    // column_sum, for weight and for bias, reads the partial rows and writes the gradient.
    REQUIRE(report.launches.size() == 4);
    for (const size_t launch : {2, 3}) {
      CHECK(report.launches[launch].total.global_load.requested_bytes == partial_sums / 2);
      CHECK(report.launches[launch].total.global_store.requested_bytes == c.Dv * 4);
    }
  });
}

}  // namespace retnet::kernels::cuda
