// SPDX-License-Identifier: Apache-2.0
#include <ATen/core/dispatch/Dispatcher.h>
#include <retnet/version.h>

#include <algorithm>

#include "catch.h"

TEST_CASE("linking the library registers every operator, for the devices without a kernel too") {
  for (const auto* name :
       {"retention", "retention_backward", "retention_step", "rotary", "rotary_backward",
        "gated_group_norm", "gated_group_norm_backward", "multi_scale_retention_step"}) {
    INFO(name);
    const auto op = c10::Dispatcher::singleton().findSchema({std::string("retnet::") + name, ""});
    REQUIRE(op.has_value());
    for (const auto key : {c10::DispatchKey::CPU, c10::DispatchKey::CUDA, c10::DispatchKey::XPU,
                           c10::DispatchKey::Meta, c10::DispatchKey::AutogradCPU}) {
      CHECK(op->hasComputedKernelForDispatchKey(key));
    }
  }
}

TEST_CASE("the version is three numbers") {
  const auto version = retnet::version();
  CHECK(std::count(version.begin(), version.end(), '.') == 2);
}
