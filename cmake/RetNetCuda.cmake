# SPDX-License-Identifier: Apache-2.0
#
# Decides whether the CUDA kernels are built, enables the language and sets the architectures.
#
# In:   RETNET_CUDA             AUTO (default) builds them where nvcc exists and either a GPU is visible or
#                               TORCH_CUDA_ARCH_LIST is set; ON; OFF
#       TORCH_CUDA_ARCH_LIST    variable, else environment: "7.5;8.0+PTX;9.0a", separated by semicolons or spaces. Unset: the
#                               GPUs that are visible, else all that the kernels are written for
#       nvcc                    CMAKE_CUDA_COMPILER, CUDACXX, CUDA_HOME, PATH, Python_EXECUTABLE's site-packages (PyPI:
#                               nvidia-cuda-nvcc, nvidia-cuda-crt, nvidia-nvvm, nvidia-cuda-cccl, nvidia-cuda-runtime), or
#                               /usr/local/cuda, in this order
# Out:  RETNET_CUDA_ENABLED; CMAKE_CUDA_ARCHITECTURES (unless given), CMAKE_CUDA_STANDARD 20; RetNet::cudart, the shared
#       CUDA runtime and its headers. Where torch was loaded first the process uses torch's: the soname is the same.
include_guard(GLOBAL)

set(RETNET_CUDA AUTO CACHE STRING "Build the CUDA kernels: AUTO, ON or OFF")
set_property(CACHE RETNET_CUDA PROPERTY STRINGS AUTO ON OFF)

# "7.5;8.0+PTX 9.0a" -> 75-real;80-real;80-virtual;90a-real
function(retnet_cuda_architectures result arch_list)
  string(REGEX REPLACE "[ ,;]+" ";" entries "${arch_list}")
  set(architectures "")
  foreach(entry IN LISTS entries)
    if(entry STREQUAL "")
      continue()
    endif()
    if(NOT entry MATCHES "^([0-9]+)\\.([0-9][af]?)(\\+PTX)?$")
      message(FATAL_ERROR "RetNet: TORCH_CUDA_ARCH_LIST entry '${entry}' is not of the form 8.0, 9.0a or 8.0+PTX")
    endif()
    set(arch "${CMAKE_MATCH_1}${CMAKE_MATCH_2}")
    list(APPEND architectures ${arch}-real)
    if(CMAKE_MATCH_3)
      list(APPEND architectures ${arch}-virtual)
    endif()
  endforeach()
  list(REMOVE_DUPLICATES architectures)
  set(${result} "${architectures}" PARENT_SCOPE)
endfunction()

# Compute capabilities of the visible GPUs ("9.0a;8.6"), "native" where there is a GPU but nvidia-smi does not tell, or
# empty. Capability 9.0 is built as 9.0a, whose instructions only it has.
function(_retnet_visible_gpus result)
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
                  OUTPUT_VARIABLE capabilities RESULT_VARIABLE status ERROR_QUIET)
  string(REGEX MATCHALL "[0-9]+\\.[0-9]" capabilities "${capabilities}")
  if(status EQUAL 0 AND capabilities)
    list(REMOVE_DUPLICATES capabilities)
    list(TRANSFORM capabilities REPLACE "^9\\.0$" "9.0a")
    set(${result} "${capabilities}" PARENT_SCOPE)
  elseif(EXISTS /dev/nvidia0)
    set(${result} native PARENT_SCOPE)
  else()
    set(${result} "" PARENT_SCOPE)
  endif()
endfunction()

