/* cc: -ldl */
/* Another preload that hooks dlsym and allocations, as tracers do: it counts, and passes on to what is behind it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>

#if defined(__x86_64__)
#define FIRST_VERSION "GLIBC_2.2.5"
#else
#define FIRST_VERSION "GLIBC_2.17"
#endif

static atomic_int looked_up;

void *dlsym(void *handle, const char *name)
{
    static void *(*behind)(void *, const char *);

    if (!behind)
        behind = (void *(*)(void *, const char *))dlvsym(RTLD_NEXT, "dlsym", FIRST_VERSION);
    atomic_fetch_add(&looked_up, 1);
    return behind(handle, name);
}

__attribute__((destructor)) static void tell(void)
{
    if (atomic_load(&looked_up))
        printf("another hook saw look-ups\n");
}
