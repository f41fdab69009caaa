// SPDX-License-Identifier: Apache-2.0
#include <pybind11/pybind11.h>
#include <retnet/version.h>

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native part of retnet. Importing it registers the operators torch.ops.retnet.*";
  // A call into the library, so that the linker keeps it and its operators register on import.
  m.attr("__version__") = retnet::version();
}
