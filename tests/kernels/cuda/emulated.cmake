# SPDX-License-Identifier: Apache-2.0
#
# Compiles the CUDA kernels for the SIMT emulator (tests/simt), and the tests that run them. tests/cpp and
# tests/simt come first.
if(NOT TARGET retnet_simt)
  return()
endif()

include(${PROJECT_SOURCE_DIR}/kernels/cuda/norm/instances.cmake)
include(${PROJECT_SOURCE_DIR}/kernels/cuda/retention/chunkwise/instances.cmake)
include(${PROJECT_SOURCE_DIR}/kernels/cuda/retention/decode_step/instances.cmake)
include(${PROJECT_SOURCE_DIR}/kernels/cuda/retention/grad_log_decay/instances.cmake)
include(${PROJECT_SOURCE_DIR}/kernels/cuda/rotary/instances.cmake)
retnet_gated_group_norm_sources(norm_sources ${CMAKE_CURRENT_BINARY_DIR}/emulated cpp)
retnet_chunkwise_sources(chunkwise_sources ${CMAKE_CURRENT_BINARY_DIR}/emulated cpp)
retnet_grad_log_decay_sources(grad_log_decay_sources ${CMAKE_CURRENT_BINARY_DIR}/emulated cpp)
retnet_rotary_sources(rotary_sources ${CMAKE_CURRENT_BINARY_DIR}/emulated cpp)
retnet_decode_step_sources(decode_step_sources ${CMAKE_CURRENT_BINARY_DIR}/emulated cpp)

add_library(retnet_kernels_emulated OBJECT
  ${CMAKE_CURRENT_LIST_DIR}/column_sum_emulated.cpp
  ${CMAKE_CURRENT_LIST_DIR}/segment_scan_emulated.cpp
  ${PROJECT_SOURCE_DIR}/kernels/cuda/norm/launch.cpp
  ${PROJECT_SOURCE_DIR}/kernels/cuda/retention/chunkwise/launch.cpp
  ${PROJECT_SOURCE_DIR}/kernels/cuda/retention/chunkwise/plan.cpp
  ${PROJECT_SOURCE_DIR}/kernels/cuda/retention/decode_step/launch.cpp
  ${PROJECT_SOURCE_DIR}/kernels/cuda/retention/grad_log_decay/launch.cpp
  ${PROJECT_SOURCE_DIR}/kernels/cuda/retention/grad_log_decay/plan.cpp
  ${PROJECT_SOURCE_DIR}/kernels/cuda/rotary/launch.cpp
  ${norm_sources}
  ${chunkwise_sources}
  ${grad_log_decay_sources}
  ${rotary_sources}
  ${decode_step_sources})
target_include_directories(retnet_kernels_emulated PRIVATE ${CMAKE_CURRENT_LIST_DIR})
target_link_libraries(retnet_kernels_emulated PRIVATE retnet_simt_kernel_flags)

foreach(kernel IN ITEMS gated_group_norm chunkwise chunkwise_edges chunkwise_backward decode_step grad_log_decay rotary)
  add_executable(${kernel}_emulated_test ${CMAKE_CURRENT_LIST_DIR}/${kernel}_emulated.cpp)
  target_sources(${kernel}_emulated_test PRIVATE ${CMAKE_CURRENT_LIST_DIR}/test_device_emulated.cpp)
  target_link_libraries(${kernel}_emulated_test PRIVATE
    retnet_catch_main retnet_kernels_emulated retnet_simt retnet_warnings)
  if(RETNET_CATCH2_LIBRARY)
    target_link_libraries(${kernel}_emulated_test PRIVATE ${RETNET_CATCH2_LIBRARY})
  endif()
  add_test(NAME ${kernel}_emulated_test COMMAND ${kernel}_emulated_test)
  set_tests_properties(${kernel}_emulated_test PROPERTIES LABELS emulator)
endforeach()

# What the launchers ask of the runtime library. It runs no kernel.
add_executable(launches_test ${CMAKE_CURRENT_LIST_DIR}/launches_test.cpp)
target_link_libraries(launches_test PRIVATE retnet_catch_main retnet_kernels_emulated retnet_simt retnet_warnings)
if(RETNET_CATCH2_LIBRARY)
  target_link_libraries(launches_test PRIVATE ${RETNET_CATCH2_LIBRARY})
endif()
add_test(NAME launches_test COMMAND launches_test)
set_tests_properties(launches_test PROPERTIES LABELS emulator)

# It reads docs/kernels.
target_compile_definitions(grad_log_decay_emulated_test PRIVATE RETNET_SOURCE_DIR="${PROJECT_SOURCE_DIR}")

# kernel_smoke (tools/kernel_smoke.sh builds it for a GPU), linked with the emulator: this tests the program itself.
add_executable(kernel_smoke_emulated
  ${CMAKE_CURRENT_LIST_DIR}/chunkwise_backward_emulated.cpp
  ${CMAKE_CURRENT_LIST_DIR}/chunkwise_edges_emulated.cpp
  ${CMAKE_CURRENT_LIST_DIR}/chunkwise_emulated.cpp
  ${CMAKE_CURRENT_LIST_DIR}/decode_step_emulated.cpp
  ${CMAKE_CURRENT_LIST_DIR}/gated_group_norm_emulated.cpp
  ${CMAKE_CURRENT_LIST_DIR}/grad_log_decay_emulated.cpp
  ${CMAKE_CURRENT_LIST_DIR}/rotary_emulated.cpp
  ${CMAKE_CURRENT_LIST_DIR}/smoke/main.cpp
  ${CMAKE_CURRENT_LIST_DIR}/smoke/times.cpp
  ${CMAKE_CURRENT_LIST_DIR}/test_device_emulated.cpp)
# First, because its catch.h takes the place of Catch2.
target_include_directories(kernel_smoke_emulated BEFORE PRIVATE
  ${CMAKE_CURRENT_LIST_DIR}/smoke ${CMAKE_CURRENT_LIST_DIR})
target_link_libraries(kernel_smoke_emulated PRIVATE retnet_kernels_emulated retnet_simt retnet_warnings)
add_test(NAME kernel_smoke_emulated COMMAND kernel_smoke_emulated --short)

# `make kernel-report` uses it. It prints what the kernels do as JSON.
add_executable(kernel_counts
  ${CMAKE_CURRENT_LIST_DIR}/kernel_counts.cpp
  ${CMAKE_CURRENT_LIST_DIR}/kernel_launches.cpp
  ${CMAKE_CURRENT_LIST_DIR}/grad_log_decay_counts.cpp)
target_link_libraries(kernel_counts PRIVATE retnet_kernels_emulated retnet_simt retnet_warnings)
