# The server of the program `kr`. Two folders of objects, compiled once: app/server/http (transport,
# knows nothing of models) and app/server with its endpoints. The program takes the objects; tests
# and fuzz targets link them as static libraries.
pkg_check_modules(SSL REQUIRED IMPORTED_TARGET libssl)

# kri_app_folder(<name> <sources>...): objects kri_<name>_objects for the program, library kri_<name>
# for tests.
function(kri_app_folder name)
  if(NOT ARGN) # a folder to come
    return()
  endif()
  add_library(kri_${name}_objects OBJECT ${ARGN})
  target_include_directories(kri_${name}_objects PRIVATE include src app)
  # Headers of the libraries only: what is linked is said by the program and by kri_<name>.
  target_include_directories(kri_${name}_objects PRIVATE ${JANSSON_INCLUDE_DIRS} ${SSL_INCLUDE_DIRS})
  kri_warnings(kri_${name}_objects)
  add_library(kri_${name} STATIC $<TARGET_OBJECTS:kri_${name}_objects>)
  set_target_properties(kri_${name} PROPERTIES LINKER_LANGUAGE C)
  target_include_directories(kri_${name} PUBLIC include src app)
  target_sources(kr_cli PRIVATE $<TARGET_OBJECTS:kri_${name}_objects>)
endfunction()

file(GLOB sources CONFIGURE_DEPENDS app/server/http/*.c)
kri_app_folder(http ${sources})
if(TARGET kri_http)
  target_link_libraries(kri_http PUBLIC kri_base PkgConfig::SSL PkgConfig::CRYPTO Threads::Threads)
  target_link_libraries(kr_cli PRIVATE PkgConfig::SSL)
endif()

# Tests of app/server link the engine's folders in place of libkr, so that they see what they need.
file(GLOB sources CONFIGURE_DEPENDS app/server/*.c app/server/endpoints/*.c)
kri_app_folder(server ${sources})
if(TARGET kri_server)
  # life.c reads options and the file of --config again.
  target_sources(kri_server PRIVATE app/cli/config.c app/cli/option_table.c app/cli/report.c
    app/cli/terminal.c)
  target_link_libraries(kri_server PUBLIC kri_api PkgConfig::JANSSON)
  if(TARGET kri_http)
    target_link_libraries(kri_server PUBLIC kri_http)
  endif()
endif()

# The JSON-RPC runtime, over the engine's part of app/server.
file(GLOB sources CONFIGURE_DEPENDS app/rpc/*.c)
kri_app_folder(rpc ${sources})
if(TARGET kri_rpc)
  target_link_libraries(kri_rpc PUBLIC kri_server)
endif()

if(KR_TESTS)
  file(GLOB tests CONFIGURE_DEPENDS tests/unit/rpc/test_*.c)
  foreach(test ${tests})
    kri_test(${test} kri_rpc)
  endforeach()

  # tests/unit/server/test_http*.c link the transport alone, the others all of app/server.
  file(GLOB tests CONFIGURE_DEPENDS tests/unit/server/test_*.c)
  foreach(test ${tests})
    if(test MATCHES "/test_http[^/]*$")
      kri_test(${test} kri_http)
    elseif(TARGET kri_server)
      kri_test(${test} kri_server)
    endif()
  endforeach()

  if(TARGET server_test_http_faults) # stands between the I/O thread and the system
    foreach(call recv send accept4 epoll_wait)
      target_link_options(server_test_http_faults PRIVATE -Wl,--wrap=${call})
    endforeach()
  endif()

  # A server with a few fixed routes over the transport alone, for the wire probes.
  if(TARGET kri_http)
    add_executable(http_echo tests/server/http_echo.c)
    target_link_libraries(http_echo PRIVATE kri_http)
    set_target_properties(http_echo PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
    kri_warnings(http_echo)
  endif()

  file(GLOB tests CONFIGURE_DEPENDS tests/server/test_*.py)
  foreach(test ${tests})
    get_filename_component(name ${test} NAME_WE)
    add_test(NAME server_${name} COMMAND Python3::Interpreter ${test})
    set_tests_properties(server_${name} PROPERTIES TIMEOUT 900
      ENVIRONMENT "KR_BUILD_DIR=${CMAKE_BINARY_DIR}")
  endforeach()
endif()
