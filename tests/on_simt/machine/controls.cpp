// SPDX-License-Identifier: Apache-2.0
//
// torch.ops.retnet_on_simt lets tests in Python control the machine.
#include <torch/library.h>

#include <string>
#include <vector>

#include "machine/machine.h"

namespace retnet::on_simt {
namespace {

void fail(const std::string& call, int64_t error, int64_t after) {
  const char* const names[] = {"set_device",    "get_attribute", "launch",
                               "capture_begin", "capture_end",   "replay"};
  for (int i = 0; i < static_cast<int>(Call::kCount); ++i) {
    if (call != names[i]) continue;
    Machine::get().fail(static_cast<Call>(i), static_cast<cudaError_t>(error),
                        static_cast<int>(after));
    return;
  }
  TORCH_CHECK(false, "fail: no call is named ", call);
}

void set_limits(int64_t capability, int64_t multiprocessors, int64_t shared_bytes,
                int64_t code_architecture) {
  Machine::get().limits = {static_cast<int>(capability), static_cast<int>(multiprocessors),
                           static_cast<int>(shared_bytes), static_cast<int>(code_architecture)};
}

int64_t launches() { return static_cast<int64_t>(Machine::get().launches); }
int64_t last_cluster() { return Machine::get().last_cluster; }
std::vector<std::string> take_findings() { return Machine::get().take_findings(); }

}  // namespace

TORCH_LIBRARY(retnet_on_simt, m) {
  m.def("fail(str call, int error, int after) -> ()", fail);
  m.def(
      "set_limits(int capability=90, int multiprocessors=132, int shared_bytes=232448, "
      "int code_architecture=90) -> ()",
      set_limits);
  m.def("launches() -> int", launches);
  m.def("last_cluster() -> int", last_cluster);
  m.def("take_findings() -> str[]", take_findings);
}

}  // namespace retnet::on_simt
