/* Completion queues, their extended readers, and completion channels. */
#define _GNU_SOURCE
#include "null.h"

#include <sys/stat.h>
#include <fcntl.h>
#include <time.h>
#include <unistd.h>

static struct null_cq *cq_of(struct ibv_cq *cq)
{
    return (struct null_cq *)cq;
}

static struct null_cq *ex_of(struct ibv_cq_ex *cq)
{
    return (struct null_cq *)cq;
}

static struct null_cq *make_cq(struct ibv_context *context, uint32_t cqe, void *cq_context, struct ibv_comp_channel *channel)
{
    struct null_cq *cq;
    struct stat file;

    /* As the kernel, which knows the files of its own channels and no other. */
    if (channel && (fstat(channel->fd, &file) || !S_ISFIFO(file.st_mode))) {
        errno = EBADF;
        return NULL;
    }
    if (!cqe || null_refuses("create_cq", context)) {
        errno = cqe ? errno : EINVAL;
        return NULL;
    }
    cq = calloc(1, sizeof(*cq));
    if (!cq)
        return NULL;
    cq->ring = calloc(cqe, sizeof(*cq->ring));
    if (!cq->ring) {
        free(cq);
        return NULL;
    }
    cq->size = cqe;
    cq->base.context = context;
    cq->base.channel = channel;
    cq->base.cq_context = cq_context;
    cq->base.handle = null_number();
    cq->base.cqe = (int)cqe;
    pthread_mutex_init(&cq->base.mutex, NULL);
    pthread_cond_init(&cq->base.cond, NULL);
    pthread_spin_init(&cq->lock, PTHREAD_PROCESS_PRIVATE);
    cq->channel = (struct null_channel *)channel;
    if (channel)
        channel->refcnt++;
    return cq;
}

struct ibv_cq *ibv_create_cq(struct ibv_context *context, int cqe, void *cq_context, struct ibv_comp_channel *channel, int vector)
{
    struct null_cq *cq = make_cq(context, cqe > 0 ? (uint32_t)cqe : 0, cq_context, channel);

    (void)vector;
    if (!cq)
        return NULL;
    nullverbs_log("create_cq", context, "cqe=%d channel=%s", cqe, channel ? "yes" : "no");
    return (struct ibv_cq *)cq;
}

int ibv_resize_cq(struct ibv_cq *base, int cqe)
{
    struct null_cq *cq = cq_of(base);
    struct ibv_wc *ring;
    unsigned int at;

    if (null_refuses("resize_cq", base->context))
        return EOPNOTSUPP;
    if (cqe < 1 || cq->count > (unsigned int)cqe)
        return EINVAL;
    ring = calloc((size_t)cqe, sizeof(*ring));
    if (!ring)
        return ENOMEM;
    pthread_spin_lock(&cq->lock);
    for (at = 0; at < cq->count; at++)
        ring[at] = cq->ring[(cq->head + at) % cq->size];
    free(cq->ring);
    cq->ring = ring;
    cq->size = (unsigned int)cqe;
    cq->head = 0;
    base->cqe = cqe;
    pthread_spin_unlock(&cq->lock);
    nullverbs_log("resize_cq", base->context, "cqe=%d", cqe);
    return 0;
}

int ibv_destroy_cq(struct ibv_cq *base)
{
    struct null_cq *cq = cq_of(base);

    if (null_refuses("destroy_cq", base->context))
        return EBUSY;
    pthread_mutex_lock(&base->mutex);
    while (base->comp_events_completed != cq->events)
        pthread_cond_wait(&base->cond, &base->mutex);
    pthread_mutex_unlock(&base->mutex);
    nullverbs_log("destroy_cq", base->context, "ok");
    if (base->channel)
        base->channel->refcnt--;
    free(cq->ring);
    free(cq);
    return 0;
}

static void wake(struct null_cq *cq)
{
    struct null_channel *channel = cq->channel;

    cq->notify = 0;
    cq->events++;
    if (channel && write(channel->in, &cq, sizeof(cq)) != sizeof(cq))
        abort();
}

int nullverbs_complete(struct ibv_cq *base, const struct ibv_wc *wc)
{
    struct null_cq *cq = cq_of(base);
    int status = ENOMEM;

    pthread_spin_lock(&cq->lock);
    if (cq->count < cq->size) {
        cq->ring[(cq->head + cq->count++) % cq->size] = *wc;
        if (cq->base.channel && (cq->notify == 1 || (cq->notify == 2 && wc->status != IBV_WC_SUCCESS)))
            wake(cq);
        status = 0;
    }
    pthread_spin_unlock(&cq->lock);
    return status;
}

static bool take(struct null_cq *cq, struct ibv_wc *wc)
{
    bool found;

    pthread_spin_lock(&cq->lock);
    found = cq->count > 0;
    if (found) {
        *wc = cq->ring[cq->head];
        cq->head = (cq->head + 1) % cq->size;
        cq->count--;
    }
    pthread_spin_unlock(&cq->lock);
    return found;
}

static int poll_cq(struct ibv_cq *cq, int entries, struct ibv_wc *wc)
{
    int taken = 0;

    while (taken < entries && take(cq_of(cq), wc + taken))
        taken++;
    return taken;
}

