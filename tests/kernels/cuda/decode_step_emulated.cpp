// SPDX-License-Identifier: Apache-2.0
//
// Runs every instantiation of the decode step in the SIMT emulator (tests/simt). The result agrees with
// float64, the checker finds nothing, and there is no bank conflict. The bits are the same in every order of
// blocks, warps and lanes, and for any number of blocks that share a head.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <vector>

#include "arrays.h"
#include "catch.h"
#include "compare.h"
#include "decode_step_oracle.h"
#include "kernels/cuda/retention/decode_step/launch.h"
#include "simt/simt.h"

namespace retnet::kernels::cuda {
namespace {

enum class Affine { kNone, kShared, kPerHead };  // absent, [Dv], [H, Dv]

struct Case {
  DType dtype = DType::kBFloat16;
  size_t B = 2, H = 3, Dk = 16, Dv = 64;
  size_t S = 0;  // 0 means no slots
  Norm norm = Norm::kLayer;
  bool interleaved = true, positions_64 = true;
  Affine weight = Affine::kPerHead, bias = Affine::kShared;
  bool affine_fp32 = true;   // if false, weight and bias have `dtype`
  bool plain = false;        // without rotation, norm and gate
  bool strided = false;      // every array is inside a larger one
  size_t state_offset = 0;   // in bytes; rows at 8 do not allow 16-byte accesses
  int64_t position = 37;     // position of batch entry 1; the others have multiples of it
  std::vector<int> slots{};  // slots of all batch entries, if there are any
  int cluster = 1;

  std::string name() const {
    char text[200];
    const char* dtypes[] = {"fp32", "fp16", "bf16"};
    std::snprintf(
        text, sizeof(text),
        "%s B=%zu H=%zu Dk=%zu Dv=%zu S=%zu %s %s weight=%d bias=%d affine_fp32=%d plain=%d "
        "strided=%d state_offset=%zu cluster=%d",
        dtypes[static_cast<int>(dtype)], B, H, Dk, Dv, S, norm == Norm::kLayer ? "layer" : "rms",
        interleaved ? "interleaved" : "half", static_cast<int>(weight), static_cast<int>(bias),
        affine_fp32, plain, strided, state_offset, cluster);
    return text;
  }
};

constexpr float kEps = 1e-5f, kScale = 0.3f;
// ln gamma of gamma = 0, gamma = 1 and gammas that are not 1 - 2^-k.
const float kLogDecays[] = {-std::numeric_limits<float>::infinity(), 0.0f, -1.512e-3f, -0.7f};

struct Inputs {
  Array q, k, v, gate, weight, bias, frequencies, state;
  std::vector<float> log_decay;
  DecodeStepProblem problem;
};

Inputs make_inputs(const Case& c) {
  Inputs in;
  DecodeStepProblem& p = in.problem;
  p = {c.B,
       c.H,
       c.Dk,
       c.Dv,
       c.interleaved,
       c.norm == Norm::kLayer,
       kScale,
       kEps,
       {},
       {},
       {},
       {},
       {},
       {},
       {},
       {},
       {},
       {},
       {}};
  const size_t states = c.S > 0 ? c.S : c.B;
  for (size_t b = 0; b < c.B; ++b) {
    p.slots.push_back(c.S > 0 ? c.slots[b] : static_cast<int>(b));
    p.positions.push_back(static_cast<int64_t>(b) * c.position);
  }
  const auto tokens = [&](size_t size, double mean, unsigned seed, std::vector<double>& values) {
    auto random = random_values(c.B * c.H * size, mean, 1, seed);
    for (size_t i = 0; i < random.size(); ++i) {
      if (p.slots[i / (c.H * size)] < 0)
        random[i] = std::nan("");  // of a skipped batch entry, which must have no effect
    }
    Array array = encode(random, c.dtype);
    values = array.values;
    return array;
  };
  in.q = tokens(c.Dk, 0, 1, p.q);
  in.k = tokens(c.Dk, 0, 2, p.k);
  in.v = tokens(c.Dv, 0.5, 3, p.v);
  if (!c.plain) {
    in.gate = tokens(c.Dv, 0, 4, p.gate);
    std::vector<double> frequencies;
    for (size_t i = 0; i < c.Dk / 2; ++i) {
      frequencies.push_back(
          std::pow(1e4, -2.0 * static_cast<double>(i) / static_cast<double>(c.Dk)));
    }
    in.frequencies = encode(frequencies, DType::kFloat32);
    p.frequencies = in.frequencies.values;
  }
  auto state = random_values(states * c.H * c.Dk * c.Dv, 0.2, 2, 5);
  for (size_t h = 0; h < c.H; ++h) {
    in.log_decay.push_back(kLogDecays[h % 4]);
    p.gamma.push_back(std::exp(static_cast<double>(in.log_decay.back())));
    // gamma = 0 ignores the state, so it may hold anything.
    if (p.gamma.back() == 0) state[h * c.Dk * c.Dv] = std::nan("");
  }
  in.state = encode(state, DType::kFloat32);
  p.state = in.state.values;
  const auto affine = [&](Affine kind, double mean, Array& array, std::vector<double>& expanded) {
    expanded.assign(c.H * c.Dv, mean);
    if (kind == Affine::kNone) return;
    const size_t size = kind == Affine::kShared ? c.Dv : c.H * c.Dv;
    array = encode(random_values(size, mean, 0.5, 6), c.affine_fp32 ? DType::kFloat32 : c.dtype);
    for (size_t i = 0; i < expanded.size(); ++i) expanded[i] = array.values[i % size];
  };
  affine(c.weight, 1, in.weight, p.weight);
  affine(c.bias, 0, in.bias, p.bias);
  return in;
}

struct Run {
  std::vector<std::byte> out, state;
  simt::Report report;
};

class Device {
 public:
  Device(const Case& c, const Inputs& in, const simt::Options& options)
      : c_(c), in_(in), simulator_(options) {}

