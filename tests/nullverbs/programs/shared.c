/* cc: -libverbs */
/*
 * Receives that several queue pairs share, as a program without any fault sees them.
 *
 *   shared KIND        KIND is "ud" or "rc": each receive gets back what it was posted with, and as many are taken as the provider has room for
 *   shared KIND DEVICE the same, once the log names an SRQ of that standby; which goes with the program's
 *   shared events N    LAST_WQE_REACHED, of which the device has two, comes N times; a limit once
 *   shared refused     an SRQ that cannot be destroyed is used on
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <infiniband/verbs.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <time.h>

#include "program.h"

#define DEPTH 32
#define ROUNDS 400
#define UNSEEN 8
/* Names of receives look like addresses. */
#define NAME(number) (0x7f0012345000u + 64 * (uint64_t)(number))

int nullverbs_async(struct ibv_context *context, const struct ibv_async_event *event);
int nullverbs_receive(struct ibv_qp *qp);

static struct ibv_context *context;
static struct ibv_pd *pd;

struct shared {
    struct ibv_srq *srq;
    struct ibv_cq *sends;
    struct ibv_cq *plain;
    struct ibv_cq_ex *extended;
    /* One on each of the two. */
    struct ibv_qp *qps[2];
    uint64_t posted, seen;
};

static struct ibv_qp *pair(const struct shared *shared, struct ibv_cq *cq, enum ibv_qp_type type)
{
    struct ibv_qp_init_attr init = {
        .send_cq = shared->sends, .recv_cq = cq, .srq = shared->srq, .qp_type = type,
        .cap = { .max_send_wr = 4, .max_send_sge = 1 },
    };
    struct ibv_qp *qp = ibv_create_qp(pd, &init);

    CHECK(qp);
    if (type == IBV_QPT_RC)
        connect_to_itself(qp, NULL);
    return qp;
}

static struct shared make(enum ibv_qp_type type)
{
    struct ibv_srq_init_attr init = { .attr = { .max_wr = DEPTH, .max_sge = 1 } };
    struct ibv_cq_init_attr_ex attr = { .cqe = 1024, .wc_flags = IBV_WC_EX_WITH_BYTE_LEN };
    struct shared shared = { .srq = ibv_create_srq(pd, &init), .sends = ibv_create_cq(context, getenv("SHARED_SENDS") ? 1 : 16, NULL, NULL, 0) };

    shared.plain = ibv_create_cq(context, 1024, NULL, NULL, 0);
    shared.extended = ibv_create_cq_ex(context, &attr);
    CHECK(shared.srq && shared.sends && shared.plain && shared.extended);
    shared.qps[0] = pair(&shared, shared.plain, type);
    shared.qps[1] = pair(&shared, ibv_cq_ex_to_cq(shared.extended), type);
    return shared;
}

static void end(struct shared *shared)
{
    CHECK(!shared->qps[0] || !ibv_destroy_qp(shared->qps[0]));
    CHECK(!shared->qps[1] || !ibv_destroy_qp(shared->qps[1]));
    CHECK(!ibv_destroy_srq(shared->srq) && !ibv_destroy_cq(shared->plain) && !ibv_destroy_cq(shared->sends));
    CHECK(!ibv_destroy_cq(ibv_cq_ex_to_cq(shared->extended)));
}

static int post(struct shared *shared)
{
    static char place[64];
    struct ibv_sge sge = { .addr = (uintptr_t)place, .length = 0 };
    struct ibv_recv_wr wr = { .wr_id = NAME(shared->posted), .sg_list = &sge, .num_sge = 1 }, *bad;
    int status = ibv_post_srq_recv(shared->srq, &wr, &bad);

    shared->posted += !status;
    return status;
}

/* The next receive ends on that queue, and is the one that was posted first of those that have not. */
static void see(struct shared *shared, int which, uint32_t number)
{
    struct ibv_poll_cq_attr attr = { 0 };
    struct ibv_wc wc;

    if (which) {
        CHECK(!ibv_start_poll(shared->extended, &attr));
        CHECK(shared->extended->status == IBV_WC_SUCCESS && shared->extended->wr_id == NAME(shared->seen));
        CHECK(ibv_wc_read_byte_len(shared->extended) == 8);
        ibv_end_poll(shared->extended);
    } else {
        CHECK(ibv_poll_cq(shared->plain, 1, &wc) == 1);
        CHECK(wc.status == IBV_WC_SUCCESS && wc.wr_id == NAME(shared->seen) && wc.qp_num == number);
    }
    shared->seen++;
}

static void none(struct shared *shared)
{
    struct ibv_poll_cq_attr attr = { 0 };
    struct ibv_wc wc;

    CHECK(ibv_poll_cq(shared->plain, 1, &wc) == 0 && ibv_start_poll(shared->extended, &attr) == ENOENT);
}