static int req_notify_cq(struct ibv_cq *base, int solicited_only)
{
    cq_of(base)->notify = solicited_only ? 2 : 1;
    return 0;
}

struct ibv_comp_channel *ibv_create_comp_channel(struct ibv_context *context)
{
    struct null_channel *channel = calloc(1, sizeof(*channel));
    int ends[2];

    if (!channel || pipe2(ends, O_CLOEXEC)) {
        free(channel);
        return NULL;
    }
    channel->base.context = context;
    channel->base.fd = ends[0];
    channel->in = ends[1];
    nullverbs_log("create_comp_channel", context, "ok");
    return &channel->base;
}

int ibv_destroy_comp_channel(struct ibv_comp_channel *base)
{
    if (base->refcnt)
        return EBUSY;
    nullverbs_log("destroy_comp_channel", base->context, "ok");
    close(((struct null_channel *)base)->in);
    close(base->fd);
    free(base);
    return 0;
}

int ibv_get_cq_event(struct ibv_comp_channel *channel, struct ibv_cq **cq, void **cq_context)
{
    if (read(channel->fd, cq, sizeof(*cq)) != sizeof(*cq))
        return -1;
    *cq_context = (*cq)->cq_context;
    return 0;
}

void ibv_ack_cq_events(struct ibv_cq *cq, unsigned int events)
{
    pthread_mutex_lock(&cq->mutex);
    cq->comp_events_completed += events;
    pthread_cond_signal(&cq->cond);
    pthread_mutex_unlock(&cq->mutex);
}

static int next_poll(struct ibv_cq_ex *base)
{
    struct null_cq *cq = ex_of(base);

    if (!take(cq, &cq->current))
        return ENOENT;
    base->wr_id = cq->current.wr_id;
    base->status = cq->current.status;
    return 0;
}

static int start_poll(struct ibv_cq_ex *base, struct ibv_poll_cq_attr *attr)
{
    return attr->comp_mask ? EINVAL : next_poll(base);
}

static void end_poll(struct ibv_cq_ex *base)
{
    (void)base;
}

#define READER(type, name, value)                  \
    static type read_##name(struct ibv_cq_ex *cq)  \
    {                                              \
        return (type)(ex_of(cq)->current.value);   \
    }

READER(enum ibv_wc_opcode, opcode, opcode)
READER(uint32_t, vendor_err, vendor_err)
READER(uint32_t, byte_len, byte_len)
READER(__be32, imm_data, imm_data)
READER(uint32_t, qp_num, qp_num)
READER(uint32_t, src_qp, src_qp)
READER(unsigned int, wc_flags, wc_flags)
READER(uint32_t, slid, slid)
READER(uint8_t, sl, sl)
READER(uint8_t, dlid_path_bits, dlid_path_bits)

static uint64_t read_clock(struct ibv_cq_ex *cq)
{
    struct timespec now;

    (void)cq;
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

struct ibv_cq_ex *nullverbs_make_cq(const char *verb, struct ibv_context *context, struct ibv_cq_init_attr_ex *attr)
{
    struct null_cq *cq = make_cq(context, attr->cqe, attr->cq_context, attr->channel);
    struct ibv_cq_ex *base;

    if (!cq)
        return NULL;
    base = &cq->base;
    base->start_poll = start_poll;
    base->next_poll = next_poll;
    base->end_poll = end_poll;
    base->read_opcode = read_opcode;
    base->read_vendor_err = read_vendor_err;
    base->read_byte_len = read_byte_len;
    base->read_imm_data = read_imm_data;
    base->read_qp_num = read_qp_num;
    base->read_src_qp = read_src_qp;
    base->read_wc_flags = read_wc_flags;
    base->read_slid = read_slid;
    base->read_sl = read_sl;
    base->read_dlid_path_bits = read_dlid_path_bits;
    base->read_completion_ts = read_clock;
    base->read_completion_wallclock_ns = read_clock;
    nullverbs_log(verb, context, "cqe=%u wc_flags=0x%llx comp_mask=0x%x flags=0x%x parent_domain=%s", attr->cqe,
                  (unsigned long long)attr->wc_flags, attr->comp_mask, attr->comp_mask & IBV_CQ_INIT_ATTR_MASK_FLAGS ? attr->flags : 0,
                  attr->comp_mask & IBV_CQ_INIT_ATTR_MASK_PD ? "yes" : "no");
    return base;
}

static struct ibv_cq_ex *create_cq_ex(struct ibv_context *context, struct ibv_cq_init_attr_ex *attr)
{
    return nullverbs_make_cq("create_cq_ex", context, attr);
}

static int modify_cq(struct ibv_cq *cq, struct ibv_modify_cq_attr *attr)
{
    nullverbs_log("modify_cq", cq->context, "count=%u period=%u", attr->moderate.cq_count, attr->moderate.cq_period);
    return 0;
}

void null_queue_ops(struct verbs_context *verbs)
{
    verbs->context.ops.poll_cq = poll_cq;
    verbs->context.ops.req_notify_cq = req_notify_cq;
    verbs->create_cq_ex = create_cq_ex;
    verbs->modify_cq = modify_cq;
}
