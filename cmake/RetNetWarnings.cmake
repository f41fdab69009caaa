# SPDX-License-Identifier: Apache-2.0
#
# retnet_warnings: the warnings of this project's own targets. Headers of imported targets are system headers and exempt.
#
# In:   RETNET_WERROR   ON makes warnings errors; OFF (default), because a compiler that nobody tried may warn of more
option(RETNET_WERROR "Make compiler warnings errors" OFF)

add_library(retnet_warnings INTERFACE)
target_compile_options(retnet_warnings INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra>
  $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra>)
if(RETNET_WERROR)
  target_compile_options(retnet_warnings INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-Werror>
    $<$<COMPILE_LANGUAGE:CUDA>:-Werror=all-warnings>)
endif()