static void receives(enum ibv_qp_type type, const char *standby)
{
    struct shared shared = make(type);
    uint32_t number = shared.qps[0]->qp_num;
    char made[64];
    int round, at;

    if (standby) {
        snprintf(made, sizeof made, "\ncreate_srq %s", standby);
        await("NULLVERBS_LOG", made, 1);
    }
    for (round = 0; round < ROUNDS; round++) {
        CHECK(!post(&shared) && !nullverbs_receive(shared.qps[round % 2]));
        see(&shared, round % 2, number);
    }
    none(&shared);
    for (at = 0; at < DEPTH; at++)
        CHECK(!post(&shared));
    CHECK(post(&shared) == ENOMEM);
    /* A provider has room again when a message has taken a receive, whoever polls. */
    for (round = 0; round < UNSEEN; round++)
        for (at = 0; at < DEPTH; at++)
            CHECK(!nullverbs_receive(shared.qps[0]) && !post(&shared));
    for (at = 0; at < DEPTH; at++)
        CHECK(!nullverbs_receive(shared.qps[0]));
    for (round = 0; round < UNSEEN * DEPTH; round++)
        see(&shared, 0, number);
    /* What is left over is polled when the queue pair is gone. */
    CHECK(!ibv_destroy_qp(shared.qps[0]));
    shared.qps[0] = NULL;
    for (at = 0; at < DEPTH; at++)
        see(&shared, 0, number);
    CHECK(!post(&shared) && !nullverbs_receive(shared.qps[1]));
    see(&shared, 1, 0);
    none(&shared);
    end(&shared);
    if (standby) {
        snprintf(made, sizeof made, "\ndestroy_srq %s", standby);
        await("NULLVERBS_LOG", made, 1);
    }
}

static int events_of(enum ibv_event_type type)
{
    struct ibv_async_event event;
    int count = 0;

    while (!ibv_get_async_event(context, &event)) {
        CHECK(event.event_type == type);
        ibv_ack_async_event(&event);
        count++;
    }
    return count;
}

static void events(int expected)
{
    struct shared shared = make(IBV_QPT_RC);
    struct ibv_srq_attr attr = { .srq_limit = 5 };
    struct ibv_qp_attr error = { .qp_state = IBV_QPS_ERR };
    struct ibv_async_event event = { .event_type = IBV_EVENT_SRQ_LIMIT_REACHED, .element.srq = shared.srq };

    CHECK(!fcntl(context->async_fd, F_SETFL, O_NONBLOCK));
    CHECK(!ibv_modify_srq(shared.srq, &attr, IBV_SRQ_LIMIT));
    attr.srq_limit = 0;
    CHECK(!ibv_query_srq(shared.srq, &attr) && attr.srq_limit == 5);
    CHECK(!nullverbs_async(context, &event) && events_of(IBV_EVENT_SRQ_LIMIT_REACHED) == 1);
    CHECK(!ibv_modify_qp(shared.qps[0], &error, IBV_QP_STATE));
    event = (struct ibv_async_event){ .event_type = IBV_EVENT_QP_LAST_WQE_REACHED, .element.qp = shared.qps[0] };
    CHECK(!nullverbs_async(context, &event) && !nullverbs_async(context, &event));
    CHECK(events_of(IBV_EVENT_QP_LAST_WQE_REACHED) == expected);
    CHECK(!nullverbs_async(context, &event) && events_of(IBV_EVENT_QP_LAST_WQE_REACHED) == (expected == 2));
    end(&shared);
}

static void refused(void)
{
    struct shared shared = make(IBV_QPT_RC);

    CHECK(!setenv("NULLVERBS_REFUSE", "destroy_srq:null0", 1));
    CHECK(ibv_destroy_srq(shared.srq) == EBUSY);
    CHECK(!unsetenv("NULLVERBS_REFUSE"));
    CHECK(!post(&shared) && !nullverbs_receive(shared.qps[0]));
    see(&shared, 0, shared.qps[0]->qp_num);
    end(&shared);
}

int main(int count, char **words)
{
    struct ibv_device **devices = ibv_get_device_list(NULL);
    const char *part = count > 1 ? words[1] : "";

    CHECK(devices && devices[0]);
    context = ibv_open_device(devices[0]);
    ibv_free_device_list(devices);
    pd = context ? ibv_alloc_pd(context) : NULL;
    CHECK(pd);
    if (!strcmp(part, "ud") || !strcmp(part, "rc"))
        receives(part[0] == 'u' ? IBV_QPT_UD : IBV_QPT_RC, count > 2 ? words[2] : NULL);
    else if (!strcmp(part, "events"))
        events(atoi(words[2]));
    else
        refused();
    CHECK(!ibv_dealloc_pd(pd) && !ibv_close_device(context));
    puts("right");
    return 0;
}
