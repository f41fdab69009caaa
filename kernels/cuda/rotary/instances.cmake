# SPDX-License-Identifier: Apache-2.0
#
# Writes the instantiations of the rotary kernel into `folder` and sets `result` to their files: one for each element
# type and elements per access (rotary_vector). nvcc and the SIMT emulator compile them.
function(retnet_rotary_sources result folder extension)
  set(files)
  foreach(instance IN ITEMS kFloat32:4 kFloat16:4 kFloat16:8 kBFloat16:4 kBFloat16:8)
    string(REPLACE ":" ";" instance ${instance})
    list(GET instance 0 DTYPE)
    list(GET instance 1 VECTOR)
    set(file ${folder}/rotary_${DTYPE}_${VECTOR}.${extension})
    configure_file(${CMAKE_CURRENT_FUNCTION_LIST_DIR}/instance.cu.in ${file} @ONLY)
    list(APPEND files ${file})
  endforeach()
  set(${result} "${files}" PARENT_SCOPE)
endfunction()
