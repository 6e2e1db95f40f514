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
