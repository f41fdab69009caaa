# SPDX-License-Identifier: Apache-2.0
#
# The kernels' own source compiled for the emulator (tests/simt) and the tests that run it. After tests/cpp and tests/simt.
if(NOT TARGET retnet_simt)
  return()
endif()

# As kernels/CMakeLists.txt instantiates them.
set(generated)
foreach(direction IN ITEMS forward backward)
  set(params_forward GatedGroupNormParams)
  set(params_backward GatedGroupNormBackwardParams)
  set(PARAMS ${params_${direction}})
  set(DIRECTION ${direction})
  foreach(instance IN ITEMS kFloat32:4 kFloat16:4 kFloat16:8 kBFloat16:4 kBFloat16:8)
    string(REPLACE ":" ";" instance ${instance})
    list(GET instance 0 DTYPE)
    list(GET instance 1 VECTOR)
    set(file ${CMAKE_CURRENT_BINARY_DIR}/emulated/gated_group_norm_${direction}_${DTYPE}_${VECTOR}.cpp)
    configure_file(${PROJECT_SOURCE_DIR}/kernels/norm/gated_group_norm.cu.in ${file} @ONLY)
    list(APPEND generated ${file})
  endforeach()
endforeach()
set(column_sum ${CMAKE_CURRENT_BINARY_DIR}/emulated/column_sum.cpp)
file(CONFIGURE OUTPUT ${column_sum} CONTENT "#include \"kernels/norm/column_sum.cu\"\n")

add_library(retnet_kernels_emulated OBJECT
  ${PROJECT_SOURCE_DIR}/kernels/norm/gated_group_norm.cpp ${column_sum} ${generated})
target_link_libraries(retnet_kernels_emulated PRIVATE retnet_simt_kernel_flags)

add_executable(retnet_kernels_emulated_test ${CMAKE_CURRENT_LIST_DIR}/gated_group_norm_emulated.cpp)
target_link_libraries(retnet_kernels_emulated_test PRIVATE
  retnet_catch_main retnet_kernels_emulated retnet_simt retnet_warnings)
if(RETNET_CATCH2_LIBRARY)
  target_link_libraries(retnet_kernels_emulated_test PRIVATE ${RETNET_CATCH2_LIBRARY})
endif()
add_test(NAME retnet_kernels_emulated_test COMMAND retnet_kernels_emulated_test)
