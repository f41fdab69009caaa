// SPDX-License-Identifier: Apache-2.0
#include "ops/rotary.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>
#include <vector>

#include "ops/composite/rotary.h"
#include "ops/cpu/empty_output.h"
#include "ops/cpu/instruction_set.h"

namespace retnet::ops {
namespace {

constexpr int64_t kGrain = 32768;  // elements that are worth another thread

bool supports_rotary(const at::Tensor& x) {
  return x.scalar_type() != at::kDouble && x.numel() > 0;
}

/// Rotates q and k [..., H, Dk] in one pass, by the negative angles if `inverse`. An undefined
/// tensor stays undefined.
std::tuple<at::Tensor, at::Tensor> rotate(const at::Tensor& q, const at::Tensor& k,
                                          const at::Tensor& positions,
                                          const at::Tensor& frequencies, std::string_view style,
                                          bool inverse) {
  struct Rotated {
    explicit Rotated(const at::Tensor& x) : from(x.contiguous()) {
      to = cpu::empty_output(x.sizes(), x.options());
    }
    at::Tensor from, to;
  };
  std::vector<Rotated> all;
  for (const auto* tensor : {&q, &k}) {
    if (tensor->defined()) all.emplace_back(*tensor);
  }
  const auto& any = all.front().from;
  const int64_t H = any.size(-2), Dk = any.size(-1), pairs = Dk / 2;
  const auto dense_positions = positions.to(at::kLong).contiguous();
  const auto dense_frequencies = frequencies.contiguous();
  const auto cos_sin = cpu::instruction_set().cos_sin;
  const auto rotate_head = cpu::kernels_for(cpu::instruction_set(), any.scalar_type()).rotary;
  const auto bytes = static_cast<int64_t>(any.element_size());
  const int64_t grain = std::max<int64_t>(1, kGrain / (H * Dk));
  at::parallel_for(0, any.numel() / (H * Dk), grain, [&](int64_t begin, int64_t end) {
    std::vector<float> cos(pairs), sin(pairs);
    for (int64_t token = begin; token < end; ++token) {
      // Positions [T] are the same for every entry of the batch.
      const auto position =
          dense_positions.const_data_ptr<int64_t>()[token % dense_positions.numel()];
      cos_sin({pairs, static_cast<double>(inverse ? -position : position),
               dense_frequencies.const_data_ptr<float>(), cos.data(), sin.data()});
      for (const auto& [from, to] : all) {
        const auto* x = static_cast<const char*>(from.const_data_ptr());
        auto* out = static_cast<char*>(to.mutable_data_ptr());
        for (int64_t h = 0; h < H; ++h) {
          const int64_t offset = (token * H + h) * Dk * bytes;
          rotate_head(
              {pairs, style == "interleaved", cos.data(), sin.data(), x + offset, out + offset});
        }
      }
    }
  });
  return {q.defined() ? all.front().to : q, k.defined() ? all.back().to : k};
}

std::tuple<at::Tensor, at::Tensor> rotary_cpu(const at::Tensor& q, const at::Tensor& k,
                                              const at::Tensor& positions,
                                              const at::Tensor& frequencies,
                                              std::string_view style) {
  check_rotary("rotary", q, k, positions, frequencies, style);
  if (!supports_rotary(q)) return composite::rotary(q, k, positions, frequencies, style);
  return rotate(q, k, positions, frequencies, style, false);
}

std::tuple<at::Tensor, at::Tensor> rotary_backward_cpu(
    const std::optional<at::Tensor>& grad_rotated_q,
    const std::optional<at::Tensor>& grad_rotated_k, const at::Tensor& positions,
    const at::Tensor& frequencies, std::string_view style, std::array<bool, 2> output_mask) {
  check_rotary_backward(grad_rotated_q, grad_rotated_k, positions, frequencies, style);
  const at::Tensor grad_q = output_mask[0] ? grad_rotated_q.value_or(at::Tensor()) : at::Tensor();
  const at::Tensor grad_k = output_mask[1] ? grad_rotated_k.value_or(at::Tensor()) : at::Tensor();
  const auto& any = grad_q.defined() ? grad_q : grad_k;
  if (!any.defined() || !supports_rotary(any)) {
    return composite::rotary_backward(grad_rotated_q, grad_rotated_k, positions, frequencies, style,
                                      output_mask);
  }
  return rotate(grad_q, grad_k, positions, frequencies, style, true);
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, CPU, m) {
  m.impl("rotary", rotary_cpu);
  m.impl("rotary_backward", rotary_backward_cpu);
}

}  // namespace retnet::ops
