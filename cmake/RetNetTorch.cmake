# SPDX-License-Identifier: Apache-2.0
#
# Imported targets for an installed torch, from torch's own files: RetNet::torch (C++ API: c10, torch_cpu and, in a
# CUDA build of torch, torch_cuda), RetNet::c10_cuda, RetNet::torch_cuda,
# RetNet::torch_python. Torch's own CMake package stops with an
# error where the wheel is a CUDA build and the machine has no CUDA toolkit; this file needs no toolkit.
# RETNET_TORCH_VERSION is its version (2.15.0), RETNET_TORCH_MINOR the part that a build is bound to (2.15).
#
# Torch is looked for in RETNET_TORCH_DIR (a folder that holds lib/libtorch.so: an unpacked LibTorch or the `torch`
# folder of site-packages), then in CMAKE_PREFIX_PATH, then in the Python of Python_EXECUTABLE or of PATH.
include_guard(GLOBAL)

set(RETNET_TORCH_DIR "" CACHE PATH "Folder of torch: holds lib/libtorch.so and include/ATen")

if(NOT RETNET_TORCH_DIR)
  foreach(prefix IN LISTS CMAKE_PREFIX_PATH)
    if(EXISTS "${prefix}/lib/libtorch.so" AND EXISTS "${prefix}/include/ATen/ATen.h")
      set(RETNET_TORCH_DIR "${prefix}" CACHE PATH "" FORCE)
      break()
    endif()
  endforeach()
endif()
if(NOT RETNET_TORCH_DIR)
  if(Python_EXECUTABLE)
    set(_retnet_python "${Python_EXECUTABLE}")
  else()
    find_program(_retnet_python NAMES python3 python NO_CACHE)
  endif()
  if(_retnet_python)
    execute_process(
      COMMAND "${_retnet_python}" -c
              "import importlib.util as u; s = u.find_spec('torch'); print(s.submodule_search_locations[0] if s else '')"
      OUTPUT_VARIABLE _retnet_torch_dir OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(_retnet_torch_dir)
      set(RETNET_TORCH_DIR "${_retnet_torch_dir}" CACHE PATH "" FORCE)
    endif()
  endif()
endif()
if(NOT EXISTS "${RETNET_TORCH_DIR}/lib/libtorch.so")
  message(FATAL_ERROR
    "RetNet: torch was not found (RETNET_TORCH_DIR='${RETNET_TORCH_DIR}'). Install it (pip install torch) and "
    "pass -DPython_EXECUTABLE=<its python>, or unpack LibTorch and pass -DRETNET_TORCH_DIR=<folder>.")
endif()

# Torch's own header rather than Python's metadata, which LibTorch does not have.
set(_retnet_version_header "${RETNET_TORCH_DIR}/include/torch/headeronly/version.h")
set(_retnet_version "")
if(EXISTS "${_retnet_version_header}")
  file(STRINGS "${_retnet_version_header}" _retnet_version REGEX "^#define TORCH_VERSION_(MAJOR|MINOR|PATCH) [0-9]+$")
  list(TRANSFORM _retnet_version REPLACE ".* " "")
  list(JOIN _retnet_version "." _retnet_version)
endif()
string(REGEX MATCH "^[0-9]+\\.[0-9]+" _retnet_minor "${_retnet_version}")
# In the cache, since other folders of an application, which include this file without effect, see them there too.
set(RETNET_TORCH_VERSION "${_retnet_version}" CACHE INTERNAL "Version of torch")
set(RETNET_TORCH_MINOR "${_retnet_minor}" CACHE INTERNAL "Its major and minor version")

function(_retnet_import_torch_library name)
  add_library(RetNet::${name} SHARED IMPORTED GLOBAL)
  set_target_properties(RetNet::${name} PROPERTIES
    IMPORTED_LOCATION "${RETNET_TORCH_DIR}/lib/lib${name}.so"
    INTERFACE_INCLUDE_DIRECTORIES
      "${RETNET_TORCH_DIR}/include;${RETNET_TORCH_DIR}/include/torch/csrc/api/include")
endfunction()

_retnet_import_torch_library(c10)
_retnet_import_torch_library(torch_cpu)
_retnet_import_torch_library(torch)
# libtorch.so holds no symbol: it is there to load torch_cpu and torch_cuda, whose operators register when they are
# loaded. So the linker must keep it though nothing refers to it.
set_target_properties(RetNet::torch PROPERTIES
  INTERFACE_LINK_LIBRARIES "RetNet::torch_cpu;RetNet::c10"
  INTERFACE_LINK_OPTIONS "LINKER:--no-as-needed")
foreach(_retnet_optional torch_python c10_cuda torch_cuda)
  if(EXISTS "${RETNET_TORCH_DIR}/lib/lib${_retnet_optional}.so")
    _retnet_import_torch_library(${_retnet_optional})
  endif()
endforeach()
