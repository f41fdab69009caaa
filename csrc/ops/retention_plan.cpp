// SPDX-License-Identifier: Apache-2.0
#include "ops/retention_plan.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <tuple>

#include "ops/composite/retention.h"
#include "ops/retention.h"

namespace retnet::ops {

RetentionPlan retention_plan(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             const at::Tensor& log_decay,
                             const std::optional<at::Tensor>& initial_state,
                             std::optional<double> scale, std::string_view form,
                             std::optional<int64_t> chunk_size,
                             const std::optional<at::Tensor>& cu_seqlens) {
  using Signature =
      RetentionPlanTuple(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                         const std::optional<at::Tensor>&, std::optional<double>, std::string_view,
                         std::optional<int64_t>, const std::optional<at::Tensor>&);
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("retnet::retention_plan", "")
                             .typed<Signature>();
  return std::make_from_tuple<RetentionPlan>(
      op.call(q, k, v, log_decay, initial_state, scale, form, chunk_size, cu_seqlens));
}

namespace {

/// The plan of every device without kernels. ops/cpu and ops/cuda have plans of their own.
RetentionPlanTuple retention_plan_composite(const at::Tensor& q, const at::Tensor& k,
                                            const at::Tensor& v, const at::Tensor& log_decay,
                                            const std::optional<at::Tensor>& initial_state,
                                            std::optional<double> /*scale*/, std::string_view form,
                                            std::optional<int64_t> chunk_size,
                                            const std::optional<at::Tensor>& cu_seqlens) {
  check_retention("retention_plan", q, k, v, log_decay, initial_state, form, chunk_size,
                  cu_seqlens);
  if (cu_seqlens && cu_seqlens->device().is_cpu()) {
    composite::packed_bounds("retention_plan", q, *cu_seqlens);
  }
  const std::string device = c10::DeviceTypeName(q.device().type(), /*lower_case=*/true);
  const std::string reason = "this build has no kernel for " + device;
  return {"composite", reason, 0, 0, 0, 0, 0, 0, reason};
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(retnet, m) {
  m.def(
      "retention_plan(Tensor q, Tensor k, Tensor v, Tensor log_decay, Tensor? initial_state=None, "
      "*, float? scale=None, str form=\"chunkwise\", int? chunk_size=None, Tensor? "
      "cu_seqlens=None) -> (str implementation, str reason, int inner, int slice, int chunk, int "
      "segment_length, int segments, int copies, str backward_reason)");
}

TORCH_LIBRARY_IMPL(retnet, CompositeExplicitAutograd, m) {
  m.impl("retention_plan", retention_plan_composite);
}

}  // namespace retnet::ops
