# CUDA kernels: src/cuda/kernels/*.cu to machine code for Hopper (sm_90a), put into kri_cuda as they
# are. The host side is plain C and is built everywhere; it finds the driver at run time. KR_CUDA:
# AUTO builds kernels where nvcc is found (KR_NVCC, the PATH, or the folder of tools/setup.sh),
# ON requires it, OFF builds none: the device is then refused by name.
set(KR_CUDA AUTO CACHE STRING "CUDA kernels: AUTO, ON or OFF")
set(KR_CUDA_DIR "$ENV{HOME}/.cache/kr/nvcc" CACHE PATH "where tools/setup.sh test puts nvcc")
if(NOT KR_CUDA STREQUAL "OFF" AND NOT KR_KERNELS_ONLY)
  find_program(KR_NVCC nvcc HINTS "${KR_CUDA_DIR}/nvidia/cu13/bin")
  if(NOT KR_NVCC AND KR_CUDA STREQUAL "ON")
    message(FATAL_ERROR "KR_CUDA=ON but there is no nvcc: run tools/setup.sh test, or set KR_NVCC")
  endif()
endif()
if(KR_NVCC)
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
