/* cc: -libverbs -pthread */
/*
 * Waiting for events: of completions and asynchronous ones, blocking and not, cancelled, and acknowledged late.
 */
#define _GNU_SOURCE
#include <infiniband/verbs.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "program.h"

int nullverbs_complete(struct ibv_cq *cq, const struct ibv_wc *wc);
int nullverbs_async(struct ibv_context *context, const struct ibv_async_event *event);

static atomic_bool acknowledged;

static void set_blocking(int fd, int blocks)
{
    int flags = fcntl(fd, F_GETFL);

    CHECK(flags >= 0 && !fcntl(fd, F_SETFL, blocks ? flags & ~O_NONBLOCK : flags | O_NONBLOCK));
}

static int is_readable(int fd)
{
    struct pollfd wish = { .fd = fd, .events = POLLIN };

    return poll(&wish, 1, 0) == 1;
}

static void complete(struct ibv_cq *cq, enum ibv_wc_status status)
{
    struct ibv_wc wc;

    memset(&wc, 0, sizeof(wc));
    wc.wr_id = 7;
    wc.status = status;
    CHECK(!nullverbs_complete(cq, &wc));
}

static void *take_for_ever(void *channel)
{
    struct ibv_cq *cq;
    void *context;

    for (;;)
        CHECK(!ibv_get_cq_event(channel, &cq, &context));
    return NULL;
}

static void *hear_for_ever(void *context)
{
    struct ibv_async_event event;

    for (;;)
        CHECK(!ibv_get_async_event(context, &event));
    return NULL;
}

static void *acknowledge_late(void *cq)
{
    usleep(100 * 1000);
    atomic_store(&acknowledged, true);
    ibv_ack_cq_events(cq, 1);
    return NULL;
}

/* Cancelled while it sleeps; where it had not come that far, on the way there. */
static void cancel(void *(*wait)(void *), void *object)
{
    pthread_t thread;
    void *result;

    CHECK(!pthread_create(&thread, NULL, wait, object));
    usleep(50 * 1000);
    CHECK(!pthread_cancel(thread) && !pthread_join(thread, &result) && result == PTHREAD_CANCELED);
}

static void of_completions(struct ibv_context *context)
{
    struct ibv_comp_channel *channel = ibv_create_comp_channel(context);
    int mark, other;
    struct ibv_cq *cq, *second, *told;
    void *told_context;
    struct ibv_wc wc;
    pthread_t thread;

    CHECK(channel && channel->context == context);
    cq = ibv_create_cq(context, 16, &mark, channel, 0);
    second = ibv_create_cq(context, 16, &other, channel, 0);
    CHECK(cq && second && cq->channel == channel && second->channel == channel && channel->refcnt == 2);
    CHECK(ibv_destroy_comp_channel(channel) == EBUSY);
    set_blocking(channel->fd, 0);
    CHECK(ibv_get_cq_event(channel, &told, &told_context) == -1 && errno == EAGAIN && !is_readable(channel->fd));

    complete(cq, IBV_WC_SUCCESS);
    CHECK(!is_readable(channel->fd));
    CHECK(ibv_poll_cq(cq, 1, &wc) == 1 && wc.wr_id == 7);
    CHECK(!ibv_req_notify_cq(second, 1));
    complete(second, IBV_WC_SUCCESS);
    CHECK(!is_readable(channel->fd));
    complete(second, IBV_WC_GENERAL_ERR);
    CHECK(is_readable(channel->fd) && !ibv_get_cq_event(channel, &told, &told_context));
    CHECK(told == second && told_context == &other && !is_readable(channel->fd));
    ibv_ack_cq_events(second, 1);

    set_blocking(channel->fd, 1);
    CHECK(!ibv_req_notify_cq(cq, 0));
    complete(cq, IBV_WC_SUCCESS);
    complete(cq, IBV_WC_SUCCESS);
    CHECK(!ibv_get_cq_event(channel, &told, &told_context) && told == cq && told_context == &mark);
    CHECK(!is_readable(channel->fd));
    cancel(take_for_ever, channel);
    CHECK(!pthread_create(&thread, NULL, acknowledge_late, cq));
    CHECK(!ibv_destroy_cq(cq) && atomic_load(&acknowledged) && channel->refcnt == 1);
    CHECK(!pthread_join(thread, NULL) && !ibv_destroy_cq(second) && !ibv_destroy_comp_channel(channel));
    puts("completions: right");
}

static void asynchronous(struct ibv_context *context)
{
    struct ibv_async_event event, told;

    set_blocking(context->async_fd, 0);
    CHECK(ibv_get_async_event(context, &told) == -1 && errno == EAGAIN);
    memset(&event, 0, sizeof(event));
    event.event_type = IBV_EVENT_PORT_ERR;
    event.element.port_num = 1;
    /* Nothing is protected here: it is told. */
    CHECK(!nullverbs_async(context, &event) && is_readable(context->async_fd));
    CHECK(!ibv_get_async_event(context, &told) && told.event_type == IBV_EVENT_PORT_ERR && told.element.port_num == 1);
    ibv_ack_async_event(&told);
    CHECK(ibv_get_async_event(context, &told) == -1 && errno == EAGAIN);
    set_blocking(context->async_fd, 1);
    cancel(hear_for_ever, context);
    puts("asynchronous: right");
}

int main(void)
{
    struct ibv_device **devices = ibv_get_device_list(NULL);
    struct ibv_context *context;

    CHECK(devices && devices[0]);
    context = ibv_open_device(devices[0]);
    CHECK(context);
    ibv_free_device_list(devices);
    of_completions(context);
    asynchronous(context);
    CHECK(!ibv_close_device(context));
    return 0;
}
