/*
 * Binds to libibverbs as NCCL does, for a program that is not linked to it: dlopen with RTLD_LOCAL, then dlvsym of each verb in a version that
 * has it. Each verb of the program jumps to what was found.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#if defined(__x86_64__)
#define JUMP(name) "jmp *bound_" #name "(%rip)"
#elif defined(__aarch64__)
#define JUMP(name) "adrp x16, bound_" #name "\n ldr x16, [x16, :lo12:bound_" #name "]\n br x16"
#endif

#define VERB(name)                                                             \
    void *bound_##name __attribute__((visibility("hidden")));                  \
    __asm__(".text\n .globl " #name "\n .type " #name ", @function\n" #name ":\n " JUMP(name));
#include "verbs.list"
#undef VERB

static const char *const libraries[] = { "libibverbs.so", "libibverbs.so.1" };
/* The newest ABI first: some names have a function of the oldest one beside it, and a few have only that. */
static const char *const versions[] = {
    "IBVERBS_1.1", "IBVERBS_1.5", "IBVERBS_1.6", "IBVERBS_1.7", "IBVERBS_1.8", "IBVERBS_1.9", "IBVERBS_1.10", "IBVERBS_1.11", "IBVERBS_1.12", "IBVERBS_1.0",
};

static void *find(void *handle, const char *name)
{
    void *found = NULL;
    size_t at;

    for (at = 0; at < sizeof(versions) / sizeof(*versions) && !found; at++)
        found = dlvsym(handle, name, versions[at]);
    if (!found) {
        fprintf(stderr, "shift-checker: libibverbs has no %s\n", name);
        exit(4);
    }
    return found;
}

__attribute__((constructor)) static void bind(void)
{
    void *handle = NULL;
    size_t at;

    for (at = 0; at < sizeof(libraries) / sizeof(*libraries) && !handle; at++)
        handle = dlopen(libraries[at], RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
        fprintf(stderr, "shift-checker: %s\n", dlerror());
        exit(4);
    }
#define VERB(name) bound_##name = find(handle, #name);
#include "verbs.list"
}
