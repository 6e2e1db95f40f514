/* cc: -libverbs -pthread */
/*
 * A program that makes, posts and polls by the extended interfaces, and registers memory of every kind.
 *
 *   extended memory   dmabuf, changed registrations, memory of the device, a null registration
 *   extended domain   a parent domain with a thread domain, and what is made on it
 *   extended queues   extended completion queues and queue pairs, every builder and reader, and windows
 *   extended imported a device that is open elsewhere
 *   extended threads  four threads that post to and poll one queue pair and one queue, by both interfaces
 *   extended moved    a queue pair whose device loses its path; SAID is a file for standard error, that says when it is protected
 *   extended handed   a registration that was made elsewhere, and one that lies at its address later
 *   extended refused  objects that cannot be destroyed and are used on
 *   extended strange  what nobody knows a standby of
 */
#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <infiniband/verbs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "program.h"

static struct ibv_context *context;
static struct ibv_pd *pd;
static struct ibv_ece ece = { .vendor_id = 0x15b3, .options = 1 };
static char buffer[8192], other[8192];

static void memory(void)
{
    struct ibv_alloc_dm_attr wanted = { .length = 4096 };
    struct ibv_mr *dmabuf, *changed, *device, *null;
    struct ibv_pd *second = ibv_alloc_pd(context);
    int access = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE;
    int fd = memfd_create("dmabuf", 0);
    struct ibv_dm *dm;

    CHECK(fd >= 0 && second);
    dmabuf = ibv_reg_dmabuf_mr(pd, 4096, 16384, 0x10000, fd, access | IBV_ACCESS_RELAXED_ORDERING);
    CHECK(dmabuf);
    CHECK(!ibv_dereg_mr(dmabuf));
    changed = ibv_reg_mr(pd, buffer, 4096, IBV_ACCESS_LOCAL_WRITE);
    CHECK(changed);
    CHECK(!ibv_rereg_mr(changed, IBV_REREG_MR_CHANGE_TRANSLATION | IBV_REREG_MR_CHANGE_ACCESS, NULL, other, 8192, access));
    CHECK(!ibv_rereg_mr(changed, IBV_REREG_MR_CHANGE_PD, second, NULL, 0, 0));
    CHECK(!ibv_dereg_mr(changed));
    CHECK(!ibv_dealloc_pd(second));
    dm = ibv_alloc_dm(context, &wanted);
    CHECK(dm);
    device = ibv_reg_dm_mr(pd, dm, 0, 4096, IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_ZERO_BASED);
    null = ibv_alloc_null_mr(pd);
    CHECK(device && null);
    CHECK(!ibv_dereg_mr(device));
    CHECK(!ibv_dereg_mr(null));
    CHECK(!ibv_free_dm(dm));
}

static struct ibv_qp *pair(struct ibv_pd *domain, struct ibv_cq *cq, enum ibv_qp_type type, uint32_t mask, uint64_t operations)
{
    struct ibv_qp_init_attr_ex attr = {
        .send_cq = cq,
        .recv_cq = cq,
        .cap = { .max_send_wr = 32, .max_recv_wr = 4, .max_send_sge = 2, .max_recv_sge = 1, .max_inline_data = 64 },
        .qp_type = type,
        .sq_sig_all = 1,
        .comp_mask = IBV_QP_INIT_ATTR_PD | mask,
        .pd = domain,
        .send_ops_flags = operations,
    };
    struct ibv_qp *qp = ibv_create_qp_ex(context, &attr);

    CHECK(qp);
    return qp;
}

static struct ibv_cq_ex *queue(struct ibv_cq_init_attr_ex attr)
{
    struct ibv_cq_ex *cq;

    attr.cqe = 64;
    cq = ibv_create_cq_ex(context, &attr);
    CHECK(cq);
    return cq;
}

static void domain(void)
{
    struct ibv_td_init_attr td_attr = { 0 };
    struct ibv_td *td = ibv_alloc_td(context, &td_attr);
    struct ibv_parent_domain_init_attr attr = { .pd = pd, .td = td };
    struct ibv_pd *parent = ibv_alloc_parent_domain(context, &attr);
    struct ibv_cq_ex *cq;
    struct ibv_qp *qp;
    struct ibv_mr *mr;

    CHECK(td && parent);
    cq = queue((struct ibv_cq_init_attr_ex){ .comp_mask = IBV_CQ_INIT_ATTR_MASK_PD, .parent_domain = parent });
    qp = pair(parent, ibv_cq_ex_to_cq(cq), IBV_QPT_RC, IBV_QP_INIT_ATTR_SEND_OPS_FLAGS, IBV_QP_EX_WITH_SEND);
    mr = ibv_reg_mr(parent, buffer, 4096, IBV_ACCESS_LOCAL_WRITE);
    CHECK(mr);
    CHECK(!ibv_dereg_mr(mr));
    CHECK(!ibv_destroy_qp(qp));
    CHECK(!ibv_destroy_cq(ibv_cq_ex_to_cq(cq)));
    CHECK(!ibv_dealloc_pd(parent));
    CHECK(!ibv_dealloc_td(td));
}

