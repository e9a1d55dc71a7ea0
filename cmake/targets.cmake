# What is installed: libkr (shared, only kr_* exported) and the program kr over kr.h. A static
# libkr is not offered: a Rust static library may be linked only once into a program.
# libkr takes the folders' objects, not their archives: public functions that no other object needs
# must stay in, and nothing may be linked twice.
add_library(kr SHARED)
foreach(folder base telemetry tensor text ops cpu cpu_avx2 cpu_avx512 cpu_avx512bf16 cpu_amx cpu_neon cpu_dotprod cpu_i8mm cuda model cache sample engine api)
  if(TARGET kri_${folder})
    target_sources(kr PRIVATE $<TARGET_OBJECTS:kri_${folder}>)
  endif()
endforeach()
target_include_directories(kr PUBLIC include)
target_link_libraries(kr PRIVATE krt PkgConfig::XXHASH Threads::Threads ${CMAKE_DL_LIBS} m)
if(KR_SANITIZE) # clang leaves the runtime's names open in a shared library
  target_link_options(kr PRIVATE -fsanitize=${KR_SANITIZE})
else()
  target_link_options(kr PRIVATE -Wl,--no-undefined)
endif()
set_target_properties(kr PROPERTIES VERSION 0.1.0 SOVERSION 0)
target_link_options(kr PRIVATE -Wl,--version-script=${CMAKE_SOURCE_DIR}/src/api/libkr.map
  -Wl,--exclude-libs,ALL -Wl,-z,nodelete -Wl,-z,relro,-z,now)

# The program: target kr_cli, file kr. It finds libkr beside itself, or in ../lib once installed.
# It has its own copy of the base helpers; in that copy the public names are made local, or the
# program's kr_log_set would set the copy's log and hide libkr's.
add_custom_command(OUTPUT ${CMAKE_BINARY_DIR}/libkri_app_base.a
  COMMAND ${CMAKE_OBJCOPY} --wildcard --localize-symbol=kr_* $<TARGET_FILE:kri_base>
    ${CMAKE_BINARY_DIR}/libkri_app_base.a
  DEPENDS kri_base VERBATIM)
file(GLOB sources CONFIGURE_DEPENDS app/cli/*.c)
add_executable(kr_cli ${sources} ${CMAKE_BINARY_DIR}/libkri_app_base.a)
set_target_properties(kr_cli PROPERTIES OUTPUT_NAME kr INSTALL_RPATH "$ORIGIN:$ORIGIN/../lib"
  BUILD_WITH_INSTALL_RPATH ON)
target_include_directories(kr_cli PRIVATE src app)
target_link_libraries(kr_cli PRIVATE ${CMAKE_BINARY_DIR}/libkri_app_base.a kr
  PkgConfig::JANSSON PkgConfig::CRYPTO
  Threads::Threads m)
kri_warnings(kr_cli)
if(KR_TESTS)
  find_package(Python3 COMPONENTS Interpreter REQUIRED)
  file(GLOB tests CONFIGURE_DEPENDS tests/cli/test_*.py)
  foreach(test ${tests})
    get_filename_component(name ${test} NAME_WE)
    add_test(NAME cli_${name} COMMAND Python3::Interpreter ${test})
    set_tests_properties(cli_${name} PROPERTIES TIMEOUT 900
      ENVIRONMENT "KR_BUILD_DIR=${CMAKE_BINARY_DIR}")
  endforeach()
endif()
