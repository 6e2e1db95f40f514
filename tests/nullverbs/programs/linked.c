/* cc: -libverbs -ldl */
/*
 * A program that is linked to libibverbs, opens another library, and uses the verbs of both.
 *
 *   linked                   only its own
 *   linked local LIBRARY     a library that calls verbs (libuser.so), opened with RTLD_LOCAL
 *   linked deepbind LIBRARY  the same with RTLD_DEEPBIND
 *   linked copy LIBRARY      a second copy of libibverbs: its device is opened by what dlsym finds there
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <infiniband/verbs.h>
#include <stdio.h>
#include <string.h>

typedef struct ibv_context *opener(struct ibv_device *);

static const char *patched(struct ibv_context *context)
{
    Dl_info info;

    /* Never closed, and not lost either. */
    static struct ibv_context *opened[2];

    opened[opened[0] != NULL] = context;
    if (!context)
        return "not open";
    return dladdr((void *)context->ops.post_send, &info) && strstr(info.dli_fname, "shift_verbs") ? "seen" : "not seen";
}

int main(int count, char **words)
{
    struct ibv_device **list = ibv_get_device_list(NULL);
    struct ibv_context *(*open_other)(void) = NULL;
    void *handle = NULL;
    opener *copy = NULL;

    if (count > 2) {
        handle = dlopen(words[2], RTLD_NOW | (strcmp(words[1], "deepbind") ? RTLD_LOCAL : RTLD_DEEPBIND));
        if (!handle) {
            fprintf(stderr, "linked: %s\n", dlerror());
            return 2;
        }
    }
    printf("own: %s\n", patched(ibv_open_device(list[0])));
    if (handle && !strcmp(words[1], "copy")) {
        struct ibv_device **(*devices)(int *) = (struct ibv_device **(*)(int *))dlsym(handle, "ibv_get_device_list");
        struct ibv_device **others = devices(NULL);

        copy = (opener *)dlsym(handle, "ibv_open_device");
        printf("copy: %s\n", patched(copy(others[0])));
        ((void (*)(struct ibv_device **))dlsym(handle, "ibv_free_device_list"))(others);
    } else if (handle) {
        open_other = (struct ibv_context * (*)(void)) dlsym(handle, "user_open");
        printf("library: %s\n", patched(open_other()));
    }
    ibv_free_device_list(list);
    return 0;
}
