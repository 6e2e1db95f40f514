/* What the programs share: they end at the first thing that is not as it must be, connect queue pairs, and wait for what a file tells. */
#ifndef NULLVERBS_PROGRAM_H
#define NULLVERBS_PROGRAM_H

#include <infiniband/verbs.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define CHECK(condition)                                                     \
    do {                                                                     \
        if (!(condition)) {                                                  \
            fprintf(stderr, "line %d: %s: %m\n", __LINE__, #condition);      \
            exit(2);                                                         \
        }                                                                    \
    } while (0)

/* The first device. */
static inline struct ibv_context *open_first(void)
{
    struct ibv_device **list = ibv_get_device_list(NULL);
    struct ibv_context *context = list ? ibv_open_device(list[0]) : NULL;

    CHECK(context);
    ibv_free_device_list(list);
    return context;
}

/* From RESET to RTR: connected to the queue pair of that number, of the same device, or of that of the host NULLVERBS_PEER; with these options of its connection, if there are some. */
static inline void connect_to(struct ibv_qp *qp, uint32_t number, struct ibv_ece *ece)
{
    int to_init = IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS;
    int to_rtr = IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN | IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC | IBV_QP_MIN_RNR_TIMER;
    struct ibv_qp_attr attr = { .qp_state = IBV_QPS_INIT, .port_num = 1, .qp_access_flags = IBV_ACCESS_REMOTE_WRITE };

    CHECK(!ibv_modify_qp(qp, &attr, to_init));
    CHECK(!ece || !ibv_set_ece(qp, ece));
    attr = (struct ibv_qp_attr){ .qp_state = IBV_QPS_RTR, .path_mtu = IBV_MTU_1024, .dest_qp_num = number, .max_dest_rd_atomic = 1 };
    attr.ah_attr.is_global = 1;
    attr.ah_attr.port_num = 1;
    attr.ah_attr.grh.sgid_index = 1;
    CHECK(!ibv_query_gid(qp->context, 1, 1, &attr.ah_attr.grh.dgid));
    if (getenv("NULLVERBS_PEER"))
        attr.ah_attr.grh.dgid.raw[14] = (uint8_t)atoi(getenv("NULLVERBS_PEER"));
    CHECK(!ibv_modify_qp(qp, &attr, to_rtr));
}

/* To RTS, to itself. */
static inline void connect_to_itself(struct ibv_qp *qp, struct ibv_ece *ece)
{
    int to_rts = IBV_QP_STATE | IBV_QP_SQ_PSN | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY | IBV_QP_MAX_QP_RD_ATOMIC;
    struct ibv_qp_attr attr = { .qp_state = IBV_QPS_RTS, .timeout = 14, .retry_cnt = 7, .rnr_retry = 7, .max_rd_atomic = 1 };

    connect_to(qp, qp->qp_num, ece);
    CHECK(!ibv_modify_qp(qp, &attr, to_rts));
}

/* How many lines of the file that this variable names have this in them; with "\n" before it, begin with it. */
static inline int lines_with(const char *variable, const char *wanted)
{
    FILE *file = fopen(getenv(variable), "r");
    char line[512] = "\n";
    int found = 0;

    while (file && fgets(line + 1, sizeof(line) - 1, file))
        found += strstr(line, wanted) != NULL;
    if (file)
        fclose(file);
    return found;
}

/* Until so many lines are there, which a thread of the shim's own brings about. */
static inline void await(const char *variable, const char *wanted, int count)
{
    struct timespec pause = { .tv_nsec = 10000000 };
    int turn;

    for (turn = 0; turn < 1000; turn++) {
        if (lines_with(variable, wanted) >= count)
            return;
        nanosleep(&pause, NULL);
    }
    fprintf(stderr, "no %s\n", wanted);
    CHECK(!"a line that was waited for");
}

#endif
