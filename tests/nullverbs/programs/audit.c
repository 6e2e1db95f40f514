/* cc: -libverbs -lmlx5 */
/*
 * A program with queue pairs of several kinds that waits to be asked about: it makes one of each kind that it is told, says their numbers,
 * and ends with its standard input.
 *
 *   audit KIND...
 *
 *   rc     a reliable connection to itself, or to the one of its number in a program on another host
 *   mr     the same, and it posts from memory
 *   alone  a reliable connection to a queue pair of this host that no process with the shim has
 *   ud, uc, xrc  another type
 *   devx   one that the firmware is told to make, as for a GPU that posts by itself
 */
#include <infiniband/mlx5dv.h>
#include <infiniband/verbs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "program.h"

static char buffer[64];

static void post(struct ibv_qp *qp)
{
    struct ibv_mr *mr = ibv_reg_mr(qp->pd, buffer, sizeof(buffer), IBV_ACCESS_LOCAL_WRITE);
    struct ibv_sge sge = { .addr = (uintptr_t)buffer, .length = sizeof(buffer), .lkey = mr ? mr->lkey : 0 };
    struct ibv_send_wr wr = { .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED }, *bad;

    CHECK(mr);
    CHECK(!ibv_post_send(qp, &wr, &bad));
}

static enum ibv_qp_type type_of(const char *kind)
{
    if (!strcmp(kind, "ud"))
        return IBV_QPT_UD;
    if (!strcmp(kind, "uc"))
        return IBV_QPT_UC;
    return strcmp(kind, "xrc") ? IBV_QPT_RC : IBV_QPT_XRC_SEND;
}

/* CREATE_QP is command 0x500; the answer has the number. */
static unsigned int made_by_the_firmware(struct ibv_context *context)
{
    unsigned char command[272] = { 0x05, 0x00 }, other[272] = { 0x09, 0x04 }, answer[16];

    CHECK(!mlx5dv_devx_obj_create(context, other, sizeof(other), answer, sizeof(answer)));
    CHECK(mlx5dv_devx_obj_create(context, command, sizeof(command), answer, sizeof(answer)));
    return (unsigned int)(answer[9] << 16 | answer[10] << 8 | answer[11]);
}

int main(int argc, char **argv)
{
    struct ibv_context *context = open_first();
    struct ibv_pd *pd = ibv_alloc_pd(context);
    struct ibv_cq *cq = pd ? ibv_create_cq(context, 64, NULL, NULL, 0) : NULL;

    CHECK(cq);
    for (int at = 1; at < argc; at++) {
        enum ibv_qp_type type = type_of(argv[at]);
        struct ibv_qp_init_attr init = {
            .send_cq = cq,
            .recv_cq = cq,
            .cap = { .max_send_wr = 8, .max_recv_wr = 8, .max_send_sge = 1, .max_recv_sge = 1 },
            .qp_type = type,
        };
        struct ibv_qp *qp;

        if (!strcmp(argv[at], "devx")) {
            printf("devx %u\n", made_by_the_firmware(context));
            continue;
        }
        qp = ibv_create_qp(pd, &init);
        CHECK(qp);
        if (!strcmp(argv[at], "alone"))
            connect_to(qp, 0x777777, NULL);
        else if (type == IBV_QPT_RC)
            connect_to_itself(qp, NULL);
        if (!strcmp(argv[at], "mr"))
            post(qp);
        printf("%s %u\n", argv[at], qp->qp_num);
    }
    printf("ready\n");
    fflush(stdout);
    while (getchar() != EOF) {
    }
    return 0;
}
