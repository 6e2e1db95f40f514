/* cc: -libverbs */
/* A library that is linked to libibverbs and opens a device for who opened it. */
#include <infiniband/verbs.h>

struct ibv_context *user_open(void);

struct ibv_context *user_open(void)
{
    return ibv_open_device(ibv_get_device_list(0)[0]);
}
