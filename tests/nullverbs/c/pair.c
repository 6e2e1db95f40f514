/* Queue pairs, the calls that build requests, shared receive queues, address handles. */
#include "null.h"

static struct null_qp *qp_of(struct ibv_qp *qp)
{
    return (struct null_qp *)qp;
}

static struct null_qp *ex_of(struct ibv_qp_ex *qp)
{
    return (struct null_qp *)qp;
}

int null_push(struct null_requests *requests, uint64_t id)
{
    if (requests->count == requests->size)
        return ENOMEM;
    requests->ids[(requests->head + requests->count++) % requests->size] = id;
    return 0;
}

void null_free(struct null_requests *requests)
{
    free(requests->ids);
}

static bool make_room(struct null_requests *requests, unsigned int size)
{
    requests->size = size;
    requests->ids = calloc(size ? size : 1, sizeof(*requests->ids));
    return requests->ids != NULL;
}

static enum ibv_wc_opcode completed(enum ibv_wr_opcode opcode)
{
    switch (opcode) {
    case IBV_WR_RDMA_WRITE:
    case IBV_WR_RDMA_WRITE_WITH_IMM:
        return IBV_WC_RDMA_WRITE;
    case IBV_WR_RDMA_READ:
        return IBV_WC_RDMA_READ;
    case IBV_WR_ATOMIC_CMP_AND_SWP:
        return IBV_WC_COMP_SWAP;
    case IBV_WR_ATOMIC_FETCH_AND_ADD:
        return IBV_WC_FETCH_ADD;
    default:
        return IBV_WC_SEND;
    }
}

static void flush(struct null_qp *qp, struct null_requests *requests, struct ibv_cq *cq)
{
    struct ibv_wc wc = { .status = IBV_WC_WR_FLUSH_ERR, .qp_num = qp->base.qp_base.qp_num };

    for (; requests->count; requests->count--) {
        wc.wr_id = requests->ids[requests->head];
        requests->head = (requests->head + 1) % requests->size;
        nullverbs_complete(cq, &wc);
    }
}

static int send_one(struct null_qp *qp, const struct ibv_send_wr *wr)
{
    bool signalled = qp->all_signalled || (wr->send_flags & IBV_SEND_SIGNALED);
    struct ibv_wc wc = { .wr_id = wr->wr_id, .opcode = completed(wr->opcode), .qp_num = qp->base.qp_base.qp_num };
    int at;

    if (qp->base.qp_base.state != IBV_QPS_RTS && qp->base.qp_base.state != IBV_QPS_ERR)
        return EINVAL;
    if (qp->base.qp_base.state == IBV_QPS_ERR) {
        wc.status = IBV_WC_WR_FLUSH_ERR;
        return nullverbs_complete(qp->base.qp_base.send_cq, &wc);
    }
    if (atomic_load(&((struct null_device *)qp->base.qp_base.context->device)->dead)) {
        qp->base.qp_base.state = IBV_QPS_ERR;
        wc.status = IBV_WC_RETRY_EXC_ERR;
        return nullverbs_complete(qp->base.qp_base.send_cq, &wc);
    }
    if (!null_completes())
        return null_push(&qp->sends, wr->wr_id);
    for (at = 0; at < wr->num_sge; at++)
        wc.byte_len += wr->sg_list[at].length;
    return signalled ? nullverbs_complete(qp->base.qp_base.send_cq, &wc) : 0;
}

static int post_send(struct ibv_qp *base, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
    struct null_qp *qp = qp_of(base);
    int status = 0;

    pthread_spin_lock(&qp->lock);
    for (; wr && !status; wr = wr->next) {
        status = send_one(qp, wr);
        if (status)
            *bad = wr;
    }
    pthread_spin_unlock(&qp->lock);
    return status;
}

static int post_recv(struct ibv_qp *base, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
    struct null_qp *qp = qp_of(base);
    int status = base->state == IBV_QPS_RESET ? EINVAL : 0;

    *bad = wr;
    pthread_spin_lock(&qp->lock);
    for (; wr && !status; wr = wr->next) {
        status = null_push(&qp->receives, wr->wr_id);
        *bad = wr;
    }
    if (base->state == IBV_QPS_ERR)
        flush(qp, &qp->receives, base->recv_cq);
    pthread_spin_unlock(&qp->lock);
    return status;
}

static void build(struct ibv_qp_ex *base, enum ibv_wr_opcode opcode)
{
    struct null_qp *qp = ex_of(base);

    if (qp->built < qp->cap.max_send_wr)
        qp->building[qp->built] = (struct ibv_send_wr){ .wr_id = base->wr_id, .opcode = opcode, .send_flags = base->wr_flags };
    qp->built++;
}

