# SPDX-License-Identifier: Apache-2.0
#
# Writes the instantiations of the chunkwise retention kernel into `folder` and sets `result` to their files: one for each
# dtype and entry of the tile table (kChunkwiseTiles). For nvcc and for the emulator.
function(retnet_chunkwise_sources result folder extension)
  set(files)
  foreach(DTYPE IN ITEMS kFloat16 kBFloat16)
    foreach(TILE RANGE 5)
      set(file ${folder}/chunkwise_${DTYPE}_${TILE}.${extension})
      configure_file(${CMAKE_CURRENT_FUNCTION_LIST_DIR}/chunkwise/instance.cu.in ${file} @ONLY)
      list(APPEND files ${file})
    endforeach()
  endforeach()
  set(${result} "${files}" PARENT_SCOPE)
endfunction()

# The same of the gradient of log_decay: one for each dtype and entry of kLogDecayTiles.
function(retnet_log_decay_sources result folder extension)
  set(files)
  foreach(DTYPE IN ITEMS kFloat16 kBFloat16)
    foreach(TILE RANGE 3)
      set(file ${folder}/log_decay_${DTYPE}_${TILE}.${extension})
      configure_file(${CMAKE_CURRENT_FUNCTION_LIST_DIR}/log_decay_grad/instance.cu.in ${file} @ONLY)
      list(APPEND files ${file})
    endforeach()
  endforeach()
  set(${result} "${files}" PARENT_SCOPE)
endfunction()

# The same of the step of decoding: one for each dtype and width of the accesses to the state.
function(retnet_step_sources result folder extension)
  set(files)
  foreach(DTYPE IN ITEMS kFloat32 kFloat16 kBFloat16)
    foreach(WIDE IN ITEMS true false)
      set(file ${folder}/step_${DTYPE}_${WIDE}.${extension})
      configure_file(${CMAKE_CURRENT_FUNCTION_LIST_DIR}/step/instance.cu.in ${file} @ONLY)
      list(APPEND files ${file})
    endforeach()
  endforeach()
  set(${result} "${files}" PARENT_SCOPE)
endfunction()
