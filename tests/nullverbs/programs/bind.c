/* cc: -ldl */
/*
 * Looks verbs up in every way a program can that is not linked to libibverbs, and says in which object each was found.
 *
 *   bind nccl [LIBRARY]      as NCCL does: dlopen, then dlvsym of each function in the version that NCCL asks for
 *   bind dlsym LIBRARY       dlopen with RTLD_LOCAL, then dlsym
 *   bind global LIBRARY      dlopen with RTLD_GLOBAL, then dlsym and dlvsym of RTLD_DEFAULT
 *   bind again LIBRARY       dlopen, look-ups, dlclose, and once more
 *   bind old LIBRARY         the functions of version 1.0
 *   bind mlx5                as NCCL looks into libmlx5
 *
 * With USE=1 in the environment it also makes one object of each kind and prints where posts go; with SECOND set, RTLD_LOCAL of that first.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <infiniband/verbs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#undef ibv_reg_mr

static const char *object_of(void *address)
{
    Dl_info info;
    const char *slash;

    if (!address)
        return "missing";
    if (!dladdr(address, &info))
        return "unknown";
    slash = strrchr(info.dli_fname, '/');
    return slash ? slash + 1 : info.dli_fname;
}

static void *look(void *handle, const char *name, const char *version)
{
    void *found = version ? dlvsym(handle, name, version) : dlsym(handle, name);

    printf("%s %s %s\n", name, version ? version : "-", object_of(found));
    if (!found && !dlerror())
        printf("%s: no error was left\n", name);
    return found;
}

static int entries(const char *folder)
{
    DIR *opened = opendir(folder);
    int count = 0;

    while (opened && readdir(opened))
        count++;
    if (opened)
        closedir(opened);
    return count;
}

static void say_footprint(void)
{
    printf("threads %d descriptors %d\n", entries("/proc/self/task") - 2, entries("/proc/self/fd") - 3);
}

static void *open_first(char **names)
{
    void *handle = NULL;

    for (; *names && !handle; names++)
        handle = dlopen(*names, RTLD_NOW);
    if (!handle) {
        fprintf(stderr, "bind: %s\n", dlerror());
        exit(2);
    }
    return handle;
}

#define FUNCTION(name, version) __typeof__(name) *name##_ = (__typeof__(name) *)look(handle, #name, version)

static void use(void *handle, const char *version)
{
    /* Looked up past what is told of look-ups. */
    void (*give_back)(struct ibv_device **) = (void (*)(struct ibv_device **))dlsym(handle, "ibv_free_device_list");
    struct ibv_device **list;
    struct ibv_context *context;
    struct ibv_pd *pd;
    struct ibv_mr *mr;
    struct ibv_cq *cq;
    struct ibv_qp *qp;
    static char memory[4096];
    struct ibv_qp_init_attr init = { .qp_type = IBV_QPT_RC, .cap = { 16, 16, 1, 1, 0 } };
    FUNCTION(ibv_get_device_list, version);
    FUNCTION(ibv_open_device, version);
    FUNCTION(ibv_alloc_pd, version);
    FUNCTION(ibv_reg_mr, version);
    FUNCTION(ibv_create_cq, version);
    FUNCTION(ibv_create_qp, version);
    FUNCTION(ibv_destroy_qp, version);
    FUNCTION(ibv_destroy_cq, version);
    FUNCTION(ibv_dereg_mr, version);
    FUNCTION(ibv_dealloc_pd, version);
    FUNCTION(ibv_close_device, version);

    list = (ibv_get_device_list_)(NULL);
    context = list && list[0] ? ibv_open_device_(list[0]) : NULL;
    if (!context) {
        printf("no device\n");
        return;
    }
    give_back(list);
    pd = ibv_alloc_pd_(context);
    mr = ibv_reg_mr_(pd, memory, sizeof(memory), IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
    cq = ibv_create_cq_(context, 64, NULL, NULL, 0);
    init.send_cq = init.recv_cq = cq;
    qp = ibv_create_qp_(pd, &init);
    printf("post_send is in %s\n", object_of((void *)context->ops.post_send));
    printf("poll_cq is in %s, gives %d\n", object_of((void *)context->ops.poll_cq), ibv_poll_cq(cq, 1, &(struct ibv_wc){ 0 }));
    printf("closed %d\n", ibv_destroy_qp_(qp) | ibv_destroy_cq_(cq) | ibv_dereg_mr_(mr) | ibv_dealloc_pd_(pd) | ibv_close_device_(context));
}

