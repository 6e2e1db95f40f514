/* cc: -ldl -Wl,-rpath,$ORIGIN/deeper */
/* What dlsym and dlopen do by who calls them: this library calls, and libfar.so is behind it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>

const char *place(void);
const char *place_behind(void);
const char *place_by_default(void);
const char *place_of_version(void);
const char *place_by_runpath(void);

typedef const char *teller(void);

const char *place(void)
{
    return "near";
}

static const char *told(void *found)
{
    return found ? ((teller *)found)() : "nothing";
}

const char *place_behind(void)
{
    return told(dlsym(RTLD_NEXT, "place"));
}

const char *place_by_default(void)
{
    return told(dlsym(RTLD_DEFAULT, "place"));
}

const char *place_of_version(void)
{
    return told(dlvsym(RTLD_NEXT, "place", "FAR_1"));
}

const char *place_by_runpath(void)
{
    void *handle = dlopen("libdeeper.so", RTLD_NOW);

    return told(handle ? dlsym(handle, "place") : NULL);
}