static void post(struct ibv_qp_ex *qp, struct ibv_mr *mr)
{
    struct ibv_data_buf inlined[2] = { { .addr = buffer, .length = 8 }, { .addr = other, .length = 8 } };
    struct ibv_sge list[2] = { { .addr = (uintptr_t)buffer, .length = 100, .lkey = mr->lkey },
                               { .addr = (uintptr_t)buffer + 200, .length = 50, .lkey = mr->lkey } };
    uint64_t at = (uintptr_t)buffer + 4096;

    qp->wr_flags = 0;
    ibv_wr_start(qp);
    qp->wr_id = 1;
    ibv_wr_rdma_write(qp, mr->rkey, at);
    ibv_wr_set_sge_list(qp, 2, list);
    qp->wr_id = 2;
    ibv_wr_rdma_write_imm(qp, mr->rkey, at, 7);
    qp->wr_id = 3;
    ibv_wr_send(qp);
    ibv_wr_set_inline_data_list(qp, 2, inlined);
    qp->wr_id = 4;
    ibv_wr_send_imm(qp, 8);
    ibv_wr_set_inline_data(qp, buffer, 4);
    qp->wr_id = 5;
    ibv_wr_rdma_read(qp, mr->rkey, at);
    ibv_wr_set_sge(qp, mr->lkey, (uintptr_t)buffer, 300);
    qp->wr_id = 6;
    ibv_wr_atomic_cmp_swp(qp, mr->rkey, at, 1, 2);
    ibv_wr_set_sge(qp, mr->lkey, (uintptr_t)buffer, 8);
    qp->wr_id = 7;
    ibv_wr_atomic_fetch_add(qp, mr->rkey, at, 3);
    ibv_wr_set_sge(qp, mr->lkey, (uintptr_t)buffer, 8);
    CHECK(!ibv_wr_complete(qp));
    ibv_wr_start(qp);
    qp->wr_id = 99;
    ibv_wr_send(qp);
    ibv_wr_abort(qp);
}

static void poll_all(struct ibv_cq_ex *cq, const struct ibv_qp *qp)
{
    struct ibv_poll_cq_attr attr = { 0 };
    int status = ibv_start_poll(cq, &attr);

    CHECK(!status);
    for (; !status; status = ibv_next_poll(cq)) {
        /* The library without a NIC counts no bytes here. */
        CHECK(ibv_wc_read_qp_num(cq) == qp->qp_num && !ibv_wc_read_vendor_err(cq) && !ibv_wc_read_wc_flags(cq));
        printf("completion %llu status %d opcode %d%s\n", (unsigned long long)cq->wr_id, cq->status, ibv_wc_read_opcode(cq),
               ibv_wc_read_completion_ts(cq) ? " stamped" : "");
    }
    CHECK(status == ENOENT);
    ibv_end_poll(cq);
    CHECK(ibv_start_poll(cq, &attr) == ENOENT);
}

static void window(struct ibv_qp *qp, struct ibv_cq_ex *cq, struct ibv_mr *mr)
{
    struct ibv_mw_bind bind = { .wr_id = 50, .send_flags = IBV_SEND_SIGNALED };
    struct ibv_mw *mw = ibv_alloc_mw(pd, IBV_MW_TYPE_1);

    CHECK(mw);
    bind.bind_info = (struct ibv_mw_bind_info){ .mr = mr, .addr = (uintptr_t)buffer, .length = 64 };
    CHECK(!ibv_bind_mw(qp, mw, &bind));
    poll_all(cq, qp);
    CHECK(!ibv_dealloc_mw(mw));
}

