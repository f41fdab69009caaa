// SPDX-License-Identifier: Apache-2.0
#include "ops/rotary.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "ops/composite/rotary.h"
#include "ops/cpu/empty_output.h"
#include "ops/cpu/instruction_set.h"

namespace retnet::ops {
namespace {

using composite::Rotation;

constexpr int64_t kGrain = 32768;  // elements: fewer are not worth another thread

bool takes(const at::Tensor& x) { return x.scalar_type() != at::kDouble && x.numel() > 0; }

/// x [..., H, Dk] turned, in one pass.
at::Tensor turned(const at::Tensor& x, const Rotation& rotation) {
  const auto from = x.contiguous(), cos = rotation.cos.contiguous(),
             sin = rotation.sin.contiguous();
  auto out = cpu::empty_output(x.sizes(), x.options());
  const int64_t H = x.size(-2), Dk = x.size(-1), turns = cos.numel() / (Dk / 2);
  const auto rotate = cpu::kernels_of(cpu::instruction_set(), x.scalar_type()).rotary;
  const auto bytes = static_cast<int64_t>(x.element_size());
  const auto* source = static_cast<const char*>(from.const_data_ptr());
  auto* target = static_cast<char*>(out.mutable_data_ptr());
  const int64_t grain = std::max<int64_t>(1, kGrain / (H * Dk));
  at::parallel_for(0, x.numel() / (H * Dk), grain, [&](int64_t begin, int64_t end) {
    for (int64_t token = begin; token < end; ++token) {
      const int64_t turn =
          token % turns * (Dk / 2);  // the same for every row where positions is [T]
      for (int64_t h = 0; h < H; ++h) {
        const int64_t offset = (token * H + h) * Dk * bytes;
        rotate({Dk / 2, rotation.interleaved, cos.const_data_ptr<float>() + turn,
                sin.const_data_ptr<float>() + turn, source + offset, target + offset});
      }
    }
  });
  return out;
}

std::tuple<at::Tensor, at::Tensor> rotary_cpu(const at::Tensor& q, const at::Tensor& k,
                                              const at::Tensor& positions,
                                              const at::Tensor& frequencies,
                                              std::string_view style) {
  check_rotary("rotary", q, k, positions, frequencies, style);
  if (!takes(q)) return composite::rotary(q, k, positions, frequencies, style);
  const auto rotation = composite::rotation_of(positions, frequencies, style, at::kFloat);
  return {turned(q, rotation), turned(k, rotation)};
}

std::tuple<at::Tensor, at::Tensor> rotary_backward_cpu(
    const std::optional<at::Tensor>& grad_rotated_q,
    const std::optional<at::Tensor>& grad_rotated_k, const at::Tensor& positions,
    const at::Tensor& frequencies, std::string_view style, std::array<bool, 2> output_mask) {
  check_rotary_backward(grad_rotated_q, grad_rotated_k, positions, frequencies, style);
  const auto& any = grad_rotated_q ? grad_rotated_q : grad_rotated_k;
  if (!any || !takes(*any)) {
    return composite::rotary_backward(grad_rotated_q, grad_rotated_k, positions, frequencies, style,
                                      output_mask);
  }
  const auto rotation =
      composite::inverse(composite::rotation_of(positions, frequencies, style, at::kFloat));
  const auto turned_back = [&](bool asked, const std::optional<at::Tensor>& grad) {
    return asked && grad ? turned(*grad, rotation) : at::Tensor();
  };
  return {turned_back(output_mask[0], grad_rotated_q), turned_back(output_mask[1], grad_rotated_k)};
}

}  // namespace

TORCH_LIBRARY_IMPL(retnet, CPU, m) {
  m.impl("rotary", rotary_cpu);
  m.impl("rotary_backward", rotary_backward_cpu);
}

}  // namespace retnet::ops