static void wr_send(struct ibv_qp_ex *qp)
{
    build(qp, IBV_WR_SEND);
}

static void wr_send_imm(struct ibv_qp_ex *qp, __be32 imm)
{
    (void)imm;
    build(qp, IBV_WR_SEND_WITH_IMM);
}

static void wr_rdma_write(struct ibv_qp_ex *qp, uint32_t rkey, uint64_t address)
{
    (void)rkey;
    (void)address;
    build(qp, IBV_WR_RDMA_WRITE);
}

static void wr_rdma_write_imm(struct ibv_qp_ex *qp, uint32_t rkey, uint64_t address, __be32 imm)
{
    (void)rkey;
    (void)address;
    (void)imm;
    build(qp, IBV_WR_RDMA_WRITE_WITH_IMM);
}

static void wr_rdma_read(struct ibv_qp_ex *qp, uint32_t rkey, uint64_t address)
{
    (void)rkey;
    (void)address;
    build(qp, IBV_WR_RDMA_READ);
}

static void wr_atomic_cmp_swp(struct ibv_qp_ex *qp, uint32_t rkey, uint64_t address, uint64_t compare, uint64_t swap)
{
    (void)rkey;
    (void)address;
    (void)compare;
    (void)swap;
    build(qp, IBV_WR_ATOMIC_CMP_AND_SWP);
}

static void wr_atomic_fetch_add(struct ibv_qp_ex *qp, uint32_t rkey, uint64_t address, uint64_t add)
{
    (void)rkey;
    (void)address;
    (void)add;
    build(qp, IBV_WR_ATOMIC_FETCH_AND_ADD);
}

/* What is said of the data of a request does not matter here. */
static void wr_set_sge(struct ibv_qp_ex *qp, uint32_t lkey, uint64_t address, uint32_t length)
{
    (void)qp;
    (void)lkey;
    (void)address;
    (void)length;
}

static void wr_set_sge_list(struct ibv_qp_ex *qp, size_t count, const struct ibv_sge *list)
{
    (void)qp;
    (void)count;
    (void)list;
}

static void wr_set_inline_data(struct ibv_qp_ex *qp, void *address, size_t length)
{
    (void)qp;
    (void)address;
    (void)length;
}

static void wr_set_inline_data_list(struct ibv_qp_ex *qp, size_t count, const struct ibv_data_buf *list)
{
    (void)qp;
    (void)count;
    (void)list;
}

static void wr_start(struct ibv_qp_ex *qp)
{
    pthread_spin_lock(&ex_of(qp)->lock);
    ex_of(qp)->built = 0;
}

static int wr_complete(struct ibv_qp_ex *base)
{
    struct null_qp *qp = ex_of(base);
    int status = qp->built > qp->cap.max_send_wr ? ENOMEM : 0;
    unsigned int at;

    for (at = 0; at < qp->built && !status; at++)
        status = send_one(qp, &qp->building[at]);
    pthread_spin_unlock(&qp->lock);
    return status;
}

static void wr_abort(struct ibv_qp_ex *qp)
{
    pthread_spin_unlock(&ex_of(qp)->lock);
}

static void set_builders(struct ibv_qp_ex *qp)
{
    qp->wr_send = wr_send;
    qp->wr_send_imm = wr_send_imm;
    qp->wr_rdma_write = wr_rdma_write;
    qp->wr_rdma_write_imm = wr_rdma_write_imm;
    qp->wr_rdma_read = wr_rdma_read;
    qp->wr_atomic_cmp_swp = wr_atomic_cmp_swp;
    qp->wr_atomic_fetch_add = wr_atomic_fetch_add;
    qp->wr_set_sge = wr_set_sge;
    qp->wr_set_sge_list = wr_set_sge_list;
    qp->wr_set_inline_data = wr_set_inline_data;
    qp->wr_set_inline_data_list = wr_set_inline_data_list;
    qp->wr_start = wr_start;
    qp->wr_complete = wr_complete;
    qp->wr_abort = wr_abort;
}

static bool fits(const struct ibv_qp_cap *cap)
{
    return cap->max_send_wr <= NULL_MAX_WR && cap->max_recv_wr <= NULL_MAX_WR && cap->max_send_sge <= NULL_MAX_SGE &&
           cap->max_recv_sge <= NULL_MAX_SGE && cap->max_inline_data <= NULL_MAX_INLINE;
}

