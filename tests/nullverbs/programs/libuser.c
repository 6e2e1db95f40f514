/* cc: -libverbs */
/* A library that is linked to libibverbs and opens a device for who opened it. */
#include <infiniband/verbs.h>

struct ibv_context *user_open(void);

struct ibv_context *user_open(void)
{
    struct ibv_device **list = ibv_get_device_list(NULL);
    struct ibv_context *context = ibv_open_device(list[0]);

    ibv_free_device_list(list);
    return context;
}