  Run run() {
    DecodeStepParams p;
    p.batch = signed_size(c_.B);
    p.heads = signed_size(c_.H);
    p.states = signed_size(c_.S > 0 ? c_.S : c_.B);
    p.head_dim_qk = signed_size(c_.Dk);
    p.head_dim_v = signed_size(c_.Dv);
    p.dtype = c_.dtype;
    p.scale = kScale;
    p.q_ptr = rows(in_.q, c_.Dk, "q", p.q_stride_b, p.q_stride_h);
    p.k_ptr = rows(in_.k, c_.Dk, "k", p.k_stride_b, p.k_stride_h);
    p.v_ptr = rows(in_.v, c_.Dv, "v", p.v_stride_b, p.v_stride_h);
    p.log_decay_ptr = simulator_.input<float>(in_.log_decay, "log_decay");
    if (c_.S > 0) p.slots_ptr = simulator_.input<int32_t>(in_.problem.slots, "slots");
    if (!c_.plain) {
      p.frequencies_ptr = static_cast<const float*>(bytes(in_.frequencies.bytes, "frequencies"));
      p.interleaved = c_.interleaved;
      set_positions(p);
      p.gate_ptr = rows(in_.gate, c_.Dv, "gate", p.gate_stride_b, p.gate_stride_h);
      p.norm = c_.norm;
      p.eps = kEps;
      p.weight_dtype = p.bias_dtype = c_.affine_fp32 ? DType::kFloat32 : c_.dtype;
      if (c_.weight != Affine::kNone) p.weight_ptr = bytes(in_.weight.bytes, "weight");
      if (c_.bias != Affine::kNone) p.bias_ptr = bytes(in_.bias.bytes, "bias");
      p.weight_stride_h = c_.weight == Affine::kPerHead ? p.head_dim_v : 0;
      p.bias_stride_h = c_.bias == Affine::kPerHead ? p.head_dim_v : 0;
    }
    set_state(p);
    const size_t size = c_.B * c_.H * c_.Dv * element_size(c_.dtype);
    p.out_ptr = simulator_.output<std::byte>(size, "out");
    REQUIRE(decode_step_wide(p) ==
            (c_.Dv % 4 == 0 && c_.state_offset % 16 == 0 && p.state_stride_k % 4 == 0));
    REQUIRE(launch_decode_step(p, c_.cluster, nullptr) == cudaSuccess);

    Run run{{}, {}, simulator_.finish()};
    const auto* out = static_cast<const std::byte*>(p.out_ptr);
    run.out.assign(out, out + size);
    const auto* state = reinterpret_cast<const std::byte*>(p.state_ptr);
    for (size_t row = 0; row < in_.state.bytes.size() / (4 * c_.Dv); ++row) {
      const std::byte* from = state + row * p.state_stride_k * 4;
      run.state.insert(run.state.end(), from, from + 4 * c_.Dv);
    }
    return run;
  }

