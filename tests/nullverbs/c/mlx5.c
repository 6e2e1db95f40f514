/* What NCCL and UCX look up in libmlx5, on devices that do nothing. */
#include "null.h"

#include <infiniband/mlx5dv.h>
#include <stdio.h>

bool mlx5dv_is_supported(struct ibv_device *device)
{
    return strncmp(device->name, "null", 4) == 0;
}

struct ibv_context *mlx5dv_open_device(struct ibv_device *device, struct mlx5dv_context_attr *attr)
{
    (void)attr;
    return nullverbs_open(device, "mlx5dv_open_device");
}

int mlx5dv_query_device(struct ibv_context *context, struct mlx5dv_context *attr)
{
    (void)context;
    attr->comp_mask = 0;
    return 0;
}

int mlx5dv_init_obj(struct mlx5dv_obj *object, uint64_t type)
{
    (void)object;
    nullverbs_log("mlx5dv_init_obj", NULL, "type=0x%llx", (unsigned long long)type);
    return 0;
}

struct ibv_qp *mlx5dv_create_qp(struct ibv_context *context, struct ibv_qp_init_attr_ex *attr, struct mlx5dv_qp_init_attr *mlx5)
{
    (void)mlx5;
    return nullverbs_make_qp("mlx5dv_create_qp", context, attr);
}

struct ibv_cq_ex *mlx5dv_create_cq(struct ibv_context *context, struct ibv_cq_init_attr_ex *attr, struct mlx5dv_cq_init_attr *mlx5)
{
    (void)mlx5;
    return nullverbs_make_cq("mlx5dv_create_cq", context, attr);
}

/* Of commands to the firmware it knows one: CREATE_QP. */
struct mlx5dv_devx_obj {
    uint32_t qpn;
};

struct mlx5dv_devx_obj *mlx5dv_devx_obj_create(struct ibv_context *context, const void *in, size_t in_size, void *out, size_t out_size)
{
    static atomic_uint qpns = 0x4000;
    const unsigned char *command = in;
    unsigned char *answer = out;
    struct mlx5dv_devx_obj *made;

    if (in_size < 16 || out_size < 16 || command[0] != 0x05 || command[1] != 0x00) {
        errno = EOPNOTSUPP;
        return NULL;
    }
    made = calloc(1, sizeof(*made));
    if (!made)
        return NULL;
    made->qpn = atomic_fetch_add(&qpns, 1);
    memset(answer, 0, out_size);
    answer[9] = made->qpn >> 16 & 0xff;
    answer[10] = made->qpn >> 8 & 0xff;
    answer[11] = made->qpn & 0xff;
    nullverbs_log("mlx5dv_devx_obj_create", context, "qpn=%u", made->qpn);
    return made;
}

int mlx5dv_devx_obj_destroy(struct mlx5dv_devx_obj *object)
{
    free(object);
    return 0;
}

struct ibv_mr *mlx5dv_reg_dmabuf_mr(struct ibv_pd *pd, uint64_t offset, size_t length, uint64_t iova, int fd, int access, int mlx5_access)
{
    char words[96];

    snprintf(words, sizeof(words), "offset=%llu fd=%d access=0x%x mlx5_access=0x%x", (unsigned long long)offset, fd, (unsigned int)access,
             (unsigned int)mlx5_access);
    return nullverbs_make_mr("mlx5dv_reg_dmabuf_mr", pd, NULL, length, iova, words);
}

int mlx5dv_get_data_direct_sysfs_path(struct ibv_context *context, char *path, size_t size)
{
    (void)context;
    snprintf(path, size, "/sys/devices/none");
    return 0;
}
