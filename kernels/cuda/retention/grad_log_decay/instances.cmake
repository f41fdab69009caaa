# SPDX-License-Identifier: Apache-2.0
#
# Writes the instantiations of the log_decay gradient kernel into `folder` and sets `result` to their files: one for
# each dtype and entry of the tile table (kGradLogDecayTiles). nvcc and the SIMT emulator compile them.
function(retnet_grad_log_decay_sources result folder extension)
  set(files)
  foreach(DTYPE IN ITEMS kFloat16 kBFloat16)
    foreach(TILE RANGE 3)
      set(file ${folder}/grad_log_decay_${DTYPE}_${TILE}.${extension})
      configure_file(${CMAKE_CURRENT_FUNCTION_LIST_DIR}/instance.cu.in ${file} @ONLY)
      list(APPEND files ${file})
    endforeach()
  endforeach()
  set(${result} "${files}" PARENT_SCOPE)
endfunction()
