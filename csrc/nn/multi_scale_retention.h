// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>
#include <torch/types.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <ostream>
#include <string_view>
#include <tuple>

#include "../version.h"
#include "gated_group_norm.h"
#include "linear.h"
#include "options.h"

namespace retnet::nn {

class RetentionConstants;

/// Gated multi-scale retention (Sun et al. 2023, section 2.2, Eq. 8):
///
///     out_proj(norm(retention(rotary(q), rotary(k), v)) * swish(g)),   one gamma per head
///
/// Keys: `{q,k}_proj.weight` [H K, d], `{v,g}_proj.weight` [H V, d], `out_proj.weight` [d, H V],
/// `group_norm.*`, `bias` beside each weight if `options.bias()`, and `log_decay_raw` [H] if
/// `options.learnable_decay()`.
///
/// ln gamma is then reference * exp(log_decay_raw), where reference is the ln gamma of the options.
/// The parameter begins at 0, and each of its values is legal:
///
/// - A step of an optimizer changes ln gamma by a relative amount.
/// - From 80 on gamma is exactly 0, from -80 down exactly 1. Such a head gets no gradient, so it
///   stays there until the parameter is set. A head whose gamma is 1 in the options begins at -80;
///   its reference is -2^-10.
/// - It stays float32 whatever `to(dtype)` does.
///
/// The rotary frequencies, and ln gamma unless learnable, are neither parameters nor buffers: they
/// follow from the options and are made in float32 on each device that needs them.
class RETNET_API MultiScaleRetentionImpl : public torch::nn::Cloneable<MultiScaleRetentionImpl> {
 public:
  /// `tensor_options` says where and in which dtype the parameters are made.
  explicit MultiScaleRetentionImpl(const RetNetOptions& options,
                                   const torch::TensorOptions& tensor_options = {});

  void reset() override;

  /// Xavier uniform, gain 2^-2.5 for q, k, v, g and 2^-1 for out, as torchscale. Biases are uniform
  /// within d^(-1/2) of 0, that of out is 0.
  void reset_parameters();

  using torch::nn::Module::to;
  void to(torch::Device device, torch::Dtype dtype, bool non_blocking = false) override;
  void to(torch::Dtype dtype, bool non_blocking = false) override;

  void pretty_print(std::ostream& stream) const override;

  /// ln gamma of each head, [H] float32, where the parameters are. Differentiable if learnable.
  torch::Tensor log_decay() const;

  /// Runs the layer over a block of tokens. With T = 1, a state, no cu_seqlens and grad mode off it
  /// takes the fused step of decoding.
  ///
  ///   x           [B, T, d]
  ///   state       [B, H, K, V] from the tokens before; absent = a start. [N, H, K, V] if packed
  ///   positions   [T] or [B, T] int, position of each token in its sequence; needed with a state
  ///               or cu_seqlens, else 0..T-1
  ///   cu_seqlens  [N + 1] int32, bounds of packed sequences (B = 1)
  ///   form        "chunkwise", "parallel" or "recurrent"; the same values up to rounding
  ///   inplace     the step of decoding may overwrite `state`
  ///
  /// Returns the output [B, T, d] and the state after the last token. Raises c10::ValueError when
  /// positions are missing.
  std::tuple<torch::Tensor, torch::Tensor> forward(
      const torch::Tensor& x, const std::optional<torch::Tensor>& state = std::nullopt,
      const std::optional<torch::Tensor>& positions = std::nullopt,
      const std::optional<torch::Tensor>& cu_seqlens = std::nullopt,
      std::string_view form = "chunkwise", bool inplace = false);

  RetNetOptions options;               ///< what it was made from
  Linear q_proj{nullptr};              ///< d to H K, queries
  Linear k_proj{nullptr};              ///< d to H K, keys
  Linear v_proj{nullptr};              ///< d to H V, values
  Linear g_proj{nullptr};              ///< d to H V, the gate
  Linear out_proj{nullptr};            ///< H V to d
  GatedGroupNorm group_norm{nullptr};  ///< of each head's output
  torch::Tensor log_decay_raw;         ///< the parameter [H]; undefined unless learnable

 private:
  torch::TensorOptions tensor_options_;
  std::shared_ptr<RetentionConstants> constants_;  // clones share it
};
TORCH_MODULE(MultiScaleRetention);

/// True when a call is one step of decoding: T = 1, a state, grad mode off, not packed.
bool is_step(int64_t length, bool has_state, const std::optional<torch::Tensor>& cu_seqlens);

}  // namespace retnet::nn
