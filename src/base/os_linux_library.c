/* os_linux_library.c: shared libraries that are looked for at run time. */
#include <dlfcn.h>

#include "base/os.h"

void *kri_library_open(const char *name) { return dlopen(name, RTLD_NOW | RTLD_LOCAL); }

void *kri_library_symbol(void *library, const char *name) { return dlsym(library, name); }
