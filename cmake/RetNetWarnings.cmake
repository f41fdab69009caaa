# SPDX-License-Identifier: Apache-2.0
#
# Warnings are errors on this project's own C++ targets; imported targets' headers are system headers and exempt.
add_library(retnet_warnings INTERFACE)
target_compile_options(retnet_warnings INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Werror>)
