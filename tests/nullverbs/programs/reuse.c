/* cc: -libverbs */
/*
 * Queue pairs that come and go all the time, with numbers that are used again at once (NULLVERBS_QPNS): each leaves a completion behind that
 * nobody polled. What the next one of that number gets is its own, once, and nothing grows.
 *
 *   reuse ROUNDS
 */
#include <infiniband/verbs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "program.h"

/* Rounds after which every table has its size. */
#define SETTLED 200

static char buffer[64];

static long resident_kib(void)
{
    long pages = 0, all = 0;
    FILE *statm = fopen("/proc/self/statm", "r");

    CHECK(statm && fscanf(statm, "%ld %ld", &all, &pages) == 2);
    fclose(statm);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static void post(struct ibv_qp *qp, struct ibv_mr *mr, uint64_t wr_id)
{
    struct ibv_sge sge = { .addr = (uintptr_t)buffer, .length = sizeof(buffer), .lkey = mr->lkey };
    struct ibv_send_wr wr = { .wr_id = wr_id, .sg_list = &sge, .num_sge = 1, .opcode = IBV_WR_SEND, .send_flags = IBV_SEND_SIGNALED }, *bad;

    CHECK(!ibv_post_send(qp, &wr, &bad));
}

int main(int argc, char **argv)
{
    struct ibv_context *context = open_first();
    struct ibv_pd *pd = ibv_alloc_pd(context);
    struct ibv_cq *cq = pd ? ibv_create_cq(context, 64, NULL, NULL, 0) : NULL;
    struct ibv_mr *mr = cq ? ibv_reg_mr(pd, buffer, sizeof(buffer), IBV_ACCESS_LOCAL_WRITE) : NULL;
    unsigned long rounds = argc > 1 ? strtoul(argv[1], NULL, 10) : 0, again = 0;
    long settled = 0;
    uint32_t before = 0;

    CHECK(mr && rounds > SETTLED);
    for (unsigned long round = 0; round < rounds; round++) {
        struct ibv_qp_init_attr init = {
            .send_cq = cq,
            .recv_cq = cq,
            .cap = { .max_send_wr = 8, .max_recv_wr = 8, .max_send_sge = 1, .max_recv_sge = 1 },
            .qp_type = IBV_QPT_RC,
        };
        struct ibv_qp *qp = ibv_create_qp(pd, &init);
        struct ibv_wc wc[4];
        int count;

        CHECK(qp);
        again += qp->qp_num == before;
        before = qp->qp_num;
        connect_to_itself(qp, NULL);
        post(qp, mr, round);
        count = ibv_poll_cq(cq, 4, wc);
        if (count != 1 || wc[0].wr_id != round || wc[0].qp_num != qp->qp_num || wc[0].status != IBV_WC_SUCCESS) {
            fprintf(stderr, "round %lu: %d completions, the first of wr_id %llu\n", round, count, (unsigned long long)wc[0].wr_id);
            return 1;
        }
        /* Left behind for the next one. */
        post(qp, mr, 1000000 + round);
        CHECK(!ibv_destroy_qp(qp));
        if (round == SETTLED)
            settled = resident_kib();
    }
    printf("%lu rounds, %lu times the number of the one before, grown by %ld KiB\n", rounds, again, resident_kib() - settled);
    return 0;
}