 private:
  static int64_t signed_size(size_t size) { return static_cast<int64_t>(size); }
  const void* bytes(const std::vector<std::byte>& values, const char* name) {
    return simulator_.input<std::byte>(values, name);
  }

  // If strided, NaN follows each row of a head.
  const void* rows(const Array& array, size_t size, const char* name, int64_t& stride_b,
                   int64_t& stride_h) {
    const size_t element = element_size(c_.dtype), pitch = size + (c_.strided ? 3 : 0);
    stride_h = signed_size(pitch);
    stride_b = stride_h * signed_size(c_.H);
    return bytes(spread(array.bytes, size * element, pitch * element), name);
  }
  static std::vector<std::byte> spread(const std::vector<std::byte>& rows, size_t size,
                                       size_t pitch) {
    std::vector<std::byte> result(rows.size() / size * pitch, std::byte{0xff});
    for (size_t row = 0; row < rows.size() / size; ++row) {
      std::memcpy(result.data() + row * pitch, rows.data() + row * size, size);
    }
    return result;
  }
  void set_positions(DecodeStepParams& p) {
    const size_t every = c_.strided ? 2 : 1;
    std::vector<int64_t> wide(c_.B * every, -1);
    std::vector<int32_t> narrow(c_.B * every, -1);
    for (size_t b = 0; b < c_.B; ++b) {
      wide[b * every] = in_.problem.positions[b];
      narrow[b * every] = static_cast<int32_t>(in_.problem.positions[b]);
    }
    p.positions_stride_b = signed_size(every);
    p.positions_64 = c_.positions_64;
    if (c_.positions_64) {
      p.positions_ptr = simulator_.input<int64_t>(wide, "positions");
    } else {
      p.positions_ptr = simulator_.input<int32_t>(narrow, "positions");
    }
  }
  void set_state(DecodeStepParams& p) {
    const size_t pitch = c_.Dv + (c_.strided ? 4 : 0);
    p.state_stride_k = signed_size(pitch);
    p.state_stride_h = p.state_stride_k * signed_size(c_.Dk);
    p.state_stride_s = p.state_stride_h * signed_size(c_.H);
    const auto values = spread(in_.state.bytes, 4 * c_.Dv, 4 * pitch);
    p.state_ptr =
        reinterpret_cast<float*>(simulator_.in_out<std::byte>(values, "state", c_.state_offset));
  }

