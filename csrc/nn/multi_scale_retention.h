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
/// State-dict keys:
///
/// - `{q,k}_proj.weight` [H K, d], `{v,g}_proj.weight` [H V, d], `out_proj.weight` [d, H V],
/// - `group_norm.*`,
/// - a `bias` for each of these matrices if `options.bias()`,
/// - `log_decay_raw` [H] if `options.learnable_decay()`.
///
/// If the decay is learnable, ln gamma is reference * exp(log_decay_raw). The reference is the ln
/// gamma of the options. The parameter starts at 0, and each of its values is legal:
///
/// - An optimizer step changes ln gamma by a relative amount.
/// - If it is 80 or more, gamma is exactly 0. If it is -80 or less, gamma is exactly 1. Such a head
///   gets no gradient, so it stays there until the parameter is set. A head whose gamma is 1 in the
///   options starts at -80, and its reference is -2^-10.
/// - It stays float32 in `to(dtype)`.
///
/// The rotary frequencies are neither parameters nor buffers, and neither is ln gamma unless it is
/// learnable. They follow from the options and are computed in float32 on each device that needs
/// them.
class RETNET_API MultiScaleRetentionImpl : public torch::nn::Cloneable<MultiScaleRetentionImpl> {
 public:
  /// `tensor_options` gives the device and the dtype of the parameters.
  explicit MultiScaleRetentionImpl(const RetNetOptions& options,
                                   const torch::TensorOptions& tensor_options = {});

  void reset() override;

  /// Reinitialises every part, as in torchscale. Matrices are Xavier uniform, with gain 2^-2.5 for
  /// q, k, v and g and 2^-1 for out. Biases are uniform within d^(-1/2) of 0, except the bias of
  /// out, which is 0.
  void reset_parameters();

  using torch::nn::Module::to;
  void to(torch::Device device, torch::Dtype dtype, bool non_blocking = false) override;
  void to(torch::Dtype dtype, bool non_blocking = false) override;

  void pretty_print(std::ostream& stream) const override;

  /// Returns ln gamma of each head, [H] float32, on the device of the parameters. It is
  /// differentiable if it is learnable.
  torch::Tensor log_decay() const;

  /// Runs the layer on a block of tokens. It runs the fused decode step if T = 1, a state is given,
  /// cu_seqlens is not given, and grad mode is off.
  ///
  ///   x           [B, T, d]
  ///   state       [B, H, K, V] after the tokens that were read before; absent at the start.
  ///               [N, H, K, V] if packed
  ///   positions   [T] or [B, T] int, the position of each token in its sequence. Required with a state
  ///               or cu_seqlens, else 0..T-1 by default
  ///   cu_seqlens  [N + 1] int32, bounds of packed sequences (B = 1)
  ///   form        "chunkwise", "parallel" or "recurrent". The values are the same up to rounding
  ///   inplace     the decode step may overwrite `state`
  ///
  /// Returns the output [B, T, d] and the state after the last token. Raises c10::ValueError if
  /// positions are missing.
  std::tuple<torch::Tensor, torch::Tensor> forward(
      const torch::Tensor& x, const std::optional<torch::Tensor>& state = std::nullopt,
      const std::optional<torch::Tensor>& positions = std::nullopt,
      const std::optional<torch::Tensor>& cu_seqlens = std::nullopt,
      std::string_view form = "chunkwise", bool inplace = false);

  RetNetOptions options;               ///< the options of the module
  Linear q_proj{nullptr};              ///< d to H K, queries
  Linear k_proj{nullptr};              ///< d to H K, keys
  Linear v_proj{nullptr};              ///< d to H V, values
  Linear g_proj{nullptr};              ///< d to H V, the gate
  Linear out_proj{nullptr};            ///< H V to d
  GatedGroupNorm group_norm{nullptr};  ///< the norm of each head's output
  torch::Tensor log_decay_raw;         ///< the parameter [H]; undefined unless learnable

 private:
  torch::TensorOptions tensor_options_;
  std::shared_ptr<RetentionConstants> constants_;  // clones share it
};
TORCH_MODULE(MultiScaleRetention);

/// Returns whether a call is a decode step: T = 1, a state, grad mode off, not packed.
bool is_step(int64_t length, bool has_state, const std::optional<torch::Tensor>& cu_seqlens);

}  // namespace retnet::nn
