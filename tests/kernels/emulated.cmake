# SPDX-License-Identifier: Apache-2.0
#
# The kernels' own source compiled for the emulator (tests/simt) and the tests that run it. After tests/cpp and tests/simt.
if(NOT TARGET retnet_simt)
  return()
endif()

include(${PROJECT_SOURCE_DIR}/kernels/norm/instances.cmake)
retnet_gated_group_norm_sources(generated ${CMAKE_CURRENT_BINARY_DIR}/emulated cpp)

add_library(retnet_kernels_emulated OBJECT
  ${CMAKE_CURRENT_LIST_DIR}/column_sum_emulated.cpp
  ${PROJECT_SOURCE_DIR}/kernels/norm/gated_group_norm.cpp
  ${generated})
target_include_directories(retnet_kernels_emulated PRIVATE ${CMAKE_CURRENT_LIST_DIR})
target_link_libraries(retnet_kernels_emulated PRIVATE retnet_simt_kernel_flags)

add_executable(retnet_kernels_emulated_test ${CMAKE_CURRENT_LIST_DIR}/gated_group_norm_emulated.cpp)
target_link_libraries(retnet_kernels_emulated_test PRIVATE
  retnet_catch_main retnet_kernels_emulated retnet_simt retnet_warnings)
if(RETNET_CATCH2_LIBRARY)
  target_link_libraries(retnet_kernels_emulated_test PRIVATE ${RETNET_CATCH2_LIBRARY})
endif()
add_test(NAME retnet_kernels_emulated_test COMMAND retnet_kernels_emulated_test)