/* Of each device, which numbers are taken. */
#define NUMBERS 1024
#define FIRST_NUMBER 16
static atomic_bool taken[NULL_MAX_DEVICES][NUMBERS];

static bool reuses_numbers(void)
{
    const char *how = getenv("NULLVERBS_QPNS");

    return how && !strcmp(how, "reuse");
}

static unsigned int device_number(const struct ibv_qp *qp)
{
    return ((const struct null_device *)qp->context->device)->number % NULL_MAX_DEVICES;
}

static uint32_t take_qpn(const struct ibv_qp *qp)
{
    for (uint32_t number = FIRST_NUMBER; reuses_numbers() && number < NUMBERS; number++)
        if (!atomic_exchange(&taken[device_number(qp)][number], true))
            return number;
    return qp->handle & 0xffffff;
}

static void give_qpn_back(const struct ibv_qp *qp)
{
    if (reuses_numbers() && qp->qp_num < NUMBERS)
        atomic_store(&taken[device_number(qp)][qp->qp_num], false);
}

struct ibv_qp *nullverbs_make_qp(const char *verb, struct ibv_context *context, struct ibv_qp_init_attr_ex *attr)
{
    struct null_qp *qp;
    struct ibv_qp *base;

    if (!(attr->comp_mask & IBV_QP_INIT_ATTR_PD) || !fits(&attr->cap)) {
        errno = EINVAL;
        return NULL;
    }
    if (null_refuses(verb, context))
        return NULL;
    qp = calloc(1, sizeof(*qp));
    if (!qp || !make_room(&qp->sends, attr->cap.max_send_wr) || !make_room(&qp->receives, attr->cap.max_recv_wr))
        abort();
    qp->building = calloc(attr->cap.max_send_wr + 1, sizeof(*qp->building));
    if (!qp->building)
        abort();
    base = &qp->base.qp_base;
    base->context = context;
    base->qp_context = attr->qp_context;
    base->pd = attr->pd;
    base->send_cq = attr->send_cq;
    base->recv_cq = attr->recv_cq;
    base->srq = attr->srq;
    base->handle = null_number();
    base->qp_num = take_qpn(base);
    base->state = IBV_QPS_RESET;
    base->qp_type = attr->qp_type;
    pthread_mutex_init(&base->mutex, NULL);
    pthread_cond_init(&base->cond, NULL);
    pthread_spin_init(&qp->lock, PTHREAD_PROCESS_PRIVATE);
    qp->cap = attr->cap;
    qp->all_signalled = attr->sq_sig_all;
    qp->ece.vendor_id = 0x15b3;
    qp->ece.options = 3;
    if (attr->comp_mask & IBV_QP_INIT_ATTR_SEND_OPS_FLAGS)
        set_builders(&qp->base);
    nullverbs_log(verb, context, "type=%d send_wr=%u recv_wr=%u comp_mask=0x%x srq=%s", attr->qp_type, attr->cap.max_send_wr,
                  attr->cap.max_recv_wr, attr->comp_mask, attr->srq ? "yes" : "no");
    return base;
}

static struct ibv_qp *create_qp_ex(struct ibv_context *context, struct ibv_qp_init_attr_ex *attr)
{
    return nullverbs_make_qp("create_qp_ex", context, attr);
}

struct ibv_qp *ibv_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *attr)
{
    struct ibv_qp_init_attr_ex full = {
        .qp_context = attr->qp_context,
        .send_cq = attr->send_cq,
        .recv_cq = attr->recv_cq,
        .srq = attr->srq,
        .cap = attr->cap,
        .qp_type = attr->qp_type,
        .sq_sig_all = attr->sq_sig_all,
        .comp_mask = IBV_QP_INIT_ATTR_PD,
        .pd = pd,
    };

    return nullverbs_make_qp("create_qp", pd->context, &full);
}

struct ibv_qp_ex *ibv_qp_to_qp_ex(struct ibv_qp *qp)
{
    return qp_of(qp)->base.wr_start ? &qp_of(qp)->base : NULL;
}