  const Case& c_;
  const Inputs& in_;
  simt::Simulator simulator_;
};

double norm_error(const std::vector<double>& x, const std::vector<double>& reference) {
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) sum += (x[i] - reference[i]) * (x[i] - reference[i]);
  return std::sqrt(sum);
}

/// Returns what is wrong with the values, or an empty string.
std::string check_values(const Case& c, const Inputs& in, const DecodeStepResult& exact,
                         const Run& run) {
  const auto out = to_doubles(run.out.data(), c.B * c.H * c.Dv, c.dtype);
  std::string wrong = mismatch(out, exact.out, c.Dv, c.dtype, 1);
  if (!wrong.empty()) return "out: " + wrong;
  if (c.dtype != DType::kFloat32) {
    const double ours = norm_error(out, exact.out);
    const double its = norm_error(encode(exact.out, c.dtype).values, exact.out);
    if (ours > 2 * its) return "out: " + std::to_string(ours / its) + " times one rounding's error";
  }
  for (size_t i = 0; i < out.size(); ++i) {
    if (in.problem.slots[i / (c.H * c.Dv)] < 0 && out[i] != 0)
      return "out of a skipped batch entry";
  }
  // States that no batch entry names keep their bits. The others are compared as one tensor.
  std::vector<double> actual, reference;
  const size_t size = c.H * c.Dk * c.Dv;
  const auto all = to_doubles(run.state.data(), exact.state.size(), DType::kFloat32);
  for (size_t s = 0; s < all.size() / size; ++s) {
    const std::vector<int>& slots = in.problem.slots;
    if (std::find(slots.begin(), slots.end(), static_cast<int>(s)) != slots.end()) {
      actual.insert(actual.end(), all.begin() + s * size, all.begin() + (s + 1) * size);
      reference.insert(reference.end(), exact.state.begin() + s * size,
                       exact.state.begin() + (s + 1) * size);
    } else if (std::memcmp(&run.state[s * size * 4], &in.state.bytes[s * size * 4], size * 4) !=
               0) {
      return "state " + std::to_string(s) + " has changed";
    }
  }
  wrong = mismatch(actual, reference, c.Dv, DType::kFloat32, 1);
  return wrong.empty() ? "" : "state: " + wrong;
}

struct Totals {
  size_t cases = 0;
  size_t reports = 0;
};

/// Makes all assertions about one case, in the three orders and with every number of blocks a head that gives
/// each block columns.
void check(Case c, Totals& totals) {
  const Inputs in = make_inputs(c);
  const DecodeStepResult exact = decode_step_by_definition(in.problem);
  Run first;
  for (const int cluster : {1, 2, 4, 8}) {
    if (signed(c.Dv) <= (cluster - 1) * decode_step_columns(signed(c.Dv), cluster)) continue;
    c.cluster = cluster;
    for (const simt::Order order :
         {simt::Order::kAscending, simt::Order::kDescending, simt::Order::kRandom}) {
      if (cluster > 1 && static_cast<size_t>(order) != totals.cases % 3)
        continue;  // the orders take turns
      simt::Options options;
      options.order = order;
      options.seed = totals.cases + 1;
      const Run run = Device(c, in, options).run();
      totals.reports += run.report.findings.size();
      if (first.out.empty()) first = run;
      const bool same = run.out == first.out && run.state == first.state;
      const std::string wrong = check_values(c, in, exact, run);
      const uint64_t conflicts = run.report.total().bank_conflicts();
      if (run.report.findings.empty() && same && wrong.empty() && conflicts == 0) continue;
      INFO(c.name() << ", order " << static_cast<int>(order));
      CHECK(run.report.to_string() == "");
      CHECK(wrong == "");
      CHECK(conflicts == 0);
      CHECK(same);
    }
    ++totals.cases;
  }
}

}  // namespace

