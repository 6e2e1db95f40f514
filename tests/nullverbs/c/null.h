/*
 * A verbs library whose devices do nothing: what its parts share.
 *
 * It stands in for libibverbs where no RDMA is, and for verbs that soft-RoCE lacks. It carries no byte, so it proves nothing about survival.
 * Objects have the shapes of rdma-core's, for programs reach into them through the inline functions of verbs.h.
 *
 * NULLVERBS_DEVICES  how many devices there are, null0 and up (2).
 * NULLVERBS_POSTS    "complete": each signalled request succeeds when it is posted. "keep" (default): it stays out until ERR flushes it, or
 *                    until nullverbs_complete says what became of it.
 * NULLVERBS_QPNS     "reuse": a queue pair gets the lowest number that no other of its device has. Default: a number is never used again.
 * NULLVERBS_HOST     a number below 256: GIDs are no IP addresses, and those of this host.
 * NULLVERBS_LOG      a file that gets a line for each control verb.
 * NULLVERBS_REFUSE   "VERB:DEVICE,…": what fails with EOPNOTSUPP.
 */
#ifndef NULLVERBS_NULL_H
#define NULLVERBS_NULL_H

#include <errno.h>
#include <infiniband/verbs.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#undef ibv_get_device_list
#undef ibv_query_port
#undef ibv_reg_mr
#undef ibv_reg_mr_iova

#define NULL_VENDOR 0x4e55
#define NULL_MAX_DEVICES 16
#define NULL_MAX_WR 16384
#define NULL_MAX_SGE 16
#define NULL_MAX_INLINE 256

/* Begins with C's object: a pointer to one is a pointer to the other. */
struct null_device {
    struct ibv_device base;
    unsigned int number;
    /* From then on each send on it ends in RETRY_EXC_ERR. */
    atomic_bool dead;
};

struct null_context {
    struct verbs_context verbs;
    int async_in;
};

struct null_channel {
    struct ibv_comp_channel base;
    int in;
};

struct null_cq {
    /* The first fields are those of struct ibv_cq. */
    struct ibv_cq_ex base;
    pthread_spinlock_t lock;
    struct ibv_wc *ring;
    unsigned int size, head, count;
    /* What the readers of the extended interface answer from. */
    struct ibv_wc current;
    /* 0: not asked for, 1: any completion, 2: solicited or failed ones. */
    int notify;
    unsigned int events;
    /* As it was made; as elsewhere, the field of the object is only looked at. */
    struct null_channel *channel;
};

/* Requests that are out: a queue of wr_id. */
struct null_requests {
    uint64_t *ids;
    unsigned int size, head, count;
};

struct null_qp {
    struct ibv_qp_ex base;
    struct ibv_qp_cap cap;
    struct ibv_qp_attr attr;
    struct ibv_ece ece;
    bool all_signalled;
    pthread_spinlock_t lock;
    struct null_requests sends, receives;
    /* Between wr_start and wr_complete. */
    struct ibv_send_wr *building;
    unsigned int built;
};

struct null_srq {
    struct ibv_srq base;
    struct ibv_srq_attr attr;
    struct null_requests receives;
};

/* A line of the log: verb, device, words. */
__attribute__((format(printf, 3, 4))) void nullverbs_log(const char *verb, const struct ibv_context *context, const char *words, ...);
/* Whether the verb is refused on this device; sets errno. */
bool null_refuses(const char *verb, const struct ibv_context *context);
bool null_completes(void);
uint32_t null_number(void);

struct ibv_context *nullverbs_open(struct ibv_device *device, const char *verb);
struct ibv_mr *nullverbs_make_mr(const char *verb, struct ibv_pd *pd, void *addr, size_t length, uint64_t iova, const char *words);
struct ibv_cq_ex *nullverbs_make_cq(const char *verb, struct ibv_context *context, struct ibv_cq_init_attr_ex *attr);
struct ibv_qp *nullverbs_make_qp(const char *verb, struct ibv_context *context, struct ibv_qp_init_attr_ex *attr);
/* Puts a completion into a CQ. */
int nullverbs_complete(struct ibv_cq *cq, const struct ibv_wc *wc);
/* A message comes to a queue pair and takes a receive of its SRQ. */
int nullverbs_receive(struct ibv_qp *qp);
/* The device of a context loses its path: what is posted on it from now on, in whatever context, ends in RETRY_EXC_ERR. */
void nullverbs_kill(struct ibv_context *context);
/* Puts an asynchronous event into a context. */
int nullverbs_async(struct ibv_context *context, const struct ibv_async_event *event);

/* Fills the tables of a context that is being made. */
void null_memory_ops(struct verbs_context *verbs);
void null_queue_ops(struct verbs_context *verbs);
void null_pair_ops(struct verbs_context *verbs);

/* 0, or ENOMEM if there is no room. */
int null_push(struct null_requests *requests, uint64_t id);
void null_free(struct null_requests *requests);

#endif
