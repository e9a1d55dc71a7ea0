# The ISA folders of src/cpu for AArch64, as isa.cmake for x86-64. Upper levels first: i8mm leaves
# small numbers of tokens to dotprod.
if(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64")
  set(KRI_ISA_FLAGS_neon -march=armv8-a)
  set(KRI_ISA_FLAGS_dotprod -march=armv8.2-a+dotprod)
  set(KRI_ISA_FLAGS_i8mm -march=armv8.2-a+dotprod+i8mm)
  foreach(isa i8mm dotprod neon)
    file(GLOB sources CONFIGURE_DEPENDS src/cpu/${isa}/*.c)
    add_library(kri_cpu_${isa} STATIC ${sources})
    target_include_directories(kri_cpu_${isa} PRIVATE ${CMAKE_SOURCE_DIR}/include ${CMAKE_SOURCE_DIR}/src)
    target_compile_options(kri_cpu_${isa} PRIVATE ${KRI_ISA_FLAGS_${isa}} -O3)
    if(CMAKE_C_COMPILER_ID STREQUAL "GNU")
      # The scheduling pass before register allocation moves loads ahead of full registers:
      # without it the tiles need up to a third fewer instructions, spills most of all.
      target_compile_options(kri_cpu_${isa} PRIVATE -fno-schedule-insns)
    endif()
    kri_warnings(kri_cpu_${isa})
    if(KR_SANITIZE) # as in isa.cmake
      target_compile_options(kri_cpu_${isa} PRIVATE -fno-sanitize=all)
    endif()
    target_link_libraries(kri_cpu INTERFACE kri_cpu_${isa})
    target_link_libraries(kri_cpu_${isa} PRIVATE kri_ops)
  endforeach()
  target_link_libraries(kri_cpu_i8mm PRIVATE kri_cpu_dotprod)
endif()
