# Stands in for CMake's own module, so that what would be cloned is seen and nothing is.

macro(FetchContent_Declare NAME)
  if("${ARGN}" MATCHES "GIT_REPOSITORY;([^;]+)")
    record("clone" "${NAME}" "${CMAKE_MATCH_1}")
    set(_clones_${NAME} TRUE)
  endif()
endmacro()

macro(FetchContent_MakeAvailable NAME)
  if(_clones_${NAME})
    message(FATAL_ERROR "configure would clone ${NAME}")
  endif()
  set(${NAME}_SOURCE_DIR "${SCRATCH}/${NAME}")
endmacro()

macro(FetchContent_Populate NAME)
  FetchContent_MakeAvailable(${NAME})
endmacro()