static void keep(struct ibv_qp_attr *to, const struct ibv_qp_attr *from, int mask)
{
#define KEEP(bit, field)  \
    if (mask & (bit))     \
        to->field = from->field;
    KEEP(IBV_QP_STATE, qp_state)
    KEEP(IBV_QP_ACCESS_FLAGS, qp_access_flags)
    KEEP(IBV_QP_PKEY_INDEX, pkey_index)
    KEEP(IBV_QP_PORT, port_num)
    KEEP(IBV_QP_QKEY, qkey)
    KEEP(IBV_QP_AV, ah_attr)
    KEEP(IBV_QP_PATH_MTU, path_mtu)
    KEEP(IBV_QP_TIMEOUT, timeout)
    KEEP(IBV_QP_RETRY_CNT, retry_cnt)
    KEEP(IBV_QP_RNR_RETRY, rnr_retry)
    KEEP(IBV_QP_RQ_PSN, rq_psn)
    KEEP(IBV_QP_MAX_QP_RD_ATOMIC, max_rd_atomic)
    KEEP(IBV_QP_MIN_RNR_TIMER, min_rnr_timer)
    KEEP(IBV_QP_SQ_PSN, sq_psn)
    KEEP(IBV_QP_MAX_DEST_RD_ATOMIC, max_dest_rd_atomic)
    KEEP(IBV_QP_DEST_QPN, dest_qp_num)
#undef KEEP
}

int ibv_modify_qp(struct ibv_qp *base, struct ibv_qp_attr *attr, int mask)
{
    struct null_qp *qp = qp_of(base);

    if (null_refuses("modify_qp", base->context))
        return EOPNOTSUPP;
    pthread_spin_lock(&qp->lock);
    keep(&qp->attr, attr, mask);
    if (mask & IBV_QP_STATE) {
        base->state = attr->qp_state;
        if (attr->qp_state == IBV_QPS_ERR) {
            flush(qp, &qp->sends, base->send_cq);
            flush(qp, &qp->receives, base->recv_cq);
        }
        if (attr->qp_state == IBV_QPS_RESET)
            qp->sends.count = qp->receives.count = 0;
    }
    pthread_spin_unlock(&qp->lock);
    nullverbs_log("modify_qp", base->context, "qpn=%u state=%d mask=0x%x timeout=%d retry_cnt=%d", base->qp_num, base->state, (unsigned int)mask,
                  qp->attr.timeout, qp->attr.retry_cnt);
    return 0;
}

int ibv_query_qp(struct ibv_qp *base, struct ibv_qp_attr *attr, int mask, struct ibv_qp_init_attr *init)
{
    struct null_qp *qp = qp_of(base);

    (void)mask;
    *attr = qp->attr;
    attr->qp_state = attr->cur_qp_state = base->state;
    attr->cap = qp->cap;
    memset(init, 0, sizeof(*init));
    init->qp_context = base->qp_context;
    init->send_cq = base->send_cq;
    init->recv_cq = base->recv_cq;
    init->srq = base->srq;
    init->cap = qp->cap;
    init->qp_type = base->qp_type;
    init->sq_sig_all = qp->all_signalled;
    return 0;
}

int ibv_query_qp_data_in_order(struct ibv_qp *qp, enum ibv_wr_opcode opcode, uint32_t flags)
{
    (void)qp;
    (void)opcode;
    (void)flags;
    return 0;
}

int ibv_destroy_qp(struct ibv_qp *base)
{
    struct null_qp *qp = qp_of(base);

    if (null_refuses("destroy_qp", base->context))
        return EBUSY;
    nullverbs_log("destroy_qp", base->context, "qpn=%u", base->qp_num);
    give_qpn_back(base);
    null_free(&qp->sends);
    null_free(&qp->receives);
    free(qp->building);
    free(qp);
    return 0;
}

int ibv_query_ece(struct ibv_qp *qp, struct ibv_ece *ece)
{
    if (null_refuses("query_ece", qp->context))
        return EOPNOTSUPP;
    *ece = qp_of(qp)->ece;
    return 0;
}

int ibv_set_ece(struct ibv_qp *qp, struct ibv_ece *ece)
{
    if (null_refuses("set_ece", qp->context))
        return EOPNOTSUPP;
    qp_of(qp)->ece = *ece;
    nullverbs_log("set_ece", qp->context, "vendor=0x%x options=0x%x", ece->vendor_id, ece->options);
    return 0;
}

static struct ibv_srq *create_srq_ex(struct ibv_context *context, struct ibv_srq_init_attr_ex *attr)
{
    struct null_srq *srq;

    if (null_refuses("create_srq", context))
        return NULL;
    srq = calloc(1, sizeof(*srq));
    if (!srq || !make_room(&srq->receives, attr->attr.max_wr))
        abort();
    srq->base.context = context;
    srq->base.srq_context = attr->srq_context;
    srq->base.pd = attr->pd;
    srq->base.handle = null_number();
    srq->attr = attr->attr;
    pthread_mutex_init(&srq->base.mutex, NULL);
    pthread_cond_init(&srq->base.cond, NULL);
    nullverbs_log("create_srq", context, "wr=%u type=%d", attr->attr.max_wr, attr->comp_mask & IBV_SRQ_INIT_ATTR_TYPE ? attr->srq_type : IBV_SRQT_BASIC);
    return &srq->base;
}

