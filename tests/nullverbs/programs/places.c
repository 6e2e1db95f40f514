/* cc: -Wl,--no-as-needed -lnear -lfar -ldl */
/* Prints what the look-ups of libnear.so find, and its own. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>

const char *place_behind(void);
const char *place_by_default(void);
const char *place_of_version(void);
const char *place_by_runpath(void);

int main(void)
{
    const char *(*first)(void) = (const char *(*)(void))dlsym(RTLD_NEXT, "place");

    printf("behind the program: %s\n", first ? first() : "nothing");
    printf("behind the library: %s\n", place_behind());
    printf("by default: %s\n", place_by_default());
    printf("of a version: %s\n", place_of_version());
    printf("by runpath: %s\n", place_by_runpath());
    printf("by the program, without a runpath: %s\n", dlopen("libdeeper.so", RTLD_NOW | RTLD_NOLOAD) ? "found" : "nothing");
    dlsym(RTLD_DEFAULT, "no such symbol");
    printf("error: %s\n", dlerror() ? "said" : "not said");
    return 0;
}