function(_retnet_find_nvcc result)
  if(CMAKE_CUDA_COMPILER)
    find_program(nvcc "${CMAKE_CUDA_COMPILER}" NO_CACHE)
  elseif(NOT "$ENV{CUDACXX}" STREQUAL "")
    find_program(nvcc "$ENV{CUDACXX}" NO_CACHE)
    if(NOT nvcc)
      message(FATAL_ERROR "RetNet: CUDACXX='$ENV{CUDACXX}' does not exist")
    endif()
  else()
    set(folders "")
    foreach(variable CUDA_HOME CUDA_PATH)
      if(NOT "$ENV{${variable}}" STREQUAL "")
        list(APPEND folders "$ENV{${variable}}/bin")
      endif()
    endforeach()
    find_program(nvcc nvcc HINTS ${folders} NO_CMAKE_SYSTEM_PATH NO_CACHE)
    if(NOT nvcc AND Python_EXECUTABLE)
      execute_process(COMMAND "${Python_EXECUTABLE}" -c "import sysconfig; print(sysconfig.get_path('platlib'))"
                      OUTPUT_VARIABLE packages OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
      find_program(nvcc nvcc PATHS "${packages}/nvidia/cu13/bin" NO_DEFAULT_PATH NO_CACHE)
    endif()
    find_program(nvcc nvcc PATHS /usr/local/cuda/bin NO_DEFAULT_PATH NO_CACHE)
  endif()
  if(nvcc)
    set(${result} "${nvcc}" PARENT_SCOPE)
  else()
    set(${result} "" PARENT_SCOPE)
  endif()
endfunction()

set(RETNET_CUDA_ENABLED OFF)
if(NOT RETNET_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "RetNet: RETNET_CUDA must be AUTO, ON or OFF, got '${RETNET_CUDA}'")
elseif(RETNET_CUDA STREQUAL "OFF")
  message(STATUS "RetNet: CUDA kernels OFF (RETNET_CUDA=OFF)")
  return()
endif()

_retnet_find_nvcc(_retnet_nvcc)
_retnet_visible_gpus(_retnet_gpus)
if(NOT TORCH_CUDA_ARCH_LIST)
  # Cached, so that configuring again in another environment does not drop the kernels.
  set(TORCH_CUDA_ARCH_LIST "$ENV{TORCH_CUDA_ARCH_LIST}" CACHE STRING "Architectures: 8.0 9.0a 12.0+PTX" FORCE)
endif()

if(NOT _retnet_nvcc)
  if(RETNET_CUDA STREQUAL "ON")
    message(FATAL_ERROR
      "RetNet: RETNET_CUDA=ON needs nvcc, which is not in CUDACXX, CUDA_HOME/bin, PATH or the site-packages of "
      "Python_EXECUTABLE ('${Python_EXECUTABLE}'). Install a CUDA toolkit, or: pip install 'nvidia-cuda-nvcc==X' "
      "'nvidia-cuda-crt==X' 'nvidia-nvvm==X' 'nvidia-cuda-cccl==X', where X is torch.version.cuda and '.*': 13.0.*")
  endif()
  message(STATUS "RetNet: CUDA kernels OFF (no nvcc)")
  return()
elseif(RETNET_CUDA STREQUAL "AUTO" AND NOT _retnet_gpus AND NOT TORCH_CUDA_ARCH_LIST AND NOT CMAKE_CUDA_ARCHITECTURES)
  message(STATUS "RetNet: CUDA kernels OFF (${_retnet_nvcc} found, but no GPU is visible and TORCH_CUDA_ARCH_LIST is not set)")
  return()
endif()

if(CMAKE_CUDA_ARCHITECTURES)
  set(_retnet_why "CMAKE_CUDA_ARCHITECTURES")
elseif(TORCH_CUDA_ARCH_LIST)
  retnet_cuda_architectures(CMAKE_CUDA_ARCHITECTURES "${TORCH_CUDA_ARCH_LIST}")
  set(_retnet_why "TORCH_CUDA_ARCH_LIST")
elseif(_retnet_gpus STREQUAL "native")
  set(CMAKE_CUDA_ARCHITECTURES native)
  set(_retnet_why "a GPU is visible")
elseif(_retnet_gpus)
  retnet_cuda_architectures(CMAKE_CUDA_ARCHITECTURES "${_retnet_gpus}")
  set(_retnet_why "the visible GPUs")
else()
  retnet_cuda_architectures(CMAKE_CUDA_ARCHITECTURES "7.5;8.0+PTX;8.6;8.9;9.0a;10.0;12.0")
  set(_retnet_why "RETNET_CUDA=ON, no GPU visible")
endif()

set(CMAKE_CUDA_COMPILER "${_retnet_nvcc}")
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
# CMake's first look at nvcc links a program. PyPI's toolkit has its libraries in lib, nvcc looks in lib64.
cmake_path(GET _retnet_nvcc PARENT_PATH _retnet_nvcc_folder)
set(ENV{LIBRARY_PATH} "${_retnet_nvcc_folder}/../lib:$ENV{LIBRARY_PATH}")
enable_language(CUDA)

# The runtime is linked by name of file: PyPI's has no libcudart.so, which -lcudart would need.
set(CMAKE_CUDA_RUNTIME_LIBRARY None)
set(_retnet_toolkit "${CMAKE_CUDA_COMPILER_TOOLKIT_LIBRARY_ROOT}")
file(GLOB _retnet_cudart
  "${_retnet_toolkit}/lib64/libcudart.so.[0-9]*" "${_retnet_toolkit}/targets/x86_64-linux/lib/libcudart.so.[0-9]*"
  "${_retnet_toolkit}/lib/libcudart.so.[0-9]*" "${_retnet_toolkit}/lib/x86_64-linux-gnu/libcudart.so.[0-9]*")
if(NOT _retnet_cudart)
  message(FATAL_ERROR "RetNet: no libcudart.so.* beside nvcc, under '${_retnet_toolkit}'. From PyPI: pip install 'nvidia-cuda-runtime==13.0.*'")
endif()
list(GET _retnet_cudart 0 _retnet_cudart)
add_library(RetNet::cudart SHARED IMPORTED GLOBAL)
set_target_properties(RetNet::cudart PROPERTIES
  IMPORTED_LOCATION "${_retnet_cudart}"
  INTERFACE_INCLUDE_DIRECTORIES "${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES}")

set(RETNET_CUDA_ENABLED ON)
message(STATUS "RetNet: CUDA kernels ON (${_retnet_nvcc} ${CMAKE_CUDA_COMPILER_VERSION}; ${CMAKE_CUDA_ARCHITECTURES}: ${_retnet_why})")
