# CUDA kernels: src/cuda/kernels/*.cu to machine code for Hopper (sm_90a), put into kri_cuda as they
# are. The host side is plain C and is built everywhere; it finds the driver at run time. KR_CUDA:
# AUTO builds kernels where nvcc is found (KR_NVCC, the PATH, or the folder of tools/setup.sh) and
# the C++ compiler that it calls, ON requires both, OFF builds none: the device is then refused by
# name.
set(KR_CUDA AUTO CACHE STRING "CUDA kernels: AUTO, ON or OFF")
set(KR_CUDA_DIR "$ENV{HOME}/.cache/kr/nvcc" CACHE PATH "where tools/setup.sh test puts nvcc")
set(KRI_HAS_CUDA OFF)
if(NOT KR_CUDA STREQUAL "OFF" AND NOT KR_KERNELS_ONLY)
  find_program(KR_NVCC nvcc HINTS "${KR_CUDA_DIR}/nvidia/cu13/bin")
  if(KR_NVCC)
    include(CheckLanguage)
    if(NOT CMAKE_CXX_COMPILER)
      unset(CMAKE_CXX_COMPILER CACHE) # it may have been installed since
    endif()
    check_language(CXX)
  endif()
  if(KR_NVCC AND CMAKE_CXX_COMPILER)
    set(KRI_HAS_CUDA ON)
  elseif(KR_CUDA STREQUAL "ON")
    message(FATAL_ERROR "KR_CUDA=ON but there is no nvcc or no C++ compiler: run tools/setup.sh "
      "test, or set KR_NVCC")
  endif()
endif()
if(KRI_HAS_CUDA)
  set(cubins)
  file(MAKE_DIRECTORY ${CMAKE_BINARY_DIR}/cuda)
  file(GLOB headers CONFIGURE_DEPENDS src/cuda/kernels/*.cuh)
  file(GLOB sources CONFIGURE_DEPENDS src/cuda/kernels/*.cu)
  foreach(source ${sources})
    get_filename_component(name ${source} NAME_WE)
    set(cubin ${CMAKE_BINARY_DIR}/cuda/${name}.cubin)
    add_custom_command(OUTPUT ${cubin}
      COMMAND ${KR_NVCC} -std=c++17 -O3 -cubin -gencode=arch=compute_90a,code=sm_90a
        -Werror all-warnings -o ${cubin} ${source}
      DEPENDS ${source} ${headers} ${CMAKE_SOURCE_DIR}/src/cuda/args.h
      COMMENT "nvcc ${name}.cu" VERBATIM)
    list(APPEND cubins ${cubin})
  endforeach()
  add_custom_target(kri_cubins DEPENDS ${cubins})
  add_dependencies(kri_cuda kri_cubins)
  set_source_files_properties(src/cuda/images.c PROPERTIES OBJECT_DEPENDS "${cubins}"
    COMPILE_DEFINITIONS "KRI_CUDA_IMAGES=\"${CMAKE_BINARY_DIR}/cuda\"")
endif()

# The same kernels as C++ on the CPU, behind a libcuda.so.1 of their own: tests/cuda runs on it where
# there is no GPU (LD_LIBRARY_PATH=<build>/tests/emulated).
if(KRI_HAS_CUDA AND NOT KR_SANITIZE AND CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  enable_language(CXX)
  file(GLOB sources CONFIGURE_DEPENDS tests/cuda/emulator/*.cpp)
  add_library(kri_emulated_cuda SHARED ${sources})
  target_include_directories(kri_emulated_cuda PRIVATE src include tests/cuda/emulator)
  target_compile_features(kri_emulated_cuda PRIVATE cxx_std_17)
  target_compile_options(kri_emulated_cuda PRIVATE -O2 -fno-strict-aliasing -Wall -Wextra
    -Werror -Wno-unknown-pragmas -Wno-sign-compare -Wno-unused-function -Wno-psabi)
  target_link_libraries(kri_emulated_cuda PRIVATE kri_ops)
  target_link_options(kri_emulated_cuda PRIVATE -Wl,--no-undefined -Wl,--exclude-libs,ALL)
  set_target_properties(kri_emulated_cuda PROPERTIES PREFIX "" OUTPUT_NAME libcuda
    SUFFIX .so.1 LIBRARY_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests/emulated)
endif()
