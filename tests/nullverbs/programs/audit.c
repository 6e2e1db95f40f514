/* cc: -libverbs */
/*
 * A program with queue pairs of several kinds that waits to be asked about: it makes one of each kind that it is told, says their numbers,
 * and ends with its standard input.
 *
 *   audit KIND...
 *
 *   rc   a reliable connection to itself
 *   mr   the same, and it posts from memory
 *   ud   datagrams
 *   uc   an unreliable connection
 */
#include <infiniband/verbs.h>
#include <stdbool.h>
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

int main(int argc, char **argv)
{
    struct ibv_device **list = ibv_get_device_list(NULL);
    struct ibv_context *context = list ? ibv_open_device(list[0]) : NULL;
    struct ibv_pd *pd = context ? ibv_alloc_pd(context) : NULL;
    struct ibv_cq *cq = pd ? ibv_create_cq(context, 64, NULL, NULL, 0) : NULL;

    CHECK(cq);
    for (int at = 1; at < argc; at++) {
        bool rc = !strcmp(argv[at], "rc") || !strcmp(argv[at], "mr");
        struct ibv_qp_init_attr init = {
            .send_cq = cq,
            .recv_cq = cq,
            .cap = { .max_send_wr = 8, .max_recv_wr = 8, .max_send_sge = 1, .max_recv_sge = 1 },
            .qp_type = rc ? IBV_QPT_RC : !strcmp(argv[at], "ud") ? IBV_QPT_UD : IBV_QPT_UC,
        };
        struct ibv_qp *qp = ibv_create_qp(pd, &init);

        CHECK(qp);
        if (rc)
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
