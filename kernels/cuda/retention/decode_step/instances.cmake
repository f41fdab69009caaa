# SPDX-License-Identifier: Apache-2.0
#
# Writes the instantiations of the decode step kernel into `folder` and sets `result` to their files: one for each dtype
# and width of the accesses to the state (decode_step_wide). nvcc and the SIMT emulator compile them.
function(retnet_decode_step_sources result folder extension)
  set(files)
  foreach(DTYPE IN ITEMS kFloat32 kFloat16 kBFloat16)
    foreach(WIDE IN ITEMS true false)
      set(file ${folder}/decode_step_${DTYPE}_${WIDE}.${extension})
      configure_file(${CMAKE_CURRENT_FUNCTION_LIST_DIR}/instance.cu.in ${file} @ONLY)
      list(APPEND files ${file})
    endforeach()
  endforeach()
  set(${result} "${files}" PARENT_SCOPE)
endfunction()