TEST_CASE("decode_step emulated") {
  Totals totals;
  constexpr std::pair<Affine, Affine> kAffines[] = {
      {Affine::kNone, Affine::kNone},
      {Affine::kShared, Affine::kPerHead},
      {Affine::kPerHead, Affine::kNone},
      {Affine::kNone, Affine::kShared},
  };
  // Shapes of each instantiation. The options take turns. 428 and 432 are those of torchscale's presets. With
  // Dv = 20, 63 and 66, rows end in a unit, are odd, and have 8 bytes. Dk = 130 takes a second turn of loads.
  constexpr std::pair<size_t, size_t> kShapes[] = {
      {16, 64}, {2, 4}, {6, 20}, {10, 63}, {34, 66}, {130, 68}, {18, 428}, {34, 432}, {8, 1}};
  unsigned turn = 0;
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const auto& [Dk, Dv] : kShapes) {
      for (const auto& [weight, bias] : kAffines) {
        Case c;
        c.dtype = dtype;
        c.Dk = Dk;
        c.Dv = Dv;
        c.H = Dv > 100 || Dk > 100 ? 2 : 4;
        c.weight = weight;
        c.bias = bias;
        ++turn;
        c.norm = turn % 2 == 0 ? Norm::kLayer : Norm::kRms;
        // Without eps, the norm of one column would be 0 / 0.
        if (Dv == 1) c.norm = Norm::kRms;
        c.interleaved = turn / 2 % 2 == 0;
        c.positions_64 = turn % 3 != 0;
        c.affine_fp32 = turn % 5 < 3;
        c.strided = turn % 3 == 1;
        c.state_offset = turn % 7 == 3 ? 8 : 0;
        c.position = turn % 4 == 0 ? 1000003 : 37;
        check(c, totals);
      }
    }
  }
  // The largest shape, that of the paper, and one head of size 1.
  for (const auto& [Dk, Dv] : {std::pair<size_t, size_t>{1024, 1024}, {256, 512}, {512, 320}}) {
    Case c;
    c.B = c.H = 1;
    c.Dk = Dk;
    c.Dv = Dv;
    check(c, totals);
    c.H = 2;  // gamma is 0 and 1
    if (Dk == 256) check(c, totals);
  }
  std::printf("decode_step: %zu cases, %zu reports\n", totals.cases, totals.reports);
  CHECK(totals.reports == 0);
}

TEST_CASE("decode_step emulated with slots, and without rotation, norm and gate") {
  Totals totals;
  unsigned turn = 0;
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const std::vector<int>& slots :
         {std::vector<int>{3, -1, 0}, {-5, 4, -1}, {-1, -1, -1}, {1, 0, 2}}) {
      for (const bool plain : {false, true}) {
        Case c;
        c.dtype = dtype;
        c.B = 3;
        c.H = 4;
        c.S = 5;
        c.Dk = plain ? 7 : 6;  // without a rotation there are no pairs
        c.Dv = 132;
        c.slots = slots;
        c.plain = plain;
        c.strided = ++turn % 2 == 0;
        check(c, totals);
      }
    }
    Case c;  // no slots
    c.dtype = dtype;
    c.plain = true;
    check(c, totals);
  }
  std::printf("decode_step, slots: %zu cases, %zu reports\n", totals.cases, totals.reports);
  CHECK(totals.reports == 0);
}

TEST_CASE("decode_step: a slot that is none, an empty batch, and what the kernel does not take") {
  // A slot past the end is an error of the caller. It must touch nothing.
  Case c;
  c.S = 2;
  c.slots = {1, 0};
  Inputs in = make_inputs(c);
  in.problem.slots = {1, 2};
  Run run = Device(c, in, {}).run();
  CHECK(run.report.to_string() == "");
  const size_t row = run.out.size() / 2;
  CHECK(std::all_of(run.out.begin() + row, run.out.end(), [](auto x) { return x == std::byte{}; }));
  CHECK(std::memcmp(run.state.data(), in.state.bytes.data(), run.state.size() / 2) == 0);

  DecodeStepParams p;
  p.heads = 4;
  p.head_dim_qk = p.head_dim_v = 64;
  CHECK(launch_decode_step(p, 1, nullptr) == cudaSuccess);  // nothing to launch
  p.head_dim_v = kDecodeStepMaxDim + 1;
  CHECK(launch_decode_step(p, 1, nullptr) == cudaErrorNotSupported);
}

}  // namespace retnet::kernels::cuda