struct ibv_srq *ibv_create_srq(struct ibv_pd *pd, struct ibv_srq_init_attr *attr)
{
    struct ibv_srq_init_attr_ex full = { .srq_context = attr->srq_context, .attr = attr->attr, .pd = pd };

    return create_srq_ex(pd->context, &full);
}

int ibv_modify_srq(struct ibv_srq *srq, struct ibv_srq_attr *attr, int mask)
{
    if (mask & IBV_SRQ_LIMIT)
        ((struct null_srq *)srq)->attr.srq_limit = attr->srq_limit;
    return mask & IBV_SRQ_MAX_WR ? EOPNOTSUPP : 0;
}

int ibv_query_srq(struct ibv_srq *srq, struct ibv_srq_attr *attr)
{
    *attr = ((struct null_srq *)srq)->attr;
    return 0;
}

int ibv_destroy_srq(struct ibv_srq *srq)
{
    if (null_refuses("destroy_srq", srq->context))
        return EBUSY;
    nullverbs_log("destroy_srq", srq->context, "ok");
    null_free(&((struct null_srq *)srq)->receives);
    free(srq);
    return 0;
}

static int post_srq_recv(struct ibv_srq *base, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
    struct null_srq *srq = (struct null_srq *)base;
    int status = 0;

    pthread_mutex_lock(&base->mutex);
    for (; wr && !status; wr = wr->next) {
        status = null_push(&srq->receives, wr->wr_id);
        if (status)
            *bad = wr;
    }
    pthread_mutex_unlock(&base->mutex);
    return status;
}

int nullverbs_receive(struct ibv_qp *qp)
{
    struct null_requests *receives = &((struct null_srq *)qp->srq)->receives;
    struct ibv_wc wc = { .opcode = IBV_WC_RECV, .qp_num = qp->qp_num, .byte_len = 8 };

    pthread_mutex_lock(&qp->srq->mutex);
    if (receives->count) {
        wc.wr_id = receives->ids[receives->head];
        receives->head = (receives->head + 1) % receives->size;
        receives->count--;
    }
    pthread_mutex_unlock(&qp->srq->mutex);
    return wc.wr_id ? nullverbs_complete(qp->recv_cq, &wc) : ENODATA;
}

struct ibv_ah *ibv_create_ah(struct ibv_pd *pd, struct ibv_ah_attr *attr)
{
    struct ibv_ah *ah = calloc(1, sizeof(*ah));

    (void)attr;
    if (ah) {
        ah->context = pd->context;
        ah->pd = pd;
        ah->handle = null_number();
    }
    return ah;
}

int ibv_destroy_ah(struct ibv_ah *ah)
{
    free(ah);
    return 0;
}

static struct ibv_mw *alloc_mw(struct ibv_pd *pd, enum ibv_mw_type type)
{
    struct ibv_mw *mw = calloc(1, sizeof(*mw));

    if (!mw)
        return NULL;
    mw->context = pd->context;
    mw->pd = pd;
    mw->type = type;
    mw->handle = null_number();
    mw->rkey = mw->handle << 8;
    nullverbs_log("alloc_mw", pd->context, "type=%d", type);
    return mw;
}

static int dealloc_mw(struct ibv_mw *mw)
{
    nullverbs_log("dealloc_mw", mw->context, "ok");
    free(mw);
    return 0;
}

/* As providers do it: the request is posted past the table of functions. */
static int bind_mw(struct ibv_qp *qp, struct ibv_mw *mw, struct ibv_mw_bind *bind)
{
    struct ibv_send_wr wr = { .wr_id = bind->wr_id, .opcode = IBV_WR_BIND_MW, .send_flags = bind->send_flags }, *bad;

    nullverbs_log("bind_mw", qp->context, "length=%llu", (unsigned long long)bind->bind_info.length);
    mw->rkey++;
    return post_send(qp, &wr, &bad);
}

void null_pair_ops(struct verbs_context *verbs)
{
    verbs->context.ops.alloc_mw = alloc_mw;
    verbs->context.ops.bind_mw = bind_mw;
    verbs->context.ops.dealloc_mw = dealloc_mw;
    verbs->context.ops.post_send = post_send;
    verbs->context.ops.post_recv = post_recv;
    verbs->context.ops.post_srq_recv = post_srq_recv;
    verbs->create_qp_ex = create_qp_ex;
    verbs->create_srq_ex = create_srq_ex;
}
