# SPDX-License-Identifier: Apache-2.0
#
# Writes the instantiations of the gated group norm kernels into `folder` and sets `result` to their files: one for each
# element type, elements per access (gated_group_norm_vector) and direction. nvcc and the SIMT emulator compile them.
function(retnet_gated_group_norm_sources result folder extension)
  set(params_forward GatedGroupNormParams)
  set(params_backward GatedGroupNormBackwardParams)
  set(files)
  foreach(DIRECTION IN ITEMS forward backward)
    set(PARAMS ${params_${DIRECTION}})
    foreach(instance IN ITEMS kFloat32:4 kFloat16:4 kFloat16:8 kBFloat16:4 kBFloat16:8)
      string(REPLACE ":" ";" instance ${instance})
      list(GET instance 0 DTYPE)
      list(GET instance 1 VECTOR)
      set(file ${folder}/gated_group_norm_${DIRECTION}_${DTYPE}_${VECTOR}.${extension})
      configure_file(${CMAKE_CURRENT_FUNCTION_LIST_DIR}/instance.cu.in ${file} @ONLY)
      list(APPEND files ${file})
    endforeach()
  endforeach()
  set(${result} "${files}" PARENT_SCOPE)
endfunction()