static void as_nccl(char **names)
{
    static const char *const required[] = {
        "ibv_get_device_list", "ibv_free_device_list", "ibv_get_device_name", "ibv_open_device", "ibv_close_device", "ibv_get_async_event",
        "ibv_ack_async_event", "ibv_query_device", "ibv_query_port", "ibv_query_gid", "ibv_query_qp", "ibv_alloc_pd", "ibv_dealloc_pd",
        "ibv_reg_mr", "ibv_dereg_mr", "ibv_create_cq", "ibv_destroy_cq", "ibv_create_qp", "ibv_modify_qp", "ibv_destroy_qp", "ibv_fork_init",
        "ibv_event_type_str",
    };
    void *handle = open_first(names);
    size_t at;

    for (at = 0; at < sizeof(required) / sizeof(*required); at++)
        look(handle, required[at], "IBVERBS_1.1");
    look(handle, "ibv_reg_mr_iova2", "IBVERBS_1.8");
    look(handle, "ibv_reg_dmabuf_mr", "IBVERBS_1.12");
    look(handle, "ibv_query_ece", "IBVERBS_1.10");
    look(handle, "ibv_set_ece", "IBVERBS_1.10");
    look(handle, "ibv_query_port_speed", "IBVERBS_1.16");
    /* Versions and names that nobody has. */
    look(handle, "ibv_open_device", "IBVERBS_1.12");
    look(handle, "ibv_post_send", "IBVERBS_1.1");
    look(handle, "ibv_post_send", NULL);
    if (getenv("USE"))
        use(handle, "IBVERBS_1.1");
}

static void again(char **names)
{
    int turn;

    for (turn = 0; turn < 2; turn++) {
        void *handle = open_first(names);

        look(handle, "ibv_open_device", NULL);
        if (turn && getenv("USE"))
            use(handle, NULL);
        dlclose(handle);
    }
}

static void mlx5(void)
{
    char *names[] = { "libmlx5.so", "libmlx5.so.1", NULL };
    void *handle = open_first(names);

    look(handle, "mlx5dv_is_supported", "MLX5_1.8");
    look(handle, "mlx5dv_get_data_direct_sysfs_path", "MLX5_1.25");
    look(handle, "mlx5dv_reg_dmabuf_mr", "MLX5_1.25");
    look(handle, "mlx5dv_query_device", "MLX5_1.0");
    look(handle, "mlx5dv_create_qp", "MLX5_1.3");
    look(handle, "mlx5dv_create_qp", "MLX5_1.25");
    look(handle, "mlx5dv_open_device", "MLX5_1.7");
}

int main(int count, char **words)
{
    static char *as_nccl_does[] = { "libibverbs.so", "libibverbs.so.1", NULL };
    const char *how = count > 1 ? words[1] : "";
    char **names = count > 2 ? words + 2 : as_nccl_does;

    if (getenv("SECOND") && !dlopen(getenv("SECOND"), RTLD_NOW | RTLD_LOCAL))
        return 3;
    if (!strcmp(how, "nccl")) {
        as_nccl(names);
    } else if (!strcmp(how, "dlsym")) {
        void *handle = open_first(names);

        look(handle, "ibv_open_device", NULL);
        if (getenv("USE"))
            use(handle, NULL);
    } else if (!strcmp(how, "global")) {
        if (!dlopen(names[0], RTLD_NOW | RTLD_GLOBAL))
            return 3;
        look(RTLD_DEFAULT, "ibv_open_device", NULL);
        look(RTLD_DEFAULT, "ibv_open_device", "IBVERBS_1.1");
        look(RTLD_DEFAULT, "ibv_fork_init", "IBVERBS_1.1");
        look(dlopen(NULL, RTLD_NOW), "ibv_open_device", "IBVERBS_1.1");
    } else if (!strcmp(how, "again")) {
        again(names);
    } else if (!strcmp(how, "old")) {
        void *handle = open_first(names);

        look(handle, "ibv_open_device", "IBVERBS_1.0");
        look(handle, "ibv_get_device_name", "IBVERBS_1.0");
    } else if (!strcmp(how, "mlx5")) {
        mlx5();
    } else {
        return 2;
    }
    say_footprint();
    return 0;
}
