# Runs vLLM's own CMakeLists.txt from its first line to its last, without a compiler, torch or CUDA: `cmake -P` with the
# commands that script mode lacks replaced by ones that write down what they are asked for.
#
#   cmake -DTREE=.. -DARCHS=12.1a -DCUDA=13.0 -DSCRATCH=.. [-DVLLM_LEAN=ON] [-DONLY=FILE] -P configure.cmake    (in TREE)
#
# With ONLY it runs cmake/utils.cmake and that file instead, with ARCHS as what CMakeLists.txt made of the request.
# Each line of SCRATCH/record holds a kind, a subject and a value, split by tabs:
#   code    a source file    what nvcc is told to make for it, such as sm_121a or compute_80
#   source  a target         a source file of it
#   define  a target         a macro that its CUDA files are compiled with
#   clone   a dependency     the repository that would be cloned
cmake_minimum_required(VERSION 3.26)

function(record KIND SUBJECT VALUE)
  file(APPEND "${SCRATCH}/record" "${KIND}\t${SUBJECT}\t${VALUE}\n")
endfunction()

file(WRITE "${SCRATCH}/record" "")
list(PREPEND CMAKE_MODULE_PATH "${CMAKE_CURRENT_LIST_DIR}/cmake_modules")
set(FETCHCONTENT_BASE_DIR "${SCRATCH}/deps")
set(VLLM_CUTLASS_SRC_DIR "${SCRATCH}/cutlass")
set(VLLM_PYTHON_EXECUTABLE "${CMAKE_COMMAND}")
set(CMAKE_CXX_COMPILER_ID "GNU")
set(CMAKE_CXX_COMPILER_VERSION "13.2")
set(CMAKE_CUDA_COMPILER_VERSION "${CUDA}")
set(CUDA_VERSION "${CUDA}")
set(CMAKE_BUILD_TYPE "RelWithDebInfo")

# What torch makes of TORCH_CUDA_ARCH_LIST.
foreach(_arch ${ARCHS})
  string(REPLACE "." "" _number "${_arch}")
  string(APPEND CMAKE_CUDA_FLAGS " -gencode arch=compute_${_number},code=sm_${_number}")
endforeach()

macro(find_package NAME)
  if("${NAME}" STREQUAL "Python")
    set(Python_FOUND TRUE)
    set(Python_VERSION_MAJOR 3)
    set(Python_VERSION_MINOR 12)
  elseif("${NAME}" STREQUAL "Torch")
    set(CUDA_FOUND TRUE)
    set(Torch_VERSION "2.14.0")
    set(TORCH_INCLUDE_DIRS "${SCRATCH}/torch")
  endif()
endmacro()

macro(find_program OUT)
  set(${OUT} "${CMAKE_COMMAND}")
endmacro()

# Every program succeeds and says nothing: asking torch for its flags, generating Marlin's sources.
macro(execute_process)
  cmake_parse_arguments(_run "" "RESULT_VARIABLE;OUTPUT_VARIABLE;ERROR_VARIABLE" "" ${ARGN})
  foreach(_name ${_run_OUTPUT_VARIABLE} ${_run_ERROR_VARIABLE})
    set(${_name} "")
  endforeach()
  if(_run_RESULT_VARIABLE)
    set(${_run_RESULT_VARIABLE} 0)
  endif()
endmacro()

function(set_property)
  cmake_parse_arguments(_property "APPEND" "" "SOURCE;PROPERTY" ${ARGN})
  if("${_property_PROPERTY}" MATCHES "-gencode;arch=[^,]+,code=([a-z0-9_]+)")
    foreach(_source ${_property_SOURCE})
      record("code" "${_source}" "${CMAKE_MATCH_1}")
    endforeach()
  endif()
endfunction()

function(Python_add_library NAME)
  foreach(_source ${ARGN})
    if(_source MATCHES "\\.(cu|cpp)$")
      record("source" "${NAME}" "${_source}")
    endif()
  endforeach()
endfunction()

function(target_sources NAME)
  Python_add_library(${NAME} ${ARGN})
endfunction()

function(target_compile_options NAME)
  string(REGEX MATCHALL "-DENABLE_[A-Z0-9_]+" _defines "${ARGN}")
  foreach(_define ${_defines})
    string(REPLACE "-D" "" _define "${_define}")
    record("define" "${NAME}" "${_define}")
  endforeach()
endfunction()

foreach(_ignored project enable_language install add_custom_target add_custom_command add_dependencies
                 target_compile_definitions target_include_directories target_link_libraries target_link_options
                 set_target_properties set_source_files_properties)
  cmake_language(EVAL CODE "function(${_ignored})\nendfunction()")
endforeach()

if(ONLY)
  set(CUDA_ARCHS "${ARCHS}")
  set(CUTLASS_INCLUDE_DIR "${SCRATCH}")
  file(WRITE "${SCRATCH}/cutlass/cutlass.h" "")
  include(FetchContent)
  include("${TREE}/cmake/utils.cmake")
  include("${ONLY}")
else()
  include("${TREE}/CMakeLists.txt")
endif()
