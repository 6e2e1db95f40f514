/* cc: -libverbs -pthread */
/*
 * A program that sleeps until its completion comes: it polls one at a time until the queue is empty, arms, looks once more, and waits for an event. Most of
 * its requests are unsignalled. Nobody is at the other end, so nothing but the queue itself can wake it; an alarm ends it if nothing does.
 *
 *   asleep poll|extended ROUNDS   says how many completions came and how many events it took
 *   asleep crowded                makes a channel when descriptors are short, and one when they are not
 */
#include <infiniband/verbs.h>
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include "program.h"

static char buffer[64];
static unsigned long events;

static void post(struct ibv_qp *qp, struct ibv_mr *mr, uint64_t wr_id, enum ibv_wr_opcode opcode, unsigned int flags)
{
    struct ibv_sge sge = { .addr = (uintptr_t)buffer, .length = sizeof(buffer), .lkey = mr->lkey };
    struct ibv_send_wr wr = { .wr_id = wr_id, .sg_list = &sge, .num_sge = 1, .opcode = opcode, .send_flags = flags }, *bad;

    wr.wr.rdma.remote_addr = (uintptr_t)buffer;
    wr.wr.rdma.rkey = mr->rkey;
    CHECK(!ibv_post_send(qp, &wr, &bad));
}

/* One completion, or none. */
static bool take(struct ibv_cq *cq, struct ibv_cq_ex *extended, uint64_t *wr_id)
{
    struct ibv_poll_cq_attr attr = { 0 };
    struct ibv_wc wc;
    int taken;

    if (!extended) {
        taken = ibv_poll_cq(cq, 1, &wc);
        CHECK(taken >= 0 && (!taken || wc.status == IBV_WC_SUCCESS));
        *wr_id = wc.wr_id;
        return taken;
    }
    taken = ibv_start_poll(extended, &attr);
    CHECK(!taken || taken == ENOENT);
    if (taken)
        return false;
    CHECK(extended->status == IBV_WC_SUCCESS);
    *wr_id = extended->wr_id;
    ibv_end_poll(extended);
    return true;
}

static uint64_t wait_for_one(struct ibv_comp_channel *channel, struct ibv_cq *cq, struct ibv_cq_ex *extended)
{
    struct ibv_cq *told;
    void *context;
    uint64_t wr_id;

    for (;;) {
        if (take(cq, extended, &wr_id))
            return wr_id;
        CHECK(!ibv_req_notify_cq(cq, 0));
        if (take(cq, extended, &wr_id))
            return wr_id;
        CHECK(!ibv_get_cq_event(channel, &told, &context) && told == cq);
        ibv_ack_cq_events(cq, 1);
        events++;
    }
}

/* Verbs only read it: a program may have it where nobody can write, and make queues from it in several threads. */
static struct ibv_cq_ex *create_from_template(struct ibv_context *context, struct ibv_comp_channel *channel)
{
    struct ibv_cq_init_attr_ex *wish = mmap(NULL, sizeof(*wish), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    CHECK(wish != MAP_FAILED);
    wish->cqe = 128;
    wish->channel = channel;
    wish->wc_flags = IBV_WC_EX_WITH_BYTE_LEN;
    CHECK(!mprotect(wish, sizeof(*wish), PROT_READ));
    return ibv_create_cq_ex(context, wish);
}

static void sleep_and_wake(struct ibv_context *context, bool is_extended, unsigned long rounds)
{
    struct ibv_pd *pd = ibv_alloc_pd(context);
    struct ibv_comp_channel *channel = ibv_create_comp_channel(context);
    struct ibv_cq_ex *extended = is_extended ? create_from_template(context, channel) : NULL;
    struct ibv_cq *cq = is_extended ? ibv_cq_ex_to_cq(extended) : ibv_create_cq(context, 128, NULL, channel, 0);
    struct ibv_qp_init_attr init = {
        .send_cq = cq,
        .recv_cq = cq,
        .cap = { .max_send_wr = 64, .max_recv_wr = 8, .max_send_sge = 1, .max_recv_sge = 1 },
        .qp_type = IBV_QPT_RC,
    };
    struct ibv_mr *mr = ibv_reg_mr(pd, buffer, sizeof(buffer), IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
    struct ibv_qp *qp;

    CHECK(cq && mr && cq->channel == channel);
    qp = ibv_create_qp(pd, &init);
    CHECK(qp);
    connect_to_itself(qp, NULL);
    for (unsigned long round = 0; round < rounds; round++) {
        /* How many of these complete, and where, is not the program's concern. */
        for (unsigned long unsignalled = round % 40; unsignalled; unsignalled--)
            post(qp, mr, 9999999, unsignalled % 2 ? IBV_WR_RDMA_READ : IBV_WR_RDMA_WRITE, 0);
        post(qp, mr, round, IBV_WR_SEND, IBV_SEND_SIGNALED);
        CHECK(wait_for_one(channel, cq, extended) == round);
    }
    CHECK(!ibv_destroy_qp(qp) && !ibv_destroy_cq(cq) && !ibv_destroy_comp_channel(channel) && !ibv_dereg_mr(mr) && !ibv_dealloc_pd(pd));
    printf("%lu completions, %lu events\n", rounds, events);
}

static void limit_descriptors(rlim_t most)
{
    struct rlimit limit;

    CHECK(!getrlimit(RLIMIT_NOFILE, &limit));
    limit.rlim_cur = most;
    CHECK(!setrlimit(RLIMIT_NOFILE, &limit));
}

static bool blocks(const struct ibv_comp_channel *channel)
{
    int flags = fcntl(channel->fd, F_GETFL);

    CHECK(flags >= 0);
    return !(flags & O_NONBLOCK);
}

/* The provider takes two descriptors for a channel. What else there is room for: one. */
static void make_channels(struct ibv_context *context)
{
    struct ibv_comp_channel *short_of, *roomy;
    struct ibv_pd *pd = ibv_alloc_pd(context);
    int next = dup(0);
    struct rlimit before;

    /* With the domain came whatever a shim opens for the device. */
    CHECK(pd && next >= 0 && !close(next) && !getrlimit(RLIMIT_NOFILE, &before));
    limit_descriptors((rlim_t)next + 3);
    short_of = ibv_create_comp_channel(context);
    limit_descriptors(before.rlim_cur);
    roomy = ibv_create_comp_channel(context);
    CHECK(short_of && roomy && blocks(short_of) && blocks(roomy));
    CHECK(!ibv_destroy_comp_channel(short_of) && !ibv_destroy_comp_channel(roomy));
    CHECK(!ibv_dealloc_pd(pd));
    puts("two channels");
}

int main(int argc, char **argv)
{
    struct ibv_context *context = open_first();

    CHECK(argc > 1);
    alarm(60);
    if (!strcmp(argv[1], "crowded"))
        make_channels(context);
    else
        sleep_and_wake(context, !strcmp(argv[1], "extended"), argc > 2 ? strtoul(argv[2], NULL, 10) : 1);
    CHECK(!ibv_close_device(context));
    return 0;
}
