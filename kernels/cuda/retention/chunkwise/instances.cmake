# SPDX-License-Identifier: Apache-2.0
#
# Writes the instantiations of the chunkwise retention kernel into `folder` and sets `result` to their files: one for
# each dtype and entry of the tile table (kChunkwiseTiles). nvcc and the SIMT emulator compile them.
function(retnet_chunkwise_sources result folder extension)
  set(files)
  foreach(DTYPE IN ITEMS kFloat16 kBFloat16)
    foreach(TILE RANGE 5)
      set(file ${folder}/chunkwise_${DTYPE}_${TILE}.${extension})
      configure_file(${CMAKE_CURRENT_FUNCTION_LIST_DIR}/instance.cu.in ${file} @ONLY)
      list(APPEND files ${file})
    endforeach()
  endforeach()
  set(${result} "${files}" PARENT_SCOPE)
endfunction()
