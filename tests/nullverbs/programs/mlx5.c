/* cc: -libverbs -lmlx5 -ldl */
/*
 * What NCCL does with libmlx5, on libraries that it opened itself; or, as UCX, by links: prints whether posts go through the shim.
 *
 *   mlx5 looked-up | linked     a device, a registration of a dmabuf and a QP through libmlx5
 *   mlx5 unseen-modify          a QP that nobody saw being made, first used by ibv_modify_qp
 *   mlx5 unseen-post            the same, first used by a post
 *   mlx5 own-qp                 a QP of libibverbs whose queues the program writes itself
 *   mlx5 own-cq                 a CQ that the program polls itself, and a QP on it
 *   mlx5 channel                a channel, and a QP on a CQ with it
 *   mlx5 created-cq             the same, the CQ made by libmlx5, and an event of it
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <infiniband/mlx5dv.h>
#include <infiniband/verbs.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

typedef struct ibv_mr *registrar(struct ibv_pd *, uint64_t, size_t, uint64_t, int, int, int);

/* Not in every header. */
struct ibv_mr *mlx5dv_reg_dmabuf_mr(struct ibv_pd *, uint64_t, size_t, uint64_t, int, int, int);
int nullverbs_complete(struct ibv_cq *, const struct ibv_wc *);
struct ibv_qp *nullverbs_make_qp(const char *, struct ibv_context *, struct ibv_qp_init_attr_ex *);

static __typeof__(mlx5dv_open_device) *open_device = mlx5dv_open_device;
static __typeof__(mlx5dv_create_qp) *create_qp = mlx5dv_create_qp;
static registrar *register_dmabuf = mlx5dv_reg_dmabuf_mr;

static void look_up(void)
{
    void *handle = dlopen("libmlx5.so", RTLD_NOW | RTLD_LOCAL);

    open_device = (__typeof__(open_device))dlvsym(handle, "mlx5dv_open_device", "MLX5_1.7");
    create_qp = (__typeof__(create_qp))dlvsym(handle, "mlx5dv_create_qp", "MLX5_1.3");
    register_dmabuf = (registrar *)dlvsym(handle, "mlx5dv_reg_dmabuf_mr", "MLX5_1.25");
}

static struct ibv_cq *made(struct ibv_context *context, struct ibv_comp_channel *channel)
{
    struct ibv_cq_init_attr_ex attr = { .cqe = 64, .channel = channel, .wc_flags = IBV_WC_STANDARD_FLAGS };
    struct mlx5dv_cq_init_attr own = { .comp_mask = 0 };

    return ibv_cq_ex_to_cq(mlx5dv_create_cq(context, &attr, &own));
}

/* A completion comes, and is told. */
static void sleep_on(struct ibv_comp_channel *channel, struct ibv_cq *cq, uint32_t qpn)
{
    struct ibv_wc wc = { .wr_id = 7, .qp_num = qpn };
    struct ibv_cq *told = NULL;
    void *context;
    int asked = ibv_req_notify_cq(cq, 0), completed = nullverbs_complete(cq, &wc), taken = ibv_get_cq_event(channel, &told, &context);

    printf("asked %d completed %d taken %d of its queue %d\n", asked, completed, taken, told == cq);
    ibv_ack_cq_events(cq, 1);
    printf("polled %d\n", ibv_poll_cq(cq, 1, &wc));
}

/* What lies below libibverbs' functions is taken from libmlx5. */
static int own(const char *how)
{
    struct ibv_device **list = ibv_get_device_list(NULL);
    struct ibv_context *context = ibv_open_device(list[0]);
    struct ibv_pd *pd = ibv_alloc_pd(context);
    bool creates = !strcmp(how, "created-cq");
    struct ibv_comp_channel *channel = creates || !strcmp(how, "channel") ? ibv_create_comp_channel(context) : NULL;
    struct ibv_cq *cq = creates ? made(context, channel) : ibv_create_cq(context, 64, NULL, channel, 0);
    struct ibv_qp_init_attr init = { .qp_type = IBV_QPT_RC, .send_cq = cq, .recv_cq = cq, .cap = { 16, 16, 1, 1, 0 } };
    struct mlx5dv_cq cq_out;
    struct mlx5dv_qp qp_out;
    struct mlx5dv_obj object = { .cq = { cq, &cq_out } };
    struct ibv_qp *qp;

    ibv_free_device_list(list);
    if (!strcmp(how, "own-cq"))
        printf("given %d\n", mlx5dv_init_obj(&object, MLX5DV_OBJ_CQ));
    qp = ibv_create_qp(pd, &init);
    if (creates)
        sleep_on(channel, cq, qp->qp_num);
    object.qp.in = qp;
    object.qp.out = &qp_out;
    if (!strcmp(how, "own-qp"))
        printf("given %d\n", mlx5dv_init_obj(&object, MLX5DV_OBJ_QP));
    printf("closed %d\n", ibv_destroy_qp(qp) | ibv_destroy_cq(cq) | (channel ? ibv_destroy_comp_channel(channel) : 0) | ibv_dealloc_pd(pd) |
                               ibv_close_device(context));
    return 0;
}

int main(int count, char **words)
{
    const char *how = count > 1 ? words[1] : "";
    struct ibv_device **list;
    struct ibv_qp_init_attr_ex init = {
        .qp_type = IBV_QPT_RC, .cap = { 16, 16, 1, 1, 0 }, .comp_mask = IBV_QP_INIT_ATTR_PD,
    };
    struct ibv_qp_attr attr = { .qp_state = IBV_QPS_INIT, .port_num = 1 };
    struct ibv_send_wr wr = { .opcode = IBV_WR_SEND }, *bad;
    struct ibv_context *context;
    struct ibv_mr *mr;
    struct ibv_qp *qp;

    if (!strncmp(how, "own", 3) || !strcmp(how, "channel") || !strcmp(how, "created-cq"))
        return own(how);
    if (!strcmp(how, "looked-up"))
        look_up();
    list = ibv_get_device_list(NULL);
    context = open_device(list[0], NULL);
    ibv_free_device_list(list);
    init.pd = ibv_alloc_pd(context);
    init.send_cq = init.recv_cq = ibv_create_cq(context, 64, NULL, NULL, 0);
    mr = register_dmabuf(init.pd, 4096, 8192, 0x10000, 7, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE, 1);
    printf("registered %s\n", mr ? "yes" : "no");
    if (!strncmp(how, "unseen", 6))
        qp = nullverbs_make_qp("unseen", context, &init);
    else
        qp = create_qp(context, &init, &(struct mlx5dv_qp_init_attr){ 0 });
    if (strcmp(how, "unseen-post"))
        printf("modified %d\n", ibv_modify_qp(qp, &attr, IBV_QP_STATE | IBV_QP_PORT));
    printf("posted %d\n", ibv_post_send(qp, &wr, &bad));
    printf("closed %d\n", ibv_destroy_qp(qp) | ibv_dereg_mr(mr) | ibv_destroy_cq(init.send_cq) | ibv_dealloc_pd(init.pd) | ibv_close_device(context));
    return 0;
}