static void queues(void)
{
    uint64_t fields = IBV_WC_STANDARD_FLAGS | IBV_WC_EX_WITH_COMPLETION_TIMESTAMP;
    uint64_t operations = IBV_QP_EX_WITH_RDMA_WRITE | IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM | IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_SEND_WITH_IMM |
                          IBV_QP_EX_WITH_RDMA_READ | IBV_QP_EX_WITH_ATOMIC_CMP_AND_SWP | IBV_QP_EX_WITH_ATOMIC_FETCH_AND_ADD;
    struct ibv_cq_ex *cq = queue((struct ibv_cq_init_attr_ex){ .wc_flags = fields,
                                                               .comp_mask = IBV_CQ_INIT_ATTR_MASK_FLAGS,
                                                               .flags = IBV_CREATE_CQ_ATTR_SINGLE_THREADED });
    struct ibv_modify_cq_attr moderation = { .attr_mask = IBV_CQ_ATTR_MODERATE, .moderate = { .cq_count = 4, .cq_period = 7 } };
    struct ibv_mr *mr = ibv_reg_mr(pd, buffer, sizeof(buffer), IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
    struct ibv_qp *qp = pair(pd, ibv_cq_ex_to_cq(cq), IBV_QPT_RC, IBV_QP_INIT_ATTR_SEND_OPS_FLAGS, operations);
    struct ibv_qp_init_attr init;
    struct ibv_qp_attr attr;

    CHECK(mr && ibv_qp_to_qp_ex(qp));
    CHECK(!ibv_modify_cq(ibv_cq_ex_to_cq(cq), &moderation));
    CHECK(!ibv_resize_cq(ibv_cq_ex_to_cq(cq), 80));
    connect_to_itself(qp, &ece);
    if (getenv("LD_PRELOAD") && strstr(getenv("LD_PRELOAD"), "libshift_verbs") && !getenv("MLX5_SINGLE_THREADED"))
        await("NULLVERBS_LOG", "create_qp null1", 1);
    post(ibv_qp_to_qp_ex(qp), mr);
    poll_all(cq, qp);
    CHECK(!ibv_query_qp(qp, &attr, IBV_QP_STATE | IBV_QP_CAP, &init));
    printf("state %d send_wr %u\n", attr.qp_state, attr.cap.max_send_wr);
    window(qp, cq, mr);
    CHECK(!ibv_destroy_qp(qp));
    CHECK(!ibv_destroy_cq(ibv_cq_ex_to_cq(cq)));
    CHECK(!ibv_dereg_mr(mr));
}

#define THREADS 4
#define CHAINS 2000
#define CHAIN 3

static struct ibv_cq_ex *shared_cq;
static struct ibv_qp *shared_qp;
static atomic_uint completed[THREADS * CHAINS * CHAIN], all_completed;

static void count(uint64_t wr_id, enum ibv_wc_status status)
{
    CHECK(wr_id < THREADS * CHAINS * CHAIN && status == IBV_WC_SUCCESS);
    atomic_fetch_add(&completed[wr_id], 1);
    atomic_fetch_add(&all_completed, 1);
}

static void poll_some(unsigned int thread)
{
    struct ibv_poll_cq_attr attr = { 0 };
    struct ibv_wc wcs[5];
    int at, found;

    if (thread % 2) {
        found = ibv_poll_cq(ibv_cq_ex_to_cq(shared_cq), 5, wcs);
        for (at = 0; at < found; at++)
            count(wcs[at].wr_id, wcs[at].status);
        return;
    }
    if (ibv_start_poll(shared_cq, &attr))
        return;
    count(shared_cq->wr_id, shared_cq->status);
    for (at = 0; at < 4 && !ibv_next_poll(shared_cq); at++)
        count(shared_cq->wr_id, shared_cq->status);
    ibv_end_poll(shared_cq);
}

/* All of the chain, or none of it. */
static int post_chain(unsigned int thread, uint64_t first)
{
    struct ibv_qp_ex *qp = ibv_qp_to_qp_ex(shared_qp);
    struct ibv_send_wr wrs[CHAIN] = { 0 }, *bad;
    unsigned int at;

    if (thread >= 2) {
        ibv_wr_start(qp);
        for (at = 0; at < CHAIN; at++) {
            qp->wr_id = first + at;
            qp->wr_flags = 0;
            ibv_wr_send(qp);
        }
        return ibv_wr_complete(qp);
    }
    for (at = 0; at < CHAIN; at++) {
        wrs[at].wr_id = first + at;
        wrs[at].opcode = IBV_WR_SEND;
        while (ibv_post_send(shared_qp, &wrs[at], &bad))
            poll_some(thread);
    }
    return 0;
}

static void *run_thread(void *number)
{
    unsigned int thread = (unsigned int)(uintptr_t)number;
    uint64_t chain;

    for (chain = 0; chain < CHAINS; chain++) {
        while (post_chain(thread, (thread * CHAINS + chain) * CHAIN))
            poll_some(thread);
        poll_some(thread);
    }
    while (atomic_load(&all_completed) < THREADS * CHAINS * CHAIN)
        poll_some(thread);
    return NULL;
}

static void threads(void)
{
    pthread_t started[THREADS];
    unsigned int at, once = 0;

    shared_cq = queue((struct ibv_cq_init_attr_ex){ .wc_flags = IBV_WC_STANDARD_FLAGS });
    shared_qp = pair(pd, ibv_cq_ex_to_cq(shared_cq), IBV_QPT_RC, IBV_QP_INIT_ATTR_SEND_OPS_FLAGS, IBV_QP_EX_WITH_SEND);
    connect_to_itself(shared_qp, &ece);
    for (at = 0; at < THREADS; at++)
        CHECK(!pthread_create(&started[at], NULL, run_thread, (void *)(uintptr_t)at));
    for (at = 0; at < THREADS; at++)
        CHECK(!pthread_join(started[at], NULL));
    for (at = 0; at < THREADS * CHAINS * CHAIN; at++)
        once += completed[at] == 1;
    printf("%u of %u completed once\n", once, THREADS * CHAINS * CHAIN);
    CHECK(!ibv_destroy_qp(shared_qp));
    CHECK(!ibv_destroy_cq(ibv_cq_ex_to_cq(shared_cq)));
}

void nullverbs_kill(struct ibv_context *context);

/* What the program sees of its queue pair. */
static void show(struct ibv_qp *qp)
{
    struct ibv_qp_init_attr init;
    struct ibv_qp_attr attr;

    CHECK(!ibv_query_qp(qp, &attr, IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_TIMEOUT | IBV_QP_CAP, &init));
    printf("state %d to itself %d mtu %d gid %d timeout %d retries %d psn %x %x send_wr %u inline %u\n", attr.qp_state,
           attr.dest_qp_num == qp->qp_num, attr.path_mtu, attr.ah_attr.grh.dgid.raw[15], attr.timeout, attr.retry_cnt, attr.rq_psn,
           attr.sq_psn, attr.cap.max_send_wr, attr.cap.max_inline_data);
}

static void moved(void)
{
    uint64_t fields = IBV_WC_STANDARD_FLAGS | IBV_WC_EX_WITH_COMPLETION_TIMESTAMP;
    struct ibv_cq_ex *cq = queue((struct ibv_cq_init_attr_ex){ .wc_flags = fields });
    struct ibv_mr *mr = ibv_reg_mr(pd, buffer, sizeof(buffer), IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE);
    struct ibv_qp *qp = pair(pd, ibv_cq_ex_to_cq(cq), IBV_QPT_RC, IBV_QP_INIT_ATTR_SEND_OPS_FLAGS, IBV_QP_EX_WITH_RDMA_WRITE);
    struct ibv_qp_ex *ex = ibv_qp_to_qp_ex(qp);
    struct ibv_poll_cq_attr attr = { 0 };
    unsigned int turn;

    CHECK(freopen(getenv("SAID"), "a", stderr) && mr && ex);
    setvbuf(stderr, NULL, _IOLBF, 0);
    connect_to_itself(qp, &ece);
    await("SAID", "QP protected", 1);
    show(qp);
    for (turn = 0; turn < 3; turn++) {
        ibv_wr_start(ex);
        ex->wr_id = 10 + turn;
        ex->wr_flags = 0;
        ibv_wr_rdma_write(ex, mr->rkey, (uintptr_t)buffer + 4096);
        ibv_wr_set_sge(ex, mr->lkey, (uintptr_t)buffer, 100);
        CHECK(!ibv_wr_complete(ex));
        while (ibv_start_poll(cq, &attr))
            ;
        printf("completion %llu status %d opcode %d qp %d%s\n", (unsigned long long)cq->wr_id, cq->status, ibv_wc_read_opcode(cq),
               ibv_wc_read_qp_num(cq) == qp->qp_num, ibv_wc_read_completion_ts(cq) ? " stamped" : "");
        ibv_end_poll(cq);
        if (!turn)
            nullverbs_kill(context);
    }
    show(qp);
    CHECK(!ibv_destroy_qp(qp));
    CHECK(!ibv_destroy_cq(ibv_cq_ex_to_cq(cq)));
    CHECK(!ibv_dereg_mr(mr));
}

static void handed(void)
{
    struct ibv_mr *mr = ibv_import_mr(pd, 7);

    CHECK(mr);
    ibv_unimport_mr(mr);
    CHECK(ibv_reg_mr(pd, buffer, sizeof(buffer), IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE) == mr);
    CHECK(!ibv_dereg_mr(mr));
}

static void send_one(struct ibv_qp_ex *ex, uint64_t wr_id)
{
    ibv_wr_start(ex);
    ex->wr_id = wr_id;
    ex->wr_flags = IBV_SEND_SIGNALED;
    ibv_wr_send(ex);
    CHECK(!ibv_wr_complete(ex));
}

static void refused(void)
{
    struct ibv_cq_ex *cq = queue((struct ibv_cq_init_attr_ex){ .wc_flags = IBV_WC_STANDARD_FLAGS });
    struct ibv_qp *qp = pair(pd, ibv_cq_ex_to_cq(cq), IBV_QPT_RC, IBV_QP_INIT_ATTR_SEND_OPS_FLAGS, IBV_QP_EX_WITH_SEND);
    struct ibv_qp_ex *ex = ibv_qp_to_qp_ex(qp);
    struct ibv_poll_cq_attr attr = { 0 };

    connect_to_itself(qp, &ece);
    send_one(ex, 20);
    CHECK(!ibv_start_poll(cq, &attr) && cq->wr_id == 20);
    setenv("NULLVERBS_REFUSE", "destroy_qp:null0 destroy_cq:null0", 1);
    CHECK(ibv_destroy_cq(ibv_cq_ex_to_cq(cq)) == EBUSY);
    CHECK(ibv_wc_read_qp_num(cq) == qp->qp_num);
    ibv_end_poll(cq);
    ibv_wr_start(ex);
    CHECK(ibv_destroy_qp(qp) == EBUSY);
    unsetenv("NULLVERBS_REFUSE");
    send_one(ex, 21);
    CHECK(!ibv_start_poll(cq, &attr) && cq->wr_id == 21 && ibv_wc_read_qp_num(cq) == qp->qp_num);
    ibv_end_poll(cq);
    CHECK(!ibv_destroy_qp(qp));
    CHECK(!ibv_destroy_cq(ibv_cq_ex_to_cq(cq)));
}

static void strange(void)
{
    struct ibv_cq_ex *cq = queue((struct ibv_cq_init_attr_ex){ .wc_flags = IBV_WC_STANDARD_FLAGS });
    struct ibv_cq_ex *unknown = queue((struct ibv_cq_init_attr_ex){ .comp_mask = 1u << 30 });
    struct ibv_qp *qps[4];
    unsigned int at;

    qps[0] = pair(pd, ibv_cq_ex_to_cq(cq), IBV_QPT_UD, IBV_QP_INIT_ATTR_SEND_OPS_FLAGS, IBV_QP_EX_WITH_SEND);
    qps[1] = pair(pd, ibv_cq_ex_to_cq(cq), IBV_QPT_RC, 1u << 30, 0);
    qps[2] = pair(pd, ibv_cq_ex_to_cq(unknown), IBV_QPT_RC, IBV_QP_INIT_ATTR_SEND_OPS_FLAGS, IBV_QP_EX_WITH_SEND);
    qps[3] = pair(pd, ibv_cq_ex_to_cq(cq), IBV_QPT_RC, IBV_QP_INIT_ATTR_SEND_OPS_FLAGS, IBV_QP_EX_WITH_SEND);
    for (at = 0; at < 4; at++)
        CHECK(!ibv_destroy_qp(qps[at]));
    CHECK(!ibv_destroy_cq(ibv_cq_ex_to_cq(cq)));
    CHECK(!ibv_destroy_cq(ibv_cq_ex_to_cq(unknown)));
}

int main(int count, char **words)
{
    const char *part = count > 1 ? words[1] : "";

    context = strcmp(part, "imported") ? open_first() : ibv_import_device(0);
    CHECK(context);
    pd = ibv_alloc_pd(context);
    CHECK(pd);
    if (!strcmp(part, "memory"))
        memory();
    if (!strcmp(part, "domain"))
        domain();
    if (!strcmp(part, "queues"))
        queues();
    if (!strcmp(part, "threads"))
        threads();
    if (!strcmp(part, "moved"))
        moved();
    if (!strcmp(part, "handed"))
        handed();
    if (!strcmp(part, "refused"))
        refused();
    if (!strcmp(part, "strange"))
        strange();
    CHECK(!ibv_dealloc_pd(pd));
    /* What the standby had goes in the order in which it came: the last PD is the end of it, where no probe has one of its own. */
    if (!strcmp(part, "memory") || !strcmp(part, "domain"))
        await("NULLVERBS_LOG", "dealloc_pd null1", lines_with("NULLVERBS_LOG", "\nalloc_pd null1"));
    CHECK(!ibv_close_device(context));
    puts("done");
    return 0;
}
